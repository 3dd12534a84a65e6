"""Products along modes, and direct solves with sums of Kronecker products that are never formed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import lu_factor, lu_solve, solve_triangular

from ..precision import eps, matmul
from ..typing import Array, Float

DOUBLINGS = 24
"""Squarings of the Cayley transforms: enough for spectra that spread over fourteen decades."""


def mode_product(matrix, tensor, axis: int):
    """Apply a matrix (m, n) along one mode of a tensor."""
    shape = tensor.shape
    if axis == 0:
        flat = matmul(matrix, tensor.reshape(shape[0], -1))
    elif axis == tensor.ndim - 1:
        flat = matmul(tensor.reshape(-1, shape[-1]), matrix.T)
    else:
        flat = matmul(matrix, tensor.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    return flat.reshape(*shape[:axis], matrix.shape[0], *shape[axis + 1 :])


def mode_products(matrices: Sequence, tensor):
    """Apply one matrix along each mode (None leaves a mode alone), those that shrink the tensor first."""
    given = [d for d in range(tensor.ndim) if matrices[d] is not None]
    for axis in sorted(given, key=lambda d: matrices[d].shape[0] / max(matrices[d].shape[1], 1)):
        tensor = mode_product(matrices[axis], tensor, axis)
    return tensor


def along(vector, axis: int, ndim: int):
    """Return a vector shaped to broadcast along one mode."""
    return vector.reshape([-1 if d == axis else 1 for d in range(ndim)])


class Pencil(eqx.Module):
    """One dimension of a separable operator: A is its own part and E the projection of the unknown itself.

    `leading` (the constant coefficient of the second derivative) and `shift` (such that ``shift E - A / leading`` is
    positive definite) are given for a symmetric pencil and None for a general one.
    """

    operator: Float[Array, "n n"]
    mass: Float[Array, "n n"]
    leading: Float[Array, ""] | None = None
    shift: Float[Array, ""] | None = None

    @property
    def symmetric(self) -> bool:
        """Whether it can be diagonalised by `eigh`."""
        return self.leading is not None


class Diagonalised(eqx.Module):
    """``X' E X = diag(mass)`` and ``X' A X = diag(value)``; rounding in `value` is relative to `size`."""

    vectors: Float[Array, "n n"]
    value: Float[Array, " n"]
    mass: Float[Array, " n"]
    size: Float[Array, " n"]


def diagonalise(pencil: Pencil) -> Diagonalised:
    """Diagonalise a symmetric pencil by one Cholesky factorisation and one `eigh`.

    In the metric ``S = shift E - A / leading`` the eigenvalues of E are at most one and those of the smooth modes,
    which carry the solution, come out to full relative accuracy; the pencil the other way round costs n^4 digits.
    """
    assert pencil.leading is not None
    assert pencil.shift is not None
    energy = pencil.shift * pencil.mass - pencil.operator / pencil.leading
    scale = lax.rsqrt(energy.reshape(-1)[:: energy.shape[0] + 1])
    energy, e = (scale[:, None] * m * scale[None] for m in (energy, pencil.mass))
    lower = jnp.linalg.cholesky(energy)
    inner = solve_triangular(lower, e, lower=True)
    inner = lax.linalg.triangular_solve(lower, inner, lower=True, transpose_a=True)  # from the right
    mu, vectors = jnp.linalg.eigh(inner)
    vectors = scale[:, None] * solve_triangular(lower, vectors, lower=True, trans=1)
    bent = pencil.shift * mu
    return Diagonalised(vectors, pencil.leading * (bent - 1), mu, jnp.abs(pencil.leading) * (bent + 1))


class Sylvester(eqx.Module):
    """Solves ``A1 Y E2' + E1 Y A2' = F`` by squaring Cayley transforms: LU and matrix products only.

    With P = A1^-1 E1 and Q = A2^-1 E2 it is ``P Y + Y Q' = C``, hence ``Y = Pc Y Qc' + 2 s (P + s)^-1 C (Q + s)^-T``
    for the Cayley transforms ``Pc = (P + s)^-1 (P - s)``. The spectra of P and Q must lie on the same side of the
    imaginary axis, as they do where the equation is well posed in both variables (transport from inflow data).
    """

    factors: tuple
    powers: tuple
    shift: Float[Array, ""]

    @staticmethod
    def build(first: Pencil, second: Pencil) -> "Sylvester":
        """Factorise."""
        factors, matrices = [], []
        for pencil in (first, second):
            lu = lu_factor(pencil.operator)
            factors.append(lu)
            matrices.append(lu_solve(lu, pencil.mass))
        sign = jnp.sign(jnp.trace(matrices[0]) / matrices[0].shape[0] + jnp.trace(matrices[1]) / matrices[1].shape[0])
        sizes = [_norm(m) for m in matrices] + [1 / _norm(jnp.linalg.inv(m)) for m in matrices]
        shift = sign * jnp.sqrt(jnp.maximum(sizes[0], sizes[1]) * jnp.minimum(sizes[2], sizes[3]))
        cayley = []
        for m in matrices:
            eye = jnp.eye(m.shape[0], dtype=m.dtype)
            plus = lu_factor(m + shift * eye)
            factors.append(plus)
            cayley.append(lu_solve(plus, m - shift * eye))
        powers = [tuple(cayley)]
        for _ in range(DOUBLINGS - 1):
            powers.append(tuple(matmul(m, m) for m in powers[-1]))
        return Sylvester(tuple(factors), tuple(powers), shift)

    def solve(self, f):
        """Return Y."""
        for first, second in (self.factors[:2], self.factors[2:]):
            f = lu_solve(first, lu_solve(second, f.T).T)
        y = 2 * self.shift * f
        for p, q in self.powers:
            y = y + matmul(matmul(p, y), q.T)
        return y


class KroneckerSum(eqx.Module):
    """The inverse of ``sum_d A_d (x) prod_{e != d} E_e``, factorised one dimension at a time.

    Symmetric dimensions are diagonalised; one general dimension beside them costs a small solve for each of their
    modes, two a `Sylvester` solve.
    """

    pencils: tuple[Pencil, ...]
    modes: tuple[Diagonalised | None, ...]
    ready: object

    @staticmethod
    def build(pencils: Sequence[Pencil]) -> "KroneckerSum":
        """Factorise, dimensions one after the other: XLA compiles what they do alike once, and a loop costs more."""
        general = [p for p in pencils if not p.symmetric]
        ready = None
        if len(general) == len(pencils):
            ready = _prepare(general)
        return KroneckerSum(tuple(pencils), tuple(diagonalise(p) if p.symmetric else None for p in pencils), ready)

    def solve(self, f):
        """Return the solution of one right-hand side, a tensor."""
        ndim = f.ndim
        modes = self.modes
        f = mode_products([m and m.vectors.T for m in modes], f)
        symmetric = [d for d in range(ndim) if modes[d] is not None]
        general = [d for d in range(ndim) if modes[d] is None]
        mass = jnp.ones((1,) * ndim, f.dtype)
        value, size = jnp.zeros_like(mass), jnp.zeros_like(mass)
        for d, mode in [(d, mode) for d, mode in enumerate(modes) if mode is not None]:
            m, v, s = (along(w, d, ndim) for w in (mode.mass, mode.value, mode.size))
            value, size, mass = value * m + mass * v, size * m + mass * s, mass * m
        if not general:
            singular = jnp.abs(value) <= 100 * eps(f.dtype) * size
            y = jnp.where(singular, 0, f / jnp.where(singular, 1, value))
        elif not symmetric:
            y = _finish(self.ready, f)
        else:
            order = symmetric + general
            moved = jnp.transpose(f, order)
            rows = moved.reshape(-1, *(moved.shape[len(symmetric) :]))
            lead = moved.shape[: len(symmetric)]
            weights = [jnp.broadcast_to(jnp.transpose(w, order), lead + (1,) * len(general)) for w in (mass, value)]
            each = [self.pencils[d] for d in general]

            def one(args):
                m, v, row = args
                first = Pencil(m * each[0].operator + v * each[0].mass, each[0].mass)
                rest = [Pencil(m * p.operator, p.mass) for p in each[1:]]
                return _finish(_prepare([first, *rest]), row)

            solved = lax.map(one, (weights[0].reshape(-1), weights[1].reshape(-1), rows), batch_size=lead[-1])
            y = jnp.transpose(solved.reshape(moved.shape), [order.index(d) for d in range(ndim)])
        return mode_products([m and m.vectors for m in modes], y)


def _prepare(pencils):
    return lu_factor(pencils[0].operator) if len(pencils) == 1 else Sylvester.build(*pencils)


def _finish(ready, f):
    return ready.solve(f) if isinstance(ready, Sylvester) else lu_solve(ready, f)


def _norm(m):
    return jnp.sqrt(jnp.sum(m * m) / m.shape[0])
