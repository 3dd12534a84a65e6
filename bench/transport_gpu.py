"""What ``bench/transport.py --gpu`` runs: large clouds, a large batch, and OTT-JAX on the same data, in float64.

With ``--quick`` the sizes shrink so that any machine can run it. Results are written after every row. What bounds a row
is said by three numbers of the same run: ``launches`` and ``kernels ms``, from a profile of one call on a GPU, and
``products / time``, the share of the time that four products a step with a stored matrix would take alone. Where a
package ``solvers_before`` can be imported, an earlier ``solvers`` copied under that name, it is run on the same data:
`results/transport_gpu_h200.json` and `transport_hard_gpu.json` are of such runs, `transport_gpu.json` of another card.
"""

import importlib
import importlib.util
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp

from solvers.problems import transport as instances
from solvers.transport.systems.newton_systems import DenseCG, Escalating
from solvers.transport.systems.sparse_systems import SparseCG, default_width

SOLVER = "sns_sinkhorn"
CLOUDS = [(4096, 1e-2, "clouds"), (4096, 1e-3, "clouds"), (10000, 1e-2, "clouds"), (10000, 1e-3, "clouds")]
RANDOM = [(4096, 1e-3, "random")]  # plain Sinkhorn needs some twenty sweeps here: annealing must not get in its way
HARD = [(10000, 1e-3, kind) for kind in instances.HARD]
BATCH = (1024, 64)
VARIANTS: dict[str, dict[str, Any]] = {SOLVER: {}} | {f"hessian={h}": {"hessian": h} for h in ("dense", "sparse")}
BEFORE = {f"{SOLVER}, before": {"package": "solvers_before"}} if importlib.util.find_spec("solvers_before") else {}
OTT_LIMIT = 20_000
KEY = ("instance", "solver", "dtype", "tol")
COLUMNS = ["instance", "solver", "dtype", "tol", "ms", "error", "steps", "launches", "kernels ms", "products / time"]


@jax.jit
def _marginal_error(f, g, cost, a, b, epsilon):
    f, g, cost, a, b = (x.astype(jnp.float64) for x in (f, g, cost, a, b))
    plan = jnp.exp((f[:, None] + g[None, :] - cost) / epsilon)
    return jnp.abs(plan.sum(1) - a).sum() + jnp.abs(plan.sum(0) - b).sum()


def _ours(settings):
    settings = dict(settings)
    package = importlib.import_module(settings.pop("package", "solvers"))

    def run(cost, a, b, epsilon, tol):
        sol = getattr(package, SOLVER)(cost, a, b, epsilon=epsilon, tol=tol, **settings)
        return sol.f, sol.g, sol.num_steps, sol.converged, sol.linear_steps

    return run


def _ott(cost, a, b, epsilon, tol):
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    solver = Sinkhorn(threshold=tol, max_iterations=OTT_LIMIT)
    out = solver(LinearProblem(Geometry(cost, epsilon=epsilon), a, b))
    return out.f, out.g, out.n_iters, out.converged, 0


def _profile(call) -> dict[str, Any]:
    """Return how many kernels and copies one call launches and how long they run, nothing where there is no GPU."""
    if jax.default_backend() != "gpu":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        file = next(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(file))
        events = [e for plane in data.planes if "GPU" in plane.name for line in plane.lines if "Stream" in line.name
                  for e in line.events]  # fmt: skip
    return {"launches": len(events), "kernels ms": sum(e.duration_ns for e in events) / 1e6}


@cache
def _product_ms(shape: tuple[int, ...], dtype: str) -> float:
    """Return the milliseconds that a product of matrices with a vector each takes."""
    K, x = jnp.ones(shape, dtype), jnp.ones((*shape[:-2], shape[-1]), dtype)
    many = jax.jit(lambda K, x: jax.lax.fori_loop(0, 20, lambda _, x: 1e-4 * jnp.einsum("...ij,...j->...i", K, x), x))
    return harness.clock(lambda: many(K, x), repeat=5, warm=True).seconds / 20 * 1e3


class Record:
    """The rows so far, on disk."""

    def __init__(self, options, name: str = "transport_gpu"):
        self.path = options.out / f"{name}{'_quick' if options.quick else ''}.json"
        self.machine = harness.machine("ott-jax")
        self.rows: list[dict[str, Any]] = []
        print(self.machine, flush=True)

    def add(self, **row) -> None:
        """Keep, print and write one more row."""
        self.rows.append(row)
        print("  ".join(f"{k} {harness.number(v)}" for k, v in row.items() if v is not None), flush=True)
        harness.save(self.path, self.rows, key=KEY, record=self.machine)


PROGRAMS: dict[Any, harness.Compiled] = {}


def _program(name: str, run, data, dtype: str, *, batched: bool = False) -> harness.Compiled:
    """Return the compiled solve: instances of one size share it, since epsilon and tol are traced."""
    key = name, data[0].shape, dtype
    if key not in PROGRAMS:
        call = jax.vmap(run, in_axes=(0, 0, 0, None, None)) if batched else run
        PROGRAMS[key] = harness.compiled(call, *data, jnp.asarray(1e-6, dtype))
    return PROGRAMS[key]


