"""``min_x |A x - y|^2 / 2 + g(D x)``: the statement, its optimality, its derivatives, and what solvers return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.implicit import attach, distrust, linear_solve
from ...core.krylov.gmres import gmres
from ...core.operators import LinearOperator
from ...core.precision import binary_exponent, eps
from ...core.probes import probe
from ...core.prox import ProximalFunction
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Int
from ...core.vectors import axpy, inner, norm, scale


class InverseStatus(StatusCode):
    """Why a reconstruction stopped, beyond `Status`."""

    ADJOINT_MISMATCH = (
        100,
        "adjoint mismatch: <A x, y> and <x, A'y> differ; `transpose_mv` is not the transpose of `mv` "
        "(leave it out: it is found by transposition)",
    )


class InverseSolution(Solution):
    """A reconstruction.

    Attributes
    ----------
    value : Float[Array, "..."]
        The image.
    dual : Float[Array, "..."]
        A subgradient of g at D x, or nearly; start a similar problem from it and the value.
    penalty : Float[Array, ""]
        The last penalty or inverse step length.
    linear_steps : Int[Array, ""]
        Products with A'A.
    """

    dual: Float[Array, "..."]
    penalty: Float[Array, "..."]
    linear_steps: Int[Array, "..."]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, InverseStatus)


class Statement(eqx.Module):
    """The problem in its own units: data are divided by `unit`, a power of two, and so is the image.

    ``y = unit y~, x = unit x~`` turns the proximal map of g into ``prox(unit v~, step) / unit``, for every g.
    """

    operator: LinearOperator
    y: Any
    regulariser: Callable[..., Any]
    analysis: LinearOperator | None
    unit: Array

    def analyse(self, x):
        """Return D x."""
        return x if self.analysis is None else self.analysis.mv(x)

    def synthesise(self, w):
        """Return D'w."""
        return w if self.analysis is None else self.analysis.transpose_mv(w)

    def gradient(self, x):
        """Return ``A'(A x - y)``."""
        return self.operator.transpose_mv(axpy(-1, self.y, self.operator.mv(x)))

    def prox(self, v, step):
        """Return the proximal map of g in these units."""
        return self.regulariser(self.unit * v, step) / self.unit


LEAST = 0.01
"""Forces count as at least this share of ``A'y``: without a regulariser both vanish at the solution."""


class Optimality(NamedTuple):
    """How far a point is from optimal: relative residuals of the two conditions, and the sizes they are relative to.

    ``stationarity = |A'(A x - y) + D'w| / size`` with w a subgradient of g at z, and ``split = |D x - z| / reach``. The
    size is that of the two forces, which cancel at the solution, not of ``A'y``: a weak regulariser moves x by little
    beside the data, and would otherwise be lost in the tolerance.
    """

    stationarity: Array
    split: Array
    size: Array

    @property
    def error(self):
        """The larger of the two."""
        return jnp.maximum(self.stationarity, self.split)


def optimality(s: Statement, gradient: Array, back: Array, w: Array, gap: Array, reach: Array) -> Optimality:
    """Return the measure from the gradient at x, ``back = A'y``, the subgradient w, ``|D x - z|`` and its scale."""
    force = s.synthesise(w)
    size = jnp.maximum(jnp.maximum(length(gradient), length(force)), LEAST * length(back))
    unit = jnp.where(size > 0, size, 1)
    wide = jnp.where(reach > 0, reach, 1)
    return Optimality(length(axpy(1, force, gradient)) / unit, gap / wide, unit)


def length(x: Array) -> Array:
    """Return the Euclidean norm without overflow or underflow of squares."""
    largest = jnp.max(jnp.abs(x), initial=0)
    usable = jnp.isfinite(largest) & (largest > 0)
    unit = jnp.where(usable, largest, 1)
    return jnp.where(usable, unit * norm(x / unit), largest)


def prepare(name: str, operator, y, regulariser, analysis, x0) -> tuple[Statement, Array]:
    """Return the statement, its data in units of their own, and the start; or raise."""
    if not isinstance(operator, LinearOperator):
        checks.fail(name, "A", "a LinearOperator, such as inverse.Blur", type(operator).__name__, TypeError)
    if not callable(regulariser):
        checks.fail(name, "g", "a proximal map, callable as g(v, step)", type(regulariser).__name__, TypeError)
    if not isinstance(operator.domain, jax.ShapeDtypeStruct):
        checks.fail(name, "A", "an operator on one array", f"domain {operator.domain}")
    domain, codomain = operator.domain, operator.codomain
    y = jax.tree.map(lambda leaf: checks.float_array(name, "y", leaf), y)
    shapes = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), str(leaf.dtype)), tree)  # noqa: E731
    if shapes(y) != shapes(codomain):
        checks.fail(name, "y", f"like A x, {shapes(codomain)}", shapes(y))
    if analysis is not None and shapes(analysis.domain) != shapes(domain):
        checks.fail(name, "analysis", f"an operator on {shapes(domain)}", shapes(analysis.domain))
    x0 = jnp.zeros(domain.shape, domain.dtype) if x0 is None else checks.float_array(name, "x0", x0)
    if x0.shape != domain.shape:
        checks.fail(name, "x0", f"of shape {domain.shape}", f"shape {x0.shape}")
    x0 = lax.stop_gradient(x0.astype(domain.dtype))
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(lax.stop_gradient(y))]
    largest = jnp.stack(largest).max().astype(domain.dtype)
    unit = jnp.ldexp(jnp.ones((), domain.dtype), binary_exponent(largest))
    statement = Statement(operator, scale(1 / unit, y), regulariser, analysis, unit)
    return statement, x0 / unit


