"""Value functions of stochastic differential equations, learned from paths by martingale conditions."""

from .conditions import Moments as Moments
from .conditions import martingale_loss as martingale_loss
from .conditions import orthogonality as orthogonality
from .conditions import squared_td_error as squared_td_error
from .linear_value import LinearValue as LinearValue
from .linear_value import lstd as lstd
from .paths import Paths as Paths
from .paths import simulate as simulate
from .temporal import TDLearner as TDLearner
from .temporal import TDState as TDState
from .temporal import td_learning as td_learning
