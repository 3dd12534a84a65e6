"""Equality-constrained optimisation: the CUTEst sets of the notes against peers, and batches on an accelerator.

``python bench/constrained.py [--quick] [--only paper/,harder/,logistic/,/HS7]`` for one processor, ``--gpu [--only
HS100LNP/solve,spheres] [--code NAME]`` for batches on a device. ``--quick`` runs no peers. With another version of the
package on the path, ``--code`` says in the rows which one it was.
"""

import collections
import gzip
import json
import tempfile
import time
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
import parts

jax.config.update("jax_enable_x64", True)

from constrained_peers import available  # noqa: E402
from cutest import HARDER, PAPER, problem  # noqa: E402
from inequalities import Bounded, derivatives  # noqa: E402

from solvers import sketched_newton  # noqa: E402
from solvers.problems.constrained import HAND_WRITTEN, logistic  # noqa: E402

SOLVED = 1e-6


JITTED = ["HS7", "HS40", "HS78", "BT11", "HS47", "HS100LNP", "HS77", "HS79", "HS56", "BT5", "HS28", "ORTHREGB"]
"""The problems for slsqp-jax, whose compilation takes ten seconds each."""
LARGE = ("MSS1", "MANCINONE")
"""Problems that some peers take minutes for."""


def posed(p) -> Bounded:
    """Return a problem with equations alone as the peers take it."""
    m = jax.eval_shape(p.equality, p.x0, p.args).shape[0]
    none = np.full(p.x0.size, np.inf)
    return Bounded(
        p.name, lambda x: p.objective(x, p.args), lambda x: (p.equality(x, p.args), jnp.zeros(0)), np.asarray(p.x0),
        -none, none, m, 0,
    )  # fmt: skip


def peers_for(name):
    """Return the peers that are installed and bearable on the problem `name`."""
    slow = ("pounce", "ipax", "scipy SLSQP") if name in LARGE else ()
    slow += () if name in JITTED else ("slsqp-jax",)
    return {title: peer for title, peer in available().items() if title not in (*slow, "IPOPT exact bounds")}


def judge(problem, calls, x):
    """Return the KKT residual with least-squares multipliers, in float64, the same for everybody."""
    x = np.asarray(x, np.float64)
    g, G, *_ = (np.asarray(v) for v in calls.model(x, np.zeros(problem.p), np.zeros(0), 1.0))
    c = np.asarray(calls.values(x)[1])
    if not all(np.all(np.isfinite(a)) for a in (g, c, G)):
        return np.inf
    lam = np.linalg.lstsq(G.T, -g, rcond=None)[0]
    return float(np.sqrt(np.sum((g + lam @ G) ** 2) + np.sum(c**2)))


def race(p, group, *, repeat, peers=True):
    """Solve one problem with everybody."""
    solve = harness.compiled(
        lambda x, args: sketched_newton(p.objective, x, equality=p.equality, args=args), p.x0, p.args
    )
    timing = harness.clock(lambda: solve(p.x0, p.args), repeat=repeat, warm=True)
    problem, s = posed(p), timing.output
    calls = derivatives(problem)
    base = {"set": group, "problem": p.name, "n": p.x0.size, "m": problem.p}
    yield base | {
        "solver": "sketched_newton",
        "steps": int(s.num_steps),
        "ms": 1e3 * timing.seconds,
        "kkt": judge(problem, calls, s.value),
        "own kkt": float(s.error),
        "status": int(s.status),
        "f": float(s.objective),
        "first call s": solve.first_call_seconds,
    }
    for name, peer in peers_for(p.name).items() if peers else ():
        try:
            timing = harness.clock(
                lambda peer=peer: peer(problem, calls), repeat=3 if p.x0.size < 50 else 1, budget=2,
                warm=p.x0.size < 50,
            )  # fmt: skip
            x, _, steps, _ = timing.output
            row = {"steps": int(steps), "ms": 1e3 * timing.seconds, "kkt": judge(problem, calls, x)}
            row["f"] = float(calls.values(x)[0])
        except Exception as error:
            row = {"kkt": np.inf, "ms": np.inf, "status": type(error).__name__}
        yield base | {"solver": name} | row


