"""Inverse problems: forward operators, variational solvers, learned proximal maps, diffusion samplers."""

from ..core.total_variation import Differences as Differences
from ..core.total_variation import TotalVariation as TotalVariation
from ..core.total_variation import TotalVariationSolution as TotalVariationSolution
from .forward.images import Blur as Blur
from .forward.images import Downsample as Downsample
from .forward.images import FourierSampling as FourierSampling
from .forward.images import Mask as Mask
from .forward.quadratic import prox_quadratic as prox_quadratic
from .forward.tomography import Radon as Radon
from .forward.tomography import filtered_back_projection as filtered_back_projection
from .variational.proximal_gradient import pgd as pgd
from .variational.splitting import admm as admm
from .variational.splitting import hqs as hqs
from .variational.statement import InverseSolution as InverseSolution
from .variational.statement import InverseStatus as InverseStatus
