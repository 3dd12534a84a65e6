"""HESSO: train, find redundant groups, bring them to exact zero along straight lines, and go on training the rest.

Chen et al., HESSO, 2024, and the authors' code, for groups x that are redundant, T updates to go in all:

(1) ``x <- (x + step) (T - t - 1) / (T - t)`` in update t, zero after the last and ever after
(2) ``score + weight loss``, loss the mean over three trial projections of ``loss(without) / loss(with)`` over the
    family
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core import checks
from ..core.loop import when
from ..core.typing import Array, Bool, Float, Int, Scalar
from .saliency import DEFAULT, checked, lowest, raw_scores, weighed
from .structure import Groups

TRIALS = (0.25, 0.5, 0.75)


class Cycles(NamedTuple):
    """What corrective cycles remember; zero-sized where there are none.

    Attributes
    ----------
    params, inner : PyTree
        Parameters and inner state from before the trials, to which every cycle returns.
    total : Float[Array, "5 count"]
        Sum of the raw scores seen.
    samples : Int[Array, ""]
        How many.
    loss : Float[Array, "count"]
        Relative loss of trial projections of a group's family, per group.
    active, candidates, visited : Bool[Array, "count"]
        Groups on trial, those that were among the least since, and those that have been on trial.
    cycle, step : Int[Array, ""]
        Where the cycles stand.
    """

    params: Any
    inner: Any
    total: Float[Array, "5 count"]
    samples: Int[Array, ""]
    loss: Float[Array, " count"]
    active: Bool[Array, " count"]
    candidates: Bool[Array, " count"]
    visited: Bool[Array, " count"]
    cycle: Int[Array, ""]
    step: Int[Array, ""]


class HessoState(NamedTuple):
    """State of `hesso`.

    Attributes
    ----------
    inner : PyTree
        Of the wrapped transformation.
    count : Int[Array, ""]
        Updates so far.
    since : Int[Array, ""]
        Updates since pruning began; negative before.
    active : Bool[Array, "count"]
        Groups on their way to zero.
    pruned : Bool[Array, "count"]
        Groups that are zero and stay so.
    cycles : Cycles or None
        Of the search for redundant groups.
    """

    inner: Any
    count: Int[Array, ""]
    since: Int[Array, ""]
    active: Bool[Array, " count"]
    pruned: Bool[Array, " count"]
    cycles: Cycles | None


class _Plan(NamedTuple):
    """What `hesso` was asked for."""

    groups: Groups
    scores: dict[str, Any]
    sparsity: Scalar
    steps: int
    periods: int
    cycles: int
    sampling_steps: int


def hesso(
    inner: optax.GradientTransformation,
    groups: Groups,
    *,
    target_sparsity: Scalar = 0.5,
    start: Scalar = 0,
    steps: int = 1000,
    periods: int = 1,
    scores: Mapping[str, Scalar] | None = None,
    cycles: int = 0,
    sampling_steps: int = 10,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that it trains a network and prunes whole groups of its parameters to exact zeros.

    From update `start` on the groups of least saliency (`group_scores`) are multiplied by ``(T - t - 1) / (T - t)``
    after each inner step, t = 0 .. T - 1, which brings them to zero in T steps along straight lines; the others train
    on. Use it where a smaller network is wanted (`shrink`) from one run of training; for single weights see
    `obs_update`.

    Parameters
    ----------
    inner : optax.GradientTransformation
        The whole optimiser, learning rate included: its updates are what is added to the parameters.
    groups : Groups
        Of `parameter_groups`.
    target_sparsity : scalar
        Share of groups to prune, from 0 to below 1; traced. ``floor(target_sparsity count)`` go, fewer where a family
        would lose its last unit.
    start : int
        Updates before pruning begins; traced.
    steps : int
        Updates that pruning takes; static.
    periods : int
        Over which the groups are distributed: a share is chosen at the start of each, ``steps // periods`` long.
        Static.
    scores : mapping, optional
        Weights of the scores of `group_scores`; with cycles also "loss".
    cycles : int
        Greater than 0 for corrective cycles (CRIC): before pruning, at most this many times, the supposedly redundant
        groups are brought to zero on trial over `sampling_steps` updates while scores are averaged along the way, and
        training returns to where it was. They end when no new group comes among the least. Static.
    sampling_steps : int
        Updates a cycle; static.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update`` needs `params`. A "loss" weight needs the extra argument ``value_fn``, the loss as a function of the
        parameters alone, evaluated three times a family once. Other extra arguments go to the inner transformation.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range, unknown scores, missing parameters or a missing ``value_fn``.

    Notes
    -----
    All redundant groups are exactly zero after ``start + steps`` updates, with cycles after at most
    ``start + cycles sampling_steps + steps``, and zero ever after, whatever the inner optimiser's momentum says.
    Ranking costs O(count log count) an update. Departures from the paper: updates stand in for the direction d, so that
    any optimiser can be wrapped; one unit a family survives; over the trials the scores are added as they are and
    normed once (the paper norms each before it adds, by which a group that matters looks no different from one that is
    only first among the unimportant); the inner state returns along with the parameters after a trial.

    References
    ----------
    T. Chen et al., *HESSO: Towards automatic efficient and user friendly any neural network training and pruning*,
    2024; scores, weights, cycles and trial projections as in the authors' `only_train_once`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> from solvers import Units, hesso, parameter_groups
    >>> params = {"w": jnp.array([3.0, 0.1, 2.0, 0.2])}
    >>> optimiser = hesso(optax.sgd(0.1), parameter_groups(params, [Units([("w", 0)])]), steps=5)
    >>> state = optimiser.init(params)
    >>> for _ in range(5):
    ...     grads = {"w": params["w"] - jnp.array([3.0, 0.1, 2.0, 0.2])}
    ...     updates, state = optimiser.update(grads, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> print(params["w"])
    [3. 0. 2. 0.]
    """
    name = "hesso"
    if isinstance(target_sparsity, int | float) and not 0 <= target_sparsity < 1:
        checks.fail(name, "target_sparsity", "from 0 to below 1", target_sparsity)
    for argument, value, least in (
        ("steps", steps, 1), ("periods", periods, 1), ("cycles", cycles, 0), ("sampling_steps", sampling_steps, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int):
            checks.fail(name, argument, "an integer", repr(value), TypeError)
        if value < least:
            checks.fail(name, argument, f"at least {least}", value)
    if periods > steps:
        checks.fail(name, "periods", f"at most `steps` = {steps}", periods)
    checks.count(name, "start", start)
    if not isinstance(groups, Groups):
        checks.fail(name, "groups", "the result of `parameter_groups`", type(groups).__name__, TypeError)
    weights = checked(name, scores, loss=cycles > 0)
    plan = _Plan(groups, weights, target_sparsity, steps, periods, cycles, sampling_steps)
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        none = jnp.zeros(groups.count, bool)
        state = inner.init(params)
        zero = jnp.zeros((), jnp.int32)
        return HessoState(state, zero, zero - 1, none, none, _no_cycles(plan, params, state) if cycles else None)

    def update(updates: Any, state: Any, params: Any = None, *, value_fn: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            checks.fail(name, "params", "given to `update`", None)
        if "loss" in weights and value_fn is None:
            checks.fail(name, "value_fn", "given to `update`, as the score `loss` needs it", None)
        step, inside = inner.update(updates, state.inner, params, **extra)
        begun = state.count >= start
        raw = raw_scores(params, jax.tree.map(jnp.negative, step), groups)
        score = weighed(raw, weights)
        if not cycles:
            since = jnp.where(begun, state.since + 1, -1)
            new = state._replace(inner=inside, since=since)
            new = _chosen(new, score, plan)
            return _pruning(step, new._replace(count=_next(state.count)), params, plan)
        return _with_cycles(_Moment(step, inside, params, raw, score, begun), state, plan, value_fn)

    return optax.GradientTransformationExtraArgs(init, update)


def _next(count):
    return jnp.asarray(optax.safe_increment(count))


def _wanted(plan: _Plan, share: Any) -> Array:
    """Return how many groups should be redundant when that share of the target is due."""
    total = jnp.floor(jnp.asarray(plan.sparsity, jnp.float32) * plan.groups.count * (1 + 1e-6))
    return jnp.floor(total * share + 1e-6).astype(jnp.int32)


def _chosen(state: HessoState, score: Array, plan: _Plan) -> HessoState:
    """At the start of a period retire the groups of the last and choose those of this one."""
    length = plan.steps // plan.periods
    period = state.since // length
    fresh = (state.since >= 0) & (state.since % length == 0) & (period < plan.periods)
    pruned = state.pruned | state.active
    count = _wanted(plan, (period + 1).astype(jnp.float32) / plan.periods)
    chosen = lowest(jnp.where(pruned, -jnp.inf, score), count, plan.groups) & ~pruned
    return state._replace(active=jnp.where(fresh, chosen, state.active), pruned=jnp.where(fresh, pruned, state.pruned))


def _towards_zero(step: Any, params: Any, factor: Array, groups: Groups) -> Any:
    """Return the update after which groups are ``factor (x + step)``, exact where the factor is 0 or 1."""

    def leaf(u, x, f):
        scaled = (x + u) * f.astype(x.dtype) - x  # (1)
        return jnp.where(f == 0, -x, jnp.where(f == 1, u, scaled.astype(u.dtype)))

    return jax.tree.map(leaf, step, params, groups.spread(factor, params, outside=1))


def _pruning(step: Any, state: HessoState, params: Any, plan: _Plan) -> tuple[Any, HessoState]:
    length = plan.steps // plan.periods
    left = length - state.since % length
    going = state.since < length * plan.periods
    ratio = jnp.where(going, (left - 1).astype(jnp.float32) / left.astype(jnp.float32), 0)  # (1)
    factor = jnp.where(state.pruned, 0, jnp.where(state.active, ratio, 1)).astype(jnp.float32)
    return _towards_zero(step, params, factor, plan.groups), state


def _no_cycles(plan: _Plan, params: Any, inner: Any) -> Cycles:
    none, zero = jnp.zeros(plan.groups.count, bool), jnp.zeros((), jnp.int32)
    nothing = jnp.zeros(plan.groups.count, plan.groups.norms(params).dtype)
    return Cycles(params, inner, jnp.stack([nothing] * len(DEFAULT)), zero, nothing, none, none, none, zero, zero)


class _Moment(NamedTuple):
    """One update: inner step and state, the parameters, their scores raw and weighed, and whether `start` has come."""

    step: Any
    inner: Any
    params: Any
    raw: Array
    score: Array
    begun: Array


def _with_cycles(now: _Moment, state: HessoState, plan: _Plan, value_fn: Callable | None) -> tuple[Any, HessoState]:
    """Sample along trials until no new group is suspected; then prune. All three kinds of update, and a choice."""
    c = state.cycles
    assert c is not None
    sampling = now.begun & (state.since < 0)
    first = sampling & (c.cycle == 0) & (c.step == 0)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(first, a, b), new, old)  # noqa: E731
    # What training returns to is the state before this update, which was not taken yet.
    c = c._replace(params=keep(now.params, c.params), inner=keep(state.inner, c.inner))
    if value_fn is not None and "loss" in plan.scores:
        c = c._replace(loss=when(first, lambda _: _trial_losses(now, plan, value_fn), c.loss))
    fresh = sampling & (c.step == 0)
    least = lowest(now.score, _wanted(plan, 1.0), plan.groups)
    active = jnp.where(fresh, jnp.where(c.cycle == 0, least, c.candidates & ~c.visited), c.active)
    visited = c.visited | (fresh & active)
    candidates = jnp.where(fresh, False, c.candidates) | (sampling & least & ~visited)
    total = c.total + jnp.where(sampling, now.raw, 0)
    samples = c.samples + sampling.astype(jnp.int32)
    done = fresh & (c.cycle > 0) & ((c.cycle >= plan.cycles) | ~jnp.any(active))
    trial = sampling & ~done

    weight = jnp.asarray(plan.scores.get("loss", 0.0), total.dtype)
    mean = weighed(total, plan.scores) + weight * c.loss  # (2)
    since = jnp.where(done, 0, jnp.where(state.since >= 0, state.since + 1, -1))
    pruning = _chosen(state._replace(since=since), mean, plan)
    step, pruning = _pruning(now.step, pruning, now.params, plan)

    # Trials: the last step of a cycle returns to where it began instead of going to zero.
    last = c.step == plan.sampling_steps - 1
    left = (plan.sampling_steps - c.step).astype(jnp.float32)
    factor = jnp.where(active, (left - 1) / left, 1).astype(jnp.float32)
    tried = _towards_zero(now.step, now.params, factor, plan.groups)
    tried = jax.tree.map(lambda u, p, x: jnp.where(last, (p - x).astype(u.dtype), u), tried, c.params, now.params)
    step = jax.tree.map(lambda t, u: jnp.where(trial, t, u), tried, step)
    inside = jax.tree.map(lambda old, new: jnp.where(trial & last, old, new), c.inner, now.inner)
    after = c._replace(
        total=total, samples=samples, active=active, candidates=candidates, visited=visited,
        cycle=c.cycle + (trial & last).astype(jnp.int32), step=jnp.where(trial, jnp.where(last, 0, c.step + 1), c.step),
    )  # fmt: skip
    new = HessoState(inside, _next(state.count), pruning.since, pruning.active, pruning.pruned, after)
    return step, new


def _trial_losses(now: _Moment, plan: _Plan, value_fn: Callable[[Any], Any]) -> Array:
    """Return, for every group, its family's mean relative loss at three sparsities over the family's size."""
    groups, dtype = plan.groups, now.score.dtype
    reference = value_fn(now.params)
    family = jnp.asarray(groups.family)
    order = jnp.argsort(now.score)
    rank = jnp.zeros(groups.count, jnp.int32).at[order].set(jnp.arange(groups.count, dtype=jnp.int32))
    losses = []
    for number in range(int(groups.family.max()) + 1):
        own = family == number
        size = int((groups.family == number).sum())
        ranks = jnp.argsort(jnp.argsort(jnp.where(own, rank, groups.count)))
        ratio = jnp.zeros((), dtype)
        for share in TRIALS:
            out = own & (ranks < max(int(size * share), 1))
            factor = jnp.where(out, 0, 1).astype(jnp.float32)
            spread = groups.spread(factor, now.params, outside=1)
            value = value_fn(jax.tree.map(lambda x, f: jnp.where(f == 0, jnp.zeros_like(x), x), now.params, spread))
            ratio = ratio + (value / reference).astype(dtype) / len(TRIALS)
        losses.append(ratio / size)
    return jnp.stack(losses)[family]
