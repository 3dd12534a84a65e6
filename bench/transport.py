"""Entropic optimal transport: accuracy against time on eight instances, against other people's solvers.

    python bench/transport.py --quick                   five minutes: two targets, short caps
    python bench/transport.py                           the committed results; --only clouds does a part of them
    python bench/transport.py --gpu                     large clouds and a large batch on one accelerator

Every contestant solves the same instance in the same dtype. Its error is ``|P 1 - a|_1 + |P' 1 - b|_1``, evaluated here
in float64 on the plan that its potentials imply (in float32 on the plan it returns). A contestant that does not reach a
target in its time (see CAPS) is listed with the error it got to. What ``--gpu`` does is in `bench/transport_gpu.py`.
"""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import harness
import jax
import numpy as np
import peers
from peers import Answer, Contestant, Ready

import solvers
from solvers.problems import transport as instances

KEY = ("measure", "problem", "dtype", "solver", "lanes")
OURS = "sns_sinkhorn"
PAPER = "SNS as published"
PAPER_CASES = [  # instance, Sinkhorn sweeps first, entries kept a row, Newton steps: the paper's, and denser
    ("assignment", 20, 2, 40),
    ("assignment", 20, 10, 40),
    ("digits_l2", 20, 2, 40),
    ("digits_l2", 20, 15, 40),
    ("digits_l1", 700, 15, 77),
]
TARGETS = {"float64": (1e-2, 1e-4, 1e-6, 1e-9), "float32": (1e-3, 1e-4, 1e-5)}
QUICK_TARGETS = {"float64": (1e-6, 1e-9), "float32": (1e-4,)}
CAPS = {"OTT JAX": 25.0, "OTT JAX momentum": 25.0}  # a peer's time as a multiple of ours; the others have:
CAP, QUICK_CAP = 6.0, 3.0
LEAST_CAP, QUICK_LEAST_CAP, MOST_CAP = 4.0, 1.2, 60.0  # but at least and at most so many seconds
QUICK_SECONDS = 250
QUICK_FLOAT32 = ("assignment", "clouds_1e-2", "clouds_1e-3")
MOST_ITERATIONS = 200_000
FAILED = {"reached": False, "gave_up": True, "seconds": np.nan, "error": np.inf, "iterations": 0, "compile_seconds": 0}
STYLE = {
    OURS: ("#0072B2", "o"),
    "sinkhorn": ("#56B4E9", "X"),
    "OTT JAX": ("#D55E00", "s"),
    "OTT JAX momentum": ("#E69F00", "D"),
    "POT sinkhorn log": ("#555555", "v"),
    "RegOT SSNS": ("#009E73", "^"),
    "RegOT SPLR": ("#B8A900", "<"),
    "RegOT Newton": ("#CC79A7", ">"),
}


def ours(problem: instances.TransportProblem, dtype, *, solver: str = OURS, **settings) -> Callable[[int], Ready]:
    """Our solvers as contestants; `epsilon`, `tol` and `max_steps` are traced, so one program serves all targets."""
    given = problem.astype(dtype)
    data = jax.device_put((given.cost, given.a, given.b, given.epsilon))
    function = getattr(solvers, solver)

    @cache
    def program() -> harness.Compiled:
        def run(cost, a, b, epsilon, tol, max_steps):
            sol = function(cost, a, b, epsilon=epsilon, tol=tol, max_steps=max_steps, **settings)
            return Answer(sol.f, sol.g, None if dtype == "float64" else sol.plan(), sol.num_steps, sol.converged)

        return harness.compiled(run, *data, np.asarray(1e-2, dtype), np.asarray(1, np.int32))

    def ready(iterations: int) -> Ready:
        call = program()
        steps = np.asarray(iterations, np.int32)
        return Ready(lambda tol: call(*data, np.asarray(tol, dtype), steps), call.first_call_seconds)

    return ready


def race(
    contestant: Contestant, problem: instances.TransportProblem, dtype: str, targets: Sequence[float], cap: float
) -> list[dict[str, Any]]:
    """Run one contestant to one target after the other until it misses one; return a row for each.

    The peers cannot be interrupted, so a short first run tells how many of their iterations fit into ``cap`` seconds.
    """
    given = problem.astype(dtype)
    start = contestant(problem, dtype)
    trial = harness.clock(partial(start(20).solve, targets[-1]), repeat=1)
    limit = _fitting(20, trial, cap)
    rows: list[dict[str, Any]] = []
    for target in targets:
        timing, error, limit = _reach(start, given, target, limit, cap)
        reached = error <= target
        rows.append({
            "target": target,
            "reached": reached,
            "gave_up": not reached and (bool(timing.output.stopped) or int(timing.output.iterations) < limit),
            "seconds": timing.seconds,
            "error": error,
            "iterations": int(timing.output.iterations),
            "runs": timing.runs,
            "compile_seconds": start(limit).compile_seconds,
        })  # fmt: skip
        if not reached:
            break
    return rows


