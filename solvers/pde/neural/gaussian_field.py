"""Sums of Gaussians with learnable centres and shapes, and every derivative of them in closed form.

Kang et al., PIG, ICLR 2025, section 3, with ``P_i = L_i L_i'`` and ``g = P (x - mu)``:

(1) ``u(x) = sum_i w_i exp(-|z|^2 / 2),  z = L_i'(x - mu_i)``
(2) ``H_(a + e_i) = -g_i H_a - sum_j P_ij a_j H_(a - e_j)``, where ``D^a exp(-|z|^2 / 2) = H_a exp(-|z|^2 / 2)``
(3) ``Laplace u = sum_i w_i (|g|^2 - trace P_i) exp(-|z|^2 / 2)``
(4) ``u = A_2 tanh(A_1 phi + b_1) + b_2`` and so on, phi several sums: the published network

`GaussianField` departs from the paper in having no network, which `PublishedPIG` has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.checks import fail, float_array
from ...core.linalg.kronecker import along
from ...core.precision import matmul
from ...core.typing import Array, Float
from ..problem import Box

Index = tuple[int, ...]

REACH = 100.0
"""Widths beyond which a Gaussian is zero."""


def gaussians(x, centers, root, indices: Sequence[Index]) -> dict[Index, Array]:
    """Return mixed derivatives of all Gaussians at all points, each (m, n).

    With ``P = L L'`` and ``g = P (x - mu)`` a derivative is ``H_a(g) exp(-z'z / 2)``, ``z = L'(x - mu)``, where
    ``H_{a + e_i} = -g_i H_a - sum_j P_ij a_j H_{a - e_j}``: differentiate ``H_a`` and the exponential.
    """
    ndim, full = centers.shape[1], root.ndim == 3
    apart = [x[:, None, i] - centers[None, :, i] for i in range(ndim)]
    if full:
        z = [sum(root[None, :, i, j] * apart[i] for i in range(ndim)) for j in range(ndim)]
    else:
        z = [root[None, :, i] * apart[i] for i in range(ndim)]
    # Beyond this the Gaussian is zero in any precision, and its polynomial factor need not be finite.
    z = [jnp.clip(v, -REACH, REACH) for v in z]
    # (1)
    bump = jnp.exp(-sum(v * v for v in z) / 2)
    if full:
        g = [sum(root[None, :, i, j] * z[j] for j in range(ndim)) for i in range(ndim)]
    else:
        g = [root[None, :, i] * z[i] for i in range(ndim)]

    def precision(i: int, j: int):
        if full:
            return jnp.sum(root[:, i] * root[:, j], -1)[None]
        return (root[:, i] ** 2)[None] if i == j else None

    known: dict[Index, Any] = {(0,) * ndim: None}

    def polynomial(index: Index):
        if index not in known:
            i = next(d for d, p in enumerate(index) if p)
            lower = shifted(index, i, -1)
            before = polynomial(lower)
            total = -g[i] if before is None else -g[i] * before  # (2)
            for j, p in enumerate(lower):
                entry = precision(i, j) if p else None
                if entry is not None:
                    rest = polynomial(shifted(lower, j, -1))
                    total = total - p * (entry if rest is None else entry * rest)
            known[index] = total
        return known[index]

    return {a: bump if polynomial(a) is None else bump * polynomial(a) for a in indices}


def shifted(index: Index, axis: int, by: int) -> Index:
    """Return a multi-index with one entry moved."""
    return tuple(p + by * (d == axis) for d, p in enumerate(index))


class GaussianField(eqx.Module):
    """A function ``u_k(x) = sum_i weights[k, i] exp(-|L_i' (x - centers[i])|^2 / 2)``, L_i = diag(root[i]) or root[i].

    The representation of physics-informed Gaussians without the network behind it: linear in its weights, so that
    `collocate` can solve for them and search in centres and shapes only. All derivatives are in closed form.

    Parameters
    ----------
    weights : Float[Array, "n"] or Float[Array, "k n"]
        Of one unknown, or of each of k.
    centers : Float[Array, "n d"]
    root : Float[Array, "n d"] or Float[Array, "n d d"]
        Reciprocal widths along the axes, or any L with inverse covariance ``L L'``: a full one.

    Raises
    ------
    ValueError
        For shapes that do not fit.

    Notes
    -----
    Value, gradient and Laplacian cost ``O(n d)`` a point (``O(n d^2)`` with full covariances), without nested
    differentiation. Differentiable in everything.

    References
    ----------
    N. Kang et al., PIG: Physics-Informed Gaussians as Adaptive Parametric Mesh Representations, ICLR 2025.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import GaussianField
    >>> field = GaussianField(jnp.array([2.0]), jnp.zeros((1, 2)), jnp.ones((1, 2)))
    >>> value, gradient, laplacian = field.value_grad_laplacian(jnp.zeros(2))
    >>> print(value, laplacian)
    2.0 -4.0
    """

    weights: Float[Array, "*k n"]
    centers: Float[Array, "n d"]
    root: Float[Array, "n d *d"]

    def __init__(self, weights, centers, root):
        name = "GaussianField"
        self.centers = float_array(name, "centers", centers, ndim=2)
        self.weights = float_array(name, "weights", weights).astype(self.centers.dtype)
        self.root = float_array(name, "root", root).astype(self.centers.dtype)
        n, d = self.centers.shape
        if self.weights.ndim not in (1, 2) or self.weights.shape[-1] != n:
            fail(name, "weights", f"({n},) or (unknowns, {n})", self.weights.shape)
        if self.root.shape not in ((n, d), (n, d, d)):
            fail(name, "root", f"({n}, {d}) or ({n}, {d}, {d})", self.root.shape)

    @classmethod
    def on_grid(cls, box: Box, counts: int | Sequence[int], *, overlap=1.0, margin=0.0, fields: int = 1, dtype=None):
        """Return zero weights on a uniform grid of centres over a box.

        Parameters
        ----------
        box : Box
        counts : int or sequence of int
            Centres a dimension.
        overlap : scalar
            Width (standard deviation) in units of the spacing.
        margin : scalar
            How far the grid reaches beyond the box, in units of its lengths.
        fields : int
            Number of unknowns.
        dtype : dtype, optional
        """
        counts = (counts,) * box.ndim if isinstance(counts, int) else tuple(counts)
        if len(counts) != box.ndim or any(n < 2 for n in counts):
            fail("GaussianField.on_grid", "counts", f"{box.ndim} integers of at least 2", counts)
        dtype = jnp.result_type(float) if dtype is None else dtype
        axes, widths = [], []
        for n, (lower, upper) in zip(counts, box.bounds, strict=True):
            lower, upper = jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)
            length = upper - lower
            axes.append(jnp.linspace(lower - margin * length, upper + margin * length, n, dtype=dtype))
            widths.append(overlap * length * (1 + 2 * margin) / (n - 1))
        full = [jnp.broadcast_to(along(a, d, box.ndim), counts).ravel() for d, a in enumerate(axes)]
        centers = jnp.stack(full, -1)
        root = jnp.broadcast_to(1 / jnp.stack(widths), centers.shape).astype(dtype)
        size = centers.shape[0]
        return cls(jnp.zeros((fields, size) if fields > 1 else size, dtype), centers, root)

    @classmethod
    def scattered(cls, key: Array, box: Box, count: int, *, width, fields: int = 1, full: bool = False, dtype=None):
        """Return normal weights, centres uniform in the box and equal widths, as the authors start from."""
        dtype = jnp.result_type(float) if dtype is None else dtype
        one, two = jax.random.split(key)
        lower, upper = (jnp.stack([jnp.asarray(b[s], dtype) for b in box.bounds]) for s in (0, 1))
        centers = lower[None] + (upper - lower)[None] * jax.random.uniform(one, (count, box.ndim), dtype)
        root = jnp.full((count, box.ndim), 1 / jnp.asarray(width, dtype), dtype)
        weights = jax.random.normal(two, (fields, count) if fields > 1 else (count,), dtype) / count**0.5
        return cls(weights, centers, jax.vmap(jnp.diag)(root) if full else root)

    @property
    def fields(self) -> int:
        """Number of unknowns."""
        return self.weights.shape[0] if self.weights.ndim == 2 else 1

    def __call__(self, x: Float[Array, " d"]):
        """Return the value at one point: a number, or one an unknown."""
        return self.derivative(x, (0,) * self.centers.shape[1])

    def derivative(self, x: Float[Array, " d"], orders: Index):
        """Return a mixed derivative at one point."""
        (values,) = self.jets(self._point(x)[None], [tuple(orders)])
        return values[:, 0] if self.weights.ndim == 2 else values[0, 0]

    def value_grad_laplacian(self, x: Float[Array, " d"]):
        """Return value, gradient (d,) and Laplacian at one point; for a system each with a leading axis."""
        x, ndim = self._point(x), self.centers.shape[1]
        apart = [x[i] - self.centers[:, i] for i in range(ndim)]
        root, across = self.root, range(ndim)
        z: list[Any]
        g: list[Any]
        if root.ndim == 2:
            z = [jnp.clip(root[:, i] * apart[i], -REACH, REACH) for i in across]
            g = [root[:, i] * z[i] for i in across]
        else:
            z = [sum(root[:, i, j] * apart[i] for i in across) for j in across]
            z = [jnp.clip(v, -REACH, REACH) for v in z]
            g = [sum(root[:, i, j] * z[j] for j in across) for i in across]
        spread = jnp.sum(root**2, tuple(range(1, root.ndim)))
        # Row by row, then products with the weights: elementwise loops vectorise where sums with an exponential inside
        # do not.
        share = jnp.exp(-sum(v * v for v in z) / 2)
        gradient = [-matmul(self.weights, share * v) for v in g]
        laplacian = matmul(self.weights, share * (sum(v * v for v in g) - spread))  # (3)
        return matmul(self.weights, share), jnp.stack(gradient, -1), laplacian

    def jets(self, x: Float[Array, "m d"], indices: Sequence[Index]) -> list[Float[Array, "k m"]]:
        """Return mixed derivatives at m points, an array (unknowns, m) for each multi-index."""
        table = gaussians(x, self.centers, self.root, indices)
        weights = self.weights if self.weights.ndim == 2 else self.weights[None]
        return [matmul(weights, table[a].T) for a in indices]

    def with_weights(self, weights) -> "GaussianField":
        """Return the field with other weights."""
        return GaussianField(weights, self.centers, self.root)

    def _point(self, x):
        x = jnp.asarray(x, self.centers.dtype)
        if x.shape != self.centers.shape[1:]:
            fail("GaussianField", "x", f"one point, shape {self.centers.shape[1:]} (use jax.vmap for more)", x.shape)
        return x


class PublishedPIG(eqx.Module):
    """Physics-informed Gaussians as published: a few sums of Gaussians as features of a small tanh network.

    To compare with `GaussianField`; derivatives are nested forward differentiation, so it costs what the authors' does.
    `collocate` trains it with L-BFGS or an Optax optimiser.

    Parameters
    ----------
    features : GaussianField
        The sums, one an "unknown".
    layers : tuple of (matrix, bias)
        Of the network; tanh between them.

    References
    ----------
    N. Kang et al., ICLR 2025, section 3.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import Box, PublishedPIG
    >>> field = PublishedPIG.scattered(jax.random.key(3), Box((0, 1), (0, 1)), 20, width=0.1)
    >>> field(jnp.array([0.5, 0.5])).shape
    ()
    """

    features: GaussianField
    layers: tuple

    def __check_init__(self):
        if not isinstance(self.features, GaussianField) or self.features.weights.ndim != 2:
            fail("PublishedPIG", "features", "a GaussianField with a leading axis of weights", type(self.features))

    @classmethod
    def scattered(cls, key: Array, box: Box, count: int, *, width, features: int = 4, hidden: int = 16, dtype=None):
        """Return the published start: centres uniform in the box, Glorot weights, `features` sums, 2 layers."""
        one, two, three = jax.random.split(key, 3)
        dtype = jnp.result_type(float) if dtype is None else dtype
        sums = GaussianField.scattered(one, box, count, width=width, fields=max(features, 2), dtype=dtype)

        def layer(key, into, out):
            scale = (2 / (into + out)) ** 0.5
            return scale * jax.random.normal(key, (out, into), dtype), jnp.zeros(out, dtype)

        return cls(sums, (layer(two, max(features, 2), hidden), layer(three, hidden, 1)))

    @property
    def fields(self) -> int:
        """Number of unknowns."""
        return self.layers[-1][1].shape[0]

    def __call__(self, x: Float[Array, " d"]):
        """Return the value at one point."""
        values = self._values(x)
        return values[0] if self.fields == 1 else values

    def jets(self, x, indices):
        """Return mixed derivatives at m points, an array (unknowns, m) for each multi-index."""

        def nested(index: Index):
            function = self._values
            for axis, times in enumerate(index):
                for _ in range(times):
                    function = _along(function, axis)
            return jax.vmap(function)(x).T

        return [nested(a) for a in indices]

    def _values(self, x):
        v = self.features(x)
        for k, (matrix, bias) in enumerate(self.layers):
            v = matmul(matrix, jnp.tanh(v) if k else v) + bias  # (4)
        return v


def _along(function, axis: int):
    def slope(x):
        unit = jnp.zeros_like(x).at[axis].set(1)
        return jax.jvp(function, (x,), (unit,))[1]

    return slope
