"""The noise-free solve: spectral trial functions, Newton's method, direct or preconditioned linear algebra.

With z the coefficients of the highest derivatives' series, g the values of the conditions and R the residual at the
nodes:

(1) ``z = lift g + null y``, y free
(2) ``test' R(z) = 0``, as many test functions as free coefficients
(3) ``y <- y - t (test' R')^-1 test' R``
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import lu_factor, lu_solve

from ...core.implicit import attach
from ...core.krylov.gmres import gmres
from ...core.linalg.kronecker import KroneckerSum, Pencil, along, mode_products
from ...core.loop import Limits, Run, iterate
from ...core.precision import eps, matmul
from ...core.search import backtrack
from ...core.solution import Status
from ...core.vectors import axpy, norm
from ..settings import DENSE
from ..tracing import Equation
from .axes import fejer
from .spaces import MOMENTS, Line, lifted

KRYLOV_STEPS = 120
"""Products with the Jacobian a linear solve may take."""


FINE = 2**15
"""Points over which the lowest moments of a one-dimensional source are averaged."""
NOISE = 2000
"""Largest relative change of a moment that is taken for noise, in eps."""


class Discretisation:
    """The projected equation as a function of the free coefficients.

    Parameters
    ----------
    equation : Equation
        The traced residual.
    lines : list of list of Line
        ``lines[k][d]`` for unknown k and dimension d.
    axis_values : list of list
        Values of the conditions, see `spaces.lifted`.
    args : PyTree
        The user's.
    order : list of int, optional
        Which dimensions' conditions come first, see `spaces.lifted`.
    dense : int
        See `settings.DENSE`.
    """

    def __init__(self, equation: Equation, lines: list[list[Line]], axis_values, args, order=None, dense: int = DENSE):
        self.equation, self.lines, self.args, self.dense = equation, lines, args, dense
        self.x = coordinates(lines[0])
        pairs = [lifted(ln, g, order) for ln, g in zip(lines, axis_values, strict=True)]
        self.offsets, self.misfit = [p[0] for p in pairs], jnp.max(jnp.stack([p[1] for p in pairs]))
        self.values = [
            [{p: ln.values(p) for p in {index[d] for index in o} | {0}} for d, ln in enumerate(field)]
            for field, o in zip(lines, equation.orders, strict=True)
        ]
        weights = [along(ln.basis.weights, d, len(lines[0])) for d, ln in enumerate(lines[0])]
        self.weight = weights[0]
        for w in weights[1:]:
            self.weight = self.weight * w
        self.shift = None if equation.source is None else self._averaged(equation.source)

    def coefficients(self, y):
        """Return the coefficients in the bases: ``lift g + null y``."""
        return tuple(
            z + mode_products([ln.null for ln in field], f)  # (1)
            for z, field, f in zip(self.offsets, self.lines, y, strict=True)
        )

    def jets(self, z):
        """Return the derivatives that the equation uses, at the nodes."""
        return [
            [mode_products([v[index[d]] for d, v in enumerate(values)], f) for index in orders]
            for values, orders, f in zip(self.values, self.equation.orders, z, strict=True)
        ]

    def project(self, residuals):
        """Test each residual with its unknown's test functions."""
        # (2)
        tested = tuple(
            mode_products([ln.test.T for ln in field], r) for field, r in zip(self.lines, residuals, strict=True)
        )
        return tested if self.shift is None else tuple(t + s for t, s in zip(tested, self.shift, strict=True))

    def _averaged(self, source: Callable):
        """Return what sampling the source on many more points changes in its lowest moments.

        The phases of a fast source are rounded to ``eps |omega x|``. Where the solution is the source integrated twice,
        that noise grows in its lowest modes by ``(omega L / k pi)^2``; averaging over m points divides it by sqrt(m).
        """
        s, weights = (jnp.asarray(v, self.x[0].dtype) for v in fejer(FINE))
        jets = [[jnp.zeros_like(self.x[0]) for _ in o] for o in self.equation.orders]
        coarse = self.equation(self.x, jets, self.args)
        fine = source(fine_points(self.lines[0][0].basis), self.args)
        shift = []
        for (ln,), c, f in zip(self.lines, coarse, fine, strict=True):
            count = min(MOMENTS, ln.test.shape[1])
            moments = matmul(f * weights, ln.basis.orthonormal(count, s)) - matmul(c, ln.test[:, :count])
            noise = NOISE * eps(s.dtype) * jnp.sqrt(jnp.sum(ln.basis.weights * c**2))
            moments = jnp.where(jnp.abs(moments) <= noise, moments, 0)  # what is larger is no noise: do not touch it
            shift.append(jnp.zeros(ln.test.shape[1], s.dtype).at[:count].set(moments))
        return tuple(shift)

    def residual(self, y):
        """Return the tested residuals."""
        return self.project(self.equation(self.x, self.jets(self.coefficients(y)), self.args))

    def norm(self, fields):
        """Weighted root mean square over the nodes and the equations."""
        total = sum(jnp.sum(self.weight * f**2) for f in fields)
        return jnp.sqrt(total)

    def moved(self, offsets, args) -> "Discretisation":
        """Return the same with other coefficients that satisfy the conditions, and other args."""
        other = copy(self)
        other.offsets, other.args = offsets, args
        return other

    def frozen(self) -> "Discretisation":
        """Return the same without derivatives."""
        other = copy(self)
        for name, value in vars(self).items():
            if name != "equation":
                arrays, rest = eqx.partition(value, eqx.is_array)
                setattr(other, name, eqx.combine(lax.stop_gradient(arrays), rest))
        return other

    def measure(self, y):
        """Return the tested residuals, their norm, the residual's own, both relative to the terms' norm, and that."""
        strong, scale = self.terms(y)
        tested = self.project(strong)
        return tested, jnp.sqrt(sum(jnp.sum(t**2) for t in tested)) / scale, self.norm(strong) / scale, scale

    def terms(self, y):
        """Return the residual at the nodes and the sum of the norms of the equation's terms, one where that is zero.

        A term counts as at least its coefficient times the unknown itself over the domain's lengths, so that the
        rounding of ``u'' = 0`` is no error.
        """
        z = self.coefficients(y)
        jets = self.jets(z)
        own = [self.norm([mode_products([v[0] for v in vs], f)]) for vs, f in zip(self.values, z, strict=True)]
        strong = self.equation(self.x, jets, self.args)
        source = self.equation(self.x, jax.tree.map(jnp.zeros_like, jets), self.args)
        scale = self.norm(source)
        scale = jnp.where(jnp.isfinite(scale), scale, 0)  # zero may be no place to evaluate the equation at
        for row in self.equation.coefficients(self.x, jets, self.args):
            for cs, us, orders, size in zip(row, jets, self.equation.orders, own, strict=True):
                for c, u, index in zip(cs, us, orders, strict=True):
                    scale = scale + jnp.maximum(self.norm([c * u]), self.norm([c]) * size / self._length(index))
        return strong, jnp.where(scale > 0, scale, 1)

    def _length(self, index):
        """Return the product of the domain's lengths, each as often as is differentiated, times the volume's root."""
        length = jnp.asarray(math.sqrt(2 ** len(index)), self.weight.dtype)
        for ln, p in zip(self.lines[0], index, strict=True):
            length = length * (ln.basis.upper - ln.basis.lower) ** p
        return length

    def zeros(self):
        """Return the free coefficients of the lifted conditions alone."""
        return tuple(jnp.zeros(tuple(ln.null.shape[1] for ln in f), f[0].null.dtype) for f in self.lines)

    def pencils(self, k: int, coefficients, exact: bool) -> list[Pencil]:
        """Split unknown k's own equation into dimensions; averaging what does not split unless `exact`."""
        orders, lines = self.equation.orders[k], self.lines[k]
        ndim, sees = len(lines), self.equation.coordinates[k]
        terms: list[dict[int, Any]] = [{} for _ in range(ndim)]
        for index, c in zip(orders, coefficients, strict=True):
            axes = [d for d in range(ndim) if index[d]]
            if len(axes) > 1:
                continue
            home = (axes or (list(sees[index]) if exact else []) or [0])[0]
            others = tuple(d for d in range(ndim) if d != home)
            profile = c[tuple(slice(None) if d == home else 0 for d in range(ndim))] if exact else c.mean(others)
            terms[home][index[home]] = profile
        return [self._pencil(k, d, terms[d], exact) for d in range(ndim)]

    def _pencil(self, k: int, d: int, terms: dict[int, Any], exact: bool) -> Pencil:
        ln, values = self.lines[k][d], self.values[k][d]
        constant = not exact or not any(d in self.equation.coordinates[k].get(_unit(len(self.lines[k]), d, p), ())
                                        for p in terms if p)  # fmt: skip
        odd = [p for p in terms if p % 2]
        symmetric = ln.symmetric and constant and 2 in terms and max(terms) == 2 and not (exact and odd)
        mass = matmul(ln.test.T, matmul(values[0], ln.null))
        if symmetric:
            terms = {p: c if p == 0 and exact else jnp.full_like(c, c.mean()) for p, c in terms.items() if p % 2 == 0}
        operator = jnp.zeros_like(mass)
        for p, c in terms.items():
            operator = operator + matmul(ln.test.T * c[None], matmul(values[p], ln.null))
        if not symmetric:
            return Pencil(operator, mass)
        leading = terms[2][0]
        length = ln.basis.upper - ln.basis.lower
        bound = jnp.max(jnp.maximum(terms[0] / leading, 0)) if 0 in terms else 0.0
        return Pencil(operator, mass, leading, 4 / length**2 + 2 * bound + ln.robin)

    @property
    def separable(self) -> bool:
        """Whether the equation is a sum over dimensions."""
        if len(self.lines) > 1 or not self.equation.linear:
            return False
        for index, sees in self.equation.coordinates[0].items():
            axes = {d for d, p in enumerate(index) if p}
            if len(axes | set(sees)) > 1:
                return False
        return True

    @property
    def direct(self) -> bool:
        """Whether linear systems are solved by factorisation."""
        unknowns = sum(math.prod(ln.null.shape[1] for ln in field) for field in self.lines)
        return len(self.lines[0]) == 1 or self.separable or unknowns <= self.dense

    def factorise(self, y) -> "Inverse":
        """Return the inverse of the Jacobian at y: dense, separable, or Krylov with a separable preconditioner."""
        jets = self.jets(self.coefficients(y))
        if len(self.lines[0]) == 1:
            floating = all(ln.floating for field in self.lines for ln in field)
            return _pseudo(self._line_matrix(jets), y) if floating else _dense(self._line_matrix(jets), y)
        c = self.equation.coefficients(self.x, jets, self.args)
        total = sum(f.size for f in y)
        if self.separable:
            pencils = self.pencils(0, c[0][0], True)
            if total > self.dense or sum(not p.symmetric for p in pencils) < 2:  # two general ones are safer dense
                return _direct([KroneckerSum.build(pencils)], y)
        _, jacobian = jax.linearize(self.residual, y)
        if self.direct:
            flat, unravel = ravel_pytree(y)
            eye = jnp.eye(total, dtype=flat.dtype)
            columns = lax.map(lambda e: ravel_pytree(jacobian(unravel(e)))[0], eye, batch_size=min(total, DENSE))
            return _dense(columns.T, y)
        near = _direct([KroneckerSum.build(self.pencils(k, c[k][k], False)) for k in range(len(self.lines))], y)
        transposed = jax.linear_transpose(jacobian, y)

        def krylov(matvec, precondition):
            def solve(b, rtol):
                tol = rtol * jnp.linalg.norm(ravel_pytree(b)[0])
                return gmres(matvec, b, tol=tol, max_steps=KRYLOV_STEPS, precondition=precondition).x

            return solve

        return Inverse(
            krylov(jacobian, lambda r: near.solve(r, 0.0)),
            krylov(lambda r: transposed(r)[0], lambda r: near.transposed(r, 0.0)),
            near,
        )

    def _line_matrix(self, jets):
        """Return the Jacobian in one dimension, by blocks."""
        c = self.equation.coefficients(self.x, jets, self.args)
        blocks = []
        for i, row in enumerate(c):
            test, line = self.lines[i][0].test.T, []
            for k, cs in enumerate(row):
                total = jnp.zeros((self.lines[k][0].basis.size,) * 2, test.dtype)
                for index, ck in zip(self.equation.orders[k], cs, strict=True):
                    total = total + ck[:, None] * self.values[k][0][index[0]]
                line.append(matmul(test, matmul(total, self.lines[k][0].null)))
            blocks.append(line)
        return jnp.block(blocks)


