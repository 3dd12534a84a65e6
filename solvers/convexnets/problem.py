"""The convex problem whose optimum is that of a two-layer ReLU network, its networks, and its certificate."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import checks
from ..core.precision import eps, matmul, tiny
from ..core.typing import Array, Bool, Float, Scalar
from .cells import every_gate, robust_gates

LOSSES = ("squared", "hinge")


class ConvexReLU(eqx.Module):
    """Training of a two-layer ReLU network, written as a convex problem over activation patterns.

    A pattern D_i says on which examples a neuron is active (Pilanci and Ergen, ICML 2020, theorem 1):

    (1) ``D_i = diag(1[X g_i >= 0])``
    (2) ``f = sum_i D_i X (v_i - w_i)``
    (3) ``(2 D_i - I) X v_i >= 0``, and the same for w_i
    (4) ``min loss(f, y) + beta sum_i (|v_i| + |w_i|)``

    It has the optimum of ``min loss(sum_j (X u_j)_+ a_j, y) + beta / 2 sum_j (|u_j|^2 + a_j^2)`` over all neurons with
    these patterns. Gated networks, ``f = sum_i D_i X u_i`` with fixed gates g_i, have no constraints.

    With a radius, see `robust`, it is trained against perturbations: each feature of each example may be off by as
    much, and the loss is the worst within these boxes, for networks whose neurons change sides in none of them.

    Make one with `ConvexReLU.sampled`, with `ConvexReLU.exhaustive` over all patterns of data in few dimensions, or
    give gates of your own.

    Attributes
    ----------
    X : Float[Array, "n d"]
        Examples as rows; append a column of ones for a bias. Differentiable.
    y : Float[Array, "n"]
        Targets; -1 and 1 for the hinge loss. Differentiable.
    beta : Float[Array, ""]
        Weight decay. Differentiable.
    gates : Float[Array, "p d"]
        The g_i; `distinct` says which count.
    distinct : Bool[Array, "p"]
        False for a pattern that an earlier gate gives too.
    loss : str
        ``"squared"``: ``|f - y|^2 / 2``; ``"hinge"``: ``sum (1 - y f)_+``. Static.
    gated : bool
        Static.
    radius : Float[Array, "d"] or None
        Of the perturbations, for each feature. The objective is differentiable in it.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    beta: Float[Array, ""]
    gates: Float[Array, "p d"]
    distinct: Bool[Array, " p"]
    loss: str = eqx.field(static=True, default="squared")
    gated: bool = eqx.field(static=True, default=False)
    radius: Any = None

    @staticmethod
    def sampled(
        X: Float[Array, "n d"],
        y: Float[Array, " n"],
        *,
        beta: Scalar,
        patterns: int,
        key: Array,
        loss: str = "squared",
        gated: bool = False,
    ) -> "ConvexReLU":
        """Return the problem over the patterns of Gaussian gates.

        Parameters
        ----------
        X, y : arrays
            Examples and targets.
        beta : scalar
            Weight decay, positive.
        patterns : int
            How many gates are drawn; static. Of equal patterns one counts. An example in d dimensions has at most
            ``2 sum_{i<d} binom(n - 1, i)`` patterns.
        key : Array
            Of ``jax.random.key``.
        loss, gated : str, bool
            See the class.
        """
        name = "ConvexReLU"
        X = checks.float_array(name, "X", X, ndim=2)
        y = checks.float_array(name, "y", y, ndim=1).astype(X.dtype)
        if y.shape[0] != X.shape[0] or not X.size:
            checks.fail(name, "y", f"of shape ({X.shape[0]},), like the rows of `X`, not empty", y.shape)
        checks.choice(name, "loss", loss, LOSSES)
        if isinstance(patterns, bool) or not isinstance(patterns, int) or patterns < 1:
            checks.fail(name, "patterns", "a positive Python integer", patterns)
        beta = checks.number(name, "beta", beta, positive=True, dtype=X.dtype)
        checks.random_key(name, "key", key)
        gates = jax.random.normal(key, (patterns, X.shape[1]), X.dtype)
        return ConvexReLU(X, y, beta, gates, distinct_rows(activity(X, gates)), loss, gated)

    @staticmethod
    def exhaustive(
        X: Float[Array, "n d"],
        y: Float[Array, " n"],
        *,
        beta: Scalar,
        loss: str = "squared",
        gated: bool = False,
        most: int = 200_000,
    ) -> "ConvexReLU":
        """Return the problem over all patterns there are, whose bound then holds for every network of any width.

        For few dimensions: ``2 sum_{i<d} binom(n - 1, i)`` patterns from ``2^d binom(n, d - 1)`` candidates, on the
        host in NumPy. Examples that are multiples of each other count once.

        Parameters
        ----------
        X, y : arrays
            Examples and targets; concrete, any d examples independent.
        beta : scalar
            Weight decay, positive.
        loss, gated : str, bool
            See the class.
        most : int
            Candidates to look at.

        Raises
        ------
        TypeError, ValueError
            Inside ``jax.jit``; examples that are not in general position; too many candidates.
        """
        name = "ConvexReLU"
        if isinstance(X, Tracer):
            checks.fail(name, "X", "a concrete array: patterns are counted on the host", "a traced one", TypeError)
        X = checks.float_array(name, "X", X, ndim=2)
        gates = every_gate(name, np.asarray(X, np.float64), most, 64 * eps(X.dtype))
        given = ConvexReLU.sampled(X, y, beta=beta, patterns=1, key=jax.random.key(41), loss=loss, gated=gated)
        gates = jnp.asarray(gates, given.X.dtype)
        distinct = distinct_rows(activity(given.X, gates))
        return ConvexReLU(given.X, given.y, given.beta, gates, distinct, loss, gated)

    def robust(self, radius: Any) -> "ConvexReLU":
        """Return the problem against perturbations of the examples: the worst loss within a box round each.

        Parameters
        ----------
        radius : scalar or Float[Array, "d"]
            By which each feature may be off; 0 in an array for a column of ones. Traced.

        Returns
        -------
        ConvexReLU
            Its gates are moved to where they keep their sides in all boxes; patterns in which a perceptron finds no
            such neuron in a thousand steps no longer count.

        Raises
        ------
        ValueError
            A negative radius, or one of another shape; gated networks, whose gates perturbations would change.
        """
        name, d = "ConvexReLU", self.X.shape[1]
        if self.gated:
            checks.fail(name, "radius", "None with `gated`, whose gates the perturbations would change", radius)
        radius = jnp.asarray(radius, self.X.dtype)
        if radius.shape not in ((), (d,)):
            checks.fail(name, "radius", f"a scalar or of shape ({d},)", f"shape {radius.shape}")
        if not isinstance(radius, Tracer) and not np.all(np.asarray(radius) >= 0):
            checks.fail(name, "radius", "not negative", radius)
        radius = jnp.broadcast_to(radius, (d,))
        gates, found = robust_gates(self.X, self.gates, self.active, radius)
        return ConvexReLU(self.X, self.y, self.beta, gates, self.distinct & found, self.loss, radius=radius)

    @property
    def active(self) -> Float[Array, "p n"]:
        """The patterns, one a row, as zeros and ones."""
        return activity(self.X, self.gates)


