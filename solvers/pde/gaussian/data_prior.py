"""Which frequencies a solution will have, read off the equation's source and the conditions in milliseconds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ...core.precision import eps
from ..frequencies import LINES, SAMPLES, mixture, pursue
from ..problem import Dirichlet, PDEProblem, line_through
from ..spectral.spaces import face_values
from ..tracing import Equation


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
                        x = line_through(problem, d, fraction, jnp.linspace(0, 1, SAMPLES, dtype=dtype))
                        values = face_values(problem, c, axis, raw_args, x)
                        found.append(pursue(values.reshape(-1), count))
        kernels.append(mixture(found, count, dtype, _magnitude(problem, raw_args, nodes, dtype)))
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
    x = line_through(problem, d, fraction, jnp.linspace(0, 1, SAMPLES, dtype=dtype))
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
