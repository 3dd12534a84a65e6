"""What a truncated Krylov method returns."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import equinox as eqx

from ..typing import Array, Float, Int


class KrylovReason(IntEnum):
    """Why a Krylov method stopped."""

    RUNNING = -1
    CONVERGED = 0
    MAX_STEPS = 1
    NOT_POSITIVE = 2
    """A direction of zero or negative curvature: the matrix is not positive definite on the Krylov space."""
    STAGNATED = 3
    """The residual is below what rounding lets it be, or no longer falls."""


class KrylovResult(eqx.Module):
    """Solution of a truncated linear solve.

    Attributes
    ----------
    x : PyTree
        The best iterate.
    num_steps : Int[Array, ""]
        Products with the matrix.
    residual : Float[Array, ""]
        Norm of the (recurred) residual at `x`.
    reason : Int[Array, ""]
        A `KrylovReason`.
    """

    x: Any
    num_steps: Int[Array, ""]
    residual: Float[Array, ""]
    reason: Int[Array, ""]