def activity(X: Array, gates: Array) -> Float[Array, "p n"]:
    """Return ``1[X g_i >= 0]``."""
    return (matmul(gates, X.T) >= 0).astype(X.dtype)  # (1)


def distinct_rows(rows: Float[Array, "p n"]) -> Bool[Array, " p"]:
    """Return which rows of zeros and ones are the first of their kind."""
    order = jnp.lexsort(rows.T)
    same = jnp.all(rows[order][1:] == rows[order][:-1], axis=1)
    # lexsort is stable, so that the first in order is the first of all.
    return jnp.ones(rows.shape[0], bool).at[order[1:]].set(~same)


class Blocks(eqx.Module):
    """The blocks of the convex problem: v_1 .. v_p, then w_1 .. w_p; of a gated one, u_1 .. u_p.

    Attributes
    ----------
    X : Float[Array, "n d"]
    active : Float[Array, "b n"]
        D_i.
    sign : Float[Array, "b"]
        1 or -1, 0 for a block that does not count.
    cone : bool
        Whether ``(2 D_i - I) X u_i >= 0`` is asked for; static.
    """

    X: Float[Array, "n d"]
    active: Float[Array, "b n"]
    sign: Float[Array, " b"]
    cone: bool = eqx.field(static=True)

    @staticmethod
    def of(problem: ConvexReLU) -> "Blocks":
        """Return those of a problem."""
        counts = problem.distinct.astype(problem.X.dtype)
        if problem.gated:
            return Blocks(problem.X, problem.active, counts, False)
        return Blocks(problem.X, jnp.tile(problem.active, (2, 1)), jnp.concatenate([counts, -counts]), True)

    @property
    def orientation(self) -> Float[Array, "b n"]:
        """``2 D_i - I``."""
        return 2 * self.active - 1

    def fit(self, u: Float[Array, "b d"]) -> Float[Array, " n"]:
        """Return ``sum_i sign_i D_i X u_i``."""
        return jnp.sum(self.sign[:, None] * self.active * matmul(u, self.X.T), axis=0)  # (2)

    def fit_transposed(self, r: Float[Array, " n"]) -> Float[Array, "b d"]:
        """Return ``sign_i X' D_i r``."""
        return matmul(self.sign[:, None] * self.active * r[None, :], self.X)

    def slack(self, u: Float[Array, "b d"]) -> Float[Array, "b n"]:
        """Return ``(2 D_i - I) X u_i``."""
        return self.orientation * matmul(u, self.X.T)  # (3)

    @property
    def idle(self) -> Float[Array, "1 n"]:
        """One for an example of zeros, which constrains nothing: it is added to its slacks."""
        return jnp.all(self.X == 0, axis=1).astype(self.X.dtype)[None, :]

    def slack_transposed(self, z: Float[Array, "b n"]) -> Float[Array, "b d"]:
        """Return ``X' (2 D_i - I) z_i``."""
        return matmul(self.orientation * z, self.X)


