"""Which frequencies a solution will have, read off the equation's source and the conditions in milliseconds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.gaussian.kernels import SpectralMixture
from ...core.linalg.kronecker import along
from ...core.precision import eps, matmul
from ..problem import Dirichlet, PDEProblem
from ..spectral.spaces import face_values
from ..tracing import Equation

SAMPLES = 1024
PAD = 16
LINES = (0.137, 0.391, 0.733)
BACKGROUND = ((1.0, 0.15), (1e-2, 0.04))
"""Weights and lengths of the two squared exponentials that take up what is slower than three half waves."""


def pursue(signal, count: int):
    """Return `count` angular frequencies on [0, 1] and amplitudes of the strongest oscillations of a sampled line.

    Orthogonal matching pursuit: the highest peak of the windowed periodogram, then a joint least-squares fit of all
    atoms with linearly varying amplitudes, whose slopes also correct the frequencies to first order.
    """
    n, dtype = signal.size, signal.dtype
    s = jnp.linspace(0, 1, n, dtype=dtype) - 0.5
    window = jnp.asarray(np.hanning(n), dtype)
    grid = 2 * np.pi * jnp.arange(PAD * n // 2 + 1, dtype=dtype) * (n - 1) / (PAD * n)

    def atoms(omega, used):
        c, d = jnp.cos(omega[None] * s[:, None]), jnp.sin(omega[None] * s[:, None])
        return jnp.concatenate([c, d, s[:, None] * c, s[:, None] * d], axis=1) * jnp.tile(used, 4)[None]

    def fit(omega, used):
        a = jnp.concatenate([atoms(omega, used), jnp.stack([jnp.ones_like(s), s, s**2], 1)], 1)
        gram = matmul(a.T, a)
        ridge = 50 * eps(dtype) * jnp.trace(gram)
        factor = jnp.linalg.cholesky(gram + ridge * jnp.eye(gram.shape[0], dtype=dtype))
        x, r = jnp.zeros(a.shape[1], dtype), signal
        for _ in range(2):
            x = x + jax.scipy.linalg.cho_solve((factor, True), matmul(a.T, r))
            r = signal - matmul(a, x)
        return x[: 4 * count].reshape(4, count), r

    def add(q, carry):
        omega, used, _, residual = carry
        power = jnp.abs(jnp.fft.rfft(residual * window, PAD * n))
        power = jnp.where(grid < 3 * np.pi, 0, power)
        j = jnp.clip(jnp.argmax(power), 1, grid.size - 2)
        left, mid, right = (jnp.log(power[j + k] + eps(dtype) ** 2) for k in (-1, 0, 1))
        bend = left - 2 * mid + right
        offset = jnp.where(bend < 0, (left - right) / jnp.where(bend < 0, bend, 1) / 2, 0)
        worth = jnp.max(jnp.abs(residual)) > 1e-7 * jnp.max(jnp.abs(signal))
        omega = omega.at[q].set(grid[j] + jnp.clip(offset, -1, 1) * grid[1])
        used = used.at[q].set(jnp.where(worth, 1.0, 0.0).astype(dtype))
        x, _ = fit(omega, used)
        size = x[0] ** 2 + x[1] ** 2
        turn = jnp.where(size > 0, (x[1] * x[2] - x[0] * x[3]) / jnp.where(size > 0, size, 1), 0)
        omega = omega + used * jnp.clip(turn, -1.0, 1.0)
        x, residual = fit(omega, used)
        return omega, used, x, residual

    start = (jnp.zeros(count, dtype), jnp.zeros(count, dtype), jnp.zeros((4, count), dtype), signal)
    omega, used, x, _ = lax.fori_loop(0, count, add, start)
    amplitude = jnp.sqrt(x[0] ** 2 + x[1] ** 2 + (x[2] ** 2 + x[3] ** 2) / 4)
    return omega, used * amplitude


def data_prior(problem: PDEProblem, equation: Equation, args, raw_args, nodes, dtype, *, count: int = 8):
    """Return one `SpectralMixture` a dimension, from the source along a few lines and from the face values.

    Peaks of the source are divided by the symbol of the linearised equation, so that what counts is how much of an
    oscillation the solution has. Envelopes are half a domain long; slow components take up the rest.
    """
    ndim = problem.domain.ndim
    kernels = []
    for d in range(ndim):
        lower, upper = (jnp.asarray(b, dtype) for b in problem.domain.bounds[d])
        width = upper - lower
        found = []
        for fraction in LINES if ndim > 1 else LINES[:1]:
            source, slopes = _source(problem, equation, args, nodes, d, fraction, dtype)
            omega, amplitude = pursue(source, count)
            real, imaginary = jnp.zeros(count, dtype), jnp.zeros(count, dtype)
            for index, c in zip(equation.orders[0], slopes, strict=True):
                if all(p == 0 for e, p in enumerate(index) if e != d):
                    term = jnp.mean(c) * (omega / width) ** index[d]  # times i^order
                    real, imaginary = (
                        real + term * (1, 0, -1, 0)[index[d] % 4],
                        imaginary + term * (0, 1, 0, -1)[index[d] % 4],
                    )
            found.append((omega, amplitude / jnp.maximum(jnp.hypot(real, imaginary), eps(dtype))))
        for axis in range(ndim):
            for c in problem.faces(0, axis) if axis != d else ():
                if callable(c.value):
                    for fraction in LINES[:1]:
                        x = _line(problem, d, fraction, dtype)
                        values = face_values(problem, c, axis, raw_args, x)
                        found.append(pursue(values.reshape(-1), count))
        kernels.append(_merge(found, count, dtype, _magnitude(problem, raw_args, nodes, dtype)))
    return tuple(kernels)


def _magnitude(problem: PDEProblem, args, nodes, dtype):
    """Return the largest value that the conditions and the observations give the unknown."""
    found = [jnp.zeros((), dtype), *(jnp.max(jnp.abs(o.values)).astype(dtype) for o in problem.observations)]
    for axis in range(problem.domain.ndim):
        values = [c for c in problem.faces(0, axis) if isinstance(c, Dirichlet)]
        found += [jnp.max(jnp.abs(face_values(problem, c, axis, args, nodes))) for c in values]
    return jnp.max(jnp.stack(found))


def _source(problem: PDEProblem, equation: Equation, args, nodes, d: int, fraction: float, dtype):
    """Return the equation's source on a line, equally spaced, and its mean coefficients there.

    Where the residual holds arrays of the grid's shape the grid's own line next to the one asked for is interpolated.
    """
    x = _line(problem, d, fraction, dtype)
    try:
        jets = _zeros(equation, x)
        source = jnp.sum(jnp.stack(equation.elsewhere(x, jets, args)), axis=0)
        slopes = _slopes(equation, x, jets, args)
    except (TypeError, ValueError):
        jets = _zeros(equation, nodes)
        source = jnp.sum(jnp.stack(equation(nodes, jets, args)), axis=0)
        slopes = equation.coefficients(nodes, jets, args)[0][0]
        source = jnp.moveaxis(source, d, 0)
        at = tuple(int(fraction * (n - 1)) for n in source.shape[1:])
        source = jnp.interp(x[d].reshape(-1), nodes[d].reshape(-1), source[(slice(None), *at)])
    return source.reshape(-1), slopes


def _zeros(equation: Equation, x):
    shape = jnp.broadcast_shapes(*(c.shape for c in x))
    return [[jnp.zeros(shape, x[0].dtype) for _ in o] for o in equation.orders]


def of_solution(solution, *, field: int = 0, count: int = 8):
    """Return, a dimension, angular frequencies and weights: of the prior's atoms, or of the solution along lines."""
    bases = solution.bases[field]
    result = []
    for d, b in enumerate(bases):
        width = b.upper - b.lower
        if solution.prior is not None:
            frequencies, weights = solution.prior[d].atoms()
            result.append((2 * np.pi * frequencies / width, weights))
            continue
        s = jnp.linspace(0, 1, SAMPLES, dtype=b.lower.dtype)
        points = tuple(
            e.lower + (e.upper - e.lower) * (s if k == d else jnp.asarray(LINES, s.dtype)) for k, e in enumerate(bases)
        )
        values = jnp.moveaxis(solution.mean(points, field=field), d, -1).reshape(-1, SAMPLES)
        mixture = _merge([pursue(v, count) for v in values[:: max(1, len(values) // 3)]], count, s.dtype)
        result.append((2 * np.pi * mixture.frequencies / width, mixture.weights))
    return tuple(result)


def _slopes(equation: Equation, x, jets, args):
    """Return the coefficients of the first unknown's own equation on points other than the grid's."""
    return [
        jax.jvp(lambda u: equation.elsewhere(x, u, args)[0], (jets,), (_direction(jets, j),))[1]
        for j in range(len(jets[0]))
    ]


def _direction(jets, j: int):
    zero = jax.tree.map(jnp.zeros_like, jets)
    zero[0][j] = jnp.ones_like(jets[0][j])
    return zero


def _line(problem: PDEProblem, axis: int, fraction: float, dtype):
    ndim, x = problem.domain.ndim, []
    for d, (lower, upper) in enumerate(problem.domain.bounds):
        lower, upper = jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)
        s = jnp.linspace(0, 1, SAMPLES, dtype=dtype) if d == axis else jnp.full(1, fraction, dtype)
        x.append(along(lower + (upper - lower) * s, d, ndim))
    return tuple(x)


def _merge(found, count: int, dtype, magnitude: Any = 0.0):
    """Keep the `count` largest atoms of all lines, no two closer than a wave and a half, and add the background."""
    omega = jnp.concatenate([f[0] for f in found]) if found else jnp.zeros(count, dtype)
    amplitude = jnp.concatenate([f[1] for f in found]) if found else jnp.zeros(count, dtype)

    def pick(amplitude, _):
        j = jnp.argmax(amplitude)
        chosen = (omega[j], amplitude[j])
        return jnp.where(jnp.abs(omega - omega[j]) < 3 * np.pi, 0, amplitude), chosen

    _, (omega, amplitude) = lax.scan(pick, amplitude, length=count)
    largest = jnp.max(amplitude)
    amplitude = jnp.where(amplitude > 1e-6 * largest, jnp.maximum(amplitude, 1e-4 * largest), 0)
    scale = jnp.maximum(largest, magnitude)
    scale = jnp.where(scale > 0, scale, 1) ** 2
    weights = jnp.concatenate([amplitude**2, scale * jnp.asarray([b[0] for b in BACKGROUND], dtype)])
    lengths = jnp.asarray([0.5] * count + [b[1] for b in BACKGROUND], dtype)
    frequencies = jnp.concatenate([omega / (2 * np.pi), jnp.zeros(len(BACKGROUND), dtype)])
    return SpectralMixture(weights, frequencies, lengths)
