"""Numerical solvers in JAX: jitted, batched, differentiable, and truthful about their answers.

Every solver is a pure function that returns a `Solution` with ``value, converged, status, error, num_steps``.

Transport
    `sns_sinkhorn`, `sinkhorn`: entropic optimal transport. `transport_exactly`: without entropy, to a certified gap.
    `PointCloud`, `Grid`: costs that are never stored. `sinkhorn_divergence`, `monge_gap`, `fit_transport_map`.
Constrained
    `sketched_newton`: minimise subject to equations. `DenseKKT`, `KrylovKKT`, `SketchProject`: its linear algebra.
Linear
    `sor`, `ssor`, `ssor_cg`, `chebyshev_cg`, `flexible_cg`, `multigrid_cg` on `Stencil`, `SparseRows`, `MatrixFree`.
    `solve_sequence`, `learned_sor`: many related systems, the setting learned by `TsallisINF`, `ChebCB`, ...
Differential equations
    `gp_solve` of a `PDEProblem` on a `Box` with `Dirichlet`, `Neumann`, `Robin`, `Periodic`, `Observe`.
Shared
    `Solution`, `Status`, `SolveError`, `print_progress`, `tqdm_progress`.
"""

from .constrained.dense import DenseKKT as DenseKKT
from .constrained.kkt import KKT as KKT
from .constrained.matrix_free import KrylovKKT as KrylovKKT
from .constrained.newton import NewtonSolution as NewtonSolution
from .constrained.newton import sketched_newton as sketched_newton
from .constrained.preconditioning import DiagonalPreconditioner as DiagonalPreconditioner
from .constrained.preconditioning import NystromPreconditioner as NystromPreconditioner
from .constrained.sketching import SketchProject as SketchProject
from .core.bandits import ContextBins as ContextBins
from .core.bandits import ExpertMix as ExpertMix
from .core.bandits import TsallisINF as TsallisINF
from .core.bandits import replay as replay
from .core.progress import print_progress as print_progress
from .core.progress import tqdm_progress as tqdm_progress
from .core.regression import ChebCB as ChebCB
from .core.regression import ThompsonRegression as ThompsonRegression
from .core.solution import Solution as Solution
from .core.solution import SolveError as SolveError
from .core.solution import Status as Status
from .linear.answer import LinearSolution as LinearSolution
from .linear.answer import LinearStatus as LinearStatus
from .linear.arms import Arms as Arms
from .linear.cycles import MultigridSolution as MultigridSolution
from .linear.cycles import multigrid_cg as multigrid_cg
from .linear.gradients import CGSolution as CGSolution
from .linear.gradients import chebyshev_cg as chebyshev_cg
from .linear.gradients import flexible_cg as flexible_cg
from .linear.gradients import ssor_cg as ssor_cg
from .linear.relaxation import SORSolution as SORSolution
from .linear.relaxation import SSORSolution as SSORSolution
from .linear.relaxation import sor as sor
from .linear.relaxation import ssor as ssor
from .linear.rows import SparseRows as SparseRows
from .linear.sequence import SequenceSolution as SequenceSolution
from .linear.sequence import learned_sor as learned_sor
from .linear.sequence import solve_sequence as solve_sequence
from .linear.stencil import Stencil as Stencil
from .linear.systems import MatrixFree as MatrixFree
from .linear.young import HagemanYoung as HagemanYoung
from .linear.young import young_omega as young_omega
from .linear.young import young_prior as young_prior
from .linear.young import young_rate as young_rate
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
from .pde import PublishedGPHM as PublishedGPHM
from .pde import Robin as Robin
from .pde import SpectralMixture as SpectralMixture
from .pde import SquaredExponential as SquaredExponential
from .pde import StudentMixture as StudentMixture
from .pde import gp_solve as gp_solve
from .transport.divergence import DivergenceSolution as DivergenceSolution
from .transport.divergence import sinkhorn_divergence as sinkhorn_divergence
from .transport.exact import ExactSolution as ExactSolution
from .transport.exact import transport_exactly as transport_exactly
from .transport.fixed_point import sinkhorn as sinkhorn
from .transport.grid import Grid as Grid
from .transport.monge import MapSolution as MapSolution
from .transport.monge import MongeGapSolution as MongeGapSolution
from .transport.monge import TransportMap as TransportMap
from .transport.monge import fit_transport_map as fit_transport_map
from .transport.monge import monge_gap as monge_gap
from .transport.newton import sns_sinkhorn as sns_sinkhorn
from .transport.pointcloud import PointCloud as PointCloud
from .transport.problem import TransportStatus as TransportStatus
from .transport.published import PublishedSNS as PublishedSNS
from .transport.ragged import stack_ragged as stack_ragged
from .transport.solution import TransportSolution as TransportSolution
from .transport.unbalanced import UnbalancedSolution as UnbalancedSolution

__version__ = "0.1.0"

__all__ = [
    "KKT",
    "Arms",
    "Box",
    "CGSolution",
    "ChebCB",
    "ContextBins",
    "DenseKKT",
    "DiagonalPreconditioner",
    "Dirichlet",
    "DivergenceSolution",
    "ExactSolution",
    "ExpertMix",
    "GPSolution",
    "Grid",
    "HagemanYoung",
    "KrylovKKT",
    "LinearSolution",
    "LinearStatus",
    "MapSolution",
    "Matern",
    "MatrixFree",
    "MongeGapSolution",
    "MultigridSolution",
    "Neumann",
    "NewtonSolution",
    "NystromPreconditioner",
    "Observe",
    "PDEProblem",
    "PDEStatus",
    "Periodic",
    "PeriodicKernel",
    "PointCloud",
    "PublishedGPHM",
    "PublishedSNS",
    "Robin",
    "SORSolution",
    "SSORSolution",
    "SequenceSolution",
    "SketchProject",
    "Solution",
    "SolveError",
    "SparseRows",
    "SpectralMixture",
    "SquaredExponential",
    "Status",
    "Stencil",
    "StudentMixture",
    "ThompsonRegression",
    "TransportMap",
    "TransportSolution",
    "TransportStatus",
    "TsallisINF",
    "UnbalancedSolution",
    "chebyshev_cg",
    "fit_transport_map",
    "flexible_cg",
    "gp_solve",
    "learned_sor",
    "monge_gap",
    "multigrid_cg",
    "print_progress",
    "replay",
    "sinkhorn",
    "sinkhorn_divergence",
    "sketched_newton",
    "sns_sinkhorn",
    "solve_sequence",
    "sor",
    "ssor",
    "ssor_cg",
    "stack_ragged",
    "tqdm_progress",
    "transport_exactly",
    "young_omega",
    "young_prior",
    "young_rate",
]
