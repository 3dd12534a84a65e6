"""One choice a layer under a budget, exactly: the multiple-choice knapsack problem, and its whole Pareto front.

HAWQ-V2, Dong et al., NeurIPS 2020, section 3.2, with option c_l of layer l:

(1) ``min sum_l sensitivity[l, c_l]`` subject to ``sum_l cost[l, c_l] <= budget``
(2) ``min >= sum_l min_c (sensitivity[l, c] + mu cost[l, c]) - mu budget`` for any mu >= 0, the bound that prunes
(3) a partial choice goes where another one is no worse in both sums

It departs from the paper, which picks from an enumerated front: the choice is proved best.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax.core import Tracer

from ..core import checks
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Float, Int


class AllocationStatus(StatusCode):
    """Why `bit_allocation` has no certificate, beyond `Status`."""

    TOO_EXPENSIVE = 100, "infeasible: the cheapest choices together exceed the budget; raise `budget`"
    MAX_STATES = 101, "max_states reached: the best choice found is within `error` of the optimum; raise `max_states`"


class BitAllocation(Solution):
    """The answer of `bit_allocation`; its arrays are NumPy's.

    Attributes
    ----------
    value : Int[Array, "L"]
        Option of every layer.
    error : Float[Array, ""]
        ``objective`` minus a lower bound of all objectives within the budget; 0 when optimality is proved.
    objective, cost : Float[Array, ""]
        Sums over the layers of what was chosen.
    num_steps : Int[Array, ""]
        Partial choices that were looked at.
    """

    objective: Float[Array, ""]
    cost: Float[Array, ""]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, AllocationStatus)


class ParetoFront(NamedTuple):
    """All choices that no other one beats in both cost and sensitivity, cheapest first; NumPy arrays.

    Attributes
    ----------
    cost, sensitivity : Float[Array, "p"]
        Increasing and decreasing.
    choice : Int[Array, "p L"]
        The options.
    complete : bool
        Whether all are there. If not, those on the lower convex hull are: each still optimal for its cost.
    """

    cost: Any
    sensitivity: Any
    choice: Any
    complete: bool


class _States(NamedTuple):
    """Partial choices: cost and value so far, and the options taken."""

    cost: np.ndarray
    value: np.ndarray
    choice: np.ndarray

    def extended(self, cost: np.ndarray, value: np.ndarray) -> "_States":
        """Take every option of one more layer, and keep what is not dominated."""
        options = np.tile(np.arange(len(cost)), len(self.cost))
        before = np.repeat(np.arange(len(self.cost)), len(cost))
        costs, values = (self.cost[:, None] + cost).ravel(), (self.value[:, None] + value).ravel()
        order = np.lexsort((values, costs))
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], values[order][:-1]]))
        kept = order[values[order] < lowest]  # (3)
        choice = np.concatenate([self.choice[before[kept]], options[kept, None].astype(np.int16)], axis=1)
        return _States(costs[kept], values[kept], choice)

    def take(self, which: np.ndarray) -> "_States":
        """Keep some."""
        return _States(*(x[which] for x in self))


def _start() -> _States:
    return _States(np.zeros(1), np.zeros(1), np.zeros((1, 0), np.int16))


class _Problem(NamedTuple):
    """Sensitivities and costs of the groups of layers that choose together, and the group of every layer."""

    value: np.ndarray
    cost: np.ndarray
    group: np.ndarray
    given: tuple[np.ndarray, np.ndarray]

    def sums(self, choice: np.ndarray) -> tuple[float, float]:
        """Return objective and cost of one choice a layer, summed without error before the last rounding."""
        rows = np.arange(len(choice))
        value, cost = (np.sort(x[rows, choice].astype(np.longdouble)) for x in self.given)
        return float(value.sum()), float(cost.sum())


def _problem(name: str, sensitivity: Any, cost: Any, tied: Any) -> _Problem:
    if any(isinstance(x, Tracer) for x in (sensitivity, cost)):
        checks.fail(name, "sensitivity", "a concrete array: the search runs on the host", "a traced one", TypeError)
    value, price = np.asarray(sensitivity, np.float64), np.asarray(cost, np.float64)
    if value.ndim != 2 or 0 in value.shape:
        checks.fail(name, "sensitivity", "(layers, options)", value.shape)
    if price.shape != value.shape:
        checks.fail(name, "cost", f"of the shape of `sensitivity`, {value.shape}", price.shape)
    layers = len(value)
    if tied is not None and np.shape(tied) != (layers,):
        checks.fail(name, "tied", f"one label a layer, ({layers},)", np.shape(tied))
    group = np.arange(layers) if tied is None else np.unique(np.asarray(tied), return_inverse=True)[1].ravel()
    grouped = [np.zeros((group.max() + 1, value.shape[1])) for _ in range(2)]
    for total, part in zip(grouped, (value, price), strict=True):
        np.add.at(total, group, part)
    return _Problem(grouped[0], grouped[1], group, (value, price))


def bit_allocation(
    sensitivity: Float[Array, "L b"],
    cost: Float[Array, "L b"],
    budget: float,
    *,
    tied: Int[Array, " L"] | None = None,
    max_states: int = 200_000,
) -> BitAllocation:
    """Choose one option a layer: ``min sum_l sensitivity[l, c_l]`` subject to ``sum_l cost[l, c_l] <= budget``.

    The choice is proved best. For bits a layer by the loss they cost (`hawq_sensitivity`) under a size, a latency or a
    number of operations; it serves as well for ranks or sparsities. Runs on the host in NumPy, in float64.

    Parameters
    ----------
    sensitivity, cost : Float[Array, "L b"]
        Of every option of every layer; any real numbers. An infinite sensitivity or cost forbids an option.
    budget : float
        Largest total cost.
    tied : Int[Array, "L"], optional
        Layers with the same label take the same option, as layers joined by a residual connection must.
    max_states : int
        Partial choices kept at once; beyond it the search gives up its certificate, not its feasibility.

    Returns
    -------
    BitAllocation
        `error` is the objective minus a proved lower bound, 0 when converged. Without a feasible choice the status says
        so and `value` is the cheapest choice.

    Raises
    ------
    TypeError, ValueError
        When shapes do not fit, or inside ``jax.jit``.

    Notes
    -----
    Layer by layer the partial choices that no other one beats in both sums are kept, less those that cannot be finished
    within the budget, and those whose bound by the best Lagrange multiplier exceeds a choice already known. The bound
    leaves few: networks of 200 layers take milliseconds. Worst cases are exponential, hence `max_states`. Costs are
    compared in float64: give whole numbers where ties with the budget matter.

    References
    ----------
    Z. Dong et al., *HAWQ-V2: Hessian aware trace-weighted quantization of neural networks*, NeurIPS 2020, section 3.2,
    which picks from an enumerated Pareto front; their later integer program is this problem.

    Examples
    --------
    >>> from solvers import bit_allocation
    >>> best = bit_allocation([[5.0, 1.0], [3.0, 0.5], [0.4, 0.1]], [[4, 8], [4, 8], [4, 8]], budget=20)
    >>> print(best.value, float(best.objective), bool(best.converged))
    [1 1 0] 1.9 True
    """
    name = "bit_allocation"
    problem = _problem(name, sensitivity, cost, tied)
    if isinstance(budget, Tracer) or np.ndim(budget):
        checks.fail(name, "budget", "a concrete number", budget)
    value, price = problem.value, problem.cost
    budget = float(budget)
    if np.isnan(value).any() or np.isnan(price).any() or np.isnan(budget):
        return _answer(problem, np.zeros(len(value), int), np.nan, 0, Status.NONFINITE)
    forbidden = ~np.isfinite(value) | ~np.isfinite(price)
    value, price = np.where(forbidden, np.inf, value), np.where(forbidden, np.inf, price)
    cheapest = np.argmin(price, axis=1)
    floor = np.take_along_axis(price, cheapest[:, None], 1)[:, 0]
    if np.isinf(floor).any() or not problem.sums(cheapest[problem.group])[1] <= budget:
        return _answer(problem, cheapest, np.inf, 0, AllocationStatus.TOO_EXPENSIVE)

    budget = min(budget, float(np.sum(np.max(np.where(forbidden, -np.inf, price), axis=1))))
    multiplier, incumbent = _multiplier(value, price, budget)
    best = _sum(value, incumbent) if incumbent is not None else np.inf
    reduced = np.min(_relaxed(value, price, multiplier), axis=1)
    slack = 1e-13 * np.sum(np.abs(np.where(forbidden, 0, value)))
    # Layers that the relaxation leaves undecided come last: the bound is sharp until then.
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(np.partition(_relaxed(value, price, multiplier), min(1, value.shape[1] - 1), axis=1))
    order = np.argsort(-(spread[:, min(1, value.shape[1] - 1)] - spread[:, 0]))
    rounding = 1e-13 * (abs(budget) + np.sum(np.abs(np.where(forbidden, 0, price))))
    states, looked, lost = _start(), 0, np.inf
    rest_cost, rest_bound = floor.sum(), reduced.sum()
    for layer in order:
        allowed = ~forbidden[layer]
        states = states.extended(np.where(allowed, price[layer], np.inf), np.where(allowed, value[layer], np.inf))
        looked += len(states.cost)
        rest_cost, rest_bound = rest_cost - floor[layer], rest_bound - reduced[layer]
        bound = states.value + rest_bound + multiplier * (states.cost - budget)  # (2)
        fits = states.cost + rest_cost <= budget + rounding  # (1)
        kept = np.flatnonzero(fits & (bound <= best + slack))
        if len(kept) > max_states:
            kept = kept[np.argsort(bound[kept])]
            lost = min(lost, float(bound[kept[max_states]]))
            kept = kept[:max_states]
        states = states.take(kept)
    found = incumbent
    inverse = np.argsort(order)
    for row in np.argsort(states.value):
        choice = states.choice[row][inverse].astype(int)
        if problem.sums(choice[problem.group])[1] <= budget:
            found = choice if found is None or _sum(value, choice) <= best else found
            break
    if found is None:  # only where states were lost
        return _answer(problem, cheapest, np.inf, looked, AllocationStatus.MAX_STATES)
    objective = problem.sums(found[problem.group])[0]
    gap = max(objective - lost, 0.0)
    return _answer(problem, found, gap, looked, AllocationStatus.MAX_STATES if gap > slack else Status.CONVERGED)


def _sum(table: np.ndarray, choice: np.ndarray) -> float:
    return float(table[np.arange(len(choice)), choice].sum())


def _relaxed(value: np.ndarray, price: np.ndarray, multiplier: float) -> np.ndarray:
    """Return ``value + multiplier price``, infinite where an option is forbidden."""
    return value + multiplier * np.where(np.isfinite(price), price, 0)


def _multiplier(value: np.ndarray, price: np.ndarray, budget: float) -> tuple[float, np.ndarray | None]:
    """Return the multiplier of the best Lagrangian bound, by bisection on the slope, and a feasible choice."""

    def chosen(mu):
        relaxed = _relaxed(value, price, mu)
        lowest = relaxed.min(axis=1, keepdims=True)
        return np.argmin(np.where(relaxed <= lowest, price, np.inf), axis=1)

    free = chosen(0.0)
    if _sum(price, free) <= budget:
        return 0.0, free
    finite = np.isfinite(value) & np.isfinite(price)
    gaps = np.abs(np.diff(np.sort(np.where(finite, price, np.nan), axis=1), axis=1))
    gaps = gaps[np.isfinite(gaps) & (gaps > 0)]
    spread = np.ptp(value[finite])
    low, high = 0.0, float(spread / gaps.min()) if len(gaps) and spread > 0 else 1.0
    feasible = None
    for _ in range(200):
        middle = 0.5 * (low + high)
        choice = chosen(middle)
        if _sum(price, choice) <= budget:
            high, feasible = middle, choice
        else:
            low = middle
    if feasible is None:
        candidate = chosen(high)
        feasible = candidate if _sum(price, candidate) <= budget else None
    return high, None if feasible is None else _improved(feasible, value, price, budget)


def _improved(choice: np.ndarray, value: np.ndarray, price: np.ndarray, budget: float) -> np.ndarray:
    """Spend what is left of the budget, one layer at a time, where it helps most."""
    choice = choice.copy()
    while True:
        rows = np.arange(len(choice))
        left = budget - _sum(price, choice)
        gain = value[rows, choice][:, None] - value
        gain[~(price - price[rows, choice][:, None] <= left)] = -np.inf
        layer, option = np.unravel_index(np.argmax(gain), gain.shape)
        if not gain[layer, option] > 0:
            return choice
        choice[layer] = option


def _answer(problem: _Problem, choice: np.ndarray, gap: float, looked: int, status: StatusCode) -> BitAllocation:
    layers = choice[problem.group]
    error, exact, objective, cost = (_as_any(np.float64(x)) for x in (gap, 0.0, *problem.sums(layers)))
    code, steps = (_as_any(np.int32(x)) for x in (status, min(looked, 2**31 - 1)))
    return BitAllocation(_as_any(layers), code, steps, error, exact, None, objective, cost)


def _as_any(x: Any) -> Any:
    """Return x: NumPy's arrays stand where JAX's are declared."""
    return x


def pareto_front(
    sensitivity: Float[Array, "L b"],
    cost: Float[Array, "L b"],
    *,
    tied: Int[Array, " L"] | None = None,
    max_states: int = 200_000,
) -> ParetoFront:
    """Return every choice of one option a layer that no other choice beats in both total cost and sensitivity.

    For looking before a budget is set; for one budget `bit_allocation` is faster by far. Runs on the host.

    Parameters
    ----------
    sensitivity, cost : Float[Array, "L b"]
        Of every option of every layer; finite.
    tied : Int[Array, "L"], optional
        Layers with the same label take the same option.
    max_states : int
        Beyond it only the choices on the lower convex hull are returned, and ``complete`` is False.

    Returns
    -------
    ParetoFront
        Of two choices with equal sums one is kept.

    Raises
    ------
    TypeError, ValueError
        When shapes do not fit or numbers are not finite.

    Examples
    --------
    >>> from solvers import pareto_front
    >>> front = pareto_front([[5.0, 1.0], [3.0, 0.5]], [[4, 8], [4, 8]])
    >>> print(front.cost, front.sensitivity, front.complete)
    [ 8. 12. 16.] [8.  4.  1.5] True
    """
    problem = _problem("pareto_front", sensitivity, cost, tied)
    if not (np.isfinite(problem.value).all() and np.isfinite(problem.cost).all()):
        checks.fail("pareto_front", "sensitivity", "finite, with finite costs", "NaN or infinity")
    states, complete = _start(), True
    for price, value in zip(problem.cost, problem.value, strict=True):
        if len(states.cost) * len(price) > 16 * max_states:
            complete = False
            break
        states = states.extended(price, value)
    if not complete or len(states.cost) > max_states:
        return ParetoFront(*_hull(problem), False)
    return ParetoFront(states.cost, states.value, states.choice[:, problem.group].astype(np.int32), True)


def _hull(problem: _Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the choices that are optimal for some multiplier: steps along each layer's hull, steepest first."""
    steps = []
    start = np.zeros(len(problem.value), int)
    for layer, (value, price) in enumerate(zip(problem.value, problem.cost, strict=True)):
        order = np.lexsort((value, price))
        corners = [order[0]]
        for option in order[1:]:
            if value[option] >= value[corners[-1]]:
                continue
            while len(corners) > 1 and _slope(value, price, corners[-2:]) >= _slope(
                value, price, [corners[-2], option]
            ):
                corners.pop()
            corners.append(option)
        start[layer] = corners[0]
        steps += [(_slope(value, price, pair), layer, pair[1]) for pair in pairwise(corners)]
    choices = [start]
    for _, layer, option in sorted(steps, key=lambda step: step[0]):
        choices.append(choices[-1].copy())
        choices[-1][layer] = option
    choice = np.stack(choices)
    rows = np.arange(choice.shape[1])
    return (
        problem.cost[rows, choice].sum(1), problem.value[rows, choice].sum(1),
        choice[:, problem.group].astype(np.int32),
    )  # fmt: skip


def _slope(value: np.ndarray, price: np.ndarray, pair: Any) -> float:
    first, second = pair
    return float((value[second] - value[first]) / max(price[second] - price[first], np.finfo(float).tiny))