class Inverse(NamedTuple):
    """``solve(b, rtol)`` with a matrix and ``transposed(b, rtol)`` with its transpose; `near`: what preconditions."""

    solve: Callable
    transposed: Callable
    near: Any = None


def fine_points(basis):
    """Return the points that the moments of a one-dimensional source are averaged over."""
    s = jnp.asarray(fejer(FINE)[0], jnp.result_type(basis.lower))
    return ((basis.lower + basis.upper) / 2 + (basis.upper - basis.lower) / 2 * s,)


def coordinates(lines: list[Line]):
    """Return the nodes of each dimension, shaped to broadcast against the others."""
    return tuple(along(ln.basis.nodes, d, len(lines)) for d, ln in enumerate(lines))


class State(NamedTuple):
    """Free coefficients, the tested residual, the error it makes, the residual at the nodes, the size of the terms."""

    y: Any
    tested: Any
    error: Any
    strong: Any
    scale: Any


def solve_spectral(
    build: Callable[[Any], Discretisation], data: Any, guess: Callable | None, limits: Limits
) -> tuple[Discretisation, Any, Run, Any, Any, Any]:
    """Solve by Newton's method with exact derivatives in `data`.

    ``build(data)`` makes the discretisation; ``guess(discretisation)`` free coefficients to start from. Returns the
    discretisation, the free coefficients, how the loop ended, the relative residual at the nodes, the size of the
    equation's terms there, and whether the equation is `singular`.
    """
    frozen = build(lax.stop_gradient(data))
    linear = frozen.equation.linear
    start = frozen.zeros() if guess is None else lax.stop_gradient(guess(frozen))
    once = frozen.factorise(start) if linear else None

    def state_at(y) -> State:
        return State(y, *frozen.measure(y))

    def step(state: State) -> State:
        y, tested = state.y, state.tested
        inverse = once if once is not None else frozen.factorise(y)
        direction = inverse.solve(tested, 1e-3)  # (3)
        if linear:
            return state_at(axpy(-1.0, direction, y))
        before = norm(tested)

        found = backtrack(
            lambda t: norm(frozen.residual(axpy(-t, direction, y))),
            lambda t, after: after <= (1 - 1e-4 * t) * before,
            start=jnp.ones((), before.dtype),
            most=14,
        )
        return state_at(axpy(-found.length, direction, y))

    first = state_at(start)
    run = iterate(
        step, first, limits,
        value=lambda s: (s.y, s.strong, s.scale), error=lambda s: s.error, stall=3 if linear else 8,
    )  # fmt: skip
    y, strong, scale = run.value
    stated = first.scale if guess is None or not linear else frozen.terms(frozen.zeros())[1]
    alone = singular(frozen, run, scale, stated)

    def solve(jacobian, b):
        inverse = frozen.factorise(y)

        def refined(apply):
            def solver(matvec, b):
                x = apply(b, 1e-8)
                for _ in range(2):
                    x = axpy(1.0, apply(axpy(-1.0, matvec(x), b), 1e-8), x)
                return x

            return solver

        return lax.custom_linear_solve(jacobian, b, refined(inverse.solve), refined(inverse.transposed))

    y = attach(lambda y, data: build(data).residual(y), y, data, solve=solve)
    return build(data), y, run, strong, scale, alone


