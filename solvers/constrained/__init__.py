"""Equality-constrained optimisation by Newton's method on an exact augmented Lagrangian."""

from .dense import DenseKKT as DenseKKT
from .interior import InteriorSolution as InteriorSolution
from .interior import Multipliers as Multipliers
from .interior import interior_point as interior_point
from .kkt import KKT as KKT
from .matrix_free import KrylovKKT as KrylovKKT
from .newton import NewtonSolution as NewtonSolution
from .newton import sketched_newton as sketched_newton
from .preconditioning import DiagonalPreconditioner as DiagonalPreconditioner
from .preconditioning import NystromPreconditioner as NystromPreconditioner
from .sketching import SketchProject as SketchProject
from .sketching import sketch_and_project as sketch_and_project
