"""State-space models: diagonal layers for long sequences, and Gaussian ones in linear time."""

from ..core.gaussian.kernels import Matern as Matern
from ..core.gaussian.kernels import PeriodicKernel as PeriodicKernel
from ..core.gaussian.sde import StateSpaceKernel as StateSpaceKernel
from ..core.gaussian.sde import to_sde as to_sde
from .diagonal import DiagonalSSM as DiagonalSSM
from .initialization import hippo as hippo
from .initialization import ptd as ptd
from .initialization import s4d_inv as s4d_inv
from .initialization import s4d_legs as s4d_legs
from .initialization import s4d_lin as s4d_lin
from .initialization import s4d_real as s4d_real
from .initialization import s5 as s5
from .mimo import DiagonalMIMO as DiagonalMIMO
from .models import Beliefs as Beliefs
from .models import GaussianStatus as GaussianStatus
from .models import LinearGaussian as LinearGaussian
from .models import kalman_filter as kalman_filter
from .models import kalman_smoother as kalman_smoother
from .perturbation import Diagonalization as Diagonalization
from .perturbation import perturb_then_diagonalize as perturb_then_diagonalize
from .regression import GPBeliefs as GPBeliefs
from .regression import gp_regression as gp_regression
from .response import HinfDistance as HinfDistance
from .response import LinearSystem as LinearSystem
from .response import hinf_distance as hinf_distance
from .response import transfer as transfer
