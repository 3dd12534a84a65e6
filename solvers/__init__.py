"""Numerical solvers in JAX: jitted, batched, differentiable, and truthful about their answers."""

from .core.progress import print_progress as print_progress
from .core.progress import tqdm_progress as tqdm_progress
from .core.solution import Solution as Solution
from .core.solution import SolveError as SolveError
from .core.solution import Status as Status
from .transport.fixed_point import sinkhorn as sinkhorn
from .transport.newton import sns_sinkhorn as sns_sinkhorn
from .transport.problem import TransportStatus as TransportStatus
from .transport.published import PublishedSNS as PublishedSNS
from .transport.solution import TransportSolution as TransportSolution

__version__ = "0.1.0"
