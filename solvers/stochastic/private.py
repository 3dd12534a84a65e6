"""Private gradient descent on gradient differences, whose sensitivity shrinks with the step (DIFF2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core import checks
from ..core.typing import Array, Float, Int, Scalar
from ..core.variance_reduction import track

NEIGHBOURS = ("replace", "add_remove")


class Diff2State(NamedTuple):
    """Hold what `diff2` knows.

    Attributes
    ----------
    estimate : PyTree
        The private estimate of the gradient.
    previous : PyTree
        The parameters where it was made.
    rho : Float[Array, ""]
        What has been spent, as zero-concentrated differential privacy.
    key : PRNG key
    count : Int[Array, ""]
    """

    estimate: Any
    previous: Any
    rho: Float[Array, ""]
    key: Array
    count: Int[Array, ""]


def diff2(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clip: Scalar,
    clip_difference: Scalar,
    noise: Scalar,
    noise_difference: Scalar,
    restart: int | Array,
    key: Array,
    neighbours: str = "replace",
) -> optax.GradientTransformationExtraArgs:
    """Descend privately along a gradient that is kept up to date by private differences.

    Every `restart` steps (1), in between (2), each with its limit c; then a step along v.

    (1) ``v = mean_i clip(g_i(x), c) + xi``, ``c = clip``
    (2) ``v <- v + mean_i clip(g_i(x) - g_i(x_before), c) + xi``, ``c = clip_difference |x - x_before|``
    (3) ``xi ~ N(0, (s 2 c / n)^2 I)``, s the noise of that kind of step: ``rho <- rho + 1 / (2 s^2)``

    For many examples and few parameters plain noisy gradients are as good (``restart=1`` is that): see the benchmark's
    map.

    Parameters
    ----------
    learning_rate : scalar or schedule
        Of the last step.
    clip : scalar
        Largest norm of an example's gradient, over all leaves; traced.
    clip_difference : scalar
        Largest change of an example's gradient per unit of distance, a guess at its smoothness; traced.
    noise, noise_difference : scalar
        Standard deviations in units of the sensitivities, ``2 clip / n`` and ``2 clip_difference |x - x_before| / n``;
        a release costs ``1 / (2 noise^2)``. See `diff2_noise`. Traced.
    restart : int
        Steps between full gradients; traced.
    key : PRNG key
        Of the noise. Keep it secret.
    neighbours : {"replace", "add_remove"}
        What two data sets that must not be told apart differ by: one example replaced, or one added, which halves the
        sensitivity. Static.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its `update` takes *per-example* gradients (leading axis n on every leaf), the parameters, and
        ``before=``: the same examples' gradients at `previous_point`, or the function that returns them at a point. All
        examples must be used in every step.

    Raises
    ------
    ValueError
        When `update` is called without parameters or with gradients that are no per-example ones of them, or an option
        is unknown.
    TypeError
        A `key` that is none.

    Notes
    -----
    Privacy does not rest on `before` being what it should be, nor on the clips being right, only on the same data set
    being used throughout: what is released is the clipped mean with its noise. ``state[0].rho``, of the `Diff2State`
    that is the first part of the optimiser's state, is what has been spent.
    The noise is in floating point, whose low bits are known to leak (Mironov, CCS 2012).

    References
    ----------
    T. Murata, T. Suzuki, *DIFF2: differential private optimization via gradient differences for nonconvex distributed
    learning*, ICML 2023, with one worker; read in a summary.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from solvers import diff2, previous_point
    >>> data = jnp.array([[1.0], [2.0], [6.0]])
    >>> optimiser = diff2(0.5, clip=10.0, clip_difference=1.0, noise=0.0, noise_difference=0.0, restart=5,
    ...                   key=jax.random.key(3))
    >>> x = jnp.zeros(1)
    >>> state = optimiser.init(x)
    >>> for _ in range(20):
    ...     before = previous_point(state) - data
    ...     updates, state = optimiser.update(x - data, state, x, before=before)
    ...     x = x + updates
    >>> print(x.round(3))
    [3.]
    """
    name = "diff2"
    checks.choice(name, "neighbours", neighbours, NEIGHBOURS)
    checks.random_key(name, "key", key)
    sides = 2 if neighbours == "replace" else 1

    def init(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Diff2State(zeros, params, jnp.zeros((), dtype), key, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        before = extra.get("before")
        if params is None:
            checks.fail(name, "params", "given to update", None)
        if before is None:
            checks.fail(name, "before", "given to update: per-example gradients at `previous_point`", None)
        before = before(state.previous) if callable(before) else before
        dtype = state.rho.dtype
        n = number_of_examples(name, "updates", updates, params)
        if number_of_examples(name, "before", before, params) != n:
            checks.fail(name, "before", f"of the same {n} examples", f"{jax.tree.leaves(before)[0].shape[0]}")
        afresh = state.count % restart == 0
        moved = jnp.sqrt(sum(
            jnp.sum((x - y) ** 2).astype(dtype)
            for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(state.previous), strict=True)
        ))  # fmt: skip
        full, change = (jnp.asarray(c).astype(dtype) for c in (clip, clip_difference))
        limit = jnp.where(afresh, full, change * moved)  # (1), (2)
        wanted = jnp.where(afresh, noise, noise_difference).astype(dtype)
        examples = jax.tree.map(lambda g, b: g - jnp.where(afresh, 0, 1).astype(g.dtype) * b, updates, before)
        following, draw = jax.random.split(state.key)
        released = add_noise(clipped_mean(examples, limit), wanted * sides * limit / n, draw)  # (3)
        # Two settings of one recursion: at a restart the sample itself, else the estimate plus the change.
        fresh = jnp.where(afresh, 1, 0)
        estimate = track(state.estimate, released, released, fresh, 1 - fresh)  # (1), (2)
        rho = state.rho + jnp.where(wanted > 0, 1 / (2 * jnp.where(wanted > 0, wanted, 1) ** 2), jnp.inf)  # (3)
        count = jnp.asarray(optax.safe_increment(state.count))
        return estimate, Diff2State(estimate, params, rho, following, count)

    inner = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(inner, optax.scale_by_learning_rate(learning_rate))


def number_of_examples(name: str, argument: str, gradients: Any, params: Any) -> int:
    """Return the length of the leading axis of per-example gradients, or raise: a mean would have no bound to clip."""
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    leaves = jax.tree.leaves(gradients)
    n = jnp.shape(leaves[0])[:1] if leaves else ()
    like = jax.tree.map(lambda p: n + jnp.shape(p), params)
    if not n or n == (0,) or shapes(gradients) != like:
        wanted = f"per-example gradients, one leading axis n before the shapes {shapes(params)} of `params`"
        checks.fail(name, argument, wanted, shapes(gradients))
    return n[0]


def clipped_mean(examples: Any, limit: Array) -> Any:
    """Return the mean over the leading axis of per-example pytrees, each shortened to `limit` over all leaves.

    A change of one of n examples moves it by at most ``2 limit / n``; one that is not finite counts as zero.
    """
    leaves = jax.tree.leaves(examples)
    n, dtype = leaves[0].shape[0], limit.dtype
    flat = [leaf.reshape(n, -1).astype(dtype) for leaf in leaves]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(f), axis=1, initial=0) for f in flat]), axis=0)
    usable = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    size = usable * jnp.sqrt(sum(jnp.sum((f / usable[:, None]) ** 2, axis=1) for f in flat))
    factor = jnp.where(size > limit, limit / jnp.where(size > 0, size, 1), 1)
    good = jnp.isfinite(size)

    def leaf_mean(leaf, f):
        kept = jnp.where(good[:, None], f, 0) * factor[:, None]
        return jnp.mean(kept, axis=0).reshape(leaf.shape[1:]).astype(leaf.dtype)

    means = [leaf_mean(leaf, f) for leaf, f in zip(leaves, flat, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(examples), means)


def add_noise(tree: Any, deviation: Array, key: Array) -> Any:
    """Return the tree plus independent normal noise."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + deviation.astype(leaf.dtype) * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def previous_point(state: Any) -> Any:
    """Return the parameters at which `diff2` wants the other gradients of its next update.

    Parameters
    ----------
    state : PyTree
        Of an optimiser that holds one `Diff2State`, however chained.
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, Diff2State))
    held = [leaf for leaf in leaves if isinstance(leaf, Diff2State)]
    if len(held) != 1:
        checks.fail("previous_point", "state", "the state of one diff2", f"{len(held)} of them")
    return held[0].previous


def diff2_noise(rho: Scalar, steps: int, restart: int, *, share: Scalar = 0.5) -> tuple[Array, Array]:
    """Return the two noise multipliers of `diff2` that spend rho in that many steps.

    Parameters
    ----------
    rho : scalar
        Zero-concentrated budget, see `epsilon_to_rho`.
    steps, restart : int
        Updates in all, and from one full gradient to the next.
    share : scalar
        Of the budget, for the full gradients.

    Returns
    -------
    tuple of two arrays
        `noise` and `noise_difference`.

    Raises
    ------
    ValueError
        Numbers out of range.

    Examples
    --------
    >>> from solvers import diff2_noise, epsilon_to_rho
    >>> noise, noise_difference = diff2_noise(epsilon_to_rho(1.0, 1e-6), steps=50, restart=10)
    >>> print(f"{noise:.1f} {noise_difference:.1f}")
    13.4 40.1
    """
    name = "diff2_noise"
    rho = checks.number(name, "rho", rho, positive=True)
    for label, count in (("steps", steps), ("restart", restart)):
        if not isinstance(count, int) or count < 1:
            checks.fail(name, label, "a positive integer", count)
    fresh = -(-steps // restart)
    rest = steps - fresh
    if rest and isinstance(share, int | float) and not 0 < share < 1:
        checks.fail(name, "share", "between 0 and 1", share)
    share = 1.0 if rest == 0 else share
    first = jnp.sqrt(fresh / (2 * rho * share))  # (3)
    return first, jnp.sqrt(rest / (2 * rho * (1 - share))) if rest else jnp.ones_like(first)
