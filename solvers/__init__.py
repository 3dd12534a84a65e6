"""Numerical solvers in JAX: jitted, batched, differentiable, and truthful about their answers."""

from .constrained.dense import DenseKKT as DenseKKT
from .constrained.kkt import KKT as KKT
from .constrained.matrix_free import KrylovKKT as KrylovKKT
from .constrained.newton import NewtonSolution as NewtonSolution
from .constrained.newton import sketched_newton as sketched_newton
from .constrained.sketching import SketchProject as SketchProject
from .constrained.sketching import sketch_and_project as sketch_and_project
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