def summary(rows):
    """Return one line a solver and set."""
    lines = []
    for group in dict.fromkeys(r["set"] for r in rows):
        for name in dict.fromkeys(r["solver"] for r in rows):
            mine = [r for r in rows if r["set"] == group and r["solver"] == name]
            good = [r for r in mine if r["kkt"] <= SOLVED]
            lines.append(
                {
                    "set": group,
                    "solver": name,
                    "problems": len(mine),
                    "kkt <= 1e-8": sum(r["kkt"] <= 1e-8 for r in good),
                    "own kkt <= 1e-8, status 0": sum(r.get("own kkt", 1) <= 1e-8 and r["status"] == 0 for r in mine),
                    "kkt <= 1e-6": len(good),
                    "median ms": float(np.median([r["ms"] for r in good])) if good else None,
                    "mean steps": float(np.mean([r["steps"] for r in good])) if good else None,
                }
            )
    return lines


def profile(rows, record, path):
    """Draw the performance profile of the CUTEst sets."""
    rows = [r for r in rows if r["set"] != "logistic"]
    good = {(r["problem"], r["solver"]): r["ms"] for r in rows if r["kkt"] is not None and r["kkt"] <= SOLVED}
    title = f"{len({r['problem'] for r in rows})} problems, KKT residual at most {SOLVED:g}"
    parts.profile(rows, good, title, record, path)


def classification():
    """Return constrained logistic regression on two data sets of scikit-learn."""
    from sklearn.datasets import load_breast_cancer, load_digits

    for name, data, label in (
        ("breast_cancer", load_breast_cancer(), lambda t: t),
        ("digits", load_digits(), lambda t: t % 2),
    ):
        X = data.data
        spread = np.ptp(X, axis=0)
        X = 2 * (X - X.min(0)) / np.where(spread > 0, spread, 1) - 1
        yield logistic(X, 2.0 * label(data.target) - 1)._replace(name=name)


def on_cpu(options):
    """Race on the CUTEst sets and on logistic regression."""
    record = harness.machine("cyipopt-wheels", "pounce-solver", "ipax", "slsqp-jax", "sif2jax", "scikit-learn")
    rows = []
    sets = [("paper", PAPER.split()), ("harder", HARDER.split())]
    for group, names in sets:
        for name in names:
            if harness.chosen(f"{group}/{name}", options.only):
                rows += race(problem(name), group, repeat=20, peers=not options.quick)
                jax.clear_caches()
    for p in classification():
        if harness.chosen(f"logistic/{p.name}", options.only):
            rows += race(p, "logistic", repeat=10, peers=not options.quick)
    harness.table(rows, ["set", "problem", "n", "m", "solver", "steps", "ms", "kkt", "status", "first call s"])
    saved = harness.save(options.out / "constrained.json", rows, key=("problem", "solver"), record=record)
    harness.table(summary([r | {"kkt": np.inf if r["kkt"] is None else r["kkt"]} for r in saved["rows"]]))
    profile(saved["rows"], record, options.out / "constrained.png")


def spheres(n, m):
    """Return a batch problem of n variables and m quadratic equations, feasible by construction, and its data."""

    def objective(x, args):
        return jnp.sum((x - args["target"]) ** 4) / 4 + 0.5 * jnp.sum(x**2)

    def equality(x, args):
        return args["rows"] @ x + 0.1 * args["bend"] * jnp.sum(x**2) - args["rhs"]

    def data(rng, batch):
        rows = rng.standard_normal((batch, m, n)) / np.sqrt(n)
        x, bend = 0.3 * rng.standard_normal((batch, n)), rng.standard_normal((batch, m))
        rhs = np.einsum("bij,bj->bi", rows, x) + 0.1 * bend * np.sum(x**2, 1, keepdims=True)
        target = rng.standard_normal((batch, n))
        return {
            "target": jnp.asarray(target),
            "rows": jnp.asarray(rows),
            "bend": jnp.asarray(bend),
            "rhs": jnp.asarray(rhs),
        }

    return objective, equality, data


