"""Transport over several devices of one host: strong and weak scaling, and what the collectives cost.

    python bench/transport_devices.py --gpu --devices 1,2,4,8    real devices, about five minutes for two counts
    XLA_FLAGS=--xla_force_host_platform_device_count=4 python bench/transport_devices.py --quick --devices 1,2,4

Counts that the host does not have are left out. On virtual devices of the same cores only the answers and the bytes
mean something. ``efficiency`` is T(1) / (k T(k)) for a problem of one size and T(1) / T(k) for one that grows with the
devices; ``difference`` is the largest between the potentials and those of one device, over epsilon.
"""

import re
from functools import partial
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from transport_scale import clouds, solve_points, solve_stored

import solvers

KEY = ("measure", "instance", "dtype", "devices")
COLLECTIVE = re.compile(
    r"= (\(?[^=]*?\)?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
SHAPE = re.compile(r"(pred|[fsu]\d+)\[([\d,]*)\]")


def mesh_of(count: int) -> Mesh:
    """Return the first devices as one axis."""
    return Mesh(np.array(jax.devices()[:count]), ("rows",))


def collective_bytes(program: harness.Compiled) -> int:
    """Add up what the collectives of a compiled program return, each once."""
    total = 0
    for shapes, _ in COLLECTIVE.findall(program.call.as_text()):
        for kind, sides in SHAPE.findall(shapes):
            size = 1 if kind == "pred" else int(kind[1:]) // 8
            total += size * int(np.prod([int(s) for s in sides.split(",") if s], dtype=np.int64))
    return total


def timed(row: dict[str, Any], function, *data, repeat: int) -> tuple[dict[str, Any], Any]:
    """Compile, run and describe one call; a failure is a row too."""
    try:
        program = harness.compiled(function, *data)
        timing = harness.clock(partial(program, *data), repeat=repeat, budget=30.0, warm=repeat > 1)
        row |= {
            "s": timing.seconds,
            "compile s": program.first_call_seconds,
            "collectives in the program MB": collective_bytes(program) / 1e6,
        }
        return row, timing.output
    except Exception as failure:
        return row | {"failed": repr(failure)[:200]}, None


def whole(output: Any) -> Any:
    """Bring an answer to the host, where answers of different devices can be compared."""
    return jax.tree.map(np.asarray, output)


def judged(row: dict[str, Any], output: Any, epsilon, first: Any) -> dict[str, Any]:
    """Add counts, verdict and the distance to the answer of one device."""
    if output is None:
        return row
    f, g, steps, linear, converged = output
    row |= {"steps": int(steps), "CG steps": int(linear), "says converged": bool(converged)}
    if first is not None:
        shift = f[0] - first[0][0]
        apart = max(np.max(np.abs(f - shift - first[0])), np.max(np.abs(g + shift - first[1])))
        row["difference"] = float(apart / epsilon)
    return row


def streamed(
    n: int, counts: list[int], dtype: str, *, repeat: int, tol: float = 1e-6, weak: bool = False
) -> list[dict[str, Any]]:
    """Solve clouds of points over 1, 2, ... devices; the points grow like the root of the devices if `weak`."""
    rows, first = [], None
    for k in counts:
        size = n if not weak else round(n * k**0.5)
        x, y, a, b, epsilon = clouds(size, 1e-2, dtype)
        row = {
            "measure": "streamed, weak" if weak else "streamed",
            "instance": f"{n} points",
            "dtype": dtype,
            "devices": k,
        }
        solve = partial(solve_points, mesh=mesh_of(k) if k > 1 else None)
        row, output = timed(row, solve, x, y, a, b, epsilon, jnp.asarray(tol, dtype), repeat=repeat)
        output = None if output is None else whole(output)
        rows.append(judged(row | {"points": size, "tol": tol}, output, float(epsilon), None if weak else first))
        first = output if first is None else first
    return rows


def stored(n: int, counts: list[int], dtype: str, *, repeat: int) -> list[dict[str, Any]]:
    """Solve with the cost matrix stored, its rows spread over the devices."""
    rows, first = [], None
    for k in counts:
        x, y, a, b, epsilon = clouds(n, 1e-2, dtype)
        if k > 1:
            spread = NamedSharding(mesh_of(k), PartitionSpec("rows"))
            everywhere = NamedSharding(mesh_of(k), PartitionSpec())
            x, a = (jax.device_put(z, spread) for z in (x, a))
            y, b, epsilon = (jax.device_put(z, everywhere) for z in (y, b, epsilon))
        row = {"measure": "stored", "instance": f"{n} points", "dtype": dtype, "devices": k}
        row, output = timed(row, solve_stored, x, y, a, b, epsilon, jnp.asarray(1e-6, dtype), repeat=repeat)
        output = None if output is None else whole(output)
        rows.append(judged(row, output, float(epsilon), first))
        first = output if first is None else first
    return rows


def batches(lanes: int, side: int, counts: list[int], dtype: str, *, repeat: int) -> list[dict[str, Any]]:
    """Solve many small problems, the lanes spread over the devices."""
    random = np.random.default_rng(6)
    data = tuple(jnp.asarray(z, dtype) for z in random.random((2, lanes, side, 2)))

    def one(x, y):
        solution = solvers.sns_sinkhorn(((x[:, None] - y) ** 2).sum(-1), epsilon=1e-2 / 3)
        return solution.f, solution.g, solution.num_steps, solution.converged

    rows, first = [], None
    for k in counts:
        spec = PartitionSpec("rows")
        share = jax.shard_map(jax.vmap(one), mesh=mesh_of(k), in_specs=spec, out_specs=spec, check_vma=False)
        given = tuple(jax.device_put(z, NamedSharding(mesh_of(k), spec)) for z in data)
        row = {"measure": "batch", "instance": f"{lanes} of {side}", "dtype": dtype, "devices": k}
        row, output = timed(row, share, *given, repeat=repeat)
        if output is not None:
            f, g, steps, converged = whole(output)
            f, g = f - f[:, :1], g + f[:, :1]
            row |= {"steps": int(steps.max()), "says converged": bool(converged.all())}
            row["us each"] = row["s"] / lanes * 1e6
            if first is not None:
                row["difference"] = float(max(np.abs(f - first[0]).max(), np.abs(g - first[1]).max()) / (1e-2 / 3))
            first = (f, g) if first is None else first
        rows.append(row)
    return rows


def one_pass(n: int, counts: list[int], dtype: str, *, repeat: int) -> list[dict[str, Any]]:
    """Time one product with the plan, and its collectives alone: as many bytes gathered by nothing else."""
    rows = []
    x, y, a, b, epsilon = clouds(n, 1e-2, dtype)
    for k in counts:
        mesh = mesh_of(k)
        cost = solvers.PointCloud(x, y, mesh=mesh if k > 1 else None)
        row = {"measure": "one pass", "instance": f"{n} points", "dtype": dtype, "devices": k}
        product = lambda c, f, g, w, e: c.product(f, g, w, 1 / e, 0 * e)  # noqa: E731
        row, _ = timed(row, product, cost, -a, -b, b, epsilon, repeat=repeat)
        if k > 1 and "s" in row:
            spread = jax.device_put(a[: n // k * k], NamedSharding(mesh, PartitionSpec("rows")))
            gather = jax.jit(lambda z: z + 0, out_shardings=NamedSharding(mesh, PartitionSpec()))
            alone = harness.clock(partial(gather, spread), repeat=repeat, warm=True).seconds
            row |= {"gather alone s": alone, "share of collectives": alone / row["s"]}
        rows.append(row)
    return rows


def with_efficiency(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the parallel efficiency against one device of the same measure."""
    base = {(r["measure"], r["instance"], r["dtype"]): r.get("s") for r in rows if r["devices"] == 1}
    for row in rows:
        alone = base.get((row["measure"], row["instance"], row["dtype"]))
        if alone and "s" in row:
            row["efficiency"] = alone / row["s"] / (1 if "weak" in row["measure"] else row["devices"])
    return rows


def draw(rows: list[dict[str, Any]], record: dict[str, Any], path) -> None:
    """Draw the speed-up of every measure, and the efficiency of the growing problem."""
    fig, (strong, weak) = harness.figure(1, 2, width=5.4, height=3.2)
    groups: dict[tuple, list] = {}
    for row in rows:
        if "efficiency" in row:
            groups.setdefault((row["measure"], row["instance"], row["dtype"]), []).append(row)
    for colour, ((measure, instance, dtype), found) in zip(harness.PALETTE, groups.items(), strict=False):
        k = [r["devices"] for r in found]
        axis = weak if "weak" in measure else strong
        values = [r["efficiency"] * (1 if axis is weak else r["devices"]) for r in found]
        axis.plot(k, values, "o-", color=colour, label=f"{measure}, {instance}, {dtype}")
    most = max(r["devices"] for r in rows)
    strong.plot([1, most], [1, most], "--", color="#999999", label="ideal")
    weak.axhline(1, ls="--", color="#999999")
    strong.set(xlabel="devices", ylabel="speed-up", title="one problem, more devices")
    weak.set(xlabel="devices", ylabel="efficiency", title="points growing like the root of the devices", ylim=(0, 1.1))
    for axis in (strong, weak):
        axis.set_xticks(sorted({r["devices"] for r in rows}))
        axis.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    fig.tight_layout()
    harness.save_figure(fig, path, record)


def main() -> None:
    """Measure every part on the devices that were asked for and are there."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument(
        "--devices", default="1,2,4,8", help="comma-separated counts; those the host lacks are left out"
    )
    options = harness.finished(parser.parse_args())
    jax.config.update("jax_enable_x64", True)
    counts = [k for k in map(int, options.devices.split(",")) if k <= len(jax.devices())]
    small, repeat = options.quick or not options.gpu, 2 if options.quick else 3
    n, half, lanes, side = (1500, 600, 64, 16) if small else (100_000, 40_000, 8192, 64)
    parts: dict[str, Any] = {"pass": lambda: one_pass(n, counts, "float64", repeat=repeat)}
    for dtype in ("float64", "float32"):
        parts[f"streamed {dtype}"] = partial(streamed, n, counts, dtype, repeat=repeat)
        parts[f"stored {dtype}"] = partial(stored, half, counts, dtype, repeat=repeat)
        parts[f"batch {dtype}"] = partial(batches, lanes, side, counts, dtype, repeat=repeat)
    parts["answers"] = partial(streamed, n // 10, counts, "float64", tol=1e-12, repeat=1)
    parts["weak"] = partial(streamed, n // 2, counts, "float64", weak=True, repeat=repeat)
    record, rows = harness.machine(), []
    stem = f"transport_devices{'_gpu' if options.gpu else ''}{'_quick' if options.quick else ''}"
    for part, run in parts.items():
        if harness.chosen(part, options.only):
            rows += with_efficiency(run())
            harness.table(rows[-len(counts) :], title=part)
            harness.save(options.out / f"{stem}.json", rows, key=KEY, record=record)
    draw(rows, record, options.out / f"{stem}.png")


if __name__ == "__main__":
    main()
