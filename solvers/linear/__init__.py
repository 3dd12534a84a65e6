"""Linear systems, one or a sequence: relaxation, preconditioned conjugate gradients, multigrid, learned settings."""

from .conjugate_gradients import CGSolution as CGSolution
from .conjugate_gradients import chebyshev_cg as chebyshev_cg
from .conjugate_gradients import flexible_cg as flexible_cg
from .conjugate_gradients import ssor_cg as ssor_cg
from .cycles.algebraic import AMG as AMG
from .learned.arms import Arms as Arms
from .learned.relaxation_theory import HagemanYoung as HagemanYoung
from .learned.relaxation_theory import young_omega as young_omega
from .learned.relaxation_theory import young_prior as young_prior
from .learned.relaxation_theory import young_rate as young_rate
from .learned.sequence import SequenceSolution as SequenceSolution
from .learned.sequence import learned_sor as learned_sor
from .learned.sequence import solve_sequence as solve_sequence
from .multigrid import MultigridSolution as MultigridSolution
from .multigrid import coarsening_plan as coarsening_plan
from .multigrid import multigrid_cg as multigrid_cg
from .multigrid import multigrid_gmres as multigrid_gmres
from .relaxation import SORSolution as SORSolution
from .relaxation import SSORSolution as SSORSolution
from .relaxation import sor as sor
from .relaxation import ssor as ssor
from .solution import LinearSolution as LinearSolution
from .solution import LinearStatus as LinearStatus
from .systems.sparse_rows import SparseRows as SparseRows
from .systems.stencil import Stencil as Stencil
from .systems.system import MatrixFree as MatrixFree