def mismatched(s: Statement) -> Array:
    """Return whether A' is not the transpose of A, or D' of D, on one random pair."""

    def wrong(A):
        one, two = jax.random.split(jax.random.key(53))
        x, y = probe("rademacher", one, A.domain), probe("rademacher", two, A.codomain)
        there, back = A.mv(x), A.transpose_mv(y)
        left, right = inner(there, y), inner(x, back)
        # Either side is about |A x| for random signs; a mismatch of relative size e shows as about e |A x|.
        return jnp.abs(left - right) > 30 * eps(left.dtype) ** (2 / 3) * jnp.maximum(norm(there), norm(back))

    found = wrong(s.operator)
    return found if s.analysis is None else found | wrong(s.analysis)


def largest_eigenvalue(s: Statement, steps: int = 12) -> Array:
    """Return an estimate, from below, of ``|A|^2`` by power iteration from a fixed pseudo-random start."""
    x = probe("gaussian", jax.random.key(59), s.operator.domain)
    unit = lambda x: x / jnp.where(norm(x) > 0, norm(x), 1)  # noqa: E731
    x = lax.fori_loop(0, steps, lambda _, x: unit(s.operator.normal_mv(x)), unit(x))
    return norm(s.operator.normal_mv(x))


def needs_setting(name: str, argument: str, value, regulariser) -> None:
    """Raise where a denoiser, which no step length rescales, would be run at a setting found by the solver."""
    if value is None and callable(regulariser) and not isinstance(regulariser, ProximalFunction):
        checks.fail(
            name, argument, "given where g is not a ProximalFunction: it then belongs to the problem", "None", TypeError
        )


def differentiable(s: Statement, x: Array, w: Array, penalty: Array, envelope: Array | None) -> tuple[Array, Array]:
    """Return image and dual with their derivatives in operator, data and regulariser.

    Without D the root is ``x = prox(x - A'(A x - y) / penalty)``; with it that and the dual's are solved together; of
    the problem smoothed at `envelope` it is that of the gradient. They are linearised and solved by GMRES.
    """
    moving, fixed = eqx.partition((s, lax.stop_gradient(penalty), envelope), eqx.is_inexact_array)

    def residual(point, moving):
        s, penalty, envelope = eqx.combine(moving, fixed)
        if envelope is not None:
            analysed = s.analyse(point)
            pull = analysed - s.prox(analysed, 1 / envelope)
            return s.gradient(point) / envelope + s.synthesise(pull)
        if s.analysis is None:
            return point - s.prox(point - s.gradient(point) / penalty, 1 / penalty)
        x, w = point
        analysed = s.analyse(x)
        return (s.gradient(x) + s.synthesise(w)) / penalty, analysed - s.prox(analysed + w / penalty, 1 / penalty)

    def solve(jacobian, b):
        def by_gmres(matvec, b):
            size = norm(b)
            count = sum(leaf.size for leaf in jax.tree.leaves(b))
            unit = eps(x.dtype)
            found = gmres(matvec, b, tol=10 * unit * size, max_steps=20 * count, memory=min(count, 100))
            reached = found.residual <= unit**0.5 * size
            return jax.tree.map(lambda u: jnp.where(reached, u, jnp.nan), found.x)

        return linear_solve(jacobian, b, by_gmres, symmetric=False)

    if envelope is not None:
        x = attach(residual, x, moving, solve=solve)
        analysed = s.analyse(x)
        return x, envelope * (analysed - s.prox(analysed, 1 / envelope))
    if s.analysis is None:
        x = attach(residual, x, moving, solve=solve)
        return x, -s.gradient(x)
    return attach(residual, (x, w), moving, solve=solve)


def finish(s: Statement, run, limits, parts, unconverged: str) -> InverseSolution:
    """Return the solution in the user's units from ``parts``: image, dual, penalty, products, and envelope or None."""
    x, w, penalty, products, envelope = parts
    trusted = (run.status == Status.CONVERGED) | (unconverged == "approximate")
    image, dual = distrust(differentiable(s, x, w, penalty, envelope), trusted)
    # The subgradient that the solver found is the one to start from; where it is derived, it differs by the error.
    dual = dual + lax.stop_gradient(w - dual)
    unit = s.unit
    return InverseSolution(
        unit * image, run.status, run.num_steps, run.error, limits.tol, run.history,
        unit * dual, lax.stop_gradient(penalty), products,
    )  # fmt: skip


def freeze(s: Statement) -> Statement:
    """Return the statement without derivatives, for the loop."""
    moving, fixed = eqx.partition(s, eqx.is_array)
    return eqx.combine(lax.stop_gradient(moving), fixed)
