"""Colour transfer: move the palette of one photograph to that of another at the least cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from ..plot import convergence
from ..problems.transport import ColourTransfer, TransportProblem, colour_transfer
from ..transport.entropic.alternate_scaling import sinkhorn
from ..transport.entropic.newton import sns_sinkhorn
from .record import Peer, Record, Stopwatch, installed, timed

COLOURS = 2048
EPSILON = 1e-3
"""Of the mean cost: sharp enough that plain Sinkhorn crawls."""
TOL = 1e-9
LEAST_PATIENCE = 4.0
"""Seconds that each iterative peer may take, or twice as many as ours if that is more."""


def run(plots: Path, say) -> list[Record]:
    """Solve, compare, draw."""
    transfer = colour_transfer(COLOURS, relative=EPSILON)
    problem = transfer.problem
    height, width, _ = transfer.source.shape
    title = (
        f"{COLOURS:,} colours of a temple moved to {COLOURS:,} of a flower ({width} x {height} photographs), "
        f"epsilon = {EPSILON:.0e} of the mean squared distance in CIELAB, {jax.numpy.result_type(float)}"
    )
    say(title)
    data = jax.device_put((problem.cost, problem.a, problem.b, problem.epsilon))

    watch = Stopwatch("sns_sinkhorn")

    def solve(cost, a, b, epsilon):
        return sns_sinkhorn(cost, a, b, epsilon=epsilon, tol=TOL, hessian="dense", progress=watch)

    ours = timed(solve, *data, watch=watch)
    sol = ours.output
    facts = {"transport_cost": float(sol.transport_cost), "duality_gap": float(sol.duality_gap)}
    say(Record.of("transport", title, "sns_sinkhorn", ours).lines()[0])
    say(
        f"transport cost {facts['transport_cost']:.6f} of the mean cost; "
        f"the rounded plan is certified optimal to within {facts['duality_gap']:.0e}"
    )

    patience = max(LEAST_PATIENCE, 2 * ours.run_seconds)
    plain, plain_watch = _plain_sinkhorn(data, patience)
    picture = plots / "transport.png"
    draw(transfer, sol.plan(), {"sns_sinkhorn": watch, "sinkhorn": plain_watch}, picture)
    say(f"picture: {picture}")

    peers = [plain, *_peers(problem, facts["transport_cost"], patience)]
    record = Record.of("transport", title, "sns_sinkhorn", ours, peers=peers, pictures=[str(picture)], facts=facts)
    for line in record.lines()[1:]:
        say(line)
    absent = [name for module, name in (("ott", "OTT-JAX"), ("ot", "POT")) if not installed(module)]
    if absent:
        say(f'{" and ".join(absent)} would be compared too: pip install -e ".[bench]"')
    return [record]


def _plain_sinkhorn(data, seconds: float) -> tuple[Peer, Stopwatch]:
    """Run our own plain Sinkhorn for about ``seconds``."""
    watch = Stopwatch("sinkhorn")

    def solve(cost, a, b, eps, max_steps):
        return sinkhorn(cost, a, b, epsilon=eps, tol=TOL, max_steps=max_steps, progress=watch)

    program = jax.jit(solve).lower(*data, np.int32(1)).compile()

    def sweeps(count: int) -> float:
        watch.start()
        jax.block_until_ready(program(*data, np.int32(count)))
        jax.effects_barrier()
        return watch.seconds[-1]

    pace = sweeps(20) / 20
    watch.clear()
    total = sweeps(max(20, int(seconds / pace)))
    watch.stop()
    error = min(watch.errors)
    return Peer("sinkhorn", total, error <= TOL, error, f"our plain Sinkhorn, {len(watch.errors)} sweeps"), watch


def _peers(problem: TransportProblem, cost: float, patience: float) -> Iterator[Peer]:
    if installed("ott"):
        yield _ott(problem, patience)
    if installed("ot"):
        yield _pot(problem, patience)
        yield _exact(problem, cost)


def _ott(problem: TransportProblem, patience: float) -> Peer:
    """OTT-JAX's Sinkhorn at its defaults, its iterations limited by ``patience`` seconds."""
    from ott.geometry.geometry import Geometry  # pyright: ignore[reportMissingImports]
    from ott.problems.linear.linear_problem import LinearProblem  # pyright: ignore[reportMissingImports]
    from ott.solvers.linear.sinkhorn import Sinkhorn  # pyright: ignore[reportMissingImports]

    def ready(iterations: int):
        def solve(cost, a, b):
            out = Sinkhorn(threshold=TOL, max_iterations=iterations)(
                LinearProblem(Geometry(cost, epsilon=problem.epsilon), a, b)
            )
            return out.f, out.g, out.n_iters

        return timed(solve, *jax.device_put((problem.cost, problem.a, problem.b)))

    pace = ready(20).run_seconds / 20
    done = ready(max(20, int(patience / pace / 10) * 10))
    f, g, steps = done.output
    error = problem.marginal_error(problem.plan(f, g))
    return Peer("OTT-JAX sinkhorn", done.run_seconds, error <= TOL, error, f"{int(steps)} iterations at its defaults")


def _pot(problem: TransportProblem, patience: float) -> Peer:
    """POT's log-domain Sinkhorn, its iterations limited by ``patience`` seconds."""
    import warnings

    import ot  # pyright: ignore[reportMissingImports]

    def solve(iterations: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            plan = ot.sinkhorn(
                problem.a, problem.b, problem.cost, float(problem.epsilon), method="sinkhorn_log",
                numItermax=iterations, stopThr=TOL / np.sqrt(len(problem.b)),
            )  # fmt: skip
            return plan, time.perf_counter() - start

    _, pace = solve(3)
    count = max(3, int(patience / pace * 3))
    plan, seconds = solve(count)
    error = problem.marginal_error(plan)
    return Peer("POT sinkhorn", seconds, error <= TOL, error, f"at most {count} iterations in the log domain")


def _exact(problem: TransportProblem, cost: float) -> Peer:
    import ot  # pyright: ignore[reportMissingImports]

    start = time.perf_counter()
    plan = ot.emd(problem.a, problem.b, problem.cost, numItermax=10**7)
    seconds = time.perf_counter() - start
    exact = float(np.sum(plan * problem.cost))
    return Peer(
        "POT emd", seconds, True, note=f"exact, without derivatives; our cost is {cost / exact - 1:.1e} above it"
    )


def draw(transfer: ColourTransfer, plan, watches: dict[str, Stopwatch], path: Path) -> None:
    """Draw source, target, result and the error over time."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 7.4), layout="constrained")
    grid = figure.subplots(2, 2)
    images = {
        "source: its light, its shapes": transfer.source,
        "target: its colours": transfer.target,
        f"result: {len(transfer.source_palette):,} colours moved by the plan": transfer.recolour(plan),
    }
    for axes, (title, image) in zip(grid.ravel(), images.items(), strict=False):
        axes.imshow(image)
        axes.set_title(title, loc="left")
        axes.set_axis_off()
    convergence(
        {name: watch.errors for name, watch in watches.items()},
        x={name: watch.seconds for name, watch in watches.items()},
        xlabel="seconds (without compilation)",
        ylabel="marginal error, L1",
        tol=TOL,
        axes=grid[1, 1],
    )
    grid[1, 1].set_title("convergence on the same cost matrix", loc="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)
