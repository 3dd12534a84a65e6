"""Sequences of linear systems: the tables of Learning to Relax by our own code, learners on them, and wall time.

    python bench/linear.py                 everything that runs on two cores
    python bench/linear.py --only tables   the cost tables and the learners; also: heat, single, overhead
    python bench/linear.py --gpu           the instances for one accelerator

Tables are recorded once in bench/results and replayed; steps are exact counts, times are medians.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")

import json
from functools import partial

import harness
import jax
import jax.numpy as jnp
import numpy as np

from solvers import (
    Arms,
    ChebCB,
    ContextBins,
    Stencil,
    TsallisINF,
    chebyshev_cg,
    learned_sor,
    multigrid_cg,
    replay,
    solve_sequence,
    sor,
    ssor_cg,
    young_omega,
    young_prior,
)
from solvers.problems.linear import heat_start, heat_step, model_radius, shifted_laplacians

GRID = np.linspace(1, 1.95, 20)
TRIALS = 40
NOTES = {"SSOR-CG nx=25": (6.56, 6.46, 5.88, 4.84), "SSOR-CG nx=100": (23.40, 15.44, 12.64, 9.84)}
"""Mean steps a system at omega = 1, 1.5, the best fixed and the best of each, by an independent code (numba)."""


def system(step):
    return Stencil.laplacian(2, scale=step.s, shift=jnp.ones_like(step.s))


@partial(jax.jit, static_argnames=("nx", "every", "method"))
def heat_table(nx, every, method):
    """Return steps (T, 20) of every omega on every sampled step of the heat run, diffusivities, and s."""

    def advance(t, u):
        step = heat_step(t, u)
        return multigrid_cg(system(step), step.rhs, x0=u, tol=1e-11).value

    def sample(u, k):
        step = heat_step(k * every, u)
        rows = system(step).rows(u.shape, ordering="natural")
        solver = ssor_cg if method == "SSOR-CG" else sor
        steps = jax.vmap(lambda w: solver(rows, step.rhs.ravel(), omega=w, x0=u.ravel(), tol=1e-8).num_steps)(
            jnp.asarray(GRID)
        )
        u = jax.lax.fori_loop(0, every, lambda i, v: advance(k * every + i, v), u)
        return u, (steps, step.kappa, step.s)

    return jax.lax.scan(sample, heat_start(nx), jnp.arange(5000 // every, dtype=jnp.int32))[1]


@jax.jit
def iid_table(shifts, rhs):
    """Return sweeps (T, 20) of SOR in natural order on shifted Laplacians."""

    def one(c, b):
        rows = Stencil.laplacian(2, shift=c).rows(b.shape, ordering="natural")
        return jax.vmap(lambda w: sor(rows, b.ravel(), omega=w, tol=1e-8).num_steps)(jnp.asarray(GRID))

    return jax.lax.map(lambda a: one(*a), (shifts, rhs))


def play(learner, costs, contexts, *, arms=None, trials=TRIALS):
    run = jax.jit(jax.vmap(lambda k: replay(learner, costs, key=k, contexts=contexts, arms=arms).costs))
    return np.asarray(run(jax.random.split(jax.random.key(9), trials)))


def learners(low, high, bins):
    """Return the paper's learners and ours; ours see the bound on the Jacobi radius."""
    return {
        "Tsallis-INF": (TsallisINF("importance"), "raw"),
        "Tsallis-INF, reduced variance": (TsallisINF(), "raw"),
        "Tsallis-INF, binned": (ContextBins(TsallisINF("importance"), low, high, bins), "raw"),
        "ChebCB": (ChebCB(low, high), "raw"),
        "Young prior, Thompson": (young_prior(), "radius"),
    }


