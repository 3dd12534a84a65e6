"""Evidence maximisation: the prior and the noise that make the data most probable, the unknown field integrated out.

For data ``y_i = sum_a c_i D^a u(x_i)`` and a kernel k that is a product over dimensions of functions of lags:

(1) ``K_ij = sum_a,b c_i e_j (-1)^|b| k^(a + b)(x_i - x_j)``
(2) ``log N(y; 0, K + noise^2) = -|L^-1 y|^2 / 2 - sum log diag(L) - m log(2 pi) / 2,  L L' = K + noise^2``
(3) ``B <- (I - s y'/ s'y) B (I - y s'/ s'y) + s s'/ s'y``, the inverse Hessian of BFGS
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from ...core.gaussian.kernels import Kernel, SpectralMixture, StudentMixture
from ...core.loop import Limits, iterate
from ...core.precision import dot, eps, matmul
from ...core.typing import Array, Float
from ..tracing import Equation
from .conditioning import Data

MOST = {"equation": 160, "face": 40}
"""Data of an equation, and of a face, that are learned from."""
STEPS = 40
FLAT = 1e-2
"""Slope at which the search ends, in nats per unit of a logarithm: far below what the data can tell."""
SPREAD = 1.5
"""Standard deviation of the logarithms of lengths and noises around where the search starts."""
CYCLES = 0.25
"""Scale of the search in a frequency, in cycles per domain length."""


class Functionals(NamedTuple):
    """Data ``y_i = sum_{k, alpha} c_i D^alpha u_k(x_i) + noise``, flat.

    Attributes
    ----------
    points : Float[Array, "m d"]
        x, as fractions of the domain.
    coefficients : list of dict
        For each unknown, multi-index -> c (m,), derivatives being per domain length.
    values : Float[Array, "m"]
        y.
    noise : Float[Array, "m"]
        Standard deviations, zero where exact.
    group : Int[np.ndarray, "m"]
        Which statement a datum comes from; static.
    """

    points: Float[Array, "m d"]
    coefficients: list
    values: Float[Array, " m"]
    noise: Float[Array, " m"]
    group: Any


def functionals(equation: Equation, x, jets, args, data: Data, widths, lower) -> Functionals:
    """Linearise all data at the derivatives `jets` of the unknowns on the grid, thinning what is plentiful."""
    shape, dtype, ndim = jnp.broadcast_shapes(*(c.shape for c in x)), x[0].dtype, len(x)
    residuals, slopes = equation(x, jets, args), equation.coefficients(x, jets, args)
    parts = []  # (points, {(field, index): c}, y, noise)

    def thin(size, most):
        return np.sort(np.random.default_rng(12).permutation(size)[:most])

    def flat(coordinates, shape):
        return [jnp.broadcast_to(c, shape).reshape(-1) for c in coordinates]

    for i, r in enumerate(residuals):
        keep, offset, terms = thin(r.size, MOST["equation"]), -r, {}
        for k, orders in enumerate(equation.orders):
            for index, c, u in zip(orders, slopes[i][k], jets[k], strict=True):
                offset = offset + c * u
                terms[k, index] = jnp.broadcast_to(c, shape).reshape(-1)[keep]
        parts.append(([p[keep] for p in flat(x, shape)], terms, offset.reshape(-1)[keep], data.problem.noise))
    for k, faces in enumerate(data.faces):
        for f in faces:
            keep = thin(f.values.size, MOST["face"])
            on = [jnp.full((1,) * ndim, f.end, dtype) if d == f.axis else c for d, c in enumerate(x)]
            points = flat(on, f.values.shape)
            slope = tuple(int(d == f.axis) for d in range(ndim))
            ones = jnp.ones(keep.size, dtype)
            terms = {(k, (0,) * ndim): f.a * ones, (k, slope): f.outward * f.b * ones}
            parts.append(([p[keep] for p in points], terms, f.values.reshape(-1)[keep], f.noise))
    for o in data.problem.observations:
        points = [o.points[:, d].astype(dtype) for d in range(ndim)]
        ones = jnp.ones(o.values.size, dtype)
        parts.append((points, {(o.field, (0,) * ndim): ones}, o.values.astype(dtype), o.noise))

    sizes = [y.size for _, _, y, _ in parts]
    starts, total = np.cumsum([0, *sizes]), sum(sizes)
    columns: list[dict] = [{} for _ in equation.orders]
    for start, (_, terms, _, _) in zip(starts, parts, strict=False):
        for (k, index), c in terms.items():
            scale = 1.0
            for w, p in zip(widths, index, strict=True):
                scale = scale / w**p
            column = columns[k].get(index, jnp.zeros(total, dtype))
            columns[k][index] = lax.dynamic_update_slice(column, (c * scale).astype(dtype), (int(start),))
    points = jnp.concatenate([jnp.stack([(p - lo) / w for p, lo, w in zip(ps, lower, widths, strict=True)], 1)
                              for ps, *_ in parts])  # fmt: skip
    noise = [jnp.full(s, 0 if n is None else n, dtype) for s, (_, _, _, n) in zip(sizes, parts, strict=True)]
    group = np.repeat(np.arange(len(parts)), sizes)
    return Functionals(points, columns, jnp.concatenate([y for _, _, y, _ in parts]), jnp.concatenate(noise), group)


def covariance(prior: tuple[Kernel, ...], f: Functionals) -> Float[Array, "m m"]:
    """Return the covariance of the data without noise, from the kernels' closed-form derivatives."""
    gaps = [f.points[:, d][:, None] - f.points[:, d][None] for d in range(f.points.shape[1])]
    found: dict[tuple[int, int], Any] = {}

    def factor(d, order):
        if (d, order) not in found:
            found[d, order] = prior[d].derivative(gaps[d], order)
        return found[d, order]

    total = jnp.zeros_like(gaps[0])
    for terms in f.coefficients:
        for alpha, c in terms.items():
            for beta, e in terms.items():
                block = c[:, None] * e[None] * (-1.0) ** sum(beta)  # (1)
                for d, (p, q) in enumerate(zip(alpha, beta, strict=True)):
                    block = block * factor(d, p + q)
                total = total + block
    return total


