"""Gaussian-process and spectral solution of differential equations on product grids."""

from ..core.gaussian.kernels import Kernel as Kernel
from ..core.gaussian.kernels import Matern as Matern
from ..core.gaussian.kernels import PeriodicKernel as PeriodicKernel
from ..core.gaussian.kernels import SpectralMixture as SpectralMixture
from ..core.gaussian.kernels import SquaredExponential as SquaredExponential
from ..core.gaussian.kernels import StudentMixture as StudentMixture
from .gaussian.published import PublishedGPHM as PublishedGPHM
from .problem import Box as Box
from .problem import Condition as Condition
from .problem import Dirichlet as Dirichlet
from .problem import Neumann as Neumann
from .problem import Observe as Observe
from .problem import PDEProblem as PDEProblem
from .problem import Periodic as Periodic
from .problem import Robin as Robin
from .solution import GPSolution as GPSolution
from .solution import PDEStatus as PDEStatus
from .solve import gp_solve as gp_solve