def tables(options):
    rows, curves = [], {}
    quick = 5 if options.quick else 1
    jobs = {}
    for nx, every in ((25, 10 * quick), (100, 20 * quick)):
        for method in ("SSOR-CG", "SOR"):
            if (method, nx) != ("SOR", 100):
                jobs[f"{method} nx={nx}"] = lambda nx=nx, every=every, m=method: (heat_table(nx, every, m), every)
    for spread in ("high", "low"):
        rng = np.random.default_rng(50)
        data = shifted_laplacians(rng, 500 // quick, spread=spread)
        jobs[f"iid {spread} variance"] = lambda data=data: (
            (iid_table(*map(jnp.asarray, data)), data[0], data[0]),
            10 * quick,
        )
    for name, job in jobs.items():
        if not harness.chosen(name, [o for o in options.only if o != "tables"]):
            continue
        path = options.out / f"linear_table_{name.replace(' ', '_').replace('=', '')}.json"
        if path.exists():
            saved = json.loads(path.read_text())
            steps, context, s, every = (np.asarray(saved[k]) for k in ("steps", "context", "s", "every"))
            every = int(every)
        else:
            (steps, context, s), every = job()
            steps, context, s = (np.asarray(x) for x in (steps, context, s))
            record = {"steps": steps.tolist(), "context": context.tolist(), "s": s.tolist(), "every": every}
            path.write_text(json.dumps(record) + "\n")
        iid = name.startswith("iid")
        radius = model_radius(s, 10) if iid else 4 * s / (1 + 4 * s)
        best, fixed = steps.min(1).mean(), steps.mean(0)
        base = {"table": name, "systems": len(steps)}
        for label, value in (
            *((f"omega = {w}", fixed[np.abs(GRID - w).argmin()]) for w in (1.0, 1.2, 1.4, 1.5, 1.6, 1.8)),
            (f"best fixed ({GRID[fixed.argmin()]:.2f})", fixed.min()),
            ("instance-optimal", best),
        ):
            rows.append({**base, "policy": label, "mean steps": value, "excess %": 100 * (value / best - 1)})
        low, high, bins = (-0.15, 0.65, 5) if iid else (0.0, 10.0, 6)
        for label, (learner, what) in learners(low, high, bins).items():
            ours = what == "radius"
            repeat = 1 if ours else every
            c = np.repeat(steps, repeat, 0).astype(float)
            seen = np.repeat(radius if ours else context, repeat)
            paid = play(learner, jnp.asarray(c), jnp.asarray(seen), arms=jnp.asarray(GRID))
            o = c.min(1)
            rows.append({
                **base, "policy": label, "systems": len(c), "mean steps": paid.mean(),
                "standard error": paid.mean(1).std() / np.sqrt(TRIALS),
                "excess %": 100 * (paid.mean() / o.mean() - 1),
                "first 50 over best fixed": paid[:, :50].mean() / c[:50, fixed.argmin()].mean(),
                "excess after 30 %": 100 * (paid[:, 30:].mean() / o[30:].mean() - 1),
                "last fifth": paid[:, -len(c) // 5 :].mean(),
            })  # fmt: skip
            curves[(name, label)] = np.cumsum(paid.mean(0) - o) / np.cumsum(o)
    return rows, curves


def heat(options):
    """Run 5,000 heat steps at nx = 100, learning included, as one program."""
    rows, steps = [], 500 if options.quick else 5000

    def step(t, u, args):
        problem = heat_step(t, u)
        return system(problem), problem.rhs

    u0 = heat_start(100)
    common = dict(x0=u0, num_systems=steps, save=jnp.max, tol=1e-8)
    runs = {
        "learned omega (Young prior)": lambda k: solve_sequence(
            step, learner=young_prior(), arms=Arms.sor(16), key=k, **common
        ),
        "learned omega (mix)": lambda k: learned_sor(step, key=k, **common),
        "omega = 1.5": lambda k: solve_sequence(
            step, learner=TsallisINF(), arms=Arms.sor([1.5]), key=k, max_steps=10000, patience=10000, **common
        ),
        "omega = 1.75": lambda k: solve_sequence(
            step, learner=TsallisINF(), arms=Arms.sor([1.75]), key=k, patience=10000, **common
        ),
        "chebyshev_cg, degree 4": lambda k: solve_sequence(
            step, learner=TsallisINF(), arms=Arms.chebyshev_cg([4], [30.0]), key=k, **common
        ),
    }
    for name, run in runs.items():
        program = harness.compiled(run, jax.random.key(9))
        timing = harness.clock(lambda p=program: p(jax.random.key(9)), repeat=3, budget=15)
        out = timing.output
        rows.append({
            "run": name, "systems": steps, "seconds": timing.seconds, "compile": program.first_call_seconds,
            "ms a system": 1e3 * timing.seconds / steps, "mean steps": float(out.num_steps.mean()),
            "unsolved": int((~out.converged).sum()), "worst error": float(out.error.max()),
        })  # fmt: skip
        harness.table(rows[-1:])
    return rows


def instance(n, kappa=10.0, variable=False, dtype=jnp.float64):
    """Return a heat step on an n x n grid from zero, with constant or log-normal conductivity."""
    nx = n + 1
    s = 0.5 * kappa * 1e-3 * nx * nx
    g = np.arange(1, nx) / nx
    x, y = np.meshgrid(g, g, indexing="ij")
    noise = 0.05 * np.random.default_rng(61).standard_normal((n, n))
    b = np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.02) + 0.3 * np.sin(3 * np.pi * x) * np.sin(5 * np.pi * y) + noise
    if variable:
        smooth = np.sin(2 * np.pi * x) * np.cos(3 * np.pi * y) + 0.5 * np.sin(7 * np.pi * x * y)
        return Stencil.diffusion(jnp.asarray(np.exp(1.5 * smooth), dtype), scale=s), jnp.asarray(b, dtype)
    return Stencil.laplacian(2, scale=jnp.asarray(s, dtype), shift=jnp.asarray(1.0, dtype)), jnp.asarray(b, dtype)


def radius(A, shape, variable):
    """Return the Jacobi radius: exact for constant coefficients, by the power method otherwise."""
    if not variable:
        s = float(-A.coefficients[1])
        return 4 * s / (1 + 4 * s) * np.cos(np.pi / (shape[0] + 1))

    def body(_, x):
        x = x - A.mv(x) / A.diagonal()
        return x / jnp.sqrt(jnp.sum(x * x))

    x = jax.lax.fori_loop(0, 3000, body, jnp.ones(shape, A.coefficients.dtype))
    return float(jnp.sqrt(jnp.sum((x - A.mv(x) / A.diagonal()) ** 2)))


def ours(omega, *, every=8):
    return {
        "multigrid_cg": lambda A, b: multigrid_cg(A, b, tol=1e-8, every=1),
        "multigrid_cg red-black": lambda A, b: multigrid_cg(A, b, tol=1e-8, smoother="red-black", degree=1),
        "chebyshev_cg degree 8": lambda A, b: chebyshev_cg(A, b, degree=8, ratio=200.0, tol=1e-8, every=every),
        "chebyshev_cg degree 32": lambda A, b: chebyshev_cg(A, b, degree=32, ratio=800.0, tol=1e-8, every=1),
        "sor at Young's omega": lambda A, b: sor(A, b, omega=omega, tol=1e-8, every=2 * every),
        "sor at 1.5": lambda A, b: sor(A, b, omega=1.5, tol=1e-8, every=2 * every),
    }


def peers(A, b):
    """Return name -> (prepare, solve) of others, set-up included in every solve."""
    import pyamg
    import scipy.sparse as sp

    rows = A.rows(b.shape)
    n = b.size
    columns = np.asarray(rows.order)[np.asarray(rows.pattern[0])]
    padded = np.append(np.asarray(rows.values), 0.0)
    entries, diagonal = padded[np.asarray(rows.pattern[1])], padded[np.asarray(rows.pattern[2])].sum(1)
    order = np.asarray(rows.order)
    index = np.repeat(order, columns.shape[1])
    matrix = sp.coo_matrix((entries.ravel(), (index, columns.ravel())), (n, n)).tocsr() + sp.coo_matrix(
        (diagonal, (order, order)), (n, n)
    )
    matrix.eliminate_zeros()
    matrix = matrix.tocsr()
    rhs = np.asarray(b).ravel()
    np.testing.assert_allclose(matrix @ rhs, np.asarray(A.mv(b)).ravel(), rtol=1e-9, atol=1e-9)

    def amg():
        return pyamg.ruge_stuben_solver(matrix).solve(rhs, tol=1e-8, accel="cg")

    out = {"PyAMG Ruge-Stuben + CG": amg}
    program = harness.compiled(lambda A, b: jax.scipy.sparse.linalg.cg(A.mv, b, tol=1e-8, maxiter=10000)[0], A, b)
    out["jax.scipy cg"] = lambda: program(A, b)
    try:
        import sparsax

        solve = getattr(sparsax, "spsolve", None) or getattr(sparsax, "solve", None)
        coo = matrix.tocoo()
        if solve is not None:
            direct = harness.compiled(
                lambda v, r: solve(v, jnp.asarray(coo.row), jnp.asarray(coo.col), r), jnp.asarray(coo.data), rhs
            )
            out["sparsax"] = lambda: direct(jnp.asarray(coo.data), jnp.asarray(rhs))
    except Exception as cause:
        print("sparsax left out:", cause)
    return out


def judge(A, b, x):
    """Return ``||b - A x|| / ||b||`` in float64."""
    r = np.asarray(b) - np.asarray(A.mv(jnp.asarray(np.reshape(x, b.shape), b.dtype)))
    return float(np.linalg.norm(r) / np.linalg.norm(b))


def single(options):
    rows = []
    for n in (64, 128) if options.quick else (64, 128, 256):
        for variable in (False, True):
            A, b = instance(n, variable=variable)
            omega = float(young_omega(radius(A, b.shape, variable)))
            name = f"{n} x {n}, {'variable' if variable else 'constant'}"
            for label, solver in ours(omega).items():
                program = harness.compiled(solver, A, b)
                timing = harness.clock(lambda p=program, A=A, b=b: p(A, b), repeat=9, budget=2, warm=True)
                out = timing.output
                rows.append({
                    "system": name, "solver": label, "ms": 1e3 * timing.seconds, "steps": int(out.num_steps),
                    "error": judge(A, b, out.value), "compile": program.first_call_seconds,
                })  # fmt: skip
            for label, call in peers(A, b).items():
                timing = harness.clock(call, repeat=5, budget=2, warm=True)
                rows.append({
                    "system": name, "solver": label, "ms": 1e3 * timing.seconds, "error": judge(A, b, timing.output)
                })  # fmt: skip
            harness.table([r for r in rows if r["system"] == name])
    return rows


def overhead(options):
    """Microseconds a round of learning in a scan, on a table of 5,000 systems and 20 arms."""
    rng = np.random.default_rng(71)
    table, context = jnp.asarray(rng.random((5000, 20)) * 10 + 1), jnp.asarray(rng.random(5000))
    rows = []
    for label, (learner, _) in learners(0.0, 1.0, 6).items():
        program = harness.compiled(
            lambda c, x, k, chosen=learner: replay(chosen, c, key=k, contexts=x, arms=jnp.asarray(GRID)).costs,
            table, context, jax.random.key(9),
        )  # fmt: skip
        timing = harness.clock(lambda p=program: p(table, context, jax.random.key(9)), repeat=5, warm=True)
        rows.append({"learner": label, "us a round": 1e6 * timing.seconds / 5000})
    return rows


def accelerator(options):
    """Measure the targets for one GPU: single systems, a batch, a sweep against the copy rate, the heat run."""
    rows, quick = [], options.quick
    for n in (64,) if quick else (256, 1024):
        A, b = instance(n)
        omega = float(young_omega(radius(A, b.shape, False)))
        calls = ours(omega, every=8)
        calls["multigrid_cg, tested every 2"] = lambda A, b: multigrid_cg(A, b, tol=1e-8, every=2)
        calls["jax.scipy cg"] = lambda A, b: jax.scipy.sparse.linalg.cg(A.mv, b, tol=1e-8, maxiter=10000)[0]
        for label, solver in calls.items():
            program = harness.compiled(solver, A, b)
            timing = harness.clock(lambda p=program, A=A, b=b: p(A, b), repeat=9, budget=2, warm=True)
            x = timing.output if label.startswith("jax") else timing.output.value
            steps = None if label.startswith("jax") else int(timing.output.num_steps)
            rows.append({
                "what": f"{n} x {n}", "solver": label, "ms": 1e3 * timing.seconds, "steps": steps,
                "error": judge(A, b, x),
            })  # fmt: skip
    lanes, n = (8, 32) if quick else (1024, 64)
    kappa = jnp.linspace(0.1, 10, lanes)
    s = 0.5 * kappa * 1e-3 * (n + 1) ** 2
    omegas = young_omega(4 * s / (1 + 4 * s) * np.cos(np.pi / (n + 1)))
    _, b = instance(n)
    b = jnp.broadcast_to(b, (lanes, n, n))

    def shifted(s):
        return Stencil.laplacian(2, scale=s, shift=jnp.ones_like(s))

    for label, solver in {
        "sor at Young's omega": lambda s, w, b: sor(shifted(s), b, omega=w, tol=1e-8),
        "chebyshev_cg degree 8": lambda s, w, b: chebyshev_cg(shifted(s), b, degree=8, ratio=100.0, tol=1e-8),
        "multigrid_cg": lambda s, w, b: multigrid_cg(shifted(s), b, tol=1e-8),
    }.items():
        program = harness.compiled(jax.vmap(solver), s, omegas, b)
        timing = harness.clock(lambda p=program: p(s, omegas, b), repeat=5, warm=True)
        rows.append({
            "what": f"{lanes} of {n} x {n}", "solver": label, "us a system": 1e6 * timing.seconds / lanes,
            "steps": int(timing.output.num_steps.max()), "error": float(timing.output.error.max()),
        })  # fmt: skip
    n, sweeps = (256, 4) if quick else (4096, 64)
    A, b = instance(n, dtype=jnp.float32)
    layout = A.layout(b.shape, sweeps=True)
    phases = layout.pack(b)

    def relax(y, rhs):
        sweep = layout.sweeper(jnp.float32(1.5))
        return jax.lax.fori_loop(0, sweeps, lambda _, y: sweep(y, rhs), y)

    def copy(y, rhs):
        return jax.lax.fori_loop(0, sweeps, lambda _, y: jax.tree.map(lambda u: u + 1, y), y)

    for label, f, words in (("red-black sweep", relax, 4), ("copy", copy, 2)):
        program = harness.compiled(f, phases, phases)
        timing = harness.clock(lambda p=program: p(phases, phases), repeat=5, warm=True)
        per = timing.seconds / sweeps
        rows.append(
            {"what": f"{n} x {n} float32", "solver": label, "us": 1e6 * per, "GB/s": words * 4 * n * n / per / 1e9}
        )
    harness.table(rows)
    return rows + [{"what": "heat run", "solver": r["run"], **r} for r in heat(options)]


def draw(rows, curves, timings, record, path):
    names = list(dict.fromkeys(name for name, _ in curves))
    fig, axes = harness.figure(1, len(names[:3]) + 1, width=4)
    for ax, name in zip(axes, names[:3], strict=False):
        colours = iter(harness.PALETTE)
        for (table, label), curve in curves.items():
            if table == name:
                ax.plot(np.arange(1, len(curve) + 1), 100 * np.maximum(curve, 1e-4), color=next(colours), label=label)
        ax.set(
            xscale="log", yscale="log", xlabel="systems solved", ylabel="excess over instance-optimal (%)", title=name
        )
    axes[0].legend(fontsize=6.5)
    best = [r for r in timings if r["system"].startswith("256")] or timings
    systems = list(dict.fromkeys(r["system"] for r in best))[-2:]
    labels = list(dict.fromkeys(r["solver"] for r in best))
    for k, name in enumerate(systems):
        values = [next((r["ms"] for r in best if (r["system"], r["solver"]) == (name, s)), np.nan) for s in labels]
        axes[-1].barh(np.arange(len(labels)) + 0.4 * k, values, 0.38, label=name, color=harness.PALETTE[k])
    axes[-1].set_yticks(np.arange(len(labels)) + 0.2, labels, fontsize=7)
    axes[-1].set(xscale="log", xlabel="ms a solve, set-up included", title="one heat step, 1e-8")
    axes[-1].legend(fontsize=6.5)
    fig.tight_layout(rect=(0, 0.04, 1, 1))
    harness.save_figure(fig, path, record)


def main():
    options = harness.arguments(__doc__.splitlines()[0])
    record = harness.machine("pyamg", "sparsax")
    if options.gpu:
        rows = accelerator(options)
        harness.save(options.out / "linear_gpu.json", rows, key=("what", "solver"), record=record)
        return
    kinds = [k for k in ("single", "heat", "overhead", "tables") if harness.chosen(k, options.only) or not options.only]
    results, curves = {}, {}
    for kind in kinds:
        if kind == "tables":
            results[kind], curves = tables(options)
        else:
            results[kind] = {"single": single, "heat": heat, "overhead": overhead}[kind](options)
        harness.table(results[kind], title=kind)
        key = {
            "tables": ("table", "policy"),
            "single": ("system", "solver"),
            "heat": ("run",),
            "overhead": ("learner",),
        }
        harness.save(options.out / f"linear_{kind}.json", results[kind], key=key[kind], record=record)
    path = options.out / "linear_single.json"
    if curves and path.exists():
        timings = json.loads(path.read_text())["rows"]
        draw(results["tables"], curves, timings, record, options.out / "linear.png")


if __name__ == "__main__":
    main()
