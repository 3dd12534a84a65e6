"""Inequalities and bounds: the CUTEst problems of sif2jax against others, and batches on an accelerator.

``python bench/interior.py [--quick] [--only HS71,HS100] [--slice k/n] [--solvers interior_point,ipopt] [--resume]``
for one processor, in parts (see ``parts.py``; the whole takes some hours of one core); ``--gpu`` for batches on a
device. Solved means that violation, stationarity and complementarity, scaled as IPOPT scales them and computed here
from the answer's own multipliers (or the best fitting ones, for solvers that give none), are at most 1e-8 (or 1e-6).
"""

import functools
import json

import harness
import jax
import jax.numpy as jnp
import numpy as np
import parts

jax.config.update("jax_enable_x64", True)

from constrained_peers import Ended, available, convex_quadratic, for_quadratics  # noqa: E402
from inequalities import PROBLEMS, Bounded, derivatives, judge, load  # noqa: E402

from solvers import Status, interior_point  # noqa: E402

PACKAGES = ("cyipopt-wheels", "sif2jax", "ipax", "pounce-solver", "slsqp-jax", "qpax", "clarabel")
FILE = "interior.json"
ALONE = "interior_alone.json"
"""Where rows go when ours runs alone, which tells of a later version than the last race."""


def program(problem: Bounded):
    """Return our solve of a problem, to be compiled."""

    def solve(x):
        return interior_point(
            lambda x, _: problem.f(x),
            x,
            equality=(lambda x, _: problem.constraints(x)[0]) if problem.p else None,
            inequality=(lambda x, _: problem.constraints(x)[1]) if problem.q else None,
            bounds=(problem.lower, problem.upper),
        )

    return solve


def ours(problem: Bounded, calls, repeat):
    """Return our row."""
    x0 = jnp.asarray(problem.x0)
    solve = harness.compiled(program(problem), x0)
    timing = harness.clock(lambda: solve(x0), repeat=repeat, warm=True)
    s = timing.output
    multipliers = tuple(np.ravel(v) if np.size(v) else np.zeros(0) for v in s.multipliers)
    return {
        "solver": "interior_point",
        "says solved": bool(s.converged),
        "says": Status(int(s.status)).name.lower(),
        "steps": int(s.num_steps),
        "evaluations": int(s.num_evaluations),
        "ms": 1e3 * timing.seconds,
        "first call s": solve.first_call_seconds,
    } | judge(problem, calls, s.value, multipliers)


def theirs(problem: Bounded, calls, name, solve, repeat):
    """Return a peer's row; whatever it raises stands in it."""
    row = {"solver": name, "says solved": False, "says": "", "f": None, "violation": None, "kkt": None, "ms": None}
    try:
        timing = harness.clock(
            lambda: solve(problem, calls), repeat=repeat, budget=1, warm=name in ("slsqp-jax", "qpax")
        )
        end: Ended = timing.output
        row |= {"says solved": end.success, "steps": end.steps, "ms": 1e3 * timing.seconds}
        if np.all(np.isfinite(end.x)):
            row |= judge(problem, calls, end.x, end.multipliers)
    except Exception as error:
        row["says"] = f"{type(error).__name__}: {str(error)[:60]}"
    return row


def race(name, *, repeat, wanted):
    """Solve one problem with everybody wanted."""
    problem = load(name)
    calls = derivatives(problem)
    base = {"problem": problem.name, "n": problem.x0.size, "p": problem.p, "q": problem.q}
    quadratic = convex_quadratic(problem, calls)
    base["convex quadratic"] = quadratic is not None
    if wanted("interior_point"):
        yield base | ours(problem, calls, repeat)
    contestants = {
        title: functools.partial(solve, program=quadratic) for title, solve in for_quadratics().items() if quadratic
    }
    for title, solve in (contestants | available()).items():
        if wanted(title):
            yield base | theirs(problem, calls, title, solve, repeat)


def within(row, tol):
    """Whether a row's point solves its problem."""
    return all(row.get(key) is not None and row[key] <= tol for key in ("violation", "kkt"))


