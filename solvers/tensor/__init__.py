"""Structured tensors: products of functions on the sphere."""

from .convolution import gaunt_convolution as gaunt_convolution
from .gaunt import gaunt_power as gaunt_power
from .gaunt import gaunt_product as gaunt_product
from .harmonics import spherical_harmonics as spherical_harmonics
