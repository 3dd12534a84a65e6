"""Sequences of linear systems: wall time of single solves against peers, of the heat run, and of learning.

    python bench/linear.py                 everything that runs on two cores
    python bench/linear.py --only single   single solves against peers; also: heat, first, overhead, systems
    python bench/linear.py --only systems,elasticity     one system of these; other rows are kept
    python bench/linear.py --gpu           the instances for one accelerator; --only takes large, elements, alone,
                                           together, sweep and heat

Times are medians, steps exact counts; what they say about learning is in linear_tables.py and linear_fidelity.py.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")

import itertools
import time

import harness
import jax
import jax.numpy as jnp
import linear_systems
import numpy as np
from jax.experimental.sparse import BCOO

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
    young_omega,
    young_prior,
)
from solvers.linear.learned.relaxation_theory import safe_learner
from solvers.problems.linear import heat_start, heat_step

GRID = np.linspace(1, 1.95, 20)


def system(step):
    return Stencil.laplacian(2, scale=step.s, shift=jnp.ones_like(step.s))


def learners(low, high, bins):
    """Return the paper's learners and ours."""
    return {
        "Tsallis-INF": (TsallisINF("importance"), "raw"),
        "Tsallis-INF, reduced variance": (TsallisINF(), "raw"),
        "Tsallis-INF, binned": (ContextBins(TsallisINF("importance"), low, high, bins), "raw"),
        "ChebCB": (ChebCB(low, high), "raw"),
        "Young prior, Thompson": (young_prior(), "radius"),
    }


