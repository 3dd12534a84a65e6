"""Numerical solvers in JAX: jitted, batched, differentiable, and truthful about their answers."""

from .core.progress import print_progress as print_progress
from .core.progress import tqdm_progress as tqdm_progress
from .core.solution import Solution as Solution
from .core.solution import SolveError as SolveError
from .core.solution import Status as Status
from .pde import Box as Box
from .pde import Dirichlet as Dirichlet
from .pde import GPSolution as GPSolution
from .pde import Matern as Matern
from .pde import Neumann as Neumann
from .pde import Observe as Observe
from .pde import PDEProblem as PDEProblem
from .pde import PDEStatus as PDEStatus
from .pde import Periodic as Periodic
from .pde import PeriodicKernel as PeriodicKernel
from .pde import Robin as Robin
from .pde import SpectralMixture as SpectralMixture
from .pde import SquaredExponential as SquaredExponential
from .pde import StudentMixture as StudentMixture
from .pde import gp_solve as gp_solve
from .transport.fixed_point import sinkhorn as sinkhorn
from .transport.newton import sns_sinkhorn as sns_sinkhorn
from .transport.problem import TransportStatus as TransportStatus
from .transport.published import PublishedSNS as PublishedSNS
from .transport.solution import TransportSolution as TransportSolution

__version__ = "0.1.0"

__all__ = [
    "PublishedSNS",
    "Solution",
    "SolveError",
    "Status",
    "TransportSolution",
    "TransportStatus",
    "print_progress",
    "sinkhorn",
    "sns_sinkhorn",
    "tqdm_progress",
]
