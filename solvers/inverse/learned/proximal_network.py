"""A learned proximal map, the function it belongs to, and its inverse by Newton's method.

Of Fang, Buchanan, Sulam (ICLR 2024), numbered as in the comments:

(1) ``f = grad psi``, psi convex
(2) ``f = prox_R`` for ``R(f(y)) = <y, f(y)> - |f(y)|^2 / 2 - psi(y)``
(3) ``f^-1(x) = argmin_y psi(y) - <x, y>``
(4) ``grad^2 psi(y) d = x - grad psi(y)``: a step of Newton's method on it

It departs from the paper in (4): there (3) is minimised by Adam.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.krylov.cg import cg
from ...core.loop import Limits, iterate
from ...core.operators import hessian
from ...core.search import backtrack
from ...core.solution import Solution, Status
from ...core.typing import Array, Float, Int, Scalar
from ...core.vectors import axpy, inner, norm


class PreimageSolution(Solution):
    """The point that a learned map takes to a given one.

    Attributes
    ----------
    num_evaluations : Int[Array, ""]
        Gradients of the potential.
    linear_steps : Int[Array, ""]
        Products with its Hessian, each at the cost of about one gradient.
    """

    num_evaluations: Int[Array, "..."]
    linear_steps: Int[Array, "..."]


class _State(NamedTuple):
    """Point, residual, its size, whether the last step was refused, and the counts."""

    y: Array
    rest: Array
    error: Array
    refused: Array
    evaluations: Array
    products: Array


class LearnedProx(eqx.Module):
    """The gradient of a convex function: exactly the proximal map of some function, learned from samples.

    ``f = grad psi`` with psi convex is ``prox_R`` for ``R(f(y)) = <y, f(y)> - |f(y)|^2 / 2 - psi(y)``, which need not
    be convex. Trained by proximal matching (`fit_prox`) on noisy samples it approximates the map of minus the
    logarithm of their density: the most probable clean signal. As g in `admm`, `pgd` and `hqs` it ignores the step.

    Attributes
    ----------
    potential : module
        psi, such as a `ConvexNetwork`: an array to a scalar, strongly convex.

    References
    ----------
    Fang, Buchanan, Sulam, "What's in a prior? Learned proximal networks for inverse problems", ICLR 2024.
    """

    potential: Any

    def __check_init__(self):
        if not callable(self.potential):
            checks.fail("LearnedProx", "potential", "callable on one array", type(self.potential).__name__, TypeError)

    def prox(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return ``grad psi(y)``."""
        return jax.grad(self.potential)(y)  # (1)

    def __call__(self, v: Float[Array, "..."], step: Scalar | None = None) -> Float[Array, "..."]:
        """Return `prox` of v, whatever the step."""
        return self.prox(v)

    def invert(
        self, x: Float[Array, "..."], *, start: Array | None = None, tol: Scalar | None = None, max_steps: Any = 100
    ) -> PreimageSolution:
        """Return y with ``prox(y) = x``, the minimiser of ``psi(y) - <x, y>``, by Newton's method.

        ``error = |prox(y) - x| / max(|x|, 1)``; the default tolerance is 1e-9 in float64 and 1e-5 in float32. Newton's
        equations are solved by conjugate gradients to ``min(1/2, sqrt(error))``; a step is shortened until the
        objective or the residual falls. Where psi is nearly flat, far out, x may have no preimage within reach: the
        status says so.
        """
        x = checks.float_array("LearnedProx.invert", "x", x)
        tol = (1e-9 if x.dtype == jnp.float64 else 1e-5) if tol is None else tol
        model, x = lax.stop_gradient((eqx.filter(self.potential, eqx.is_array), x))
        potential = eqx.combine(model, eqx.filter(self.potential, eqx.is_array, inverse=True))
        unit = jnp.maximum(norm(x), 1)
        # (3)
        objective = lambda y: potential(y) - inner(x, y)  # noqa: E731
        pair = jax.value_and_grad(objective)

        def step(s: _State) -> _State:
            H = hessian(potential, s.y)
            size = norm(s.rest)
            # (4)
            found = cg(H.mv, -s.rest, tol=jnp.minimum(0.5, jnp.sqrt(s.error)) * size, max_steps=200)
            here, slope = objective(s.y), inner(s.rest, found.x)

            def trial(t):
                y = axpy(t, found.x, s.y)
                return (y, *pair(y))

            def accept(t, result):
                _, value, rest = result
                return (value <= here + 1e-4 * t * slope) | (norm(rest) < (1 - 1e-2 * t) * size)

            search = backtrack(trial, accept, start=jnp.ones((), x.dtype), most=25)
            y, _, rest = search.result
            return _State(
                jnp.where(search.accepted, y, s.y), jnp.where(search.accepted, rest, s.rest),
                jnp.where(search.accepted, norm(rest) / unit, s.error), ~search.accepted,
                s.evaluations + search.tried, s.products + found.num_steps,
            )  # fmt: skip

        y = x if start is None else start
        rest = pair(y)[1]
        zero = jnp.zeros((), jnp.int32)
        limits = Limits(jnp.asarray(tol, x.dtype), checks.count("LearnedProx.invert", "max_steps", max_steps))
        run = iterate(
            step,
            _State(y, rest, norm(rest) / unit, jnp.zeros((), bool), zero + 1, zero),
            limits,
            value=lambda s: s.y,
            error=lambda s: s.error,
            status=lambda s: jnp.where(s.refused, Status.STAGNATED, Status.RUNNING),
            stall=20,
        )
        return PreimageSolution(
            run.value, run.status, run.num_steps, run.error, limits.tol, None, run.state.evaluations, run.state.products
        )

    def regularizer(self, x: Float[Array, "..."], *, tol: Scalar | None = None) -> Float[Array, ""]:
        """Return ``R(x) = <x, y> - |x|^2 / 2 - psi(y)`` with ``prox(y) = x``; NaN where no such y was found.

        Its derivative in x is ``y - x``, and in the network's numbers that of ``-psi(y)``: first order, by the envelope
        theorem.
        """
        found = self.invert(x, tol=tol)
        y = lax.stop_gradient(found.value)
        value = inner(x, y) - inner(x, x) / 2 - self.potential(y)  # (2)
        return jnp.where(found.converged, value, jnp.nan)
