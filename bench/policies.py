"""Trajectories to the optimum of linear-quadratic control: every method with the same budget of tuning.

A part of bench/stochastic.py. A method's settings are six rates over one and a half to two decades,
constant or falling as ``(t0 / (t0 + t))^p``: 42 in all, chosen on seeds of their own by the median number of
trajectories until the gap stays below 1e-2, then run on twenty fresh ones. The weights of momentum are the published.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from solvers import (
    Trajectory,
    hessian_aided_momentum,
    igt_momentum,
    policy_gradient,
    policy_hvp,
    rewards_to_go,
    transported_point,
)
from solvers.problems.stochastic import scalar_lqr

SEED, BATCH, TRAJECTORIES = 23, 4, 8_000
GAP, STARTS = 1e-2, (0.6, 0.1)
YARDSTICK = "Newton on the mean of gradients at the optimum"
FALLS = ((0.0, 8.0), *((p, t0) for p in (0.5, 1.0) for t0 in (8.0, 32.0, 128.0)))
LENGTHS, FACTORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4), (0.0005, 0.001, 0.003, 0.01, 0.03, 0.06)
# Name: rates, transformation, trajectories a step for Hessian-vector products.
METHODS = {
    "reinforce": (FACTORS, "sgd", 0),
    "reinforce without a baseline": (FACTORS, "sgd", 0),
    "normalised reinforce": (LENGTHS, "unit", 0),
    "igt_momentum": (LENGTHS, "igt", 0),
    "igt_momentum of unit gradients": (LENGTHS, "unit igt", 0),
    "hessian_aided_momentum": (FACTORS, "harpg", 4),
    "hessian_aided_momentum, normalised": (LENGTHS, "nharpg", 4),
    "hessian_aided_momentum, normalised, 2 for the product": (LENGTHS, "nharpg", 2),
}


def unit_steps(rate):
    """Return descent by steps of the given length."""
    return optax.chain(optax.normalize_by_update_norm(), optax.scale_by_learning_rate(rate))


def optimiser(kind, setting):
    """Return the transformation for one setting ``(rate, power, t0)``."""
    rate, power, t0 = setting

    def fall(t):
        return rate * (t0 / (t0 + t)) ** power

    made = {
        "sgd": lambda: optax.sgd(fall), "unit": lambda: unit_steps(fall), "igt": lambda: igt_momentum(fall),
        "unit igt": lambda: optax.chain(optax.normalize_by_update_norm(), igt_momentum(fall)),
        "harpg": lambda: hessian_aided_momentum(fall),
        "nharpg": lambda: hessian_aided_momentum(fall, normalise=True),
    }[kind]()  # fmt: skip
    return optax.with_extra_args_support(made)


def sampled(lqr, K, key, count, baseline, of):
    """Return minus the mean of an estimator over that many trajectories."""
    runs = jax.vmap(lambda k: lqr.rollout(K, k))(jax.random.split(key, count))
    tails = jax.vmap(lambda r: rewards_to_go(r, lqr.discount))(runs[2])
    # The mean over the other trajectories: independent of this one's actions.
    others = (jnp.sum(tails, axis=0, keepdims=True) - tails) / max(count - 1, 1) * baseline
    return -jnp.mean(jax.vmap(lambda t, b: of(Trajectory(*t), b))(runs, others), axis=0)


def gradient_at(lqr, K, key, count, baseline):
    """Return the estimated gradient of the cost."""
    one = lambda t, b: policy_gradient(lqr.log_policy, K, t, discount=lqr.discount, baseline=b)  # noqa: E731
    return sampled(lqr, K, key, count, baseline, one)


def policy_run(kind, products, baseline, lqr, start, steps, setting, key):
    """Return the gap after every step, relative to the optimum."""
    made = optimiser(kind, setting)
    best = lqr.cost(lqr.optimal_gain())

    def step(carry, key):
        K, state = carry
        point = transported_point(state, K) if "igt" in kind else K
        one, two = jax.random.split(key)
        g = gradient_at(lqr, point, one, BATCH, baseline)

        def hvp(point, v):
            return sampled(lqr, point, two, products, baseline, lambda t, b: policy_hvp(
                lqr.log_policy, point, t, v, discount=lqr.discount, baseline=b))  # fmt: skip

        updates, state = made.update(g, state, K, hvp=hvp)
        K = K + updates
        return (K, state), (lqr.cost(K) - best) / best

    K = start + 0 * lqr.optimal_gain()
    return jax.lax.scan(step, (K, made.init(K)), jax.random.split(key, steps))[1]


def settled(gaps, each):
    """Return trajectories after which the gap stays below, and whether it does."""
    above = ~(gaps <= GAP)
    steps = gaps.shape[-1]
    last = np.where(above.any(axis=-1), steps - above[..., ::-1].argmax(axis=-1), 0)
    return last * each, last < steps


def yardstick(lqr, seeds) -> dict:
    """Return what an average of gradients alone comes to: all taken at the optimum, then Newton's step."""
    K = lqr.optimal_gain()
    best = lqr.cost(K)
    bend = jax.hessian(lambda k: lqr.cost(k[None, None]))(K[0, 0])
    steps = TRAJECTORIES // BATCH

    def one(key):
        g = jax.lax.map(lambda k: gradient_at(lqr, K, k, BATCH, 1.0)[0, 0], jax.random.split(key, steps))
        away = jnp.cumsum(g) / jnp.arange(1, steps + 1) / bend
        return jax.vmap(lambda d: (lqr.cost(K - d) - best) / best)(away)

    gaps = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(SEED), seeds)))
    counts, done = settled(gaps, BATCH)
    return {"trajectories_median": float(np.median(counts)), "settled": int(done.sum()), "most": TRAJECTORIES}


