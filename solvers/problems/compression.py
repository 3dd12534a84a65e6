"""Instances of compression: published sensitivities of a network's layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Allocation(NamedTuple):
    """Sensitivities and sizes of layers at 4 and 8 bits, a budget, and which layers must agree.

    Attributes
    ----------
    sensitivity, size : Float[Array, "L 2"]
        Average trace of the Hessian times squared quantisation error; megabytes.
    budget : float
        Half way between all at 4 bits and all at 8.
    tied : Int[Array, "L"]
        Labels; layers joined by a residual connection share one.
    """

    sensitivity: Any
    size: Any
    budget: float
    tied: Any


def resnet18() -> Allocation:
    """Return ResNet18 on ImageNet as published with HAWQ: 19 layers, three pairs of them tied."""
    trace = [0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772, 0.00807129, 0.00372905,
             0.00530698, 0.00209011, 0.00737569, 0.00210454, 0.00151197, 0.00158041, 0.00078146, 0.00451841, 0.00098745,
             0.00072944]  # fmt: skip
    eight = [0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333, 0.0682, 0.0027, 0.0448,
             0.0336, 0.0576, 0.1130, 0.0102, 0.0947, 0.0532]  # fmt: skip
    four = [6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599, 21.7546, 0.8603, 14.5324,
            10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016]  # fmt: skip
    weights = [36864, 36864, 36864, 36864, 73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824,
               1179648, 2359296, 131072, 2359296, 2359296]  # fmt: skip
    size = np.outer(np.array(weights) / 2**20, [0.5, 1.0])
    tied = np.arange(19)
    for first, second in ((4, 6), (9, 11), (14, 16)):
        tied[second] = first
    sensitivity = np.array(trace)[:, None] * np.array([four, eight]).T
    return Allocation(sensitivity, size, float(0.5 * size.sum()), tied)
