"""GP-HM as published: values on the grid, kernels and noises found together by Adam on the joint log density.

Fang, Cooley, Long, Li, Kirby and Zhe, ICLR 2024, and their code; M nodes in all, M_d in dimension d, x_d a product with
mode d of the values U:

(1) ``k_d(s) = sum_q w_q e(s) cos(2 pi f_q s)``, ``e = exp(-a_q s^2)`` or
    ``(1 + r + r^2 / 3) exp(-r), r = sqrt(5) a_q |s|``
(2) ``log N(U) = -<U, U x_1 C_1^-1 ... x_d C_d^-1> / 2 - sum_d (M / M_d) log det(C_d) / 2,  C_d = k_d + jitter I``
(3) ``D_d^p U = U x_d (k_d^(p) C_d^-1)``
(4) ``N_b / 2 log tau - tau / 2 |u_b - g|^2``, the boundary's density, and so the equation's with v at all nodes
(5) ``log N(U) + weight boundary + equation``, raised by Adam in U, log w, log a, f, log tau, log v

It departs from the code in that kernels are evaluated at the n lags alone, whose numbers are the same.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from ...core.checks import choice, fail
from ...core.gaussian.kernels import Kernel, SpectralMixture, StudentMixture
from ...core.linalg.kronecker import along, mode_product
from ...core.loop import iterate
from ...core.precision import eps
from ...core.typing import Array, Float
from ..problem import Dirichlet, side
from ..settings import Settings
from ..solution import GPSolution
from ..spectral.spaces import face_values
from ..tracing import trace

BETA = (0.9, 0.999)


class PublishedGPHM(eqx.Module):
    """Settings of GP-HM, for ``gp_solve(..., published=PublishedGPHM(...))``; defaults are those of its authors.

    Attributes
    ----------
    components : int
        Peaks of the spectrum in each dimension, at first equally spaced up to `frequency_scale`. Static.
    frequency_scale : float
        In cycles per unit of length: the setting that decides whether it works.
    envelope : {"student", "gaussian"}
        Shape of the peaks (GP-HM-StM and GP-HM-GM). Static.
    boundary_weight : float
        Power to which the density of the boundary data is raised.
    learning_rate : float
        Adam's.
    jitter : float
        Added to the diagonal of every kernel matrix.
    """

    components: int = eqx.field(static=True, default=30)
    frequency_scale: Any = 20.0
    envelope: str = eqx.field(static=True, default="student")
    boundary_weight: Any = 200.0
    learning_rate: Any = 1e-2
    jitter: Any = 1e-6


class Interpolant(eqx.Module):
    """``k(x, nodes) C^-1``: the functions that values at the nodes multiply."""

    kernel: Kernel
    lower: Any
    upper: Any
    nodes: Float[Array, " n"]
    factor: Float[Array, "n n"]

    @property
    def size(self) -> int:
        """Number of functions."""
        return self.nodes.size

    def evaluate(self, x, order: int = 0):
        """Return derivatives of that order at x (k,), shape (k, size)."""
        width = self.upper - self.lower
        rows = self.kernel.derivative((x[:, None] - self.nodes[None]) / width, order) / width**order
        return cho_solve((self.factor, True), rows.T).T


def _whiten(factor, u, axis: int):
    moved = jnp.moveaxis(u, axis, 0)
    flat = cho_solve((factor, True), moved.reshape(moved.shape[0], -1))
    return jnp.moveaxis(flat.reshape(moved.shape), 0, axis)


def solve_published(problem, pointwise, dynamic, args, given: Settings) -> GPSolution:
    """Return a `GPSolution` whose `value` are the values on equally spaced nodes, ends included."""
    settings: PublishedGPHM = given.published
    grid = given.grid
    choice("PublishedGPHM", "envelope", settings.envelope, ("student", "gaussian"))
    ndim, dtype = problem.domain.ndim, jnp.result_type(problem.domain.bounds[0][0])
    if problem.fields > 1 or not all(isinstance(c, Dirichlet) for c in problem.conditions):
        fail("gp_solve", "published", "for one unknown with Dirichlet conditions", "another problem")
    if any(not isinstance(n, int) or n < 2 for n in grid):
        fail("gp_solve", "grid", "integers above one: the published method has equally spaced nodes", grid)
    bounds = [(jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)) for lower, upper in problem.domain.bounds]
    nodes = [lower + (upper - lower) * jnp.linspace(0, 1, n, dtype=dtype) for n, (lower, upper) in zip(
        grid, bounds, strict=True)]  # fmt: skip
    x = tuple(along(h, d, ndim) for d, h in enumerate(nodes))
    equation = trace(pointwise, problem.domain.names, 1, x, dynamic)
    faces = [(d, -side(c)[0], face_values(problem, c, d, args, x).reshape(-1))
             for d in range(ndim) for c in problem.faces(0, d)]  # fmt: skip
    orders = equation.orders[0]
    needed = [sorted({i[d] for i in orders} - {0}) for d in range(ndim)]
    weight, jitter = (jnp.asarray(v, dtype) for v in (settings.boundary_weight, settings.jitter))

    def kernel(d, raw):
        log_w, log_ls, frequency = raw
        width = bounds[d][1] - bounds[d][0]
        rate = jnp.exp(log_ls)
        # (1)
        if settings.envelope == "student":
            return StudentMixture(jnp.exp(log_w), frequency * width, 1 / (width * rate))
        return SpectralMixture(jnp.exp(log_w), frequency * width, 1 / (width * jnp.sqrt(2 * rate)))

    def matrices(d, raw):
        """Return the Cholesky factor of the kernel matrix, and the kernel's derivatives, from the lags alone."""
        k, n, width = kernel(d, raw), grid[d], bounds[d][1] - bounds[d][0]
        lag = np.arange(n)[:, None] - np.arange(n)[None]
        steps = jnp.arange(n, dtype=dtype) / (n - 1)
        derived = {p: k.derivative(steps, p)[np.abs(lag)] * np.sign(lag).astype(dtype) ** (p % 2) / width**p
                   for p in (0, *needed[d])}  # fmt: skip
        return jnp.linalg.cholesky(derived[0] + jitter * jnp.eye(n, dtype=dtype)), derived

    def density(params):
        u, raws, log_tau, log_v = params
        factors, derived = zip(*(matrices(d, raw) for d, raw in enumerate(raws)), strict=True)
        whitened = [_whiten(factors[d], u, d) for d in range(ndim)]  # shared by the derivatives of a mode
        quadratic = whitened[0]
        for d in range(1, ndim):
            quadratic = _whiten(factors[d], quadratic, d)
        prior = -jnp.sum(u * quadratic) / 2
        for factor in factors:
            prior = prior - u.size / factor.shape[0] * jnp.sum(jnp.log(jnp.diagonal(factor)))  # (2)

        def derivative(index):
            axes = [d for d, p in enumerate(index) if p]
            if not axes:
                return u
            out = mode_product(derived[axes[0]][index[axes[0]]], whitened[axes[0]], axes[0])  # (3)
            for d in axes[1:]:
                out = mode_product(derived[d][index[d]], _whiten(factors[d], out, d), d)
            return out

        jets = [[derivative(index) for index in orders]]
        residual = equation(x, jets, dynamic)[0]
        gap = jnp.concatenate([jnp.take(u, end, axis=d).reshape(-1) - g for d, end, g in faces])
        boundary = gap.size / 2 * log_tau - jnp.exp(log_tau) / 2 * jnp.sum(gap**2)  # (4)
        interior = residual.size / 2 * log_v - jnp.exp(log_v) / 2 * jnp.sum(residual**2)  # (4)
        slopes = equation.coefficients(x, jets, dynamic)[0][0]
        source = equation(x, [[jnp.zeros_like(u) for _ in orders]], dynamic)[0]
        scale = jnp.sqrt(jnp.mean(source**2)) + sum(jnp.sqrt(jnp.mean((c * v) ** 2)) for c, v in zip(
            slopes, jets[0], strict=True))  # fmt: skip
        size = jnp.sqrt(jnp.mean(residual**2)) / jnp.where(scale > 0, scale, 1)
        return -(prior + weight * boundary + interior), lax.stop_gradient((size, jnp.max(jnp.abs(gap))))  # (5)

    slope = jax.value_and_grad(density, has_aux=True)

    def state_at(params, first, second, count):
        (_, (error, gap)), gradient = slope(params)
        return params, first, second, count, gradient, error, gap

    def step(state):
        params, first, second, count, gradient, *_ = state
        count = count + 1
        # (5)
        first = jax.tree.map(lambda m, g: BETA[0] * m + (1 - BETA[0]) * g, first, gradient)
        second = jax.tree.map(lambda m, g: BETA[1] * m + (1 - BETA[1]) * g**2, second, gradient)
        rate = jnp.asarray(settings.learning_rate, dtype)

        def moved(p, m, s):
            return p - rate * m / (1 - BETA[0] ** count) / (jnp.sqrt(s / (1 - BETA[1] ** count)) + 1e-8)

        return state_at(jax.tree.map(moved, params, first, second), first, second, count)

    count, zero = settings.components, jnp.zeros((), dtype)
    ladder = jnp.linspace(0, 1, count, dtype=dtype) * jnp.asarray(settings.frequency_scale, dtype)
    raw = (jnp.full(count, -np.log(count), dtype), jnp.zeros(count, dtype), ladder)
    params = lax.stop_gradient((jnp.zeros(grid, dtype), [raw] * ndim, zero, zero))
    none = jax.tree.map(jnp.zeros_like, params)
    limits = given.within(jnp.asarray(eps(dtype), dtype))
    run = iterate(
        step, state_at(params, none, none, zero),
        limits,
        value=lambda s: (s[0], s[5], s[6]), error=lambda s: s[5],
    )  # fmt: skip
    (u, raws, _, _), residual, gap = run.state[0], run.state[5], run.state[6]
    bases = tuple(Interpolant(kernel(d, raw), *bounds[d], nodes[d], matrices(d, raw)[0]) for d, raw in enumerate(raws))
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in (u, *(g for _, _, g in faces))]))
    return lax.stop_gradient(GPSolution(
        value=u, status=run.status, num_steps=run.num_steps, error=residual, tol=limits.tol,
        history=run.history, residual=residual,
        misfit=gap / jnp.where(largest > 0, largest, 1), bases=(bases,), posterior=None, args=args, args_std=None,
        infer=None, log_evidence=None, prior=tuple(b.kernel for b in bases), noise=None,
    ))  # fmt: skip
