"""Coefficients that vary over the box and are not known: Gaussian fields, made of a few functions of their prior."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ...core.checks import fail
from ...core.gaussian.kernels import Kernel, per_dimension
from ...core.linalg.kronecker import mode_products
from ...core.precision import eps, matmul
from ...core.typing import Array, Float
from ..problem import Box, float_type
from ..solution import scattered
from ..spectral.axes import Legendre

BLIND = 0.95
"""Part of a number's prior standard deviation, and of a field's on average, that says the data saw nothing of it."""


class RandomField(eqx.Module):
    r"""A coefficient that varies over the box: ``mean + sum_i w_i phi_i(x)`` with ``w ~ N(0, I)`` before the data.

    An entry of `args` for `gp_solve`. Where ``infer`` is a number (1 means the prior as stated) it is unknown and found
    with everything else; ``GPSolution.of_args`` says how sure that is. A coefficient that must be positive is the
    exponential of a field. Not for coefficients that jump.

    In a residual ``a(x)`` are the values of the field a and ``a(x, 1)`` its derivative, ``a(x, (1, 0))`` that in the
    first of two dimensions. So ``(exp(a) u')' = f`` is ``u.dxx + a(x, 1) * u.dx - exp(-a(x)) * f``, written out.

    Parameters
    ----------
    domain : Box
        The problem's.
    prior : Kernel or tuple of Kernel
        Of the field: one for every dimension, or one for each in `over`, whose product it is; lengths are fractions of
        the domain. No derivatives.
    mean : float
        Prior mean. Differentiable.
    over : str
        Names of the dimensions it varies with, in the box's order; all by default. Static.
    rank : int
        Functions a dimension: the leading ones of the prior, polynomials of degree below `size`. Static.
    size : int
        See `rank`; ``3 rank`` by default. Static.

    Attributes
    ----------
    weights : Float[Array, "rank ..."]
        w, zero at first.

    Raises
    ------
    ValueError
        For a dimension that the box does not have, and a rank below one.

    Notes
    -----
    The truncation is of the prior: what the `rank` functions cannot follow is not in the error bars. For a squared
    exponential of length l some ``2 + 1.5 / l`` functions hold all but a percent.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers.pde import Box, RandomField, SquaredExponential
    >>> field = RandomField(Box((0.0, 1.0), (0.0, 1.0)), SquaredExponential(0.5), rank=4)
    >>> field((jnp.linspace(0, 1, 5), jnp.linspace(0, 1, 3))).shape
    (5, 3)
    >>> field((jnp.linspace(0, 1, 5), jnp.linspace(0, 1, 3)), (1, 0)).shape
    (5, 3)
    """

    weights: Float[Array, "..."]
    mean: Any
    factors: tuple
    bounds: tuple
    axes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, domain: Box, prior, *, mean: Any = 0.0, over: str | None = None, rank: int = 8,
                 size: int | None = None):  # fmt: skip
        names = tuple(domain.names if over is None else over)
        if not names or any(n not in domain.names for n in names) or sorted(names, key=domain.names.index) != [*names]:
            fail("RandomField", "over", "names of dimensions in the box's order, of " + ", ".join(domain.names), over)
        if rank < 1:
            fail("RandomField", "rank", "at least one", rank)
        size = 3 * rank if size is None else size
        self.axes = tuple(domain.names.index(n) for n in names)
        dtype = float_type((domain, mean))
        self.bounds = tuple(tuple(jnp.asarray(b, dtype) for b in domain.bounds[d]) for d in self.axes)
        self.factors = tuple(_factor(k, size, rank).astype(dtype) for k in per_dimension(prior, len(names)))
        self.weights, self.mean = jnp.zeros((rank,) * len(names), dtype), jnp.asarray(mean, dtype)

    def __call__(self, x, orders: tuple[int, ...] | int | None = None):
        """Return values, or a derivative.

        Parameters
        ----------
        x : tuple of arrays, or Float[Array, "... d"]
            The coordinates that a residual is given, or a vector a dimension: their product grid. An array of points,
            of any shape in one dimension.
        orders : int or tuple of int
            How often to differentiate in each dimension of the box. Static.

        Returns
        -------
        Float[Array, "..."]
            On the grid, with one entry along dimensions that the field does not vary with; or one number a point.
        """
        grid = isinstance(x, tuple)
        count = len(x) if grid else 1 if max(self.axes) == 0 and (x.ndim == 0 or x.shape[-1] != 1) else x.shape[-1]
        orders = (0,) * count if orders is None else (orders,) if isinstance(orders, int) else tuple(orders)
        if len(orders) != count or max(self.axes) >= count:
            fail("RandomField", "x", f"{max(self.axes) + 1} coordinates or more, and as many orders", x)
        dtype = self.weights.dtype
        if grid:
            points = [jnp.asarray(x[d], dtype).reshape(-1) for d in self.axes]
        else:
            flat = jnp.asarray(x, dtype).reshape(-1, count)
            points = [flat[:, d] for d in self.axes]
        tables = [
            matmul(Legendre(bounds[0], bounds[1], len(factor), 0).evaluate(p, orders[d]), factor)
            for bounds, factor, p, d in zip(self.bounds, self.factors, points, self.axes, strict=True)
        ]
        if any(orders[d] for d in range(count) if d not in self.axes):
            tables = [0 * t for t in tables]
        values = mode_products(tables, self.weights) if grid else scattered(tables, self.weights)
        values = values + (self.mean if not any(orders) else 0)
        if not grid:
            return values.reshape(x.shape if count == 1 and x.shape[-1:] != (1,) else x.shape[:-1])
        return values.reshape([values.shape[self.axes.index(d)] if d in self.axes else 1 for d in range(count)])

    def drawn(self, key) -> "RandomField":
        """Return a draw from the prior: the same field with random weights."""
        weights = jax.random.normal(key, self.weights.shape, self.weights.dtype)
        return eqx.tree_at(lambda f: f.weights, self, weights)

    def spread(self, scale: Any = 1.0) -> "RandomField":
        """Return the standard deviations of its numbers: `scale` for the weights, None for what is known."""
        blank = jax.tree.map(lambda _: None, self)
        weights = jnp.broadcast_to(jnp.asarray(scale, self.weights.dtype), self.weights.shape)
        return eqx.tree_at(lambda f: f.weights, blank, weights, is_leaf=lambda v: v is None)


def _factor(kernel: Kernel, size: int, rank: int):
    """Return the coefficients (size, rank) of the leading functions in Legendre polynomials."""
    basis = Legendre(jnp.zeros(()), jnp.ones(()), size, 0)
    root = jnp.sqrt(basis.weights)
    matrix = kernel.derivative(basis.nodes[:, None] - basis.nodes[None])
    values, vectors = jnp.linalg.eigh(root[:, None] * matrix * root[None])
    values = jnp.where(values > 100 * eps(values.dtype) * values[-1], values, 0)
    leading = (vectors * jnp.sqrt(values)[None] / root[:, None])[:, ::-1][:, :rank]
    leading = jnp.pad(leading, ((0, 0), (0, max(rank - size, 0))))
    return jax.lax.stop_gradient(jnp.linalg.solve(basis.at_nodes(0), leading))


def _is_field(v) -> bool:
    return isinstance(v, RandomField)


def spreads(infer: Any, args: Any):
    """Return a tree like `args` with standard deviations where a number is unknown and None elsewhere."""
    if infer is None:
        return None

    def at(a, s):
        if _is_field(a) and s is not None and not _is_field(s):
            return a.spread(s)
        return s

    try:
        return jax.tree.map(at, args, infer, is_leaf=_is_field)
    except ValueError as cause:
        fail("gp_solve", "infer", "like `args`, with None where a number is known", cause)


def moved(args: Any, spread: Any, whitened: Any):
    """Return args with ``args + spread whitened`` where they are unknown."""
    return jax.tree.map(lambda a, s, w: a if s is None else a + s * w, args, spread, whitened)


def unseen(args: Any, whitened: Any):
    """Return whether the data left an unknown number, or a field on average, as it was before them.

    `whitened` holds posterior standard deviations in units of the prior's.
    """
    found = []

    def look(a, w):
        if _is_field(a):
            total = jnp.ones((), w.weights.dtype)
            for d, factor in enumerate(a.factors):
                norms = jnp.linalg.norm(factor, axis=0)  # in orthonormal polynomials
                total = total * norms.reshape([-1 if e == d else 1 for e in range(w.weights.ndim)])
            left = jnp.sum((total * w.weights) ** 2) / jnp.sum(total**2)
            found.append(left > BLIND**2)
        elif w is not None:
            found.append(jnp.any(ravel_pytree(w)[0] > BLIND))

    jax.tree.map(look, args, whitened, is_leaf=_is_field)
    return jnp.any(jnp.stack(found)) if found else jnp.zeros((), bool)