def summary(rows):
    """Return one line a solver, with its time relative to ours on the problems that both solve."""
    lines = []
    own = {r["problem"]: r for r in rows if r["solver"] == "interior_point" and within(r, 1e-8)}
    for name in dict.fromkeys(r["solver"] for r in rows):
        mine = [r for r in rows if r["solver"] == name]
        good = [r for r in mine if within(r, 1e-8)]
        both = [r["ms"] / own[r["problem"]]["ms"] for r in good if r["problem"] in own]
        lines.append({
            "solver": name, "problems": len(mine), "says solved": sum(r["says solved"] for r in mine),
            "solved to 1e-8": len(good), "solved to 1e-6": sum(within(r, 1e-6) for r in mine),
            "says solved, misses 1e-6": sum(r["says solved"] and not within(r, 1e-6) for r in mine),
            "median ms": float(np.median([r["ms"] for r in good])) if good else None,
            "times ours": float(np.median(both)) if both else None,
            "median steps": float(np.median([r["steps"] for r in good])) if good else None,
        })  # fmt: skip
    return lines


def false_verdicts(rows):
    """Return the rows of ours that claim what others refute: infeasible or unbounded where somebody solved it."""
    solved = {r["problem"] for r in rows if within(r, 1e-6)}
    refuted = [r for r in rows if r.get("says") in ("infeasible", "unbounded") and r["problem"] in solved]
    return refuted + [r for r in rows if r.get("says") == "converged" and not within(r, 1e-6)]


def report(rows):
    """Print what the rows say."""
    columns = ["problem", "n", "p", "q", "solver", "says", "steps", "ms", "violation", "kkt", "f"]
    harness.table([r for r in rows if r["solver"] == "interior_point" and not within(r, 1e-8)], columns)
    harness.table(summary(rows), title="all problems")
    quadratic = [r for r in rows if r.get("convex quadratic")]
    harness.table(summary(quadratic), title="convex linear and quadratic programs")
    first = [r["first call s"] for r in rows if r["solver"] == "interior_point"]
    print(f"first call, median: {np.median(first):.2f} s\n")
    harness.table(false_verdicts(rows), columns, title="claims of ours that do not hold")


def profile(rows, record, path):
    """Draw the performance profile of the solvers that ran on nearly all problems."""
    rows = sorted(rows, key=lambda r: r["solver"] != "interior_point")
    counts = {r["solver"]: sum(q["solver"] == r["solver"] for q in rows) for r in rows}
    rows = [r for r in rows if counts[r["solver"]] > 0.9 * max(counts.values())]
    good = {(r["problem"], r["solver"]): r["ms"] for r in rows if within(r, 1e-6)}
    title = f"{len({r['problem'] for r in rows})} problems with inequalities or bounds, to 1e-6"
    parts.profile(rows, good, title, record, path)


def hs71(dtype):
    """Return solve(x0, data), starts and data of Hock-Schittkowski 71 with its right-hand sides moved."""

    def solve(x0, rhs, limit):
        return interior_point(
            lambda x, _: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
            x0,
            equality=lambda x, a: jnp.sum(x**2) - a[0],
            inequality=lambda x, a: a[1] - jnp.prod(x),
            bounds=(1.0, 5.0),
            args=rhs,
            max_steps=limit,
        )

    return solve, jnp.asarray([1.0, 5.0, 5.0, 1.0], dtype), jnp.asarray([40.0, 25.0], dtype)


def hs100(dtype):
    """Return the same of Hock-Schittkowski 100, four inequalities in seven variables."""

    def objective(x, _):
        first = (x[0] - 10) ** 2 + 5 * (x[1] - 12) ** 2 + x[2] ** 4 + 3 * (x[3] - 11) ** 2 + 10 * x[4] ** 6
        return first + 7 * x[5] ** 2 + x[6] ** 4 - 4 * x[5] * x[6] - 10 * x[5] - 8 * x[6]

    def inequality(x, a):
        return jnp.stack([
            2 * x[0] ** 2 + 3 * x[1] ** 4 + x[2] + 4 * x[3] ** 2 + 5 * x[4] - a[0],
            7 * x[0] + 3 * x[1] + 10 * x[2] ** 2 + x[3] - x[4] - a[1],
            23 * x[0] + x[1] ** 2 + 6 * x[5] ** 2 - 8 * x[6] - a[2],
            4 * x[0] ** 2 + x[1] ** 2 - 3 * x[0] * x[1] + 2 * x[2] ** 2 + 5 * x[5] - 11 * x[6] - a[3],
        ])  # fmt: skip

    def solve(x0, rhs, limit):
        return interior_point(objective, x0, inequality=inequality, args=rhs, max_steps=limit)

    x0 = jnp.asarray([1.0, 2.0, 0.0, 4.0, 0.0, 1.0, 1.0], dtype)
    return solve, x0, jnp.asarray([127.0, 282.0, 196.0, 0.0], dtype)


