"""Numerical solvers in JAX: jitted, batched, differentiable, and truthful about their answers."""

from .core.progress import print_progress as print_progress
from .core.progress import tqdm_progress as tqdm_progress
from .core.solution import Solution as Solution
from .core.solution import SolveError as SolveError
from .core.solution import Status as Status
from .transport.newton import sns_sinkhorn as sns_sinkhorn

__version__ = "0.1.0"