def lengths(u: Float[Array, "b d"]) -> Float[Array, " b"]:
    """Return the Euclidean length of each row."""
    squared = jnp.sum(u * u, axis=1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def loss_of(loss: str, f: Array, y: Array) -> Array:
    """Return the loss."""
    if loss == "squared":
        return jnp.sum((f - y) ** 2) / 2
    return jnp.sum(jnp.maximum(1 - y * f, 0))


def network_output(blocks: Blocks, u: Array) -> Array:
    """Return what the network with neurons u_i, or gated ones, gives for each example."""
    if blocks.cone:
        return jnp.sum(blocks.sign[:, None] * jnp.maximum(matmul(u, blocks.X.T), 0), axis=0)
    return blocks.fit(u)


def network_objective(blocks: Blocks, loss: str, y: Array, beta: Array, u: Array) -> Array:
    """Return the objective of the network that the blocks stand for, feasible or not: an upper bound of the optimum."""
    f = network_output(blocks, u)
    return loss_of(loss, f, y) + beta * jnp.sum(jnp.abs(blocks.sign) * lengths(u))  # (4)


def dual_bound(blocks: Blocks, loss: str, y: Array, beta: Array, slope: Array, z: Array | None) -> Array:
    """Return a lower bound of the optimum from a slope of the loss and multipliers of the cones, whatever they are.

    (5) ``-loss*(c slope)`` is one if ``|sign_i X' D_i c slope - X' (2 D_i - I) c z_i| <= beta`` for all i and z >= 0

    The largest c up to one is taken.
    """
    if loss == "hinge":
        inside = jnp.clip(-slope * y, 0, 1)
        slope = -y * inside
    steep = blocks.fit_transposed(slope)
    if z is not None:
        steep = steep - blocks.slack_transposed(jnp.maximum(z, 0))
    worst = jnp.max(jnp.abs(blocks.sign) * lengths(steep))
    # (5)
    most = beta / jnp.maximum(worst, tiny(beta.dtype))
    if loss == "hinge":
        return jnp.minimum(1, most) * jnp.sum(-slope * y)
    square, along = jnp.sum(slope * slope), jnp.sum(slope * y)  # concave in c: its maximiser, or the end
    c = jnp.clip(-along / jnp.where(square > 0, square, 1), 0, most)
    return -(c**2) * square / 2 - c * along