def singular(found: Discretisation, run: Run, ends, stated):
    """Return whether a linear equation with its conditions is singular, as far as this precision can tell.

    Either the terms, of size `ends`, are so much larger than `stated`, what source and conditions make them, that their
    cancellation leaves fewer than three digits, or a direct factorisation does not solve it.
    """
    if not found.equation.linear:
        return jnp.zeros((), bool)
    resonant = ends * eps(ends.dtype) > 1e-3 * stated
    unsolved = found.direct & (run.status == Status.STAGNATED) & (run.error > eps(ends.dtype) ** 0.25)
    return (resonant & (run.status != Status.NONFINITE)) | unsolved


def _dense(matrix, like) -> Inverse:
    factors, unravel = lu_factor(matrix), ravel_pytree(like)[1]

    def solve(trans):
        return lambda b, rtol: unravel(lu_solve(factors, ravel_pytree(b)[0], trans=trans))

    return Inverse(solve(0), solve(1))


def _pseudo(matrix, like) -> Inverse:
    """Least squares of least norm, where constants may be solutions of the homogeneous equation."""
    u, s, vt = jnp.linalg.svd(matrix)
    keep = s > 100 * eps(s.dtype) * s[0]
    inverse, unravel = jnp.where(keep, 1 / jnp.where(keep, s, 1), 0), ravel_pytree(like)[1]

    def solve(left, right):
        return lambda b, rtol: unravel(matmul(left, inverse * matmul(ravel_pytree(b)[0], right)))

    return Inverse(solve(vt.T, u), solve(u, vt.T))


def _direct(sums: list[KroneckerSum], like) -> Inverse:
    def solve(b):
        return tuple(s.solve(f) for s, f in zip(sums, b, strict=True))

    transposed = jax.linear_transpose(solve, like)
    return Inverse(lambda b, rtol: solve(b), lambda b, rtol: transposed(b)[0])


def _unit(ndim: int, axis: int, order: int) -> tuple[int, ...]:
    return tuple(order if d == axis else 0 for d in range(ndim))
