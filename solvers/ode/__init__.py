"""Differential equations through diffrax: what its adaptive solvers know about their own steps, to be learned from."""

from .heuristics import Heuristics as Heuristics
from .heuristics import TrackHeuristics as TrackHeuristics
from .heuristics import error_penalty as error_penalty
from .heuristics import stiffness_penalty as stiffness_penalty