def large(record: Record, problem, *, dtype: str, repeat: int, variants=VARIANTS, with_ott: bool = True) -> None:
    """Solve one large instance to 1e-6 and 1e-9 (1e-5 in float32) with every variant, and once with OTT-JAX."""
    data = (problem.cost, problem.a, problem.b, jnp.asarray(problem.epsilon, dtype))
    contestants = {name: (_ours(settings), (1e-6, 1e-9)) for name, settings in {**BEFORE, **variants}.items()}
    if dtype == "float32":
        contestants = {name: (run, (1e-4, 1e-5)) for name, (run, _) in contestants.items()}
    elif with_ott:
        contestants["OTT JAX"] = (_ott, (1e-6,))
    for name, (run, tolerances) in contestants.items():
        try:
            program = _program(name, run, data, dtype)
            product = _product_ms(data[0].shape, dtype)
            for tol in tolerances:
                call = lambda tol=tol: program(*data, jnp.asarray(tol, dtype))  # noqa: B023, E731
                timing = harness.clock(call, repeat=repeat, budget=4.0, warm=name != "OTT JAX")
                f, g, steps, converged, cg = timing.output
                record.add(**{
                    "instance": problem.name, "solver": name, "dtype": dtype, "tol": tol, "ms": timing.seconds * 1e3,
                    "fastest ms": min(timing.runs) * 1e3,
                    "error": float(_marginal_error(f, g, *data)), "steps": int(steps),
                    "cg": int(cg), "says converged": bool(converged),
                    "compile s": program.first_call_seconds,
                    "temporary / cost": program.temporary_bytes / data[0].nbytes, "runs": len(timing.runs),
                    "products / time": 4 * int(steps) * product / timing.seconds / 1e3,
                    **(_profile(call) if "OTT" not in name else {}),
                })  # fmt: skip
        except Exception as error:  # a peer that is missing or out of memory must not end the benchmark
            record.add(instance=problem.name, solver=name, dtype=dtype, tol=0.0, failed=repr(error)[:300])


def small(record: Record, count: int, n: int, *, relative: float, repeat: int) -> None:
    """Solve a batch in one vmap; the error is that of its worst lane."""
    problem = instances.device_batch(count, n, relative=relative, seed=3, dtype=jnp.float64)
    data = (problem.cost, problem.a, problem.b, jnp.asarray(relative, jnp.float64))
    for name, settings in {**BEFORE, **VARIANTS}.items():
        run = _ours(settings)
        try:
            program = _program(name, run, data, "float64", batched=True)
            for tol in (1e-6, 1e-9):
                call = lambda tol=tol: program(*data, jnp.asarray(tol, jnp.float64))  # noqa: B023, E731
                timing = harness.clock(call, repeat=repeat, budget=4.0, warm=True)
                f, g, steps, converged, _ = timing.output
                errors = jax.vmap(_marginal_error, in_axes=(0, 0, 0, 0, 0, None))(f, g, *data)
                record.add(**{
                    "instance": problem.name, "solver": name, "dtype": "float64", "tol": tol,
                    "ms": timing.seconds * 1e3, "us a problem": timing.seconds / count * 1e6,
                    "error": float(errors.max()),
                    "steps": f"{int(steps.min())} to {int(steps.max())}", "lanes failed": int((~converged).sum()),
                    "compile s": program.first_call_seconds,
                    "temporary / cost": program.temporary_bytes / data[0].nbytes, "runs": len(timing.runs),
                    "products / time": 4 * int(steps.max()) * _product_ms(data[0].shape, "float64")
                    / timing.seconds / 1e3,
                    **_profile(call),
                })  # fmt: skip
        except Exception as error:
            record.add(instance=problem.name, solver=name, dtype="float64", tol=0.0, failed=repr(error)[:300])


def hard(options, shrink: int, repeat: int) -> None:
    """Solve the instances at which directions are hard to find, with and without the coarse space of slow modes."""
    record = Record(options, "transport_hard_gpu")
    for size, relative, kind in HARD:
        if not harness.chosen(f"{kind} {size}", options.only):
            continue
        n = size // shrink
        plain = Escalating(SparseCG(default_width(n)), DenseCG(single=False))
        variants = {SOLVER: {}, "no coarse space": {"hessian": plain}}
        problem = instances.device_clouds(n, relative=relative, seed=0, kind=kind, dtype=jnp.dtype("float64"))
        large(record, problem, dtype="float64", repeat=repeat, variants=variants, with_ott=False)


def main(options) -> None:
    """Run everything and print the table."""
    record = Record(options)
    shrink = 16 if options.quick else 1
    count, n = (side // (4 if options.quick else 1) for side in BATCH)
    repeat = 3 if options.quick else 10
    for parts in [CLOUDS[1:2], CLOUDS[3:], None, CLOUDS[:1], CLOUDS[2:3], RANDOM]:
        if parts is None:
            for relative in (1e-2, 1e-3):
                if harness.chosen("batch", options.only):
                    small(record, count, n, relative=relative, repeat=repeat)
            continue
        for size, relative, kind in parts:
            if not harness.chosen(f"{kind} {size}", options.only):
                continue
            for dtype in ("float64", "float32"):
                make = {"relative": relative, "seed": 0, "kind": kind, "dtype": jnp.dtype(dtype)}
                problem = instances.device_clouds(size // shrink, **make)
                large(record, problem, dtype=dtype, repeat=repeat)
    hard(options, shrink, repeat)
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        record.add(instance="all", solver=SOLVER, dtype="", tol=0.0, **{"peak GB": stats["peak_bytes_in_use"] / 1e9})
    harness.table(record.rows, COLUMNS, title="one accelerator")
    print(f"wrote {record.path}")
