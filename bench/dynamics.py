"""Learned parts of differential equations: penalties for diffrax's solvers, value functions from paths.

python bench/dynamics.py [--quick] [--gpu] [--only overhead,spiral,fit,bias,paths]

overhead   time and evaluations of solves that keep their heuristics, against the same solves that do not
spiral     a neural differential equation that tells two spirals apart, with and without the error penalty
fit        one fitted to a trajectory of a cubic spiral, likewise
bias       coefficients of x^2 and T - t by squared temporal differences, martingale loss and lstd; truth one and one
paths      lstd against the number of paths: errors, seconds; ``--gpu``: a million paths of 200 steps
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402

from solvers import (  # noqa: E402
    Paths,
    lstd,
    martingale_loss,
    simulate,
    squared_td_error,
)
from solvers.problems.sde import SquaredBrownian  # noqa: E402

SEED = 23
WIDTH, POINTS, END, TOLERANCE = 32, 30, 1.5, 1e-6


class Field(eqx.Module):
    """A network with one hidden layer, fed with the cubes of the state."""

    network: eqx.nn.MLP

    def __init__(self, key):
        self.network = eqx.nn.MLP(2, 2, WIDTH, 1, jnp.tanh, key=key)

    def __call__(self, t, y, args):
        """Return the velocity."""
        return self.network(y**3)


def spiral_solution(field, times, solver=None):
    """Return diffrax's solution from the spiral's start, steps by Tsit5 to a tolerance."""
    import diffrax

    from solvers import TrackHeuristics

    solver = TrackHeuristics(diffrax.Tsit5(), rtol=TOLERANCE, atol=TOLERANCE) if solver is None else solver
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field), solver, 0.0, END, 0.01, jnp.asarray([2.0, 0.0]), max_steps=256,
        saveat=diffrax.SaveAt(ts=times, solver_state=True),
        stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
    )  # fmt: skip


def spiral(t, y, args):
    """Return the velocity that is to be learned."""
    return jnp.asarray([[-0.1, 2.0], [-2.0, -0.1]]) @ y**3


def descend(model, loss, rate, steps):
    """Return losses and evaluations along Adam with a cosine; ``loss(model)`` returns its sum and both."""
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, _):
        arrays, state = carry
        slope, seen = jax.grad(lambda a: loss(eqx.combine(a, static)), has_aux=True)(arrays)
        updates, state = optimiser.update(slope, state)
        return (optax.apply_updates(arrays, updates), state), seen

    return jax.lax.scan(step, (arrays, optimiser.init(arrays)), None, length=steps)[1]


def fit(key, penalty, steps):
    """Fit a field to one trajectory of the cubic spiral with that weight of the error penalty."""
    from solvers import error_penalty

    times = jnp.linspace(0.0, END, POINTS)
    target = spiral_solution(spiral, times).ys

    def loss(field):
        sol = spiral_solution(field, times)
        miss = jnp.mean((sol.ys - target) ** 2)
        return miss + penalty * error_penalty(sol), (miss, 6 * sol.stats["num_steps"] + 2)

    return descend(Field(key), loss, 0.02, steps)


class Flow(eqx.Module):
    """A field with two hidden layers in the plane and two dimensions more, and a linear classifier of where it ends."""

    field: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.field = eqx.nn.MLP(4, 4, WIDTH, 2, jnp.tanh, key=one)
        self.head = eqx.nn.Linear(4, 1, key=two)


def tell_apart(key, penalty, steps):
    """Tell two spirals of 64 points apart by a flow over one unit of time, with that weight of the error penalty."""
    import diffrax

    from solvers import TrackHeuristics, error_penalty

    turns = jnp.linspace(0.1, 1, 64)
    arm = 1.5 * turns[:, None] * jnp.stack([jnp.cos(3 * jnp.pi * turns), jnp.sin(3 * jnp.pi * turns)], -1)
    start = jnp.pad(jnp.concatenate([arm, -arm]), ((0, 0), (0, 2)))
    labels = jnp.repeat(jnp.arange(2.0), 64)

    def loss(flow):
        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, z, args: jax.vmap(flow.field)(z)),
            TrackHeuristics(diffrax.Tsit5(), rtol=TOLERANCE, atol=TOLERANCE), 0.0, 1.0, 0.05, start, max_steps=128,
            saveat=diffrax.SaveAt(t1=True, solver_state=True),
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        )  # fmt: skip
        miss = jnp.mean(optax.sigmoid_binary_cross_entropy(jax.vmap(flow.head)(sol.ys[0])[:, 0], labels))
        return miss + penalty * error_penalty(sol), (miss, 6 * sol.stats["num_steps"] + 2)

    return descend(Flow(key), loss, 0.01, steps)


def overhead_rows(options) -> list[dict]:
    """Return seconds of a plain and of a tracked solve in turns, values and gradients, for small and larger fields."""
    import diffrax

    from solvers import TrackHeuristics, error_penalty, stiffness_penalty

    rows, save = [], diffrax.SaveAt(t1=True, solver_state=True)
    for width, batch in ((32, 1), (256, 64)):
        key = jax.random.key(SEED)
        W = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(
            jax.random.split(key, 2), ((16, width), (width, 16)), strict=True)]  # fmt: skip
        y0 = jax.random.normal(jax.random.key(5), (batch, 16))
        controller = diffrax.PIDController(rtol=1e-6, atol=1e-6)

        def solved(W, y0, solver, controller=controller):
            term = diffrax.ODETerm(lambda t, y, args: jnp.tanh(y @ args[0]) @ args[1])
            return diffrax.diffeqsolve(
                term, solver, 0.0, 5.0, 0.1, y0, W, saveat=save, stepsize_controller=controller, max_steps=256
            )  # fmt: skip

        def plain(W, y0, solved=solved):
            sol = solved(W, y0, diffrax.Tsit5())
            return jnp.sum(sol.ys**2), sol.stats["num_steps"]

        def tracked(W, y0, solved=solved):
            sol = solved(W, y0, TrackHeuristics(diffrax.Tsit5(), rtol=1e-6, atol=1e-6))
            return jnp.sum(sol.ys**2) + 1e-3 * (error_penalty(sol) + stiffness_penalty(sol)), sol.stats["num_steps"]

        def error_alone(W, y0, solved=solved):
            sol = solved(W, y0, TrackHeuristics(diffrax.Tsit5(), rtol=1e-6, atol=1e-6))
            return jnp.sum(sol.ys**2) + 1e-3 * error_penalty(sol), sol.stats["num_steps"]

        for kind in ("value", "gradient"):
            calls, steps = {}, {}
            for name, function in (
                ("tsit5", plain), ("tracked, error and stiffness", tracked), ("tracked, error", error_alone)
            ):  # fmt: skip
                made = function if kind == "value" else jax.grad(function, has_aux=True)
                program = harness.compiled(made, W, y0)
                steps[name] = int(program(W, y0)[1])
                calls[name] = lambda p=program, a=(W, y0): p(*a)
            times = harness.alternate(calls, repeat=5 if options.quick else 31)
            for name, timing in times.items():
                rows.append({
                    "part": "overhead", "instance": f"width {width}, batch {batch}, {kind}", "contestant": name,
                    "seconds": timing.seconds, "steps": steps[name],
                    "over_plain": float(np.median(np.array(timing.runs) / np.array(times["tsit5"].runs))),
                })  # fmt: skip
    return rows


def penalty_rows(part, trained, weights, steps, options) -> list[dict]:
    """Return losses and evaluations at the end of training, medians of seeds, by weight of the penalty.

    ``fewer_at_equal_loss`` compares with the unpenalised run of the same seed, both at the first step whose loss is as
    low as the larger of the two last ones.
    """
    seeds, steps = (2, 30) if options.quick else (3, steps)
    keys = jax.random.split(jax.random.key(SEED), seeds)
    program = harness.compiled(lambda w: jax.lax.map(lambda k: trained(k, w, steps), keys), jnp.asarray(0.0))
    rows, plain = [], None
    for weight in weights:
        own = tuple(np.asarray(a, float) for a in program(jnp.asarray(weight)))
        plain = own if plain is None else plain
        ends = [np.median(run[0][:, -20:], axis=1) for run in (own, plain)]
        as_low = [run[0] <= np.maximum(*ends)[:, None] for run in (own, plain)]
        then = [run[1][np.arange(seeds), low.argmax(axis=1)] for run, low in zip((own, plain), as_low, strict=True)]
        last = [np.median(run[1][:, -20:], axis=1) for run in (own, plain)]
        rows.append({
            "part": part, "instance": f"{steps} steps of Adam, {seeds} seeds", "contestant": f"penalty {weight:g}",
            "loss_median": float(np.median(ends[0])), "evaluations_median": float(np.median(last[0])),
            "fewer": float(np.median(1 - last[0] / last[1])),
            "fewer_at_equal_loss": float(np.median(1 - then[0] / then[1])),
            "losses": ends[0], "evaluations": last[0],
        })  # fmt: skip
    return rows


def spiral_rows(options) -> list[dict]:
    """Return what the penalty saves a classifier of two spirals, whose flow is free."""
    return penalty_rows("spiral", tell_apart, (0.0, 3e-3, 1e-2), 600, options)


def fit_rows(options) -> list[dict]:
    """Return what it saves a fit to a trajectory, which leaves the flow little choice; and what the truth costs."""
    rows = penalty_rows("fit", fit, (0.0, 1e-3), 300, options)
    steps = spiral_solution(spiral, jnp.linspace(0.0, END, POINTS)).stats["num_steps"]
    return [*rows, {"part": "fit", "instance": rows[0]["instance"], "contestant": "the field that made the trajectory",
                    "loss_median": 0.0, "evaluations_median": int(6 * steps + 2)}]  # fmt: skip


def brownian(N: int, K: int, dtype, key) -> Paths:
    """Return paths from zero with their squares as payoffs."""
    problem = SquaredBrownian()
    times = jnp.linspace(0, 1, K + 1, dtype=dtype)
    states = simulate(problem.drift, problem.diffusion, jnp.zeros((N, 1), dtype), times, key)
    return Paths(times, states, problem.payoff(states[:, -1]))


def bias_rows(options) -> list[dict]:
    """Return both coefficients by every objective, and the unit vector of least squared error without the payoff."""
    N, K = (2000, 50) if options.quick else (20_000, 200)
    problem = SquaredBrownian()
    paths = jax.jit(lambda key: brownian(N, K, jnp.float64, key))(jax.random.key(SEED))
    J = lambda c, t, x: jnp.sum(c * problem.features(t, x))  # noqa: E731

    def least(objective):
        zero = jnp.zeros(2)
        return -jnp.linalg.solve(jax.hessian(objective)(zero), jax.grad(objective)(zero))

    # With the model's own end values nothing but zero is least: on the unit circle, the quadratic form's lowest vector.
    features = jax.vmap(jax.vmap(problem.features), (None, 0))(paths.times, paths.states)
    moved = jnp.diff(features, axis=1)
    form = jnp.einsum("nkp,nkq->pq", moved, moved)
    unit = jnp.abs(jnp.linalg.eigh(form)[1][:, 0])
    found = {
        "squared temporal differences, unit norm": unit,
        "squared temporal differences": jax.jit(lambda: least(lambda c: squared_td_error(J, c, paths)))(),
        "martingale loss": jax.jit(lambda: least(lambda c: martingale_loss(J, c, paths)))(),
        "lstd": jax.jit(lambda: lstd(problem.features, paths).coefficients)(),
    }
    return [{
        "part": "bias", "instance": f"{N} paths, {K} steps", "contestant": name, "of_square": float(c[0]),
        "of_time": float(c[1]), "truth": "0.707, 0.707" if "unit" in name else "1, 1",
    } for name, c in found.items()]  # fmt: skip


def fitted(value) -> tuple:
    """Return coefficients and their errors."""
    return value.coefficients, value.standard_error


def path_rows(options) -> list[dict]:
    """Return errors and seconds of `lstd`, simulation apart."""
    rows, dtype = [], jnp.float32 if options.gpu else jnp.float64
    K = 200
    sizes = (10_000, 1_000_000) if options.gpu else ((2000,) if options.quick else (2000, 20_000, 100_000))
    if options.quick and options.gpu:
        sizes, K = (2000,), 20
    for N in sizes:
        make = harness.compiled(lambda key, N=N: brownian(N, K, dtype, key), jax.random.key(SEED))
        simulated = harness.clock(lambda p=make: p(jax.random.key(SEED)), repeat=3, budget=5)
        paths = simulated.output
        fit = harness.compiled(
            lambda p: fitted(lstd(SquaredBrownian().features, p)), paths
        )  # fmt: skip
        timing = harness.clock(lambda p=fit, a=paths: p(a), repeat=3, budget=10)
        c, error = (np.asarray(a, float) for a in timing.output)
        rows.append({
            "part": "paths", "instance": f"{N} paths, {K} steps, {jnp.dtype(dtype).name}", "contestant": "lstd",
            "error": float(np.max(np.abs(c - 1))), "standard_error": float(error.max()), "seconds": timing.seconds,
            "simulation_seconds": simulated.seconds,
        })  # fmt: skip
    return rows


PARTS = {"overhead": overhead_rows, "spiral": spiral_rows, "fit": fit_rows, "bias": bias_rows, "paths": path_rows}


def main() -> int:
    """Run, print, save."""
    options = harness.arguments(__doc__)
    parts = {"paths": PARTS["paths"]} if options.gpu else PARTS
    stem = None if options.quick else "dynamics_gpu" if options.gpu else "dynamics"
    key, record = ("part", "instance", "contestant"), harness.machine("equinox", "diffrax", "optax")
    harness.run_parts(options, stem, parts, key=key, record=record, hidden=("losses", "evaluations"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
