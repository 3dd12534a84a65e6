"""The Bayesian solve: a Gaussian prior conditioned on the equation, the conditions and observations, with noise.

With rho the misfits of all data over their standard deviations, then the whitened weights w, J its Jacobian, m data:

(1) ``w = argmin |rho(w)|^2 / 2``, where ``J' rho = 0``
(2) ``w <- w + t d,  d = -R^-1 Q' rho,  J = Q R``
(3) ``|R^-1 Q' rho(w + t d)| <= (1 - t / 4) |d|``, the natural test of Deuflhard, Newton methods, 2011, section 3.1
(4) ``log evidence = -|rho|^2 / 2 - sum log diag(R) - sum log std - m log(2 pi) / 2``
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from math import log, pi
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from ...core.implicit import attach
from ...core.krylov.gmres import gmres
from ...core.linalg.kronecker import mode_products
from ...core.loop import Limits, Run, iterate
from ...core.precision import eps, matmul
from ...core.search import backtrack
from ...core.typing import Array, Float
from ..problem import Face, PDEProblem
from ..solution import Posterior
from ..tracing import Equation
from .random_field import moved


class Data(eqx.Module):
    """What the rows depend on: everything here is differentiated.

    Attributes
    ----------
    problem : PDEProblem
        Noise levels and observed values; condition values are in `faces`.
    faces : list of list
        ``faces[k]``: one `Face` a condition of unknown k.
    args : PyTree
        The user's, or the prior mean of those to be found.
    spread : PyTree or None
        Prior standard deviations of the `args` to be found.
    """

    problem: PDEProblem
    faces: list
    args: Any
    spread: Any


class Rows:
    """Every datum as a function of the whitened weights, divided by its standard deviation.

    The unknowns are tensors of weights for each field and, for inverse problems, whitened `args`; flat, they form the
    vector w with prior N(0, I).
    """

    def __init__(self, equation: Equation, bases, x, data: Data, nugget: float):
        self.equation, self.bases, self.x, self.data = equation, bases, x, data
        nodes = [c.reshape(-1) for c in x]
        self.values = [
            [{p: b.whitened(nodes[d], p) for p in {i[d] for i in orders} | {0}} for d, b in enumerate(bs)]
            for bs, orders in zip(bases, equation.orders, strict=True)
        ]
        self.shapes = [tuple(b.size for b in bs) for bs in bases]
        self.faces = [self._face(k, f) for k, faces in enumerate(data.faces) for f in faces]
        self.points = [self._points(o) for o in data.problem.observations]
        start = self.zeros()
        self.scales = self._scales(start, nugget)

    def zeros(self):
        """Return the prior mean."""
        dtype = self.x[0].dtype
        found = (
            None
            if self.data.spread is None
            else jax.tree.map(lambda s: jnp.zeros(jnp.shape(s), dtype), self.data.spread)
        )
        return tuple(jnp.zeros(s, dtype) for s in self.shapes), found  # fmt: skip

    def args(self, found):
        """Return the user's args, with those found in place."""
        if found is None:
            return self.data.args
        residual, args = self.data.args
        return residual, moved(args, self.data.spread, found)

    def jets(self, fields):
        """Return the derivatives that the equation uses, on the grid."""
        return [
            [mode_products([v[i[d]] for d, v in enumerate(vs)], f) for i in orders]
            for vs, orders, f in zip(self.values, self.equation.orders, fields, strict=True)
        ]

    def raw(self, w) -> list:
        """Return the misfit of every datum: the equation on the grid, the faces, the observations."""
        fields, found = w
        parts = list(self.equation(self.x, self.jets(fields), self.args(found)))
        for k, matrices, values, _ in self.faces:
            total = sum(scale * mode_products(ms, fields[k]) for scale, ms in matrices)
            parts.append(total - values)
        for k, matrices, values, _ in self.points:
            total = matmul(matrices[0], fields[k].reshape(fields[k].shape[0], -1)).reshape(-1, *fields[k].shape[1:])
            for m in matrices[1:]:
                total = jnp.sum(total * m.reshape(m.shape + (1,) * (total.ndim - 2)), axis=1)
            parts.append(total - values)
        return parts

    def vector(self, flat, unravel):
        """Return all rows over their standard deviations, then the prior's."""
        parts = self.raw(unravel(flat))
        rows = [(p / s).reshape(-1) for p, s in zip(parts, self.scales, strict=True)]
        return jnp.concatenate([*rows, flat])  # (1)

    def noises(self) -> list:
        """Return the stated noise of each group of rows, None where exact."""
        noises = [self.data.problem.noise] * len(self.equation.orders)
        return noises + [f[3] for f in self.faces] + [p[3] for p in self.points]

    def unmet(self, flat, unravel) -> list:
        """Return by how much exact rows miss their standard deviation where the field fits best, args as they are.

        What the prior's functions cannot follow is no knowledge of the args, whose Gauss-Newton steps would diverge.
        """
        rho, push = jax.linearize(lambda w: self.vector(w, unravel), flat)
        q, r = jnp.linalg.qr(jax.vmap(push, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype)))
        parts = self.raw(unravel(flat - solve_triangular(r, matmul(rho, q))))
        worst = [jnp.sqrt(jnp.mean((p / s) ** 2)) for p, s in zip(parts, self.scales, strict=True)]
        return lax.stop_gradient([jnp.maximum(w, 1) if n is None else jnp.ones_like(w) for w, n in zip(
            worst, self.noises(), strict=True)])  # fmt: skip

    def softened(self, factors) -> "Rows":
        """Return the same with standard deviations times those factors."""
        other = copy(self)
        other.scales = [s * f for s, f in zip(self.scales, factors, strict=True)]
        return other

    def _face(self, k: int, face: Face):
        matrices = []
        for scale, order in ((face.a, 0), (face.outward * face.b, 1)):
            ms = [self.bases[k][d].whitened(jnp.atleast_1d(face.end), order) if d == face.axis else self.values[k][d][0]
                  for d in range(len(self.x))]  # fmt: skip
            matrices.append((scale, ms))
        return k, matrices, face.values, face.noise

    def _points(self, o):
        matrices = [b.whitened(o.points[:, d].astype(self.x[0].dtype)) for d, b in enumerate(self.bases[o.field])]
        return o.field, matrices, o.values.astype(self.x[0].dtype), o.noise

    def _scales(self, start, nugget: float):
        """Noise of each group of rows, at least `nugget` times what the prior would let the row be."""
        start = lax.stop_gradient(start)
        key = jax.random.key(20231107)
        flat, unravel = ravel_pytree(start)
        base = lax.stop_gradient(self.raw(start))
        probes = jax.random.normal(key, (8, flat.size), flat.dtype)
        moved = jax.vmap(lambda p: jax.jvp(self.raw, (start,), (unravel(p),))[1])(probes)
        scales = []
        for b, m, noise in zip(base, moved, self.noises(), strict=True):
            typical = lax.stop_gradient(jnp.sqrt(jnp.mean(m**2) + jnp.mean(b**2) * eps(b.dtype)))
            least = nugget * jnp.where(typical > 0, typical, 1)
            scales.append(least if noise is None else jnp.sqrt(jnp.asarray(noise, b.dtype) ** 2 + least**2))
        return scales


