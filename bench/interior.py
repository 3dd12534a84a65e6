"""Inequalities and bounds: the CUTEst problems of sif2jax against IPOPT, and batches on an accelerator.

``python bench/interior.py [--quick] [--only /HS71,/HS100] [--seconds 3600]`` for one processor, in order of size and as
far as the seconds go; ``--gpu`` for batches on a device. Solved means that violation, stationarity and complementarity,
scaled as IPOPT scales them and computed here from the answer's own multipliers, are at most 1e-8 (or 1e-6).
"""

import functools
import importlib
import importlib.util
import json
import pathlib
import sys
import time
import types
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

jax.config.update("jax_enable_x64", True)

from solvers import interior_point  # noqa: E402

PROBLEMS = json.loads((pathlib.Path(__file__).parent / "inequality_problems.json").read_text())
INFINITE = 1e19


class Bounded(NamedTuple):
    """A problem on flat vectors; equations and inequalities ``c = 0``, ``g <= 0``."""

    name: str
    f: Any
    constraints: Any
    x0: Any
    lower: Any
    upper: Any
    p: int
    q: int


@functools.cache
def installed() -> pathlib.Path:
    """Return where sif2jax is, found before stubs of its packages stand in for them."""
    found = importlib.util.find_spec("sif2jax")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("pip install sif2jax")
    return pathlib.Path(found.submodule_search_locations[0])


def load(name) -> Bounded:
    """Return a problem of sif2jax without importing all of it."""
    module = PROBLEMS[name][0]
    root = installed()
    parts = module.split(".")
    for k in range(1, len(parts)):
        package = ".".join(parts[:k])
        if package not in sys.modules:
            stub = types.ModuleType(package)
            stub.__path__ = [str(root.joinpath(*parts[1:k]))]
            sys.modules[package] = stub
    instance = getattr(importlib.import_module(module), name)()
    x0, unravel = ravel_pytree(instance.y0)
    x0 = np.asarray(x0, float)
    bounds = getattr(instance, "bounds", None) or (-np.inf, np.inf)

    def flat(side):
        if np.ndim(side) == 0 and not isinstance(side, tuple | list):
            return np.full(x0.size, float(side))
        like = jax.tree.map(lambda b, y: jnp.broadcast_to(jnp.asarray(b, float), jnp.shape(y)), side, instance.y0)
        return np.asarray(ravel_pytree(like)[0])

    def f(x):
        return jnp.asarray(instance.objective(unravel(x), instance.args), float).reshape(())

    def constraints(x):
        if not hasattr(instance, "constraint"):
            return jnp.zeros(0), jnp.zeros(0)
        parts = (
            jnp.zeros(0) if v is None else ravel_pytree(v)[0].astype(float) for v in instance.constraint(unravel(x))
        )
        c, g = parts
        return c, -g

    lower, upper = (flat(side) for side in bounds)
    lower = np.where(lower <= -INFINITE, -np.inf, lower)
    upper = np.where(upper >= INFINITE, np.inf, upper)
    p, q = (v.shape[0] for v in jax.eval_shape(constraints, x0))
    return Bounded(name, f, constraints, x0, lower, upper, p, q)


class Derivatives(NamedTuple):
    """Jitted values, and first and second derivatives from one linearisation, for solvers that call back."""

    values: Any
    model: Any


def derivatives(problem: Bounded) -> Derivatives:
    """Compile what callbacks need."""

    def values(x):
        return problem.f(x), *problem.constraints(x)

    def model(x, y, z, sigma):
        def gradient(x):
            found, pull = jax.vjp(values, x)
            return pull((sigma, y, z))[0], found

        _, push = jax.linearize(gradient, x)
        H, (df, C, G) = jax.vmap(push)(jnp.eye(x.size))
        return df, C.T, G.T, H

    calls = Derivatives(jax.jit(values), jax.jit(model))
    calls.values(problem.x0)
    calls.model(problem.x0, np.zeros(problem.p), np.zeros(problem.q), 1.0)
    return calls


def judge(problem: Bounded, calls: Derivatives, x, multipliers):
    """Return objective, violation and scaled KKT residual of the problem as posed."""
    x, (y, z, zl, zu) = np.asarray(x, float), (np.asarray(v, float) for v in multipliers)
    f, c, g = (np.asarray(v) for v in calls.values(x))
    df, C, G, _ = (np.asarray(v) for v in calls.model(x, y, z, 1.0))
    free = problem.lower < problem.upper
    r = np.where(free, df + y @ C + z @ G - zl + zu, 0)
    violation = max([0.0, *np.abs(c), *g, *(problem.lower - x), *(x - problem.upper)])
    low, high = (np.where(np.isfinite(gap), gap, 0) for gap in (x - problem.lower, problem.upper - x))
    gaps = np.abs(np.concatenate([z * g, zl * low, zu * high]))
    signs = np.concatenate([z, zl, zu])
    dual = max(100.0, np.mean(np.abs(np.concatenate([y, signs])))) / 100
    rest = max(100.0, np.mean(np.abs(signs))) / 100
    kkt = max(np.max(np.abs(r)) / dual, max(0.0, -np.min(signs)) / dual, np.max(gaps) / rest)
    return {"f": float(f), "violation": float(violation), "kkt": float(kkt)}