def log_density(prior: tuple[Kernel, ...], f: Functionals, noise) -> Float[Array, ""]:
    """Return ``log N(y; 0, K + diag(noise^2))``, the evidence with the unknown field integrated out."""
    lower = jnp.linalg.cholesky(covariance(prior, f) + jnp.diag(noise**2))
    white = solve_triangular(lower, f.values, lower=True)
    # (2)
    return -jnp.sum(white**2) / 2 - jnp.sum(jnp.log(jnp.diagonal(lower))) - f.values.size * log(2 * pi) / 2


def maximise(prior: tuple[Kernel, ...], f: Functionals, learn: str):
    """Return the prior and the factors of each statement's noise that maximise the evidence.

    Weights, lengths, variances and noises are searched as logarithms, so that a component the data do not need falls
    towards zero; what costs less to leave out than its three numbers are worth (1.5 log m, by BIC) is then left out.
    Exact data are taken as exact to ``eps^0.3`` of what the prior allows, which keeps the Cholesky factorisation safe
    and hardly moves the optimum.
    """
    group = f.group
    prior, f = lax.stop_gradient((prior, f._replace(group=None)))
    dtype, groups = f.values.dtype, int(group.max()) + 1
    variance = jnp.diagonal(covariance(prior, f))
    member = jnp.asarray(group[None] == np.arange(groups)[:, None], dtype)
    typical = jnp.sqrt(matmul(member, variance) / jnp.sum(member, 1))
    blur = eps(dtype) ** 0.3 * matmul(typical, member)
    leaves, _ = jax.tree.flatten(prior)
    kinds = [
        jax.tree_util.keystr(path).rsplit(".", 1)[-1] for path, _ in jax.tree_util.tree_flatten_with_path(prior)[0]
    ]
    alive = [leaf > 0 for leaf in leaves]

    def unpack(free):
        moves, factors = free
        new = []
        for leaf, move, kind, on in zip(leaves, moves, kinds, alive, strict=True):
            moved = leaf + CYCLES * move if kind == "frequencies" else leaf * jnp.exp(move)
            new.append(jnp.where(on | (kind == "frequencies"), moved, leaf) if learn != "noise" else leaf)
        factors = factors if learn != "prior" else jnp.zeros_like(factors)
        return jax.tree.unflatten(jax.tree.structure(prior), new), factors

    def objective(flat):
        free = unravel(flat)
        kernels, factors = unpack(free)
        noise = jnp.sqrt((f.noise * matmul(jnp.exp(factors), member)) ** 2 + blur**2)
        wide = [m for m, kind in zip(free[0], kinds, strict=True) if kind in ("lengths", "length")]
        penalty = sum((jnp.sum(m**2) for m in [*wide, free[1]]), jnp.zeros((), dtype)) / (2 * SPREAD**2)
        return penalty - log_density(kernels, f, noise)

    start = ([jnp.zeros_like(leaf) for leaf in leaves], jnp.zeros(groups, dtype))
    flat, unravel = ravel_pytree(start)
    best = bfgs(objective, flat)
    prior, factors = unpack(unravel(best))
    noise = jnp.sqrt((f.noise * matmul(jnp.exp(factors), member)) ** 2 + blur**2)
    if learn != "noise":
        prior = pruned(prior, lambda kernels: log_density(kernels, f, noise), 1.5 * log(f.values.size))
    return prior, jnp.exp(factors)


