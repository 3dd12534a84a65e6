"""Total variation: forward differences, and the proximal map with a certificate of how exact it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from .implicit import attach, distrust, linear_solve
from .krylov.gmres import gmres
from .loop import Limits, iterate
from .operators import LinearOperator, structure
from .precision import eps, tiny
from .prox import GroupL1, ProximalFunction
from .solution import Solution, Status
from .static import Static
from .typing import Array, Float, Scalar
from .vectors import norm


def differences(x: Float[Array, "..."], ndim: int) -> Float[Array, "ndim ..."]:
    """Return forward differences along the last `ndim` axes, stacked in front; zero at the far ends."""

    def along(axis):
        ends = [(0, 0)] * x.ndim
        ends[axis] = (0, 1)
        return jnp.pad(jnp.diff(x, axis=axis), ends)

    return jnp.stack([along(axis) for axis in range(x.ndim - ndim, x.ndim)])


class Differences(LinearOperator):
    """Forward differences along the last axes of an array, stacked in front; zero at the far ends.

    With `GroupL1` along axis 0 it makes isotropic total variation, with `L1` the anisotropic one.

    Parameters
    ----------
    like : Array or jax.ShapeDtypeStruct
        Of the shape acted on; static.
    ndim : int, optional
        How many of the last axes; all by default. Static.
    """

    shapes: Static = eqx.field(static=True)
    ndim: int = eqx.field(static=True)

    def __init__(self, like: Any, ndim: int | None = None):
        self.shapes = Static(structure(like))
        self.ndim = len(self.domain.shape) if ndim is None else ndim
        if not 1 <= self.ndim <= len(self.domain.shape):
            raise ValueError(f"Differences: `ndim` must be in 1..{len(self.domain.shape)}, got {ndim}")

    @property
    def domain(self):
        """An array of that shape."""
        return self.shapes.tree()

    def mv(self, x):
        """Return the differences."""
        return differences(x, self.ndim)


class TotalVariationSolution(Solution):
    """A denoised array.

    Attributes
    ----------
    dual : Float[Array, "ndim ..."]
        Vectors of length at most one; start the next, similar problem from them.
    """

    dual: Array


class _State(NamedTuple):
    """Dual iterate, the image it stands for, the extrapolated point, its momentum, and the certified error."""

    dual: Array
    x: Array
    ahead: Array
    momentum: Array
    error: Array


class TotalVariation(ProximalFunction):
    """Isotropic total variation, ``g(x) = weight sum_i |(D x)_i|``, over the last 1, 2 or 3 axes.

    Attributes
    ----------
    weight : scalar
        Differentiable.
    ndim : int
        How many of the last axes are differenced; static.
    tol, max_steps : scalar
        When the map of ``__call__`` stops; traced. See `denoise`.

    Notes
    -----
    The map is computed, not closed: where a solver asks for it in each step, `admm` with ``analysis=Differences(...)``
    and `GroupL1` is the faster way to the same answer.
    """

    weight: Any = 1.0
    ndim: int = eqx.field(static=True, default=2)
    tol: Any = 1e-4
    max_steps: Any = 1000

    def value(self, x):
        """Return the weighted sum of the lengths of the differences."""
        return GroupL1(self.weight, axis=0).value(differences(x, self.ndim))

    def __call__(self, v, step):
        """Return ``argmin_x g(x) + |x - v|^2 / (2 step)``, to `tol`."""
        return self.denoise(v, step).value

    def denoise(self, v: Array, step: Scalar = 1.0, *, dual: Array | None = None) -> TotalVariationSolution:
        """Return ``argmin_x weight TV(x) + |x - v|^2 / (2 step)`` with its status.

        Parameters
        ----------
        v : Float[Array, "..."]
            Differentiable, as are `step` and the weight.
        step : scalar
        dual : Float[Array, "ndim ..."], optional
            Where to start, from an earlier solution.

        Returns
        -------
        TotalVariationSolution
            ``error = sqrt(2 gap) / |v|`` with the duality gap, a bound of the relative distance to the minimiser.

        Notes
        -----
        Accelerated projected gradients on the dual (Beck, Teboulle 2009) with restarts (O'Donoghue, Candes 2015): two
        products with D a step. The gap is a sum of non-negative terms, so rounding does not hide it.
        Derivatives are implicit, by GMRES on the dual's fixed point; NaN where the solve or that system did not
        converge.
        """
        level = jnp.asarray(step * self.weight, v.dtype)
        ndim = self.ndim
        bound = 4 * ndim  # of |D|^2
        frozen, amount = lax.stop_gradient((v, level))
        safe = jnp.maximum(amount, tiny(v.dtype))
        adjoint = Differences(v, ndim).transpose_mv
        size = norm(frozen)
        unit = jnp.where(size > 0, size, 1)

        def primal(p, v, level):
            return v - level * adjoint(p)

        def certified(p):
            x = primal(p, frozen, amount)
            d = differences(x, ndim)
            gap = amount * jnp.sum(_length(d)[0] - jnp.sum(p * d, axis=0))
            return x, jnp.sqrt(2 * jnp.maximum(gap, 0)) / unit

        def forward(p, v, level):
            return _into_balls(p + differences(primal(p, v, level), ndim) / (level * bound))

        def step_(s: _State) -> _State:
            p = forward(s.ahead, frozen, safe)
            momentum = (1 + jnp.sqrt(1 + 4 * s.momentum**2)) / 2
            uphill = jnp.sum((s.ahead - p) * (p - s.dual)) > 0
            momentum = jnp.where(uphill, 1, momentum)
            ahead = p + jnp.where(uphill, 0, (s.momentum - 1) / momentum) * (p - s.dual)
            x, error = certified(p)
            return _State(p, x, ahead, momentum, error)

        start = jnp.zeros((ndim, *v.shape), v.dtype) if dual is None else _into_balls(lax.stop_gradient(dual))
        x, error = certified(start)
        limits = Limits(jnp.asarray(self.tol, v.dtype), self.max_steps)
        run = iterate(
            step_,
            _State(start, x, start, jnp.ones((), v.dtype), error),
            limits,
            value=lambda s: s.dual,
            error=lambda s: s.error,
            stall=100,
        )
        trusted = run.status == Status.CONVERGED

        def residual(p, data):
            v, level = data
            return p - forward(p, v, jnp.maximum(level, tiny(v.dtype)))

        def solve(jacobian, b):
            def by_gmres(matvec, b):
                found = gmres(matvec, b, tol=eps(v.dtype) ** 0.75 * norm(b), max_steps=2000, memory=min(b.size, 60))
                return jnp.where(found.residual <= eps(v.dtype) ** 0.5 * norm(b), found.x, jnp.nan)

            return linear_solve(jacobian, b, by_gmres, symmetric=False)

        p = attach(residual, run.value, (v, level), solve=solve)
        value = distrust(primal(p, v, level), trusted)
        return TotalVariationSolution(
            value, run.status, run.num_steps, run.error, limits.tol, run.history, lax.stop_gradient(p)
        )


def _length(d):
    """Return the length of the vectors along axis 0, and whether it is positive; differentiable at zero."""
    squared = jnp.sum(d * d, axis=0)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0), positive


def _into_balls(p):
    return p / jnp.maximum(_length(p)[0], 1)[None]