def ipopt(problem: Bounded, calls: Derivatives, options):
    """IPOPT through cyipopt with exact derivatives, tolerance 1e-8 and 500 iterations."""
    module: Any = importlib.import_module("cyipopt")
    n, m, p = problem.x0.size, problem.p + problem.q, problem.p
    rows, count = np.tril_indices(n), [0]
    zero = np.zeros(p), np.zeros(problem.q)

    class Callbacks:
        def objective(self, x):
            return float(calls.values(x)[0])

        def gradient(self, x):
            return np.asarray(calls.model(x, *zero, 1.0)[0])

        def constraints(self, x):
            return np.concatenate([np.asarray(v) for v in calls.values(x)[1:]])

        def jacobianstructure(self):
            return tuple(np.indices((m, n)).reshape(2, -1))

        def jacobian(self, x):
            return np.concatenate([np.asarray(v) for v in calls.model(x, *zero, 1.0)[1:3]]).ravel()

        def hessianstructure(self):
            return rows

        def hessian(self, x, multipliers, sigma):
            return np.asarray(calls.model(x, multipliers[:p], multipliers[p:], float(sigma))[3])[rows]

        def intermediate(self, mode, step, *rest):
            count[0] = step

    nlp = module.Problem(
        n, m, problem_obj=Callbacks(),
        lb=np.maximum(problem.lower, -1e20), ub=np.minimum(problem.upper, 1e20),
        cl=np.concatenate([np.zeros(p), np.full(problem.q, -1e20)]), cu=np.zeros(m),
    )  # fmt: skip
    for key, value in (("print_level", 0), ("sb", "yes"), ("tol", 1e-8), ("max_iter", 500), *options):
        nlp.add_option(key, value)
    x, info = nlp.solve(problem.x0)
    multipliers = info["mult_g"][:p], info["mult_g"][p:], info["mult_x_L"], info["mult_x_U"]
    return x, multipliers, count[0], info["status"]


IPOPTS = {"ipopt": (), "ipopt, exact bounds": (("bound_relax_factor", 0.0),)}


def race(problem: Bounded, *, repeat, peers):
    """Solve one problem with everybody."""
    base = {"problem": problem.name, "n": problem.x0.size, "p": problem.p, "q": problem.q}
    calls = derivatives(problem)
    solve = harness.compiled(
        lambda x: interior_point(
            lambda x, _: problem.f(x),
            x,
            equality=(lambda x, _: problem.constraints(x)[0]) if problem.p else None,
            inequality=(lambda x, _: problem.constraints(x)[1]) if problem.q else None,
            bounds=(problem.lower, problem.upper),
        ),
        jnp.asarray(problem.x0),
    )
    timing = harness.clock(lambda: solve(jnp.asarray(problem.x0)), repeat=repeat, warm=True)
    s = timing.output
    parts = (np.ravel(v) if np.size(v) else np.zeros(0) for v in s.multipliers)
    row = {"solver": "interior_point", "status": int(s.status), "steps": int(s.num_steps), "ms": 1e3 * timing.seconds}
    row |= {"evaluations": int(s.num_evaluations), "first call s": solve.first_call_seconds}
    yield base | row | judge(problem, calls, s.value, parts)
    for name, options in IPOPTS.items() if peers else ():
        timing = harness.clock(lambda options=options: ipopt(problem, calls, options), repeat=repeat, budget=2)
        x, multipliers, steps, status = timing.output
        row = {"solver": name, "status": int(status), "steps": steps, "ms": 1e3 * timing.seconds}
        yield base | row | judge(problem, calls, x, multipliers)


def summary(rows):
    """Return one line a solver."""
    lines = []
    for name in dict.fromkeys(r["solver"] for r in rows):
        mine = [r for r in rows if r["solver"] == name]
        good = [r for r in mine if _within(r, 1e-8)]
        lines.append({
            "solver": name, "problems": len(mine), "status 0": sum(r["status"] == 0 for r in mine),
            "solved to 1e-8": len(good), "solved to 1e-6": sum(_within(r, 1e-6) for r in mine),
            "status 0 but missed 1e-6": sum(r["status"] == 0 and not _within(r, 1e-6) for r in mine),
            "median ms": float(np.median([r["ms"] for r in good])) if good else None,
            "median steps": float(np.median([r["steps"] for r in good])) if good else None,
        })  # fmt: skip
    return lines


def _within(row, tol):
    return all(row[key] is not None and row[key] <= tol for key in ("violation", "kkt"))


def on_cpu(options):
    """Race from the smallest problem on."""
    record, rows, begin = harness.machine("cyipopt-wheels", "sif2jax"), [], time.monotonic()
    for name in sorted(PROBLEMS, key=lambda n: (PROBLEMS[n][1] * (3 + sum(PROBLEMS[n][2:4])), n)):
        if time.monotonic() - begin > options.seconds:
            break
        if harness.chosen(f"cutest/{name}", options.only):
            try:
                rows += race(load(name), repeat=3 if options.quick else 9, peers=not options.quick)
            except Exception as error:
                print(name, type(error).__name__, str(error)[:100])
            jax.clear_caches()
            if len(rows) % 30 < 3:
                harness.save(options.out / "interior.json", rows, key=("problem", "solver"), record=record)
    harness.table(rows, ["problem", "n", "p", "q", "solver", "status", "steps", "ms", "violation", "kkt", "f"])
    saved = harness.save(options.out / "interior.json", rows, key=("problem", "solver"), record=record)
    harness.table(summary(saved["rows"]))


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
                rows += batched(name, dtype, batch, noise)
    harness.table(rows)
    harness.save(options.out / "interior_gpu.json", rows, key=("problem", "dtype", "what"), record=record)


if __name__ == "__main__":
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=3600, help="start no new problem after this long")
    chosen = harness.finished(parser.parse_args())
    (on_device if chosen.gpu else on_cpu)(chosen)
