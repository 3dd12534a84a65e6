"""What fitting a field returns."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..core.checks import fail
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Float
from .solution import PDEStatus


class FieldSolution(Solution):
    """A field that solves a `PDEProblem` at points.

    Attributes
    ----------
    value : Float[Array, "m"] or Float[Array, "k m"]
        The solution, or each unknown, at `points`.
    field : GaussianField or PublishedPIG
        The field, to be started from or evaluated anywhere. Where Gaussians overlap, its weights are large and cancel.
    points : Float[Array, "m d"]
        Where the equation was asked to hold.
    residual, misfit : Float[Array, ""]
        Of the equation and of the conditions, relative, at points that the fit did not see; ``error`` is the larger.
    amplification : Float[Array, ""] or None
        How large a function of this field can be whose residuals, in units of the terms, are one.
    bound : Float[Array, ""] or None
        ``amplification`` times the residual over the solution's size: what the residual allows the relative error of
        the solution to be, within the field's own space.
    """

    field: Any
    points: Float[Array, "... m d"]
    residual: Float[Array, "..."]
    misfit: Float[Array, "..."]
    amplification: Float[Array, "..."] | None
    bound: Float[Array, "..."] | None

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, PDEStatus)

    def mean(self, x: Any, *, unknown: int = 0) -> Float[Array, "..."]:
        """Return the solution at points (..., d)."""
        return self.derivative(x, None, unknown=unknown)

    def derivative(self, x: Any, orders: Any, *, unknown: int = 0) -> Float[Array, "..."]:
        """Return a derivative of the solution at points (..., d); `orders` says how often in each dimension."""
        leaf: Array = jax.tree.leaves(self.field)[0]
        x = jnp.asarray(x, leaf.dtype)
        ndim = getattr(self.field, "features", self.field).centers.shape[-1]
        if x.ndim == 0 or x.shape[-1] != ndim:
            fail("FieldSolution", "x", f"points (..., {ndim})", x.shape)
        orders = (0,) * ndim if orders is None else (orders,) if isinstance(orders, int) else tuple(orders)
        if len(orders) != ndim:
            fail("FieldSolution", "orders", f"{ndim} integers", orders)
        return self.field.jets(x.reshape(-1, ndim), [orders])[0][unknown].reshape(x.shape[:-1])
