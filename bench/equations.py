"""Equations: every CUTEst problem of sif2jax with nothing but equations and n <= 30, against IPOPT and least squares.

``python bench/equations.py [--quick] [--only HS6,BT1] [--slice k/n] [--resume]``, in parts (see ``parts.py``). Systems
of equations (square and over-determined) and problems with an objective. Solved means that the largest violation is at
most 1e-8 and so is stationarity, scaled as IPOPT scales it, with multipliers by least squares for everybody. SciPy's
`least_squares` runs on the systems, where it minimises the same violation.
"""

import json
import pathlib
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import parts
import scipy.optimize

jax.config.update("jax_enable_x64", True)

from constrained_peers import ipopt  # noqa: E402
from inequalities import derivatives, load  # noqa: E402

from solvers import Status, sketched_newton  # noqa: E402

FILE = "equations.json"
PROBLEMS = json.loads((pathlib.Path(__file__).parent / "equality_problems.json").read_text())
"""Module, n and the number of equations."""


def slope(c, C):
    """Return the largest cosine between c and a column of C."""
    size = np.linalg.norm(c) * np.maximum(np.linalg.norm(C, axis=0), 1e-16 * np.linalg.norm(C))
    return float(np.max(np.abs(c @ C) / np.maximum(size, 1e-300)))


def judge(problem, calls, x):
    """Return objective, largest violation and scaled stationarity with least-squares multipliers.

    The slope of ``|c|``, the largest cosine between c and a column of C, tells a local minimum of the violation: the
    smaller one of the violation as posed and with each equation scaled down by its gradient at the start, as ours does.
    """
    x = np.asarray(x, float)
    f, c, _ = (np.asarray(v) for v in calls.values(x))
    df, C, _, _ = (np.asarray(v) for v in calls.model(x, np.zeros(problem.p), np.zeros(0), 1.0))
    if not all(np.all(np.isfinite(v)) for v in (f, c, df, C)):
        return {"f": None, "violation": None, "kkt": None}
    y = np.linalg.lstsq(C.T, -df, rcond=None)[0]
    scale = max(100.0, float(np.mean(np.abs(y)))) / 100
    start = np.asarray(calls.model(problem.x0, np.zeros(problem.p), np.zeros(0), 1.0)[1])
    rows = np.linalg.norm(start, axis=1)
    weights = 1 / np.maximum(1, rows / 10 / min(1, max(np.max(rows, initial=0), 1e-8)))
    return {
        "f": float(f),
        "violation": float(np.max(np.abs(c))),
        "kkt": float(np.max(np.abs(df + y @ C)) / scale),
        "norm of c": float(np.linalg.norm(c)),
        "slope of |c|": min(slope(c, C), slope(weights * c, weights[:, None] * C)),
    }


def ours(problem, calls, repeat):
    """Return our row."""
    x0 = jnp.asarray(problem.x0)
    solve = harness.compiled(
        lambda x: sketched_newton(lambda x, _: problem.f(x), x, equality=lambda x, _: problem.constraints(x)[0]), x0
    )
    timing = harness.clock(lambda: solve(x0), repeat=repeat, warm=True)
    s = timing.output
    return {
        "solver": "sketched_newton",
        "says": Status(int(s.status)).name.lower(),
        "evaluations": int(s.num_evaluations),
        "ms": 1e3 * timing.seconds,
        "first call s": solve.first_call_seconds,
    } | judge(problem, calls, s.value)


def by_ipopt(problem, calls):
    """Return where IPOPT ends; it refuses more equations than variables."""
    end = ipopt(problem, calls)
    return end.x, "solved" if end.success else "not solved", end.steps


def by_least_squares(problem, calls):
    """Return where SciPy's `least_squares` ends, at its tightest tolerances."""
    zero = np.zeros(problem.p), np.zeros(0)
    end: Any = scipy.optimize.least_squares(
        lambda x: np.asarray(calls.values(x)[1]),
        problem.x0,
        jac=lambda x: np.asarray(calls.model(x, *zero, 0.0)[1]),
        **dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15),
        max_nfev=1000,
    )
    return end.x, "solved" if end.status > 0 else "not solved", end.nfev