def heat(options, *, few=False):
    """Yield runs of 5,000 heat steps at nx = 100, learning included, one program each; `few` leaves most out."""
    steps = 500 if options.quick else 5000

    def step(t, u, args):
        problem = heat_step(t, u)
        return system(problem), problem.rhs

    u0 = heat_start(100)
    common = dict(x0=u0, num_systems=steps, save=jnp.max, tol=1e-8)
    runs = {
        "learned omega (Young prior)": lambda k: solve_sequence(
            step, learner=young_prior(), arms=Arms.sor(16), key=k, **common
        ),
        "learned omega (Young prior), tested every 16": lambda k: solve_sequence(
            step, learner=young_prior(), arms=Arms.sor(16), key=k, every=16, **common
        ),
        "multigrid_cg": lambda k: solve_sequence(
            step, learner=TsallisINF(), arms=Arms.multigrid_cg([4.0]), key=k, **common
        ),
        "learned omega (mix with Tsallis-INF)": lambda k: learned_sor(step, learner=safe_learner(), key=k, **common),
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
    for name, run in list(runs.items())[: 3 if few else None]:
        program = harness.compiled(run, jax.random.key(9))
        timing = harness.clock(lambda p=program: p(jax.random.key(9)), repeat=3, budget=12)
        out = timing.output
        row = {
            "run": name, "systems": steps, "seconds": timing.seconds, "compile": program.first_call_seconds,
            "ms a system": 1e3 * timing.seconds / steps, "mean steps": float(out.num_steps.mean()),
            "unsolved": int((~out.converged).sum()), "worst error": float(out.error.max()),
        }  # fmt: skip
        harness.table([row])
        yield row


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
    import scipy.fft
    import scipy.sparse as sp
    import scipy.sparse.linalg

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

    def sine():
        # One entry of the centre and one of a side define a constant stencil; SciPy's transforms do the rest.
        centre, side = np.asarray(A.coefficients)[:2]
        k = np.pi * np.arange(1, b.shape[0] + 1) / (b.shape[0] + 1)
        spectrum = centre + 2 * side * (np.cos(k)[:, None] + np.cos(k)[None, :])
        return scipy.fft.idstn(scipy.fft.dstn(np.asarray(b), type=1, workers=2) / spectrum, type=1, workers=2)

    out = {"PyAMG Ruge-Stuben + CG": amg}
    if A.coefficients.ndim == 1:
        out["SciPy sine transform"] = sine
    factor = scipy.sparse.linalg.splu(matrix.tocsc())
    out["SciPy stored factor, solve only"] = lambda: factor.solve(rhs)
    program = harness.compiled(lambda A, b: jax.scipy.sparse.linalg.cg(A.mv, b, tol=1e-8, maxiter=10000)[0], A, b)
    out["jax.scipy cg"] = lambda: program(A, b)
    try:
        import sparsax

        coo = sp.triu(matrix).tocoo()
        pattern = jnp.asarray(coo.row, jnp.int32), jnp.asarray(coo.col, jnp.int32)
        direct = harness.compiled(lambda v, r: sparsax.solve(*pattern, v, r), jnp.asarray(coo.data), rhs)
        calls = itertools.count(1)
        # It remembers factors by their values: every call gets new ones, as a new time step would bring.
        out["sparsax (CHOLMOD)"] = lambda: direct(jnp.asarray(coo.data * (1 + 1e-13 * next(calls))), rhs)
    except Exception as cause:
        print("sparsax left out:", cause)
    return out


def judge(A, b, x):
    """Return ``||b - A x|| / ||b||`` in float64."""
    r = np.asarray(b) - np.asarray(A.mv(jnp.asarray(np.reshape(x, b.shape), b.dtype)))
    return float(np.linalg.norm(r) / np.linalg.norm(b))


def single(options):
    rows = []
    for n in (64,) if options.quick else (256,):
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


def first(options):
    """Yield the seconds that a first call of multigrid takes; those of the processor hold on a busy machine too."""
    n = 64 if options.quick else 256
    cases = {f"{n} x {n}": (instance(n), {}), f"{n} x {n}, variable": (instance(n, variable=True), {})}
    cases |= {
        f"{n} x {n}, red-black": (instance(n), {"smoother": "red-black", "degree": 1}),
        f"{n} x {n}, W-cycle": (instance(n), {"cycle": "W"}),
        f"{n // 4}^3": ((Stencil.laplacian(3), jnp.ones((n // 4,) * 3)), {}),
    }
    for name, ((A, b), how) in cases.items():
        start = time.perf_counter(), time.process_time()
        jax.jit(lambda A, b, how=how: multigrid_cg(A, b, tol=1e-8, **how)).lower(A, b).compile()
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        yield {"system": name, "first call": wall, "first call CPU": cpu}


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


def large(options):
    """Measure Poisson's equation on 512^3 points, with its memory, on one GPU."""
    n, rows = 31 if options.quick else 512, []
    A, b = Stencil.laplacian(3), jax.random.normal(jax.random.key(83), (n, n, n), jnp.float64)
    program = harness.compiled(lambda b: multigrid_cg(A, b, tol=1e-8), b)
    timing = harness.clock(lambda: program(b), repeat=5, budget=10, warm=True)
    size = norm(A.mv(timing.output.value) - b) / norm(b)
    rows.append({
        "what": f"Poisson {n}^3", "solver": "multigrid_cg", "ms": 1e3 * timing.seconds,
        "steps": int(timing.output.num_steps), "error": float(size), "compile": program.first_call_seconds,
        "GiB": (program.argument_bytes + program.output_bytes + program.temporary_bytes) / 2**30,
    })  # fmt: skip
    harness.table(rows)
    del timing, program, b
    return rows


def elements(options):
    """Yield rows on finite elements of a million rows on one GPU; the set-up is on the host and a column of its own."""
    system = linear_systems.linear_triangles(40 if options.quick else 1002)
    b = np.random.default_rng(79).standard_normal(system.matrix.shape[0])

    def row(label, x, **more):
        error = float(np.linalg.norm(b - system.matrix @ np.asarray(x)) / np.linalg.norm(b))
        return {"what": "a million P1 rows", "solver": label, "rows": b.size, **more, "error": error}

    for own in reversed(system.own):
        r = linear_systems.ours(system, b, 3, own)
        times = {"ms": 1e3 * r["solve"], "set-up": r["set-up"], "compile": r["compile"], "steps": r["steps"]}
        yield row(r["solver"], r["x"], **times)
    A, rhs = BCOO.from_scipy_sparse(system.matrix), jnp.asarray(b)
    program = harness.compiled(lambda b: jax.scipy.sparse.linalg.cg(A.__matmul__, b, tol=1e-8, maxiter=10000)[0], rhs)
    timing = harness.clock(lambda: program(rhs), repeat=3, budget=4, warm=True)
    yield row("jax.scipy cg", timing.output, ms=1e3 * timing.seconds, compile=program.first_call_seconds)


def norm(x):
    return jnp.sqrt(jnp.sum(x * x))


def alone(options):
    """Yield single systems on one GPU."""
    for n, variable in ((64, False), (64, True)) if options.quick else ((256, False), (256, True), (1024, False)):
        A, b = instance(n, variable=variable)
        omega = float(young_omega(radius(A, b.shape, variable)))
        few = ("multigrid_cg",) if variable else ("multigrid_cg", "chebyshev_cg degree 8", "sor at Young's omega")
        calls = {label: solver for label, solver in ours(omega, every=8).items() if label in few}
        if not variable:
            calls["jax.scipy cg"] = lambda A, b: jax.scipy.sparse.linalg.cg(A.mv, b, tol=1e-8, maxiter=10000)[0]
        for label, solver in calls.items():
            program = harness.compiled(solver, A, b)
            timing = harness.clock(lambda p=program, A=A, b=b: p(A, b), repeat=9, budget=2, warm=True)
            x = timing.output if label.startswith("jax") else timing.output.value
            steps = None if label.startswith("jax") else int(timing.output.num_steps)
            yield {
                "what": f"{n} x {n}" + ", variable" * variable, "solver": label, "ms": 1e3 * timing.seconds,
                "steps": steps, "error": judge(A, b, x), "compile": program.first_call_seconds,
            }  # fmt: skip


def together(options):
    """Yield a batch of systems on one GPU."""
    lanes, n = (8, 32) if options.quick else (1024, 64)
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
        yield {
            "what": f"{lanes} of {n} x {n}", "solver": label, "us a system": 1e6 * timing.seconds / lanes,
            "steps": int(timing.output.num_steps.max()), "error": float(timing.output.error.max()),
        }  # fmt: skip


def sweep(options):
    """Measure a sweep against the rate of copying on one GPU."""
    rows, (n, sweeps) = [], (256, 4) if options.quick else (4096, 64)
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
    return rows


def heated(options):
    """Yield the heat run with a learned omega, and with multigrid, on one GPU."""
    for row in heat(options, few=True):
        yield {"what": f"heat run, {row['systems']:,} steps", "solver": row["run"], **row}


ON_GPU = {"large": large, "elements": elements, "alone": alone, "together": together, "sweep": sweep, "heat": heated}


def draw(rows, record, path):
    """Draw the times of the largest systems."""
    fig, axes = harness.figure(1, 2, width=4.6, height=3.4)
    for ax, name in zip(axes, list(dict.fromkeys(r["system"] for r in rows))[-2:], strict=False):
        mine = sorted((r for r in rows if r["system"] == name), key=lambda r: -r["ms"])
        ours = [r["solver"].startswith(("multigrid", "chebyshev", "sor")) for r in mine]
        for k, (r, o) in enumerate(zip(mine, ours, strict=True)):
            ax.plot(r["ms"], k, "o", color=harness.PALETTE[0 if o else 1])
        for k, r in enumerate(mine):
            ax.text(r["ms"] * 1.15, k, f"{r['ms']:.3g}  (error {r['error']:.0e})", va="center", fontsize=6.5)
        ax.set_yticks(range(len(mine)), [r["solver"] for r in mine], fontsize=7)
        ax.set(xscale="log", xlabel="ms a solve, set-up included; blue: ours", title=name)
        ax.set_xlim(0.6 * mine[-1]["ms"], 12 * mine[0]["ms"])
        ax.grid(axis="y", color="#e8e8e8", linewidth=0.6)
    fig.tight_layout(rect=(0, 0.04, 1, 1))
    harness.save_figure(fig, path, record)


def main():
    options = harness.arguments(__doc__.splitlines()[0])
    record = harness.machine("pyamg", "sparsax", "scikit-fem")
    if options.gpu:
        for kind, job in ON_GPU.items():
            if harness.chosen(kind, options.only):
                name = "linear_gpu_large.json" if kind in ("large", "elements") else "linear_gpu.json"
                for row in job(options):
                    harness.table([row], title=kind)
                    harness.save(options.out / name, [row], key=("what", "solver"), record=record)
        return
    jobs = {
        "single": (single, ("system", "solver")), "heat": (heat, ("run",)), "first": (first, ("system",)),
        "overhead": (overhead, ("learner",)),
        "systems": (linear_systems.systems, ("system", "solver")),
    }  # fmt: skip
    for kind, (job, key) in jobs.items():
        if harness.chosen(kind, options.only):
            rows, path = [], options.out / f"linear_{kind}.json"
            for row in job(options):
                rows.append(row)
                saved = harness.save(path, [row], key=key, record=record)
            harness.table(rows, title=kind)
            if kind == "single":
                draw(saved["rows"], record, options.out / "linear_single.png")


if __name__ == "__main__":
    main()
