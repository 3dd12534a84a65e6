"""Gaussian-process and spectral solution of differential equations on product grids."""

from .gp import gp_solve as gp_solve
from .priors import Kernel as Kernel
from .priors import Matern as Matern
from .priors import PeriodicKernel as PeriodicKernel
from .priors import SpectralMixture as SpectralMixture
from .priors import SquaredExponential as SquaredExponential
from .priors import StudentMixture as StudentMixture
from .problem import Box as Box
from .problem import Dirichlet as Dirichlet
from .problem import Neumann as Neumann
from .problem import Observe as Observe
from .problem import PDEProblem as PDEProblem
from .problem import Periodic as Periodic
from .problem import Robin as Robin
from .published import PublishedGPHM as PublishedGPHM
from .solution import GPSolution as GPSolution
from .solution import PDEStatus as PDEStatus