def device_work(call):
    """Return from a trace of one call how long kernels ran, how many there were, and how often the host waited."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        files = list(Path(folder).rglob("*.trace.json.gz"))
        events = json.loads(gzip.decompress(files[0].read_bytes()))["traceEvents"] if files else []
    threads = [e for e in events if e.get("ph") == "M" and e.get("name") == "thread_name"]
    streams = {(e["pid"], e["tid"]) for e in threads if "Stream" in e["args"]["name"]}
    spent, count = collections.Counter(), collections.Counter()
    for e in events:
        if e.get("ph") == "X" and (e["pid"], e["tid"]) in streams:
            spent[e["name"]] += e["dur"]
            count[e["name"]] += 1
    return {
        "kernels ms": sum(spent.values()) / 1e3,
        "launches": sum(count.values()),
        "waits of the host": count["MemcpyD2H"],
    }


def on_device(options):
    """Time batches: the whole solve, and the gradient of a loss through it."""
    record, rows, rng = harness.machine(), [], np.random.default_rng(7)
    small = options.quick
    code = {"code": options.code} if options.code else {}
    key = ("problem", "batch", "what", "code")

    def add(name, solve, loss, args, batch):
        """Time the solve, one step of it, and the gradient of a loss: at most a solve and a step."""
        whole, single, made = jnp.asarray(300), jnp.asarray(1), {}
        for what, function, limit in (
            ("solve", solve, whole),
            ("step", solve, single),
            ("gradient", jax.grad(loss, argnums=len(args) - 1), whole),
        ):
            if not harness.chosen(f"{name}/{what}", options.only):
                continue
            run = made.get(function) or harness.compiled(function, *args, whole)
            made[function] = run
            timing = harness.clock(lambda run=run, limit=limit: run(*args, limit), repeat=9, budget=8, warm=True)
            out = timing.output
            row = {"problem": name, "batch": batch, "what": what} | code | {"ms": 1e3 * timing.seconds}
            if what == "solve":
                status = np.bincount(np.asarray(out.status), minlength=7)
                row |= {
                    "converged": int(status[0]),
                    "other statuses": str({i: int(k) for i, k in enumerate(status) if i and k}),
                    "mean steps": float(np.mean(out.num_steps)),
                    "max steps": int(np.max(out.num_steps)),
                    "mean evaluations": float(np.mean(out.num_evaluations)),
                    "worst kkt": float(np.nanmax(np.where(np.asarray(out.status) == 0, np.asarray(out.error), 0))),
                }
                row |= device_work(lambda run=run, limit=limit: run(*args, limit))
            rows.append(row | {"first call s": run.first_call_seconds, "solves per s": batch / timing.seconds})
            harness.save(options.out / "constrained_gpu.json", rows, key=key, record=record)

    for name in ("HS100LNP", "MWRIGHT"):
        p, batch = HAND_WRITTEN[name](), 256 if small else 65536
        starts = p.x0[None] + jnp.asarray(0.1 * rng.standard_normal((batch, p.x0.size)))

        def one(x, weight, limit, p=p):
            return sketched_newton(
                lambda x, w: p.objective(x, None) + w * jnp.sum(x**2),
                x,
                equality=p.equality,
                args=weight,
                max_steps=limit,
            )

        lanes = jax.vmap(one, in_axes=(0, 0, None))
        weights = jnp.zeros(batch)
        loss = lambda x, w, limit, lanes=lanes: jnp.sum(lanes(x, w, limit).value ** 2)  # noqa: E731
        add(name, lanes, loss, (starts, weights), batch)
    objective, equality, data = spheres(50, 20)
    batch = 16 if small else 4096
    args = data(rng, batch)

    def many(args, limit):
        def one(a):
            return sketched_newton(objective, jnp.zeros(50), equality=equality, args=a, max_steps=limit)

        return jax.vmap(one)(args)

    add("spheres 50/20", many, lambda a, limit: jnp.sum(many(a, limit).value ** 2), (args,), batch)
    harness.table(rows)


if __name__ == "__main__":
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--code", default="", help="name of the version of the package, for the rows of --gpu")
    chosen = harness.finished(parser.parse_args())
    began = time.time()
    (on_device if chosen.gpu else on_cpu)(chosen)
    print(f"{time.time() - began:.0f} s")
