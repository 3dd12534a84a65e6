"""Trial functions that satisfy the conditions of a dimension, and the functions the equation is tested with."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ...core.checks import fail
from ...core.linalg.kronecker import mode_product, mode_products
from ...core.precision import matmul
from ...core.typing import Array, Float
from ..problem import Dirichlet, Neumann, PDEProblem, Robin, side
from .axes import Fourier, Legendre

MOMENTS = 16
"""Lowest moments of an equation that are computed with more care than the others."""


class Line(eqx.Module):
    """One dimension of one unknown.

    The coefficients in the basis are ``z = lift g + null y``: `lift` (n, m) takes the m values of the conditions,
    `null` (n, n - m) spans the functions whose conditions are zero.

    Attributes
    ----------
    rows : Float[Array, "m n"]
        The conditions as functionals of the coefficients.
    test : Float[Array, "nodes n-m"]
        Test functions at the nodes times quadrature weights: normalised Legendre polynomials (tau method), or the
        trial functions themselves (Galerkin) where the conditions make second derivatives symmetric.
    symmetric : bool
        Whether it is Galerkin.
    robin : Float[Array, ""]
        How negative the boundary terms may make ``-u''``; see `kronecker.Pencil.shift`.
    floating : bool
        Whether no condition fixes a constant.
    """

    basis: Any
    rows: Float[Array, "m n"]
    lift: Float[Array, "n m"]
    null: Float[Array, "n k"]
    test: Float[Array, "n k"]
    robin: Float[Array, ""]
    symmetric: bool = eqx.field(static=True)
    floating: bool = eqx.field(static=True)

    def values(self, order: int):
        """Return the basis' derivatives at the nodes."""
        return self.basis.at_nodes(order)

    def interpolate(self, tensor, axis: int):
        """Turn values at the nodes along one mode into coefficients."""
        inverse = self.basis.from_nodes()
        if inverse is not None:
            return mode_product(inverse, tensor, axis)
        moved = jnp.moveaxis(tensor, axis, 0)
        solved = jnp.linalg.solve(self.basis.at_nodes(0), moved.reshape(moved.shape[0], -1))
        return jnp.moveaxis(solved.reshape(moved.shape), 0, axis)

    def agree(self, tensor, axis: int):
        """Change node values along one mode, as little as possible in L2, to satisfy the conditions with zero."""
        inverse = self.basis.from_nodes()
        scale = lax.stop_gradient(jnp.max(jnp.abs(self.rows), axis=1, keepdims=True))
        rows = self.rows / jnp.where(scale > 0, scale, 1)
        rows = jnp.linalg.solve(self.basis.at_nodes(0).T, rows.T).T if inverse is None else matmul(rows, inverse)
        back = rows.T / self.basis.weights[:, None]
        return tensor - mode_product(matmul(back, matmul(_inverted(matmul(rows, back)), rows)), tensor, axis)


def _inverted(matrix):
    """Return the inverse of a small well-conditioned matrix; up to two by two without a factorisation to compile."""
    if matrix.shape[0] == 1:
        return 1 / matrix
    if matrix.shape[0] > 2:
        return jnp.linalg.inv(matrix)
    (a, b), (c, d) = matrix
    return jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])]) / (a * d - b * c)


def line(problem: PDEProblem, field: int, axis: int, size: int, order: int, galerkin: bool, dtype) -> Line:
    """Build the `Line` of one unknown and dimension; `order` is the highest derivative in that dimension."""
    name = problem.domain.names[axis]
    lower, upper = (jnp.asarray(v, dtype) for v in problem.domain.bounds[axis])
    zero = jnp.zeros((), dtype)
    if problem.periodic[axis]:
        basis = Fourier(lower, upper, size)
        test = basis.at_nodes(0) * basis.weights[:, None]
        none = jnp.zeros((0, size), dtype)
        return Line(basis, none, none.T, jnp.eye(size, dtype=dtype), test, zero, True, True)
    conditions = problem.faces(field, axis)
    count = len(conditions)
    if size <= count:
        fail("gp_solve", "grid", f"more than {count} nodes in {name!r}, which has {count} conditions", size)
    derived = any(not isinstance(c, Dirichlet) for c in conditions)
    floating = all(isinstance(c, Neumann) for c in conditions)
    sides = sorted(c.face[1] for c in conditions)
    symmetric = galerkin and sides == ["+", "-"]
    # Clamping nothing but values, integrals of Legendre polynomials are orthonormal in energy.
    order = 1 if symmetric and not derived else max(order, count, 2 if derived else 0)
    order = min(order, max(size - 1, 0))
    basis = Legendre(lower, upper, size, order)
    rows, robin = [], zero
    for c in conditions:
        end, outward = side(c)
        a, b = jnp.asarray(c.a, dtype), jnp.asarray(c.b, dtype)
        row = basis.at_ends()[end]
        rows.append(row if isinstance(c, Dirichlet) else a * row + outward * b * basis.at_ends(1)[end])
        if isinstance(c, Robin):
            kappa = jnp.maximum(-a / jnp.where(b == 0, 1, b), 0)
            robin = jnp.maximum(robin, 4 * kappa**2 + 8 * kappa / (upper - lower))
    rows = jnp.stack(rows) if rows else jnp.zeros((0, size), dtype)
    lift, null = _complement(rows, min(2 * order, size))
    if symmetric:
        functions = matmul(basis.at_nodes(0), null)
        norms = lax.stop_gradient(jnp.sqrt(jnp.sum(basis.weights[:, None] * functions**2, axis=0)))
        null, functions = null / norms[None], functions / norms[None]
        test = functions * basis.weights[:, None]
    else:
        test = _moments(basis)[:, : size - count]
    return Line(basis, rows, lift, null, test, robin, symmetric, floating)