def race(name, *, repeat, wanted):
    """Solve one problem with everybody wanted."""
    problem = load(name, PROBLEMS[name][0])
    calls = derivatives(problem)
    system = "_nonlinear_equations" in PROBLEMS[name][0]
    base = {"problem": name, "n": problem.x0.size, "m": problem.p, "system": system}
    if wanted("sketched_newton"):
        yield base | ours(problem, calls, repeat)
    others = {"IPOPT": by_ipopt} | ({"scipy least_squares": by_least_squares} if system else {})
    for title, solve in others.items():
        if not wanted(title):
            continue
        row = {"solver": title, "says": "", "f": None, "violation": None, "kkt": None, "ms": None}
        try:
            timing = harness.clock(lambda solve=solve: solve(problem, calls), repeat=repeat, budget=1)
            x, says, count = timing.output
            row |= {"says": says, "evaluations": count, "ms": 1e3 * timing.seconds} | judge(problem, calls, x)
        except Exception as error:
            row["says"] = f"{type(error).__name__}: {str(error)[:60]}"
        yield base | row


def within(row, tol=1e-8):
    """Whether a row's point solves its problem."""
    return all(row.get(key) is not None and row[key] <= tol for key in ("violation", "kkt"))


def summary(rows):
    """Return one line a solver."""
    lines = []
    own = {r["problem"]: r for r in rows if r["solver"] == "sketched_newton" and within(r)}
    for name in dict.fromkeys(r["solver"] for r in rows):
        mine = [r for r in rows if r["solver"] == name]
        good = [r for r in mine if within(r)]
        ratios = [r["ms"] / own[r["problem"]]["ms"] for r in good if r["problem"] in own]
        lines.append({
            "solver": name, "problems": len(mine), "solved": len(good),
            "feasible": sum(r["violation"] is not None and r["violation"] <= 1e-8 for r in mine),
            "says solved, misses 1e-6": sum(r["says"] in ("solved", "converged") and not within(r, 1e-6) for r in mine),
            "median ms": float(np.median([r["ms"] for r in good])) if good else None,
            "times ours": float(np.median(ratios)) if ratios else None,
        })  # fmt: skip
    return lines


def report(rows):
    """Print what the rows say: sums, what ours missed, and where it calls infeasible what another solved."""
    for title, chosen in (("systems", True), ("with an objective", False)):
        part = [r for r in rows if r["system"] is chosen]
        for shape, keep in (("m <= n", lambda r: r["m"] <= r["n"]), ("m > n", lambda r: r["m"] > r["n"])):
            if any(map(keep, part)):
                harness.table(summary([r for r in part if keep(r)]), title=f"{title}, {shape}")
    columns = ["problem", "n", "m", "solver", "says", "evaluations", "ms", "violation", "kkt", "f", "slope of |c|"]
    missed = {r["problem"] for r in rows if r["solver"] == "sketched_newton" and not within(r)}
    harness.table([r for r in rows if r["problem"] in missed], columns, title="not solved by ours")
    solved = {r["problem"] for r in rows if r["violation"] is not None and r["violation"] <= 1e-8}
    refuted = [r for r in rows if r["says"] == "infeasible" and r["problem"] in solved]
    harness.table(refuted, columns, title="infeasible says ours, where another found a root")
    first = [r["first call s"] for r in rows if r["solver"] == "sketched_newton"]
    print(f"first call: median {np.median(first):.2f} s, largest {np.max(first):.2f} s")


def main():
    """Run what was asked for."""
    options = harness.finished(parts.add_options(harness.parser(__doc__ or "")).parse_args())
    sizes = {name: n * (3 + m) for name, (_, n, m) in PROBLEMS.items()}
    rows = parts.run(options, __file__, FILE, sizes, race, ("cyipopt-wheels", "sif2jax"))
    return None if options.part else report(rows)


if __name__ == "__main__":
    main()
