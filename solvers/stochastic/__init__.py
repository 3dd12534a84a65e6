"""First-order methods: surrogates, online, decentralised and private optimisation, momentum and policy gradients."""

from .decentralised import DecentralisedSolution as DecentralisedSolution
from .decentralised import DecentralisedStatus as DecentralisedStatus
from .decentralised import dadao as dadao
from .graph import GraphStatus as GraphStatus
from .graph import RatesSolution as RatesSolution
from .graph import chi1 as chi1
from .graph import chi2 as chi2
from .graph import gossip_rates as gossip_rates
from .graph import laplacian as laplacian
from .momentum import CorrectedState as CorrectedState
from .momentum import TransportState as TransportState
from .momentum import hessian_aided_momentum as hessian_aided_momentum
from .momentum import igt_momentum as igt_momentum
from .momentum import storm_momentum as storm_momentum
from .momentum import transported_point as transported_point
from .policy import Trajectory as Trajectory
from .policy import policy_gradient as policy_gradient
from .policy import policy_hvp as policy_hvp
from .policy import rewards_to_go as rewards_to_go
from .rounds import mudag as mudag
