"""Gaussian processes: stationary kernels with closed-form derivatives."""
