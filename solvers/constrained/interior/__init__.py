"""Inequalities and bounds: a primal-dual interior-point method."""

from .solve import InteriorSolution as InteriorSolution
from .solve import Multipliers as Multipliers
from .solve import interior_point as interior_point