def _reach(start, given, target: float, limit: int, cap: float) -> tuple[harness.Timing, float, int]:
    while True:
        solve = start(limit).solve
        for tol in (target, target / 10):  # a peer that measures less than we do gets a second, stricter try
            timing = harness.clock(partial(solve, tol), repeat=1)
            error = peers.marginal_error(given, timing.output)
            if error <= target or not bool(timing.output.stopped):
                break
        if error <= target:
            more = harness.clock(partial(solve, tol), repeat=4, budget=0.5)
            return harness.Timing(timing.runs + more.runs, timing.output), error, limit
        if bool(timing.output.stopped) or timing.seconds > 0.7 * cap or int(timing.output.iterations) < limit:
            return timing, error, limit
        if limit >= MOST_ITERATIONS:
            return timing, error, limit
        limit = _fitting(limit, timing, cap)


def _fitting(limit: int, timing: harness.Timing, cap: float) -> int:
    pace = timing.seconds / max(1, int(timing.output.iterations))
    return int(min(MOST_ITERATIONS, max(20, limit + 10, cap / pace)))


def contestants(dtype: str) -> dict[str, Contestant]:
    """Ours first: its time sets the caps of the others."""
    named: dict[str, Contestant] = {OURS: ours}
    for name, peer in peers.TRANSPORT.items():
        if dtype == "float64" or name not in peers.DOUBLE_ONLY:
            named[name] = peer
    return named


def tournament(name: str, dtype: str, *, quick: bool) -> list[dict[str, Any]]:
    """Race all contestants on one instance; return their rows."""
    problem = instances.PUBLISHED[name]()
    targets = (QUICK_TARGETS if quick else TARGETS)[dtype]
    rows: list[dict[str, Any]] = []
    mine = LEAST_CAP
    for solver, contestant in contestants(dtype).items():
        cap = QUICK_CAP if quick else CAPS.get(solver, CAP)
        least = QUICK_LEAST_CAP if quick else LEAST_CAP
        cap = MOST_CAP if solver == OURS else float(np.clip(cap * mine, least, MOST_CAP))
        goals = targets[-1:] if solver in peers.EXACT else targets
        try:
            with jax.enable_x64(dtype == "float64"):
                results = race(contestant, problem, dtype, goals, cap)
        except Exception as failure:
            if solver == OURS:
                raise
            results = [FAILED | {"target": goals[0], "failure": repr(failure)[:300]}]
        if solver == OURS:
            mine = results[-1]["seconds"]
        rows += [
            {"measure": "race", "problem": name, "dtype": dtype, "solver": solver, "cap": cap, **row} for row in results
        ]
    report(name, dtype, rows)
    return rows


