"""Numerical solvers in JAX: jitted, batched, differentiable, and truthful about their answers."""

from .core.progress import print_progress as print_progress
from .core.progress import tqdm_progress as tqdm_progress
from .core.solution import Solution as Solution
from .core.solution import SolveError as SolveError
from .core.solution import Status as Status
from .linear.answer import LinearSolution as LinearSolution
from .linear.answer import LinearStatus as LinearStatus
from .linear.cycles import multigrid_cg as multigrid_cg
from .linear.gradients import chebyshev_cg as chebyshev_cg
from .linear.gradients import flexible_cg as flexible_cg
from .linear.gradients import ssor_cg as ssor_cg
from .linear.relaxation import sor as sor
from .linear.relaxation import ssor as ssor
from .linear.rows import SparseRows as SparseRows
from .linear.stencil import Stencil as Stencil
from .linear.systems import MatrixFree as MatrixFree

__version__ = "0.1.0"
