"""What the tour reports, and the clock it measures with."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax

from ..core.progress import print_progress
from ..core.solution import Solution


@dataclass(frozen=True)
class Peer:
    """How a well-known solver did on the same instance.

    Attributes
    ----------
    solver : str
        Its name.
    run_seconds : float
        What it took, compilation apart.
    solved : bool
        Whether it reached our tolerance, or solved a neighbouring problem exactly; `note` then says which.
    error : float or None
        Our measure, evaluated on its answer; None for another problem.
    note : str
        Settings and remarks.
    """

    solver: str
    run_seconds: float
    solved: bool
    error: float | None = None
    note: str = ""

    def line(self, ours: float) -> str:
        """Say how it did beside our ``ours`` seconds."""
        note = f" ({self.note})" if self.note else ""
        if not self.solved:
            return f"not solved in {self.run_seconds:.2f} s: error {self.error:.1e}{note}"
        ratio = self.run_seconds / ours
        times = f"{ratio:.3g} times ours" if ratio >= 1 else f"{1 / ratio:.3g} times faster than ours"
        return f"{self.run_seconds:.2f} s, {times}{note}"


@dataclass(frozen=True)
class Record:
    """One problem solved: the instance, our solution's own account, the seconds, and others on the same instance."""

    family: str
    problem: str
    solver: str
    status: str
    converged: bool
    error: float
    tol: float
    num_steps: int
    compile_seconds: float
    run_seconds: float
    peers: Sequence[Peer] = ()
    pictures: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, family: str, problem: str, solver: str, solve: "Timed", **rest) -> "Record":
        """Make the record of a timed solve that returned a `Solution`."""
        sol: Solution = solve.output
        return cls(
            family, problem, solver, sol.message, bool(sol.converged), float(sol.error), float(sol.tol),
            int(sol.num_steps), solve.compile_seconds, solve.run_seconds, **rest,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return what the tour prints."""
        ours = (
            f"{self.status} after {self.num_steps} steps, error {self.error:.1e} (tol {self.tol:.0e}); "
            f"compile {self.compile_seconds:.1f} s, run {self.run_seconds:.2f} s"
        )
        width = max(len(name) for name in [self.solver, *(peer.solver for peer in self.peers)])
        rows = [f"{self.solver:<{width}}  {ours}"]
        rows += [f"{peer.solver:<{width}}  {peer.line(self.run_seconds)}" for peer in self.peers]
        return rows


class Stopwatch:
    """A progress meter that prints one updating line and keeps the seconds and the error of every step."""

    def __init__(self, label: str):
        self.seconds: list[float] = []
        self.errors: list[float] = []
        self._show = print_progress(label)
        self._start = time.perf_counter()

    def start(self) -> None:
        """Set the clock to zero."""
        self._start = time.perf_counter()

    def clear(self) -> None:
        """Forget all steps."""
        self.seconds.clear()
        self.errors.clear()

    def stop(self) -> None:
        """Wait for the last report and end the printed line."""
        jax.effects_barrier()
        if self.seconds:
            print(file=sys.stderr)

    def __call__(self, step: int, error: float) -> None:
        """Note and print."""
        self.seconds.append(time.perf_counter() - self._start)
        self.errors.append(error)
        self._show(step, error)


@dataclass(frozen=True)
class Timed:
    """What a compiled call returned, and the seconds of compiling and of running it."""

    output: Any
    compile_seconds: float
    run_seconds: float


def timed(function: Callable[..., Any], *args: Any, watch: Stopwatch | None = None) -> Timed:
    """Compile ``function`` for ``args``, run it once, and take the time of each. Arrays must be arguments."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    middle = time.perf_counter()
    if watch:
        watch.start()
    output = jax.block_until_ready(program(*args))
    end = time.perf_counter()
    if watch:
        watch.stop()
    return Timed(output, middle - begin, end - middle)


def clocked(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call on the host returned, and its seconds."""
    begin = time.perf_counter()
    output = call()
    return output, time.perf_counter() - begin


def installed(module: str) -> bool:
    """Whether ``import module`` would find something."""
    return importlib.util.find_spec(module) is not None
