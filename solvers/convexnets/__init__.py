"""Two-layer ReLU networks trained to a certificate, as convex problems over activation patterns."""

from .problem import ConvexReLU as ConvexReLU
from .solution import ConvexReLUSolution as ConvexReLUSolution
from .solution import ReLUNetwork as ReLUNetwork
from .training import train_relu as train_relu
