"""Differential equations through diffrax: what its solvers know about their own steps, and steps that run back."""

from .heuristics import Heuristics as Heuristics
from .heuristics import TrackHeuristics as TrackHeuristics
from .heuristics import error_penalty as error_penalty
from .heuristics import stiffness_penalty as stiffness_penalty
from .reversible import BDIA as BDIA
from .reversible import Before as Before
from .reversible import Retraceable as Retraceable
from .reversible import reversible_solve as reversible_solve
