"""Bilevel optimisation: gradients through a minimiser, many lower problems, value functions."""

from .blocks import BSVRB as BSVRB
from .blocks import BlocksState as BlocksState
from .blocks import bsvrb as bsvrb
from .implicit_gradient import CGSolve as CGSolve
from .implicit_gradient import DirectSolve as DirectSolve
from .implicit_gradient import Hypergradient as Hypergradient
from .implicit_gradient import LinearSolver as LinearSolver
from .implicit_gradient import NeumannSeries as NeumannSeries
from .implicit_gradient import NystromInverse as NystromInverse
from .implicit_gradient import hypergradient as hypergradient
from .single import SingleLoop as SingleLoop
from .single import SingleState as SingleState
from .single import single_loop as single_loop
from .value_function import BilevelSolution as BilevelSolution
from .value_function import PublishedSteps as PublishedSteps
from .value_function import lv_hba as lv_hba