def batched(name, dtype, batch, noise):
    """Time one problem's batch, and the gradient of the sum of its values, which the multipliers must equal."""
    build, sign = {"HS71": (hs71, [-1.0, 1.0]), "HS100": (hs100, [-1.0] * 4)}[name]
    solve, x0, rhs = build(dtype)
    n, limit = x0.size, jnp.asarray(200)
    starts = x0[None] * jnp.asarray(noise[:, :n], dtype)
    data = rhs[None] * jnp.asarray(noise[:, n : n + rhs.size], dtype)
    lanes = jax.vmap(solve, in_axes=(0, 0, None))

    def loss(x, a, limit):
        s = lanes(x, a, limit)
        return jnp.sum(jnp.where(s.converged, s.objective, 0))

    base = {"problem": name, "dtype": dtype, "batch": batch}
    forward = harness.compiled(lanes, starts, data, limit)
    timing = harness.clock(lambda: forward(starts, data, limit), repeat=7, budget=8, warm=True)
    s = timing.output
    good = np.asarray(s.converged)
    worst = {
        key: np.max(np.where(good, np.asarray(v), 0)) for key, v in (("error", s.error), ("c", s.constraint_violation))
    }
    yield base | {
        "what": "solve",
        "ms": 1e3 * timing.seconds,
        "converged": float(np.mean(good)),
        "mean steps": float(np.mean(s.num_steps)),
        "max steps": int(np.max(s.num_steps)),
        "worst error of the converged": float(worst["error"]),
        "worst violation of the converged": float(worst["c"]),
        "first call s": forward.first_call_seconds,
    }
    backward = harness.compiled(jax.grad(loss, argnums=1), starts, data, limit)
    timing = harness.clock(lambda: backward(starts, data, limit), repeat=7, budget=8, warm=True)
    parts = [m for m in (s.multipliers.equality, s.multipliers.inequality) if np.size(m)]
    expected = np.concatenate([np.reshape(m, (batch, -1)) for m in parts], axis=1) * np.asarray(sign)
    gap = np.where(good[:, None], np.abs(np.asarray(timing.output) - expected), 0)
    yield base | {
        "what": "gradient",
        "ms": 1e3 * timing.seconds,
        "gradient against multipliers": float(np.max(gap)),
        "first call s": backward.first_call_seconds,
    }


def on_device(options):
    """Time batches: the whole solve and the gradient of a loss through it, in both precisions."""
    record, rows, rng = harness.machine(), [], np.random.default_rng(7)
    batch = 64 if options.quick else 16384
    noise = 1 + 0.05 * rng.standard_normal((batch, 11))
    for dtype in ("float64", "float32"):
        for name in ("HS71", "HS100"):
            if harness.chosen(f"{name}/{dtype}", options.only):
                for row in batched(name, dtype, batch, noise):
                    rows.append(row)
                    harness.save(
                        options.out / "interior_gpu.json", rows, key=("problem", "dtype", "what"), record=record
                    )
    harness.table(rows)


def main():
    """Run what was asked for."""
    options = harness.finished(parts.add_options(harness.parser(__doc__ or "")).parse_args())
    if options.gpu:
        return on_device(options)
    sizes = {name: n * (3 + p + q) for name, (_, n, p, q, *_) in PROBLEMS.items()}
    file = ALONE if options.solvers == "interior_point" else FILE
    rows = parts.run(options, __file__, file, sizes, race, PACKAGES)
    if not options.part:
        report(rows)
    if not options.part and file == FILE:
        profile(rows, json.loads((options.out / FILE).read_text())["machine"], options.out / "interior.png")


if __name__ == "__main__":
    main()