class State(NamedTuple):
    """Weights, the Gauss-Newton step from them, rows, error, and the factors of the rows' Jacobian."""

    w: Any
    direction: Any
    rho: Any
    error: Any
    r: Any
    q: Any


def condition(
    build: Callable[[Any], Rows], data: Any, guess, limits: Limits
) -> tuple[Rows, Any, Posterior, Run, Float[Array, ""]]:
    """Find the most probable weights by damped Gauss-Newton steps, and their posterior.

    Each step is a QR factorisation of the rows' Jacobian on top of the prior's identity. The smallest rows are at the
    bottom, which keeps Householder's method accurate for weights that differ by ten orders of magnitude.
    """
    frozen = build(lax.stop_gradient(data))
    flat, unravel = ravel_pytree(frozen.zeros() if guess is None else guess(frozen))

    linear = frozen.equation.linear and frozen.data.spread is None
    if frozen.equation.linear and not linear:
        factors = frozen.unmet(flat, unravel)
        build, stated = (lambda data: stated(data).softened(factors)), build
        frozen = frozen.softened(factors)

    def rows(w):
        return frozen.vector(w, unravel)

    def factorise(w):
        rho, push = jax.linearize(rows, w)
        jacobian = jax.vmap(push, out_axes=1)(jnp.eye(w.size, dtype=w.dtype))
        q, r = jnp.linalg.qr(jacobian)
        return rho, q, r, matmul(rho, q)

    def state_at(w) -> State:
        rho, q, r, slope = factorise(w)
        error = jnp.linalg.norm(slope) / jnp.sqrt(1 + jnp.sum(rho**2))
        return State(w, -solve_triangular(r, slope), rho, error, r, q)  # (2)

    def step(s: State) -> State:
        w, direction, r, q = s.w, s.direction, s.r, s.q
        # Deuflhard's natural test: what would the next step be? Equations without noise make the objective a ravine
        # along which descent crawls, while steps, being measured in weights, do not see their enormous rows.
        before = jnp.linalg.norm(direction)

        def following(t):
            # (3)
            return jnp.linalg.norm(solve_triangular(r, matmul(rows(w + t * direction), q)))

        if linear:
            return state_at(w + direction)
        one = jnp.ones((), w.dtype)
        found = backtrack(following, lambda t, after: after <= (1 - t / 4) * before + 1e-3, start=one, most=10)
        return state_at(w + found.length * direction)

    run = iterate(
        step, state_at(flat), limits, value=lambda s: (s.w, s.r, s.rho), error=lambda s: s.error,
        stall=5 if linear else 25,
    )  # fmt: skip
    w, root, rho = run.value
    sign = jnp.where(jnp.diagonal(root) < 0, -1, 1).astype(root.dtype)
    root = sign[:, None] * root
    count = rho.size - w.size
    noise = sum(p.size * jnp.log(s) for p, s in zip(frozen.raw(unravel(w)), frozen.scales, strict=True))
    # (4)
    evidence = -jnp.sum(rho**2) / 2 - jnp.sum(jnp.log(jnp.diagonal(root))) - noise - count * log(2 * pi) / 2
    w = _attached(build, data, w, rho, unravel)
    return build(data), unravel(w), Posterior(w, root), run, evidence


