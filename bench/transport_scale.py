"""Transport at scale: costs that are never stored, several devices, no entropy, fitted maps.

    python bench/transport_scale.py                     two CPU cores, five minutes
    python bench/transport_scale.py --gpu               one accelerator, two minutes; --quick shrinks both to a test
    python bench/transport_scale.py --only exact,maps   a part

Errors are evaluated here, in float64, from the potentials that each contestant returns.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import solvers

KEY = ("measure", "instance", "solver", "dtype")
STREAM = "streamed"


def clouds(n: int, relative: float, dtype, *, dimension: int = 2, seed: int = 5):
    """Return points of the unit square and of a Gaussian heap, random weights, and epsilon over the mean cost."""
    random = np.random.default_rng(seed)
    x, y = random.random((n, dimension)), random.normal(0.5, 0.15, (n, dimension))
    a, b = (w / w.sum() for w in random.random((2, n)) + 0.1)
    mean = (x**2).sum(1).mean() + (y**2).sum(1).mean() - 2 * x.mean(0) @ y.mean(0)
    return tuple(jnp.asarray(z, dtype) for z in (x, y, a, b, relative * mean))


@jax.jit
def marginal_error(f, g, x, y, a, b, epsilon):
    """``|P 1 - a|_1 + |P' 1 - b|_1`` in blocks, in float64 where enabled."""
    f, g, x, y, a, b = (jnp.asarray(z, jnp.result_type(float)) for z in (f, g, x, y, a, b))
    block = next(k for k in range(max(1, 4_000_000 // len(y)), 0, -1) if len(x) % k == 0)

    def rows(columns, part):
        f, x = part
        plan = jnp.exp((f[:, None] + g - ((x[:, None] - y) ** 2).sum(-1)) / epsilon)
        return columns + plan.sum(0), plan.sum(1)

    parts = f.reshape(-1, block), x.reshape(-1, block, x.shape[1])
    columns, r = jax.lax.scan(rows, jnp.zeros_like(b), parts)
    return jnp.abs(r.ravel() - a).sum() + jnp.abs(columns - b).sum()


def solve_points(x, y, a, b, epsilon, tol, **settings):
    """Run our solver on points."""
    sol = solvers.sns_sinkhorn(solvers.PointCloud(x, y, **settings), a, b, epsilon=epsilon, tol=tol)
    return sol.f, sol.g, sol.num_steps, sol.linear_steps, sol.converged


def solve_stored(x, y, a, b, epsilon, tol):
    """Run our solver on the matrix."""
    cost = ((x[:, None] - y) ** 2).sum(-1)
    sol = solvers.sns_sinkhorn(cost, a, b, epsilon=epsilon, tol=tol)
    return sol.f, sol.g, sol.num_steps, sol.linear_steps, sol.converged


def ott_online(x, y, a, b, epsilon, tol):
    """Run OTT-JAX's Sinkhorn with its cost computed in batches."""
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    out = Sinkhorn(threshold=tol, max_iterations=5000)(
        LinearProblem(PointCloud(x, y, epsilon=epsilon, batch_size=1024), a, b)
    )
    return out.f, out.g, out.n_iters, out.n_iters, out.converged


def points_row(solver: str, function, n: int, relative: float, tol: float, dtype: str, *, repeat: int = 1, **more):
    """Time one contestant on one instance; a failure is a row too."""
    row: dict[str, Any] = {
        "measure": "points", "instance": f"{n} points, {relative:.0e}", "solver": solver, "dtype": dtype, "tol": tol
    }  # fmt: skip
    try:
        data = clouds(n, relative, dtype, **more)
        program = harness.compiled(function, *data, jnp.asarray(tol, dtype))
        timing = harness.clock(
            lambda: program(*data, jnp.asarray(tol, dtype)), repeat=repeat, budget=20.0, warm=repeat > 1
        )
        f, g, steps, linear, converged = timing.output
        return row | {
            "s": timing.seconds, "error": float(marginal_error(f, g, *data)), "steps": int(steps),
            "CG steps": int(linear), "says converged": bool(converged), "compile s": program.first_call_seconds,
            "temporary MB": program.temporary_bytes / 1e6,
        }  # fmt: skip
    except Exception as failure:
        return row | {"failed": repr(failure)[:200]}


def in_a_process(part: str, *arguments: Any, **environment: str) -> dict[str, Any]:
    """Run one function of this file in a fresh process; return its row with the process's peak memory."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(harness.RESULTS.parents[1]), str(harness.RESULTS.parent)])}
    code = f"import transport_scale as t; t.{part}(*{arguments!r})"
    run = subprocess.run(
        [sys.executable, "-c", code], env=env | environment, capture_output=True, text=True, check=False, timeout=230
    )
    if run.returncode:
        return {"failed": run.stderr.strip().splitlines()[-1][:200]}
    return json.loads(run.stdout.splitlines()[-1])


def memory(n: int, relative: float, tol: float, dtype: str) -> None:
    """Solve and print a row with the peak resident memory of this process."""
    import resource

    jax.config.update("jax_enable_x64", dtype == "float64")
    row = points_row(STREAM, solve_points, n, relative, tol, dtype)
    row["measure"] = "memory"
    row["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row["matrix GiB"] = n * n * np.dtype(dtype).itemsize / 2**30
    print(json.dumps(harness._plain(row)))


def devices(n: int, count: int) -> None:
    """Solve over the first devices of this process and print a row."""
    jax.config.update("jax_enable_x64", True)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("rows",))
    row = points_row(STREAM, partial(solve_points, mesh=mesh), n, 1e-2, 1e-6, "float64")
    print(json.dumps(harness._plain(row | {"measure": "devices", "instance": f"{n} points, {count} devices"})))


def scaling(n: int) -> list[dict[str, Any]]:
    """Spread one problem over 1, 2 and 4 virtual devices (of the same cores) or over the real ones."""
    if jax.default_backend() != "cpu":
        counts = [k for k in (1, 2, 4, 8) if k <= len(jax.devices())]
        return [in_a_process("devices", n, k) for k in counts]
    flag = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    return [in_a_process("devices", n, k, **flag) for k in (1, 2, 4)]


def images(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two images: three discs, and a ring with a slope, both over a thin floor."""
    s, t = np.meshgrid(*(np.linspace(0, 1, side),) * 2, indexing="ij")
    discs = sum(((s - p) ** 2 + (t - q) ** 2 < 0.02).astype(float) for p, q in ((0.2, 0.3), (0.7, 0.2), (0.6, 0.8)))
    radius = np.hypot(s - 0.5, t - 0.5)
    ring = (np.abs(radius - 0.32) < 0.1) * (1 + s)
    a, b = (z + 0.01 * z.mean() for z in (discs, ring))
    return a / a.sum(), b / b.sum()


def exact(sides) -> list[dict[str, Any]]:
    """W2 squared between two images: ours to a certified gap of 1e-6 against the network simplex."""
    rows = []
    for side in sides:
        a, b = images(side)
        axis = jnp.linspace(0, 1, side)
        grid = solvers.Grid(axis, axis)
        given = {"image grid": (grid, a.ravel(), b.ravel()), "matrix": (grid.dense(), a.ravel(), b.ravel())}
        for name, data in given.items():

            def run(cost, a, b):
                sol = solvers.transport_exactly(cost, a, b)
                return sol.error, sol.transport_cost, sol.num_steps, sol.newton_steps, sol.converged

            row = {"measure": "exact", "instance": f"{side} x {side}", "solver": f"ours, {name}", "dtype": "float64"}
            try:
                data = jax.tree.map(jnp.asarray, data)
                program = harness.compiled(run, *data)
                timing = harness.clock(partial(program, *data), repeat=1)
                gap, value, steps, newton, _ = (float(z) for z in timing.output)
                row |= {"s": timing.seconds, "certified gap": gap, "value": value, "steps": int(steps),
                        "Newton steps": int(newton), "compile s": program.first_call_seconds}  # fmt: skip
            except Exception as failure:
                row["failed"] = repr(failure)[:200]
            rows.append(row)
        row = {"measure": "exact", "instance": f"{side} x {side}", "solver": "POT emd", "dtype": "float64"}
        try:
            import ot

            cost = np.asarray(grid.dense())
            start = time.perf_counter()
            value = ot.emd2(a.ravel(), b.ravel(), cost, numItermax=10**8)
            row |= {"s": time.perf_counter() - start, "value": value}
        except Exception as failure:
            row["failed"] = repr(failure)[:200]
        rows.append(row)
    return rows


def bend(x):
    """Return the known optimal map of points: the gradient of a convex function."""
    return x + 0.6 * jnp.tanh(2 * x) + jnp.asarray([1.0, 0.5], x.dtype)


def maps(n: int, steps: int) -> list[dict[str, Any]]:
    """Fit the same network by our loss and by OTT's divergence and Monge gap; error on new points."""
    x, fresh = (jax.random.normal(k, (n, 2), jnp.float64) for k in jax.random.split(jax.random.key(31)))
    y = bend(jax.random.permutation(jax.random.key(33), jax.random.normal(jax.random.key(32), (n, 2), jnp.float64)))
    spread = float(jnp.mean(jnp.sum((bend(fresh) - fresh) ** 2, 1)))
    rows = []
    for name, fit in {"ours": _fit_ours, "OTT JAX Monge gap": _fit_ott}.items():
        row = {"measure": "maps", "instance": f"{n} points, {steps} steps", "solver": name, "dtype": "float64"}
        try:
            fit(x, y, steps)
            start = time.perf_counter()
            model = jax.block_until_ready(fit(x, y, steps))
            error = float(jnp.mean(jnp.sum((model(fresh) - bend(fresh)) ** 2, 1)))
            row |= {"s": time.perf_counter() - start, "unexplained %": 100 * error / spread, "steps": steps}
        except Exception as failure:
            row["failed"] = repr(failure)[:200]
        rows.append(row)
    return rows


def _fit_ours(x, y, steps):
    return solvers.fit_transport_map(x, y, key=jax.random.key(34), max_steps=steps).value


def _fit_ott(x, y, steps):
    """Train the same network with Adam on OTT's divergence plus gap, epsilon and schedule as ours."""
    import optax
    from ott.geometry.pointcloud import PointCloud
    from ott.neural.methods.monge_gap import monge_gap_from_samples
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence

    epsilon = 0.05 * float(jnp.mean(jnp.sum((x[:, None] - y) ** 2, -1)))
    model = solvers.TransportMap.random(jax.random.key(34), 2, width=64, depth=2, dtype=x.dtype)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss(model):
        moved = model(x)
        fitting = sinkhorn_divergence(PointCloud, moved, y, epsilon=epsilon)
        fitting = fitting[0] if isinstance(fitting, tuple) else fitting.divergence
        return fitting + monge_gap_from_samples(x, moved, epsilon=epsilon)

    def step(carry, _):
        model, state = carry
        updates, state = optimiser.update(jax.grad(loss)(model), state)
        return (optax.apply_updates(model, updates), state), None

    run = jax.jit(lambda model: jax.lax.scan(step, (model, optimiser.init(model)), None, length=steps)[0][0])
    return run(model)


def one_pass(n: int, repeat: int) -> list[dict[str, Any]]:
    """Time one streamed product in float32 against nothing but as many exponentials."""
    x, y, a, b, epsilon = clouds(n, 1e-2, "float32")
    cost = solvers.PointCloud(x, y)
    product = jax.jit(lambda c, f, g, w: c.product(f, g, w, 1 / epsilon, 0 * epsilon))
    bare = jax.jit(lambda u, v: jnp.sum(jnp.exp(u[:, None] + v), 1))
    calls = {"product": partial(product, cost, -a, -b, b), "exponentials alone": partial(bare, -a, -b)}
    for call in calls.values():
        jax.block_until_ready(call())
    timings = harness.alternate(calls, repeat=repeat)
    return [
        {"measure": "one pass", "instance": f"{n} points", "solver": name, "dtype": "float32", "s": t.seconds,
         "ns an entry": t.seconds / n**2 * 1e9}
        for name, t in timings.items()
    ]  # fmt: skip


def cpu_parts(quick: bool):
    """Yield what runs on a CPU: name and function of no arguments."""
    n = 2000 if quick else 20_000
    yield "memory", lambda: [in_a_process("memory", n, 1e-2, 1e-5, "float32")]
    for solver, function in (
        (STREAM, partial(solve_points, tile=2**18)),
        ("stored", solve_stored),
        ("OTT JAX online", ott_online),
    ):
        yield (
            f"points {solver}",
            partial(lambda *c: [points_row(*c, 1000 if quick else 4000, 1e-2, 1e-6, "float64")], solver, function),
        )
    yield "devices", partial(scaling, 1000 if quick else 4000)
    yield "exact", partial(exact, (12,) if quick else (16, 32, 64))
    yield "maps", partial(maps, *((60, 20) if quick else (256, 300)))


def gpu_parts(quick: bool):
    """Yield what runs on one accelerator, targets first."""
    large, half = (1500, 1000) if quick else (50_000, 20_000)
    yield (
        "points 50k",
        lambda: [points_row(STREAM, solve_points, large, 1e-3, 1e-6, "float64", repeat=2) | {"target": "<= 3 s"}],
    )
    yield (
        "stored 20k",
        lambda: [points_row("stored", solve_stored, half, 1e-3, 1e-9, "float64", repeat=3) | {"target": "<= 0.2 s"}],
    )
    yield "one pass", partial(one_pass, large, 5)
    yield "exact", partial(exact, (12,) if quick else (64,))
    yield (
        "points 64-d",
        lambda: [
            points_row(STREAM, solve_points, half, 1e-2, 1e-6, "float64", dimension=64) | {"instance": f"{half}, 64-D"}
        ],
    )
    yield "points 100k", lambda: [points_row(STREAM, solve_points, 2 * large, 1e-2, 1e-6, "float64")]
    yield "maps", partial(maps, *((60, 20) if quick else (1024, 300)))


def main() -> None:
    """Run the parts that were asked for; results are written after each."""
    options = harness.arguments(__doc__ or "")
    jax.config.update("jax_enable_x64", True)
    name = f"transport_scale{'_gpu' if options.gpu else ''}{'_quick' if options.quick else ''}.json"
    record, rows, start = harness.machine("ott-jax", "POT", "optax"), [], time.perf_counter()
    for part, run in (gpu_parts if options.gpu else cpu_parts)(options.quick):
        if harness.chosen(part, options.only):
            found = run()
            rows += found
            harness.table(found, title=f"{part} ({time.perf_counter() - start:.0f} s so far)")
            harness.save(options.out / name, rows, key=KEY, record=record)
    print(f"wrote {options.out / name}")


if __name__ == "__main__":
    main()
