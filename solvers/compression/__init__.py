"""Smaller networks by the curvature of their loss: bits a layer under a budget, pruning of weights and channels."""

from .bits import AllocationStatus as AllocationStatus
from .bits import BitAllocation as BitAllocation
from .bits import ParetoFront as ParetoFront
from .bits import bit_allocation as bit_allocation
from .bits import pareto_front as pareto_front
from .hybrid import Cycles as Cycles
from .hybrid import HessoState as HessoState
from .hybrid import hesso as hesso
from .quantiser import Quantised as Quantised
from .quantiser import hawq_sensitivity as hawq_sensitivity
from .quantiser import quantise as quantise
from .saliency import group_scores as group_scores
from .structure import Groups as Groups
from .structure import Units as Units
from .structure import parameter_groups as parameter_groups
from .structure import shrink as shrink
from .surgeon import Surgery as Surgery
from .surgeon import obs_scores as obs_scores
from .surgeon import obs_update as obs_update
