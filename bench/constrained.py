"""Equality-constrained optimisation: the CUTEst sets of the notes against peers, and batches on an accelerator.

``python bench/constrained.py [--quick] [--only paper/,harder/,logistic/,/HS7]`` for one processor, ``--gpu`` for
batches on a device. ``--quick`` runs no peers.
"""

import time

import harness
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from constrained_peers import available, functions  # noqa: E402
from cutest import HARDER, PAPER, problem  # noqa: E402

from solvers import sketched_newton  # noqa: E402
from solvers.problems.constrained import HAND_WRITTEN, logistic  # noqa: E402

SOLVED = 1e-6


def judge(fs, x):
    """Return the KKT residual with least-squares multipliers, in float64, the same for everybody."""
    x = np.asarray(x, np.float64)
    g, c, G = np.asarray(fs.g(x)), np.asarray(fs.c(x)), np.asarray(fs.G(x))
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
    fs, s = functions(p), timing.output
    base = {"set": group, "problem": p.name, "n": p.x0.size, "m": fs.m}
    yield base | {
        "solver": "sketched_newton",
        "steps": int(s.num_steps),
        "ms": 1e3 * timing.seconds,
        "kkt": judge(fs, s.value),
        "own kkt": float(s.error),
        "status": int(s.status),
        "f": float(s.objective),
        "first call s": solve.first_call_seconds,
    }
    x0 = np.asarray(p.x0)
    for name, peer in available(p.name).items() if peers else ():
        try:
            timing = harness.clock(
                lambda peer=peer: peer(fs, x0), repeat=3 if p.x0.size < 50 else 1, budget=2, warm=p.x0.size < 50
            )
            x, steps = timing.output
            row = {"steps": int(steps), "ms": 1e3 * timing.seconds, "kkt": judge(fs, x), "f": float(fs.f(x))}
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
    """Draw the Dolan-More performance profile: the share of problems solved within a factor of the fastest."""
    rows = [r | {"kkt": np.inf if r["kkt"] is None else r["kkt"]} for r in rows if r["set"] != "logistic"]
    fig, axes = harness.figure(1, 1, width=6.4, height=3.6)
    names = sorted(dict.fromkeys(r["solver"] for r in rows), key=lambda name: name != "sketched_newton")
    problems = list(dict.fromkeys(r["problem"] for r in rows))
    time = {(r["problem"], r["solver"]): r["ms"] if r["kkt"] <= SOLVED else np.inf for r in rows}
    best = {p: min(time.get((p, s), np.inf) for s in names) for p in problems}
    factors = np.logspace(0, 4, 400)
    for name, colour in zip(names, harness.PALETTE, strict=False):
        ratio = np.array([time.get((p, name), np.inf) / best[p] if np.isfinite(best[p]) else np.inf for p in problems])
        width = 2.4 if name == "sketched_newton" else 1.3
        axes[0].step(
            factors, [np.mean(ratio <= t) for t in factors], where="post", label=name, color=colour, linewidth=width
        )
    axes[0].set(
        xscale="log", ylim=(0, 1.03), xlabel="time over that of the fastest solver", ylabel="share of problems solved"
    )
    axes[0].set_title(f"{len(problems)} problems, KKT residual at most {SOLVED:g}")
    axes[0].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    fig.tight_layout()
    harness.save_figure(fig, path, record)


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


def on_device(options):
    """Time batches: the whole solve, and the gradient of a loss through it."""
    record, rows, rng = harness.machine(), [], np.random.default_rng(7)
    small = options.quick

    def add(name, solve, loss, args, batch):
        """Time the solve, one step of it, and the gradient of a loss: at most a solve and a step."""
        whole, single = jnp.asarray(300), jnp.asarray(1)
        forward = harness.compiled(solve, *args, whole)
        backward = harness.compiled(jax.grad(loss, argnums=len(args) - 1), *args, whole)
        for what, run, limit in (("solve", forward, whole), ("step", forward, single), ("gradient", backward, whole)):
            timing = harness.clock(lambda run=run, limit=limit: run(*args, limit), repeat=9, budget=8, warm=True)
            out = timing.output
            row = {"problem": name, "batch": batch, "what": what, "ms": 1e3 * timing.seconds}
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
            rows.append(row | {"first call s": run.first_call_seconds, "solves per s": batch / timing.seconds})

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
    harness.save(options.out / "constrained_gpu.json", rows, key=("problem", "batch", "what"), record=record)


if __name__ == "__main__":
    chosen = harness.arguments(__doc__)
    began = time.time()
    (on_device if chosen.gpu else on_cpu)(chosen)
    print(f"{time.time() - began:.0f} s")