def report(name: str, dtype: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print seconds to each target and, at the tightest target that both ran for, how many times ours that is."""
    mine = {row["target"]: row["seconds"] for row in rows if row["solver"] == OURS and row["reached"]}
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(row["solver"], {"solver": row["solver"]})
        line[f"s to {row['target']:.0e}"] = entry(row)
        if row["target"] in mine and (row["reached"] or not row["gave_up"]):
            sign, ratio = "" if row["reached"] else ">", row["seconds"] / mine[row["target"]]
            line["times ours"] = f"{sign}{ratio:.2g}"
        line["steps"], line["compile s"] = row["iterations"], row["compile_seconds"]
    harness.table(lines.values(), title=f"{name}, {dtype}")


def entry(row: dict[str, Any]) -> str:
    """Seconds, or why there are none: its time was up, or it stopped by itself short of the target."""
    if row["reached"]:
        return harness.number(row["seconds"])
    how = "gave up" if row["gave_up"] else f"> {harness.number(row['seconds'])}"
    return f"{how} ({row['error']:.0e})"


def compile_and_memory() -> list[dict[str, Any]]:
    """First-call cost, programs compiled over a sweep of every number, and bytes beside the cost matrix."""
    rows = []
    for solver, dtype in itertools.product((OURS, "sinkhorn"), ("float64", "float32")):
        given = instances.clouds(1000, relative=1e-2).astype(dtype)
        cost, a, b, _ = data = jax.device_put((given.cost, given.a, given.b, given.epsilon))
        function = getattr(solvers, solver)

        def run(cost, a, b, epsilon, tol, max_steps, function=function):
            sol = function(cost, a, b, epsilon=epsilon, tol=tol, max_steps=max_steps)
            return sol.f, sol.g, sol.error

        program = harness.compiled(run, *data, np.asarray(1e-3, dtype), np.asarray(9, np.int32))
        tilted = given.a * np.linspace(0.5, 1.5, len(given.a), dtype=dtype)
        tilted = jax.device_put(tilted / tilted.sum())
        sweep = [(a, b, 1e-2, 5), (tilted, b, 1e-3, 7), (a, tilted, 1e-4, 50)]
        counts = {}
        for how, call in {"jitted": jax.jit(run), "plain": run}.items():
            for part, settings in {"first": sweep[:1], "sweep": sweep[1:]}.items():
                with harness.count_compilations() as compilations:
                    for k, (source, target, tol, steps) in enumerate(settings):
                        jax.block_until_ready(call(cost, source, target, (1.1 + k) * given.epsilon, tol, steps))
                counts[f"programs, {how} {part}"] = compilations.count
        used = program.temporary_bytes + program.output_bytes
        rows.append({
            "measure": "compile and memory",
            "solver": solver,
            "dtype": dtype,
            "n": 1000,
            "trace s": program.trace_seconds,
            "compile s": program.compile_seconds,
            **counts,
            "bytes beyond the cost / cost": used / cost.nbytes,
        })  # fmt: skip
    harness.table(rows, title="compile and memory (programs: XLA compilations in a first call and in two more)")
    return rows


def batch(count: int = 64, n: int = 64) -> list[dict[str, Any]]:
    """Time a batch in one vmap against the same problems one after the other: what a slow lane costs."""
    rows = []
    problem = instances.device_batch(count, n, relative=1e-2, seed=3, dtype=np.float64)
    for title, epsilons in [
        ("equal epsilon", np.full(count, 1e-2)),
        ("epsilon 1e-1 to 1e-3", np.logspace(-1, -3, count)),
    ]:
        data = (problem.cost, problem.a, problem.b, jax.device_put(epsilons))

        def run(cost, a, b, epsilon):
            sol = getattr(solvers, OURS)(cost, a, b, epsilon=epsilon, tol=1e-9)
            return sol.f, sol.g, sol.num_steps

        one = harness.compiled(run, *(x[0] for x in data))
        many = harness.compiled(jax.vmap(run), *data)
        lanes = [tuple(x[i] for x in data) for i in range(count)]
        loop, together = partial(_each, one, lanes), partial(many, *data)
        jax.block_until_ready((loop(), together()))
        timings = harness.alternate({"loop": loop, "vmap": together}, repeat=3)
        f, g, steps = timings["vmap"].output
        errors = [
            (lane := instances.TransportProblem(*(x[i] for x in data))).marginal_error(lane.plan(f[i], g[i]))
            for i in range(count)
        ]
        rows.append({
            "measure": "batch",
            "solver": OURS,
            "lanes": f"{count} of n = {n}, {title}",
            "loop us a problem": timings["loop"].seconds / count * 1e6,
            "vmap us a problem": timings["vmap"].seconds / count * 1e6,
            "steps": f"{int(steps.min())} to {int(steps.max())}",
            "worst error": max(errors),
            "same steps as alone": all(int(s[2]) == int(t) for s, t in zip(timings["loop"].output, steps, strict=True)),
        })  # fmt: skip
    harness.table(rows, title="batch")
    return rows


def _each(call, lanes):
    return [call(*lane) for lane in lanes]


def as_published(*, quick: bool) -> list[dict[str, Any]]:
    """Run the paper's own algorithm, by settings of our function, on its three cases, beside our defaults."""
    rows = []
    for name, warmup, kept, newton in PAPER_CASES:
        problem = instances.PUBLISHED[name]()
        given = problem.astype("float64")
        published = solvers.PublishedSNS(warmup=warmup, density=kept / len(problem.a))
        limit = warmup + (8 if quick else newton)
        solve = ours(problem, "float64", published=published)(limit).solve
        timing = harness.clock(partial(solve, 1e-9), repeat=1)
        rows.append({
            "measure": "as published",
            "problem": name,
            "solver": PAPER,
            "lanes": f"{warmup} sweeps, {kept} entries a row",
            "seconds": timing.seconds,
            "steps": int(timing.output.iterations),
            "error": peers.marginal_error(given, timing.output),
        })  # fmt: skip
    harness.table(rows, title="the published algorithm on its own cases, without our safeguards")
    return rows


def draw(rows: Sequence[dict[str, Any]], record: dict[str, Any], path, *, dtype: str = "float64") -> None:
    """Draw error reached against seconds, one panel an instance; a cross where a contestant's time was up."""
    rows = [row for row in rows if row.get("dtype") == dtype and "target" in row]
    names = [name for name in instances.PUBLISHED if any(row["problem"] == name for row in rows)]
    if not names:
        return
    fig, axes = harness.figure(-(-len(names) // 4), min(4, len(names)), width=3.3, height=2.9)
    seconds = [row["seconds"] for row in rows if row["seconds"]]
    for k, (axis, name) in enumerate(zip(axes, names, strict=False)):
        panel(axis, [row for row in rows if row["problem"] == name])
        axis.set_xlim(0.6 * min(seconds), 1.6 * max(seconds))
        axis.set_title(instances.PUBLISHED[name]().name)
        axis.set_xlabel("seconds (without compilation)")
        if k % 4 == 0:
            axis.set_ylabel("marginal error, L1")
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    inch = 1 / fig.get_figheight()
    fig.suptitle(f"Entropic optimal transport, {dtype}: error reached against time; a cross: short of its target")
    fig.tight_layout(rect=(0, 0.65 * inch, 1, 1 - 0.05 * inch))
    fig.legend(found.values(), found.keys(), loc="lower center", ncols=min(len(found), 5), frameon=False,
               bbox_to_anchor=(0.5, 0.12 * inch))  # fmt: skip
    harness.save_figure(fig, path, record)


def panel(axis, rows: Sequence[dict[str, Any]]) -> None:
    """Draw one instance: a line a solver, a dotted line where the exact solver is done."""
    low, high = 1e-13, 10.0
    absent = []
    for solver, (colour, marker) in STYLE.items():
        mine = [row for row in rows if row["solver"] == solver]
        points = [(r["seconds"], min(max(r["error"], low), high)) for r in mine if r["error"] and r["seconds"]]
        if points:
            width, front = (2.2, 5) if solver == OURS else (1.2, 3)
            style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": width, "zorder": front}
            axis.loglog(*zip(*points, strict=True), label=solver, clip_on=False, **style)
        if points and not mine[-1]["reached"]:
            axis.plot(*points[-1], marker="x", color=colour, markersize=9, markeredgewidth=1.8, clip_on=False)
        if mine and not points:
            absent.append(solver)
    for row in rows:
        if row["solver"] in peers.EXACT:
            axis.axvline(row["seconds"], color="black", linestyle=":", linewidth=1, label="POT exact (no entropy)")
    axis.axhline(min(row["target"] for row in rows), color="#999999", linewidth=0.7)
    axis.set_ylim(low, high)
    axis.grid(color="#e8e8e8", linewidth=0.6)
    axis.minorticks_off()
    axis.set_axisbelow(True)
    if absent:
        text = "\n".join(f"no finite answer: {solver}" for solver in absent)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
        axis.text(0.98, 0.03, text, transform=axis.transAxes, ha="right", fontsize=7, bbox=box, zorder=6)


def parts(*, quick: bool) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Name every piece of the benchmark; ``--only`` chooses among these names."""
    races = {
        f"{name}:{dtype}": partial(tournament, name, dtype, quick=quick)
        for dtype in ("float64", "float32")
        for name in instances.PUBLISHED
        if dtype == "float64" or not quick or name in QUICK_FLOAT32
    }
    double, single = ({k: v for k, v in races.items() if k.endswith(dtype)} for dtype in ("float64", "float32"))
    published = {"published": partial(as_published, quick=quick)}
    return double | published | {"compile": compile_and_memory} | single | {"batch": batch}


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    jax.config.update("jax_enable_x64", True)
    if options.gpu:
        import transport_gpu

        transport_gpu.main(options)
        return
    record = harness.machine("ott-jax", "POT", "regot")
    suffix = "_quick" if options.quick else ""
    path = options.out / f"transport{suffix}.json"
    start = time.monotonic()
    for part, measure in parts(quick=options.quick).items():
        if not harness.chosen(part, options.only):
            continue
        if options.quick and time.monotonic() - start > QUICK_SECONDS:
            print(f"{part}: left out, five minutes are over")
            continue
        harness.save(path, measure(), key=KEY, record=record)
    rows = json.loads(path.read_text())["rows"]
    for dtype in ("float64", "float32"):
        draw(rows, record, options.out / f"transport_{dtype}{suffix}.png", dtype=dtype)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