def pruned(prior: tuple[Kernel, ...], evidence: Callable[[Any], Float[Array, ""]], worth: float):
    """Set to zero, weakest first, the weights of mixtures whose absence costs at most `worth` of evidence."""
    kernels, known = list(prior), evidence(prior)
    for d, kernel in enumerate(kernels):
        if not isinstance(kernel, SpectralMixture | StudentMixture):
            continue

        def without(weights, d=d, kernel=kernel):
            return tuple(
                type(kernel)(weights, kernel.frequencies, kernel.lengths) if e == d else k
                for e, k in enumerate(kernels)
            )

        def consider(carry, j, without=without):
            weights, known = carry
            less = weights.at[j].set(0)
            value = evidence(without(less))
            drop = (value > known - worth) & (jnp.sum(less) > 0)
            return (jnp.where(drop, less, weights), jnp.where(drop, value, known)), None

        (weights, known), _ = lax.scan(consider, (kernel.weights, known), jnp.argsort(kernel.weights))
        kernels[d] = without(weights)[d]
    return tuple(kernels)


class Descent(NamedTuple):
    """A point of BFGS, its value and gradient, and the estimate of the inverse Hessian."""

    x: Array
    value: Array
    gradient: Array
    inverse: Array


def bfgs(objective: Callable, x):
    """Minimise a function of a few dozen numbers by BFGS with backtracking, at most STEPS steps, each at most one.

    The bound on the step is why it is here: `jax.scipy.optimize.minimize` tries steps at which the covariance cannot be
    factorised, and ends there.
    """
    slope = jax.value_and_grad(objective)

    def step(state: Descent) -> Descent:
        x, value, gradient, inverse = state
        p = -matmul(inverse, gradient)
        descent = dot(p, gradient)
        p = jnp.where(descent < 0, p, -gradient)
        p = p / jnp.maximum(1, jnp.max(jnp.abs(p)))
        descent = dot(p, gradient)

        def rejected(carry):
            t, after = carry
            return ~(after <= value + 1e-4 * t * descent) & (t > 1e-4)

        def shorter(carry):
            t, _ = carry
            return t / 3, objective(x + t / 3 * p)

        one = jnp.ones((), x.dtype)
        t, after = lax.while_loop(rejected, shorter, (one, objective(x + p)))
        new = jnp.where(after <= value, x + t * p, x)
        value, after = slope(new)
        s, y = new - x, after - gradient
        sy = dot(s, y)
        safe = jnp.where(sy > 0, sy, 1)
        left = jnp.eye(x.size, dtype=x.dtype) - jnp.outer(s, y) / safe
        # (3)
        updated = matmul(matmul(left, inverse), left.T) + jnp.outer(s, s) / safe
        kept = jnp.where(sy > eps(x.dtype) * dot(y, y), updated, jnp.eye(x.size, dtype=x.dtype))
        return Descent(new, value, after, kept)

    value, gradient = slope(x)
    start = Descent(x, value, gradient, jnp.eye(x.size, dtype=x.dtype))
    run = iterate(
        step,
        start,
        Limits(FLAT, STEPS),
        value=lambda s: s.x,
        error=lambda s: jnp.max(jnp.abs(s.gradient)),
        stall=STEPS,
    )
    return run.state.x