def _moments(basis: Legendre):
    """Return functionals of node values that give Legendre coefficients, the first few to the last digit.

    Quadrature weights alone leave an error of the rounding of the nodes times the degree, which integrating the lowest
    coefficients twice would multiply; one Newton step makes those functionals dual to the functions as computed.
    """
    table, weights = basis.orthonormal(basis.size), basis.weights[:, None]
    test = table * weights
    low = test[:, :MOMENTS]
    defect = matmul(table.T, low) - jnp.eye(*low.shape, dtype=low.dtype)
    return test.at[:, :MOMENTS].set(low - weights * matmul(table, defect))


def _complement(rows, reach: int):
    """Return a right inverse of the conditions and a basis of their null space.

    Only the first `reach` functions are seen by the conditions, so both are a small block and an identity. The
    constant part comes from a QR factorisation; projecting it makes it smooth in the coefficients of the conditions.
    """
    count, size = rows.shape
    eye = jnp.eye(size, dtype=rows.dtype)
    if not count:
        return jnp.zeros((size, 0), rows.dtype), eye
    small = rows[:, :reach] / jnp.linalg.norm(rows[:, :reach], axis=1, keepdims=True)
    if count == reach:  # no function of those that the conditions see satisfies them all with zero
        right, null = _inverted(small), jnp.zeros((count, 0), rows.dtype)
        right = right / jnp.linalg.norm(rows[:, :reach], axis=1)[None]
        lift = jnp.pad(right, ((0, size - count), (0, 0)))
        return lift, eye[:, count:]
    q = lax.stop_gradient(jnp.linalg.qr(lax.stop_gradient(small).T, mode="complete")[0])
    right = matmul(q[:, :count], _inverted(matmul(small, q[:, :count])))
    null = q[:, count:] - matmul(right, matmul(small, q[:, count:]))
    right = right / jnp.linalg.norm(rows[:, :reach], axis=1)[None]
    lift = jnp.zeros((size, count), rows.dtype).at[:reach].set(right)
    full = jnp.zeros((size, size - count), rows.dtype).at[:reach, : reach - count].set(null)
    return lift, full.at[reach:, reach - count :].set(eye[reach:, reach:])


def lifted(lines, axis_values, order=None):
    """Return coefficients that satisfy the conditions on all faces, and how far they are from doing so.

    One dimension after the other (in `order`, when given): ``z += lift (g - rows z)``, where ``axis_values[d]`` holds g
    with the conditions of dimension d along mode d (None without any). Where faces contradict each other in a corner
    the earlier dimension wins: the later one's values are changed by least squares, that is near the corner only, and
    the misfit, relative to the largest value, says by how much.
    """
    z = jnp.zeros(tuple(ln.basis.size for ln in lines), lines[0].null.dtype)
    order = list(range(len(lines)) if order is None else order)
    for turn, axis in enumerate(order):
        g = axis_values[axis]
        if g is None:
            continue
        others = [d for d in range(len(lines)) if d != axis]
        gap = g - mode_products([lines[d].rows if d == axis else lines[d].values(0) for d in range(len(lines))], z)
        for d in others:
            if d in order[:turn] and lines[d].rows.shape[0]:
                gap = lines[d].agree(gap, d)
        for d in others:
            gap = lines[d].interpolate(gap, d)
        z = z + mode_product(lines[axis].lift, gap, axis)
    zero = jnp.zeros((), z.dtype)
    gaps, values = [], []
    for axis, (ln, g) in enumerate(zip(lines, axis_values, strict=True)):
        if g is not None:
            matrices = [ln.rows if d == axis else lines[d].values(0) for d in range(len(lines))]
            gaps.append(jnp.moveaxis(mode_products(matrices, z) - g, axis, 0).reshape(-1))
            values.append(jnp.moveaxis(g, axis, 0).reshape(-1))
    if not gaps:
        return z, zero
    misfit, size = (jnp.max(jnp.abs(jnp.concatenate(v)), initial=zero) for v in (gaps, values))
    return z, misfit / jnp.where(size > 0, size, 1)


def face_values(problem: PDEProblem, condition, axis: int, args, coordinates):
    """Return the values of a condition on the nodes of its face; one entry along the face's own dimension."""
    dtype = coordinates[0].dtype
    face = tuple(1 if d == axis else c.shape[d] for d, c in enumerate(coordinates))
    value = condition.value
    if callable(value):
        end = jnp.asarray(problem.domain.bounds[axis][side(condition)[0]], dtype)
        x = tuple(jnp.full_like(c, end, shape=(1,) * c.ndim) if d == axis else c for d, c in enumerate(coordinates))
        value = value(x, args)
    value = jnp.asarray(value, dtype)
    if 0 < value.ndim == len(face) - 1:
        value = jnp.expand_dims(value, axis)
    if value.ndim not in (0, len(face)) or any(n not in (1, m) for n, m in zip(value.shape, face, strict=False)):
        fail(type(condition).__name__, "value", f"broadcasting to the face's nodes {face}", f"shape {value.shape}")
    return jnp.broadcast_to(value, face)
