"""Exact equations with data: only what they leave open is uncertain, and everything else is spectral.

The unknowns are the free coefficients y of a well-posed problem and a vector p with prior N(0, I): weights of open face
values, the equation's noise, unknown `args`. The equation ``F(y, p) = 0`` is solved, not fitted; the data, which see
the solution, and the prior decide p. A step linearises both: ``dy = -F_y^-1 F + V dp`` with ``V = -F_y^-1 F_p``, and dp
is a least-squares solution with as many unknowns as p has numbers, however many y has.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from ...core.implicit import attach
from ...core.linalg.kronecker import mode_products
from ...core.loop import Limits, Run, iterate
from ...core.precision import eps, matmul
from ...core.search import backtrack
from ...core.vectors import axpy
from ..gaussian.random_field import moved
from ..problem import Face, Observe
from ..spectral.newton import Discretisation, Inverse
from .completion import FaceSpace

COLUMNS = 32
"""Solutions of an iterative solver at once."""
NUMBERS = 4_000_000
"""How many numbers observing scattered points may make on the way."""


class Target(NamedTuple):
    """Data that see the solution linearly: ``observe(z)``, stated `values`, their standard deviation.

    ``columns(z)`` is the same of many solutions, which make a last axis.
    """

    observe: Callable
    columns: Callable
    values: Any
    sigma: Any


class Reduced:
    """Equation and data as functions of y and p.

    Attributes
    ----------
    found : Discretisation
        The completed problem, open conditions zero.
    lifts : list
        For each unknown, the coefficients (n1, ..., open weights) that open face values add.
    root : Float[Array, "p r"]
        ``open weights = root w``.
    mean, spread : PyTree
        Prior of the `args`; `spread` None where they are known.
    noise : scalar or None
        Of the equation.
    edges : list of tuple
        Rows for the open weights and their values, see `completion.corners`.
    faces, targets : list of Target
        The data on the faces of one dimension each, and with them all others.
    values, sigmas : Float[Array, "m"]
        What is stated by all targets, then by the edges, and their standard deviations, flat.
    nugget : scalar
        The standard deviation of an exact datum.
    basis : Float[Array, "nodes r"] or None
        Directions of the equation's noise, see `noise.leading`; None: every node's is a number of its own.
    excess : Float[Array, "m"] or None
        Factors of the data's standard deviations that go with it.
    """

    def __init__(self, found: Discretisation, spaces: list[FaceSpace], lifts, root, stated, nugget):
        self.found, self.spaces, self.lifts, self.root = found, spaces, lifts, root
        self.mean, self.spread, self.noise, faces, observations, self.edges = stated
        self.nugget, self.basis, self.excess = nugget, None, None
        groups = [list(g) for _, g in groupby(faces, lambda f: (f[0], f[1].axis))]
        self.faces = [self._faces(g) for g in groups]
        self.targets = self.faces + [self._points(o) for o in observations]
        zero = jnp.zeros(0, root.dtype)
        least = jnp.asarray(nugget, root.dtype)
        self.values = jnp.concatenate(
            [zero, *(t.values.reshape(-1) for t in self.targets), *(b for _, b in self.edges)]
        )
        sigmas = [jnp.broadcast_to(t.sigma, t.values.shape).reshape(-1) for t in self.targets]
        self.sigmas = jnp.concatenate([zero, *sigmas, *(jnp.broadcast_to(least, b.shape) for _, b in self.edges)])

    def zeros(self):
        """Return p at its prior mean: weights, noise of the equation, whitened args."""
        dtype = self.root.dtype
        shape = jnp.broadcast_shapes(*(c.shape for c in self.found.x))
        noise = None if self.noise is None else tuple(jnp.zeros(shape, dtype) for _ in self.found.lines)
        noise = noise if self.basis is None else jnp.zeros(self.basis.shape[1], dtype)
        args = None if self.spread is None else jax.tree.map(lambda s: jnp.zeros(jnp.shape(s), dtype), self.spread)
        return jnp.zeros(self.root.shape[1], dtype), noise, args

    def args(self, p):
        """Return the args with those found in place."""
        if p[2] is None:
            return self.mean
        residual, args = self.mean
        return residual, moved(args, self.spread, p[2])

    def at(self, p) -> Discretisation:
        """Return the discretisation with the face values and args that p says."""
        open_weights = matmul(self.root, p[0])
        offsets = [o + matmul(lift, open_weights) for o, lift in zip(self.found.offsets, self.lifts, strict=True)]
        return self.found.moved(offsets, self.args(p))

    def coefficients(self, y, p):
        """Return the coefficients in the bases."""
        return self.at(p).coefficients(y)

    def strong(self, y, p):
        """Return the equation's residual at the nodes, its noise taken off."""
        here = self.at(p)
        residuals = here.equation(here.x, here.jets(here.coefficients(y)), here.args)
        if p[1] is None:
            return residuals
        noise = p[1] if self.basis is None else matmul(self.basis, p[1]).reshape(len(residuals), *residuals[0].shape)
        return tuple(r - self.noise * q for r, q in zip(residuals, noise, strict=True))

    def with_noise(self, basis, excess) -> "Reduced":
        """Return the same with the equation's noise in a few directions, and data that much noisier."""
        other = copy(self)
        other.basis, other.excess = basis, excess
        return other

    def tested(self, y, p):
        """Return F."""
        return self.found.project(self.strong(y, p))

    @property
    def spreads(self):
        """The standard deviations of all data, flat."""
        return self.sigmas if self.excess is None else self.sigmas * self.excess

    def seen(self, z, w):
        """Return what all data see of the coefficients and the whitened weights, flat."""
        weights = matmul(self.root, w)
        parts = [t.observe(z).reshape(-1) for t in self.targets] + [matmul(a, weights) for a, _ in self.edges]
        return jnp.concatenate([jnp.zeros(0, self.root.dtype), *parts])

    def slopes(self, response, weights):
        """Return the linear part of the misfit of many solutions and weights, columns both."""
        count = weights.shape[1]
        parts = [t.columns(response).reshape(-1, count) for t in self.targets]
        if self.edges:
            moved = matmul(self.root, weights)
            parts += [matmul(a, moved) for a, _ in self.edges]
        return jnp.concatenate([jnp.zeros((0, count), self.root.dtype), *parts]) / self.spreads[:, None]

    def misfit(self, y, p):
        """Return the misfit of all data over their noise."""
        return (self.seen(self.coefficients(y, p), p[0]) - self.values) / self.spreads

    def size(self, y, p):
        """Return the norm of what cancels in the misfit."""
        seen = self.seen(self.coefficients(y, p), p[0]) / self.spreads
        return jnp.linalg.norm(seen) + jnp.linalg.norm(self.values / self.spreads)

    def _faces(self, group: list[tuple[int, Face, bool]]) -> Target:
        """Return the data on the faces of one dimension, which comes first."""
        k, axis = group[0][0], group[0][1].axis
        lines, values, least = self.found.lines[k], self.found.values[k], self.nugget
        basis, rows, seen, sigmas = lines[axis].basis, [], [], []
        for _, face, flux in group:
            end = slice(0, 1) if face.outward < 0 else slice(1, 2)
            row = basis.at_ends()[end]
            rows.append(face.a * row + face.outward * face.b * basis.at_ends(1)[end] if flux else row)
            sigma = least if face.noise is None else jnp.hypot(jnp.asarray(face.noise, least.dtype), least)
            seen.append(jnp.moveaxis(face.values, axis, 0))
            sigmas.append(jnp.moveaxis(jnp.broadcast_to(sigma, face.values.shape), axis, 0))
        matrices = [jnp.concatenate(rows) if d == axis else v[0] for d, v in enumerate(values)]

        def observe(z):
            found = mode_products([*matrices, *[None] * (z[k].ndim - len(matrices))], z[k])
            return jnp.moveaxis(found, axis, 0)

        return Target(observe, observe, jnp.concatenate(seen), jnp.concatenate(sigmas))

    def _points(self, o: Observe) -> Target:
        dtype = self.nugget.dtype
        matrices = [ln.basis.evaluate(o.points[:, d].astype(dtype)) for d, ln in enumerate(self.found.lines[o.field])]

        def observe(z):
            f = z[o.field]
            total = matmul(matrices[0], f.reshape(f.shape[0], -1)).reshape(-1, *f.shape[1:])
            for m in matrices[1:]:
                total = jnp.sum(total * m.reshape(m.shape + (1,) * (total.ndim - 2)), axis=1)
            return total

        def columns(z):
            """All functions at some points, a row each, times all solutions: few points at once, products of size."""
            f = z[o.field]
            flat = f.reshape(-1, f.shape[-1])
            count = o.points.shape[0]
            most = max(1, min(count, NUMBERS // flat.shape[0]))
            blocks = -(-count // most)
            most = -(-count // blocks)
            each = [jnp.pad(m, ((0, blocks * most - count), (0, 0))).reshape(blocks, most, -1) for m in matrices]

            def some(rows):
                table = rows[0]
                for m in rows[1:]:
                    table = (table[:, :, None] * m[:, None]).reshape(most, -1)
                return matmul(table, flat)

            seen = some([m[0] for m in each])[None] if blocks == 1 else lax.map(some, each)
            return seen.reshape(blocks * most, -1)[:count]

        sigma = jnp.hypot(jnp.asarray(o.noise, dtype), self.nugget)
        return Target(observe, columns, o.values.astype(dtype), sigma)


class Linear(NamedTuple):
    """Both linearised: the inverse of F_y, V and what p does to the coefficients (a column each), the rows' factors."""

    inverse: Inverse
    columns: Any
    response: Any
    q: Any
    r: Any


def responses(model: Reduced, y, p, inverse: Inverse):
    """Return V and the change of the coefficients, both with one last axis for the numbers of p."""
    flat, unravel = ravel_pytree(p)
    _, push = jax.linearize(lambda v: model.tested(y, unravel(v)), flat)
    eye = jnp.eye(flat.size, dtype=flat.dtype)
    columns = lax.map(
        lambda e: jax.tree.map(jnp.negative, inverse.solve(push(e), 1e-10)),
        eye,
        batch_size=flat.size if model.found.direct else COLUMNS,
    )
    columns = jax.tree.map(lambda v: jnp.moveaxis(v, 0, -1), columns)
    # The weights of open values are p's first numbers.
    rest = flat.size - model.root.shape[1]
    lifted = [jnp.pad(matmul(lift, model.root), [(0, 0)] * (lift.ndim - 1) + [(0, rest)]) for lift in model.lifts]
    free = [
        mode_products([*(ln.null for ln in field), None], c)
        for field, c in zip(model.found.lines, columns, strict=True)
    ]
    return columns, tuple(a + b for a, b in zip(lifted, free, strict=True))


def jacobian(model: Reduced, p, response):
    """Return the derivative of the misfit in p, the solution following."""
    size = ravel_pytree(p)[0].size
    weights = jnp.eye(p[0].size, size, dtype=model.root.dtype)  # the weights of open values are p's first numbers
    return model.slopes(response, weights)


def linearised(model: Reduced, y, p) -> Linear:
    """Linearise at a point."""
    inverse = model.at(p).factorise(y)
    columns, response = responses(model, y, p, inverse)
    return factorised(inverse, columns, response, jacobian(model, p, response))


def factorised(inverse: Inverse, columns, response, slopes) -> Linear:
    """Factorise the Jacobian of the data on top of the prior's identity; large rows do not mind, being on top."""
    q, r = jnp.linalg.qr(jnp.concatenate([slopes, jnp.eye(slopes.shape[1], dtype=slopes.dtype)]))
    return Linear(inverse, columns, response, q, r)


class State(NamedTuple):
    """A point, its error, the residual at the nodes and the size of the equation's terms there; how p moves the
    coefficients and R, where not the same everywhere; and the next point.
    """

    y: Any
    p: Any
    error: Any
    strong: Any
    scale: Any
    response: Any
    r: Any
    next_y: Any
    next_p: Any


def solve_reduced(model: Reduced, y, limits: Limits, once: Linear | None) -> Run:
    """Find the most probable p and its y; ``run.value`` is ``(y, p, (strong, scale), response, r)``.

    `once` is the linearisation of a linear problem, the same everywhere; None for others.

    The error is the larger of the equation's, as in `newton`, and ``|Q' r| / (1 + |r| + |terms|)`` with r all misfits
    over their noise, the prior's included, and Q an orthonormal basis of the Jacobian's range.
    """
    p = model.zeros()
    linear = once is not None
    unravel = ravel_pytree(p)[1]

    def slopes(local: Linear, y, p):
        """Return the step that solves the equation, p as it is; data and prior after it, their slope and norm."""
        free = jax.tree.map(jnp.negative, local.inverse.solve(model.tested(y, p), 1e-8))
        after = axpy(1.0, free, y)
        r = jnp.concatenate([model.misfit(after, p), ravel_pytree(p)[0]])
        return free, matmul(r, local.q), jnp.linalg.norm(r)

    def direction(local: Linear, y, p):
        free, slope, size = slopes(local, y, p)
        dp = -solve_triangular(local.r, slope)
        dy = tuple(f + matmul(c, dp) for f, c in zip(free, local.columns, strict=True))
        return dy, dp, jnp.linalg.norm(slope) / (1 + size + model.size(y, p))

    def state_at(y, p) -> State:
        local = once or linearised(model, y, p)
        here = model.at(p)
        _, scale = here.terms(y)
        strong = model.strong(y, p)
        tested = model.found.project(strong)
        equation = jnp.sqrt(sum(jnp.sum(t**2) for t in tested)) / scale
        dy, dp, stationary = direction(local, y, p)

        def moved(t):
            return axpy(t, dy, y), unravel(ravel_pytree(p)[0] + t * dp)

        if not linear:
            size = _norm(here.coefficients(y))
            before = _length(dy, dp, size)

            def following(t):
                return _length(*direction(local, *moved(t))[:2], size)

            # Deuflhard's natural test, as in `conditioning`: what would the next step be?
            one = jnp.ones((), dp.dtype)
            found = backtrack(following, lambda t, after: after <= (1 - t / 4) * before + 1e-3 * eps(dp.dtype) ** 0.25,
                              start=one, most=12)  # fmt: skip
            next_y, next_p = moved(found.length)
        else:
            next_y, next_p = moved(1.0)
        error = jnp.maximum(equation, stationary)
        own = (None, None) if linear else (local.response, local.r)
        return State(y, p, error, model.found.norm(strong) / scale, scale, *own, next_y, next_p)

    zero, size = jnp.zeros((), model.root.dtype), ravel_pytree(p)[0].size
    moved = tuple(jnp.zeros((*o.shape, size), zero.dtype) for o in model.found.offsets)
    empty = (None, None) if linear else (moved, jnp.zeros((size, size), zero.dtype))
    run = iterate(
        lambda s: state_at(s.next_y, s.next_p), State(y, p, zero, zero, zero, *empty, y, p), limits,
        value=lambda s: (s.y, s.p, (s.strong, s.scale), s.response, s.r), error=lambda s: s.error,
        stall=4 if linear else 8, fresh=True,
    )  # fmt: skip
    if once is None:
        return run
    whole = (*run.value[:3], once.response, once.r)
    return Run(run.state, whole, run.error, run.status, run.num_steps, run.history)


def _length(dy, dp, size):
    return jnp.sqrt(_norm(dy) ** 2 / jnp.where(size > 0, size, 1) ** 2 + jnp.sum(dp**2))


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(v**2) for v in tree))


def attached(build: Callable[[Any], Reduced], data, model: Reduced, y, p):
    """Return y and p with their derivatives in the data: of the equation and the stationarity of its Lagrangian.

    `model` is ``build(data)`` without derivatives. The multiplier of the equation is the third unknown; the system is
    dense and only solved where differentiated.
    """
    inverse = model.at(p).factorise(y)

    def objective(y, p, model):
        return jnp.sum(model.misfit(y, p) ** 2) / 2 + jnp.sum(ravel_pytree(p)[0] ** 2) / 2

    force = jax.grad(objective)(y, p, model)
    multiplier = jax.tree.map(jnp.negative, inverse.transposed(force, 1e-12))

    def optimality(point, data):
        y, p, multiplier = point
        model = build(data)
        tested, pull = jax.vjp(lambda y, p: model.tested(y, p), y, p)
        slope = jax.grad(objective, (0, 1))(y, p, model)
        pulled = pull(multiplier)
        return (*axpy(1.0, pulled, slope), tested)

    def solve(matvec, b):
        flat, unravel = ravel_pytree(b)
        eye = jnp.eye(flat.size, dtype=flat.dtype)
        columns = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0], out_axes=1)(eye)
        scale = 1 / jnp.sqrt(jnp.maximum(jnp.max(jnp.abs(columns), 1), jnp.finfo(flat.dtype).tiny))
        return unravel(scale * jnp.linalg.solve(scale[:, None] * columns * scale[None], scale * flat))

    point = attach(optimality, (y, p, multiplier), data, solve=solve)
    return point[0], point[1]