def tuned(lqr, start, name, options) -> dict:
    """Return the median of fresh seeds at the setting that the method's tuning chose."""
    rates, kind, products = METHODS[name]
    seeds, tuning = (4, 2) if options.quick else (20, 8)
    each, most = BATCH + products, TRAJECTORIES // (10 if options.quick else 1)
    settings = [(rate, *fall) for rate in rates for fall in FALLS]
    columns = tuple(jnp.asarray(c) for c in zip(*settings, strict=True))
    baseline = 0.0 if "without" in name else 1.0
    one = functools.partial(policy_run, kind, products, baseline, lqr, start, most // each)
    many = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    counts, done = settled(np.asarray(many(columns, jax.random.split(jax.random.key(SEED), tuning))), each)
    medians = np.median(np.where(done, counts, most), axis=1)
    constant = np.array([power == 0 for _, power, _ in settings])
    found = {}
    # Of equal medians (`most`, where half of the seeds never settle) the one with more seeds that do.
    for label, allowed in (("", np.ones(len(settings), bool)), ("constant_", constant)):
        k = min(np.flatnonzero(allowed), key=lambda k: (medians[k], -done[k].sum()))
        own = tuple(c[k : k + 1] for c in columns)
        fresh, ended = settled(np.asarray(many(own, jax.random.split(jax.random.key(SEED + 1), seeds)))[0], each)
        rate, power, t0 = settings[k]
        found |= {
            f"{label}setting": f"rate {rate:g}" + (f" * ({t0:g} / ({t0:g} + t))^{power:g}" if power else ""),
            f"{label}trajectories_median": float(np.median(np.where(ended, fresh, most))),
            f"{label}settled": int(ended.sum()),
        }  # fmt: skip
    return found | {"most": most, "settings": len(settings), "tuning_seeds": tuning}


def policy_rows(start: float, name: str, options) -> list[dict]:
    """Return the row of one method from one gain."""
    lqr, seeds = scalar_lqr(), 4 if options.quick else 20
    found = yardstick(lqr, seeds) if name == YARDSTICK else tuned(lqr, start, name, options)
    return [{"part": "policy", "instance": f"scalar LQR from gain {start:g}", "contestant": name, "seeds": seeds,
             **found}]  # fmt: skip


def compare(rows: list[dict]) -> None:
    """Add to each row its trajectories over those of `reinforce`, with the same budget and with constant steps."""
    rows = [row for row in rows if row["part"] == "policy"]
    for row in rows:
        for base in (r for r in rows if r["instance"] == row["instance"] and r["contestant"] == "reinforce"):
            row["over_reinforce"] = row["trajectories_median"] / base["trajectories_median"]
            row["over_constant_reinforce"] = row["trajectories_median"] / base["constant_trajectories_median"]


PARTS = {
    f"policy-{start:g}-{name}": functools.partial(policy_rows, start, name)
    for start in STARTS
    for name in (*METHODS, YARDSTICK)
}
