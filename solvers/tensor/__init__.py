"""Structured tensors: products of functions on the sphere, and tensors whose axes are functions."""

from .convolution import gaunt_convolution as gaunt_convolution
from .functional.chains import Factors as Factors
from .functional.chains import Sites as Sites
from .functional.decomposition import functional_tucker as functional_tucker
from .functional.messages import Core as Core
from .functional.posterior import FunctionalTucker as FunctionalTucker
from .functional.posterior import TensorStatus as TensorStatus
from .functional.sweeps import Beliefs as Beliefs
from .gaunt import gaunt_power as gaunt_power
from .gaunt import gaunt_product as gaunt_product
from .harmonics import spherical_harmonics as spherical_harmonics
