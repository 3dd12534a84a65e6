"""The answer: a function to be called anywhere, with its derivatives, its uncertainty and its residual."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core.checks import fail
from ..core.linalg.kronecker import mode_products
from ..core.precision import HIGHEST, matmul
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Float, Int
from .frequencies import spectrum


class PDEStatus(StatusCode):
    """Reasons to stop beside those of `Status`."""

    UNRESOLVED = 100, "unresolved: solved on the grid, but the equation does not hold between its nodes; refine `grid`"
    UNIDENTIFIED = 101, "unidentified: the data say no more about some of `args` than their prior; observe more"
    ALIASED = 102, "aliased: the uniform grid takes a frequency of the data for a slow one; use non-uniform nodes"
    CONTRADICTED = 103, "contradicted: equation, conditions and data exclude each other; state more noise, or fewer"
    UNDETERMINED = 104, "undetermined: most of what the conditions leave open no datum has seen; state or observe more"
    SADDLE = 106, "saddle: stationary, but the energy falls along some direction; start elsewhere"
    SINGULAR = 105, "singular: the equation with its conditions has no solution, or many; state other conditions"


def told(status, condition, code: PDEStatus) -> Int[Array, ""]:
    """Return the status with `code` in the place of converged where the condition holds; what failed stays."""
    return jnp.where((status == Status.CONVERGED) & condition, int(code), status).astype(jnp.int32)


class Posterior(eqx.Module):
    """A Gaussian over whitened weights: ``coefficients = factor w``, ``w ~ N(mean, R^-1 R^-T)``.

    Attributes
    ----------
    mean : Float[Array, "k"]
        Whitened weights of all unknowns, then the whitened unknown `args`.
    root : Float[Array, "k k"]
        R, upper triangular.
    """

    mean: Float[Array, " k"]
    root: Float[Array, "k k"]

    def rows(self, bases, points, orders, field: int, product: bool):
        """Return what the weights do to a derivative at points, a row each; `product`: on the grid of the points."""
        matrices = [b.whitened(p, q) for b, p, q in zip(bases[field], points, orders, strict=True)]
        if product:
            points_ = [m.reshape([-1 if i == d else 1 for i in range(len(points))] + [m.shape[1]])
                       for d, m in enumerate(matrices)]  # fmt: skip
            full = tuple(m.shape[0] for m in matrices)
            matrices = [jnp.broadcast_to(m, (*full, m.shape[-1])).reshape(-1, m.shape[-1]) for m in points_]
        rows = matrices[0]
        for m in matrices[1:]:
            rows = (rows[:, :, None] * m[:, None, :]).reshape(rows.shape[0], -1)
        sizes = [math.prod(b.size for b in bs) for bs in bases]
        before, total = sum(sizes[:field]), self.mean.size
        return jnp.pad(rows, ((0, 0), (before, total - before - rows.shape[1])))

    def least(self, field: int):
        """Return the standard deviation that the discretisation itself leaves."""
        return jnp.zeros((), self.root.dtype)


class Response(eqx.Module):
    """A Gaussian over what an exact equation leaves open: ``coefficients = z + response (p - mean)``.

    Attributes
    ----------
    mean : Float[Array, "r"]
        Whitened numbers p, ``p ~ N(mean, R^-1 R^-T)``.
    root : Float[Array, "r r"]
        R, upper triangular.
    response : tuple of Float[Array, "n1 ... r"]
        What each of them does to the coefficients of each unknown.
    floor : Float[Array, "fields"]
        Standard deviations that the discretisation itself leaves.
    """

    mean: Float[Array, " r"]
    root: Float[Array, "r r"]
    response: tuple
    floor: Float[Array, " fields"]

    def rows(self, bases, points, orders, field: int, product: bool):
        """Return what p does to a derivative at points, a row each; `product`: on the grid of the points."""
        matrices = [b.evaluate(p, q) for b, p, q in zip(bases[field], points, orders, strict=True)]
        response = self.response[field]
        if product:
            size = math.prod(len(m) for m in matrices)
            return mode_products([*matrices, None], response).reshape(size, response.shape[-1])
        return scattered(matrices, response)

    def least(self, field: int):
        """Return the standard deviation that the discretisation itself leaves."""
        return self.floor[field]


def scattered(matrices, tensor):
    """Contract one matrix (points, n_d) along each leading mode, point by point."""
    total = matmul(matrices[0], tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:])))
    total = total.reshape(matrices[0].shape[0], *tensor.shape[1:])
    for m in matrices[1:]:
        total = jnp.einsum("pi...,pi->p...", total, m, precision=HIGHEST)
    return total


class GPSolution(Solution):
    """The solution of a `PDEProblem`.

    Attributes
    ----------
    value : Float[Array, "n1 ..."] or tuple of them
        Coefficients in the bases, one tensor for each unknown.
    residual : Float[Array, ""]
        Root mean square of the equation's residual, relative to the sum of its terms', between the nodes of the grid
        (at them, where it cannot be evaluated elsewhere); without data the largest of that, of what it is at them, and
        of what conditions given as functions miss between the nodes. Unlike `error` it sees what the trial functions
        cannot resolve.
    misfit : Float[Array, ""]
        Largest disagreement of the conditions with the solution, relative to the largest condition value: not zero
        where corner data are incompatible or there are more data than the equation can meet.
    args : PyTree
        The `args` of the residual; those found, when some were unknown.
    args_std : PyTree or None
        Standard deviations of the `args` found.
    infer : PyTree or None
        Prior standard deviations of the `args`, None where an entry was known.
    log_evidence : Float[Array, ""] or None
        Log density of the data under the prior (Laplace's approximation for a nonlinear equation).
    prior : PyTree or None
        The prior that was used, or found.
    noise : tuple or None
        The standard deviations used, or found: of the equation, of each face condition, of each `Observe`; None where
        exact.
    """

    residual: Float[Array, "..."]
    misfit: Float[Array, "..."]
    bases: tuple
    posterior: Posterior | Response | None
    args: Any
    args_std: Any
    infer: Any
    log_evidence: Float[Array, "..."] | None
    prior: Any
    noise: Any

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, PDEStatus)

    def mean(self, x, *, field: int = 0):
        """Return the solution at x; see `derivative` for what x may be."""
        return self.derivative(x, (0,) * len(self.bases[field]), field=field)

    def derivative(self, x, orders, *, field: int = 0):
        """Return a derivative of the solution.

        Parameters
        ----------
        x : Float[Array, "... d"] or tuple of Float[Array, "k"]
            Points; in one dimension any shape. A tuple of d vectors means their product grid, which is much cheaper.
        orders : int or tuple of int
            How often to differentiate in each dimension. Static.
        field : int
            Which unknown.

        Returns
        -------
        Float[Array, "..."]
            One number a point.
        """
        bases, z = self.bases[field], self._tensors()[field]
        orders = (orders,) if isinstance(orders, int) else tuple(orders)
        if len(orders) != len(bases):
            fail("GPSolution.derivative", "orders", f"{len(bases)} integers", orders)
        points, shape = _points("GPSolution.derivative", x, bases)
        matrices = [b.evaluate(p, q) for b, p, q in zip(bases, points, orders, strict=True)]
        if isinstance(x, tuple):
            return mode_products(matrices, z)
        return scattered(matrices, z).reshape(shape)

    def std(self, x, orders=None, *, field: int = 0):
        """Return the posterior standard deviation at x, of the solution or of a derivative of it.

        Exact for a linear equation; Laplace's approximation at the solution otherwise.
        """
        rows, shape = self._rows("GPSolution.std", x, orders, field)
        posterior = self.posterior
        spread = jax.scipy.linalg.solve_triangular(posterior.root, rows.T, trans=1)  # type: ignore[union-attr]
        least = posterior.least(field)  # type: ignore[union-attr]
        return jnp.sqrt(jnp.sum(spread**2, axis=0) + least**2).reshape(shape)

    def sample(self, key, x, orders=None, *, field: int = 0):
        """Return one draw from the posterior at x."""
        rows, shape = self._rows("GPSolution.sample", x, orders, field)
        root = self.posterior.root  # type: ignore[union-attr]
        noise = jax.random.normal(key, root.shape[:1], root.dtype)
        orders = (0,) * len(self.bases[field]) if orders is None else orders
        drawn = matmul(rows, jax.scipy.linalg.solve_triangular(root, noise)).reshape(shape)
        return self.derivative(x, orders, field=field) + drawn

    def of_args(self, function):
        """Return a function of the `args` and its posterior standard deviation, linearised at what was found.

        Parameters
        ----------
        function : callable
            ``function(args)``, an array: ``lambda a: jnp.exp(a(x))`` for a coefficient at points x.

        Returns
        -------
        value, std : Float[Array, "..."]
            Shaped like the function's value.
        """
        if self.infer is None or self.posterior is None:
            fail("GPSolution.of_args", "solution", "one with unknown args: give gp_solve `infer`", "none")
        flat, unravel = ravel_pytree(self.infer)

        def at(w):
            return function(jax.tree.map(lambda a, s, v: a if s is None else a + s * v, self.args, self.infer,
                                         unravel(w)))  # fmt: skip

        value, slope = at(jnp.zeros_like(flat)), jax.jacfwd(at)(jnp.zeros_like(flat))
        root = self.posterior.root
        rows = jnp.pad(slope.reshape(-1, flat.size), ((0, 0), (root.shape[0] - flat.size, 0)))
        spread = jax.scipy.linalg.solve_triangular(root, rows.T, trans=1)
        return value, jnp.linalg.norm(spread, axis=0).reshape(value.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of coefficients in each dimension: for a spectral solution, the nodes it was computed on."""
        first = self._tensors()[0]
        return first.shape[first.ndim - len(self.bases[0]) :]

    @property
    def spectrum(self):
        """For each dimension (frequencies in radians per unit length, weights): of the prior, or of the solution."""
        return spectrum(self.bases[0], self.prior, self.mean)

    def _tensors(self):
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def _rows(self, name: str, x, orders, field: int):
        """Rows that map what is uncertain to values at points."""
        if self.posterior is None:
            fail(name, "solution", "one with a posterior: give gp_solve a `prior`, noise or observations", "none")
        bases = self.bases[field]
        orders = (0,) * len(bases) if orders is None else (orders,) if isinstance(orders, int) else tuple(orders)
        points, shape = _points(name, x, bases)
        return self.posterior.rows(self.bases, points, orders, field, isinstance(x, tuple)), shape


def _points(name: str, x, bases):
    dtype, d = bases[0].lower.dtype, len(bases)
    if isinstance(x, tuple):
        if len(x) != d:
            fail(name, "x", f"a tuple of {d} vectors", len(x))
        points = [jnp.atleast_1d(jnp.asarray(p, dtype)) for p in x]
        return points, tuple(p.shape[0] for p in points)
    x = jnp.asarray(x, dtype)
    if d == 1:
        return [x.reshape(-1)], x.shape
    if x.ndim == 0 or x.shape[-1] != d:
        fail(name, "x", f"points (..., {d}) or a tuple of {d} vectors", x.shape)
    flat = x.reshape(-1, d)
    return [flat[:, k] for k in range(d)], x.shape[:-1]