def _attached(build, data, w, rho, unravel):
    """Attach derivatives: ``r = rows(w)`` and ``J(w)' r = 0`` together, which does not square the conditioning.

    Both are one vector: of a pair the second's cotangent would be a symbolic zero, which cannot be transposed.
    """
    size = w.size

    def optimality(point, data):
        w, r = point[:size], point[size:]
        value, pull = jax.vjp(lambda v: build(data).vector(v, unravel), w)
        return jnp.concatenate([pull(r)[0], r - value])

    def solve(jacobian, b):
        frozen = build(lax.stop_gradient(data))
        push = jax.linearize(lambda v: frozen.vector(v, unravel), w)[1]
        q, r = jnp.linalg.qr(jax.vmap(push, out_axes=1)(jnp.eye(size, dtype=w.dtype)))

        def inverse(sign):
            def near(b):
                top, bottom = b[:size], b[size:]
                x = solve_triangular(r, solve_triangular(r, top, trans=1) - sign * matmul(bottom, q))
                return jnp.concatenate([x, bottom + sign * matmul(q, matmul(r, x))])

            def solver(matvec, b):
                tol = 1e4 * eps(b.dtype) * jnp.linalg.norm(b)
                return gmres(matvec, b, tol=tol, max_steps=60, precondition=near).x

            return solver

        return lax.custom_linear_solve(jacobian, b, inverse(1.0), inverse(-1.0))

    point = lax.stop_gradient(jnp.concatenate([w, rho]))
    return attach(optimality, point, data, solve=solve)[:size]
