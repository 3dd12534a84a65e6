"""Types that several modules name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, Int, PyTree

Scalar: TypeAlias = float | int | jax.Array
"""A number or a zero-dimensional array; traced inside jit."""

Progress: TypeAlias = Callable[[int, float], Any]
"""Called on the host as ``progress(step, error)``."""

__all__ = ["Array", "Bool", "Float", "Int", "Progress", "PyTree", "Scalar"]
