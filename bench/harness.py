"""Shared by every benchmark: the machine, the clock, compilation apart from running, tables, JSON and figures.

A benchmark measures accuracy against time. Its contestants solve the same instance in the same dtype, their answers
are judged by one formula of ours in float64, and those that fail stay in the table.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import re
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8C564B", "#B8A900", "#000000")
BLUES = ("#0072B2", "#56B4E9", "#00395A", "#8FB8DE")
RIVALS = tuple(colour for colour in PALETTE if colour not in BLUES)
COMPILED_EVENT = "/jax/core/compile/backend_compile_duration"


def parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of ``--quick --gpu --only NAMES --out FOLDER``, the same for every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter caps and fewer repeats: minutes, same direction")
    parser.add_argument("--gpu", action="store_true", help="the instances and targets meant for one accelerator")
    parser.add_argument("--only", default="", help="comma-separated parts of names; others are skipped and kept")
    parser.add_argument("--out", type=Path, help="folder of JSON and PNG (default: bench/results; quick: a new one)")
    return parser


def finished(options: argparse.Namespace) -> argparse.Namespace:
    """Split ``--only`` and make the folder: without ``--out`` quick results go to one that is new, and say where."""
    options.only = tuple(filter(None, options.only.split(",")))
    if options.out is None and options.quick:
        options.out = Path(tempfile.mkdtemp(prefix="quick-results-"))
        print(f"results go to {options.out}")
    options.out = options.out or RESULTS
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse what every benchmark takes; one with options of its own adds them to `parser`."""
    return finished(parser(description).parse_args(argv))


def chosen(name: str, only: Sequence[str]) -> bool:
    """Whether ``name`` contains one of the parts ``only``, or none was given."""
    return not only or any(part in name for part in only)


def machine(*packages: str) -> dict[str, Any]:
    """Describe processor, device, versions, date and load; ``packages`` are recorded where they are installed.

    The load is the number of processes that wanted a core in the last minute: beyond the cores, times are too long.
    """
    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "scipy", *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Timing:
    """Wall seconds of several runs of one call, and what the last of them returned."""

    runs: tuple[float, ...]
    output: Any

    @property
    def seconds(self) -> float:
        """The median."""
        return float(np.median(self.runs))


def clock(call: Callable[[], Any], *, repeat: int = 5, budget: float = 1.0, warm: bool = False) -> Timing:
    """Time ``call`` until its arrays are ready: once, then up to ``repeat`` times while ``budget`` seconds last.

    With ``warm`` an untimed call goes first; compile beforehand (`compiled`) rather than by warming.
    """
    if warm:
        jax.block_until_ready(call())
    runs: list[float] = []
    while len(runs) < repeat and (not runs or sum(runs) + runs[-1] <= budget):
        start = time.perf_counter()
        output = jax.block_until_ready(call())
        runs.append(time.perf_counter() - start)
    return Timing(tuple(runs), output)


def alternate(calls: dict[str, Callable[[], Any]], *, repeat: int = 5) -> dict[str, Timing]:
    """Time several calls in turns, so that a ratio of two of them sees the same machine."""
    rounds = [{name: clock(call, repeat=1) for name, call in calls.items()} for _ in range(repeat)]
    return {name: Timing(tuple(r[name].runs[0] for r in rounds), rounds[-1][name].output) for name in calls}


def on_host() -> contextlib.AbstractContextManager:
    """Make arrays and run small programs in the body on the CPU: on an accelerator each of them is compiled for it."""
    return jax.default_device(jax.devices("cpu")[0])


def on_device(tree: Any) -> Any:
    """Move the arrays of a pytree to the device that is measured."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]) if isinstance(x, jax.Array) else x, tree)


def warm(calls: Sequence[Callable[[], Any]]) -> None:
    """Run ``calls`` once, at the same time where there are cores: what is compiled for the first time waits for XLA."""
    with ThreadPoolExecutor(max(1, min(len(calls), len(os.sched_getaffinity(0))))) as pool:
        jax.block_until_ready(list(pool.map(lambda call: call(), calls)))


@dataclass(frozen=True)
class Compiled:
    """A compiled function with the seconds it took to get there and the bytes it needs."""

    call: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int

    @property
    def first_call_seconds(self) -> float:
        """What a first call costs beyond a second one."""
        return self.trace_seconds + self.compile_seconds

    def __call__(self, *args):
        """Run the executable."""
        return self.call(*args)


def compiled(function: Callable[..., Any], *args: Any) -> Compiled:
    """Trace and compile ``function`` for ``args``, timed apart; large arrays must be arguments, not closed over."""
    start = time.perf_counter()
    lowered = jax.jit(lambda *operands: function(*operands)).lower(*args)  # a new function: nothing comes from a cache
    middle = time.perf_counter()
    executable = lowered.compile()
    end = time.perf_counter()
    memory = executable.memory_analysis()
    sizes = [
        int(getattr(memory, f"{part}_size_in_bytes", 0) if memory else 0) for part in ("argument", "output", "temp")
    ]
    return Compiled(executable, middle - start, end - middle, *sizes)


@dataclass
class Compilations:
    """How many programs XLA compiled inside `count_compilations`, and the seconds each took."""

    seconds: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of programs."""
        return len(self.seconds)


_OPEN: list[Compilations] = []


def _listen(event: str, duration: float, **_: Any) -> None:
    if event == COMPILED_EVENT:
        for counter in _OPEN:
            counter.seconds.append(duration)


@contextlib.contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Count the programs that XLA compiles in the body (small helpers of eager code included)."""
    if not getattr(_listen, "registered", False):
        jax.monitoring.register_event_duration_secs_listener(_listen)
        _listen.registered = True  # type: ignore[attr-defined]
    counter = Compilations()
    _OPEN.append(counter)
    try:
        yield counter
    finally:
        _OPEN.remove(counter)


def number(x: Any) -> str:
    """Three significant digits, short."""
    if x is None or x == "":
        return "-"
    if isinstance(x, bool | str):
        return str(x)
    if isinstance(x, int | np.integer):
        return f"{int(x):,}"
    x = float(x)
    if not math.isfinite(x):
        return str(x)
    return f"{x:.3g}" if x == 0 or 1e-3 <= abs(x) < 1e4 else f"{x:.1e}"


def table(rows: Iterable[dict[str, Any]], columns: Sequence[str] | None = None, *, title: str = "") -> str:
    """Print ``rows`` as an aligned table and return its text; a missing entry is a dash."""
    rows = list(rows)
    columns = list(columns or dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[number(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    left = [not any(isinstance(row.get(c), int | float | np.number) for row in rows) for c in columns]
    lines = [
        "  ".join(c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(line, widths, left, strict=True))
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    text = "\n".join(([title] if title else []) + [line.rstrip() for line in lines])
    print(text + "\n", flush=True)
    return text


SAME = ("processor", "device", "versions")
"""What rows of one file have in common."""


def apart(path: Path, record: dict[str, Any]) -> Path:
    """Return where single rows of this machine go: a file named after it, where ``path`` holds those of another one.

    `save` would not keep the others beside them.
    """
    if not path.exists():
        return path
    other = json.loads(path.read_text())["machine"]
    if all(other.get(k) == record.get(k) for k in SAME):
        return path
    return path.with_name(f"{path.stem}_{'_'.join(re.findall('[a-z0-9]+', record['processor'].lower()))}.json")


def save(path: Path, rows: Sequence[dict[str, Any]], *, key: Sequence[str], record: dict[str, Any]) -> dict[str, Any]:
    """Write ``record`` (see `machine`) and ``rows`` as JSON and return what was written.

    Rows of an earlier run whose ``key`` entries do not occur in ``rows`` are kept, provided that processor, device
    and versions are the same; so a long benchmark can be run piece by piece with ``--only``.
    """
    rows = [{**row, "date": record["date"], "load": record.get("load")} for row in rows]
    kept: list[dict[str, Any]] = []
    if path.exists():
        old = json.loads(path.read_text())
        if all(old["machine"].get(k) == record.get(k) for k in SAME):
            new = {tuple(row.get(k) for k in key) for row in rows}
            kept = [row for row in old["rows"] if tuple(row.get(k) for k in key) not in new]
    result = {"machine": record, "rows": kept + rows}
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(_plain(result), indent=1) + "\n")
    whole.replace(path)  # at once, so that a run that is stopped leaves a whole file
    return result


def run_parts(
    options: argparse.Namespace, stem: str | None, parts: dict[str, Callable], *, key: Sequence[str],
    record: dict[str, Any], hidden: Sequence[str] = (),
) -> dict[str, Any] | None:  # fmt: skip
    """Run the chosen ``parts``, print the rows of each without the columns `hidden`, and save them at once.

    Returns what is saved under ``stem``: None if no part was chosen, or no stem is given and nothing is saved.
    """
    result = None
    for name, part in parts.items():
        if chosen(name, options.only):
            rows = part(options)
            table([{k: v for k, v in row.items() if k not in hidden} for row in rows], title=name)
            if stem is not None:
                result = save(options.out / f"{stem}.json", rows, key=key, record=record)
    return result


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, np.ndarray | jax.Array):
        return _plain(np.asarray(x).tolist())
    if isinstance(x, np.generic):
        return _plain(x.item())
    if isinstance(x, float):
        return None if not math.isfinite(x) else float(f"{x:.4g}")
    return x


def caption(record: dict[str, Any]) -> str:
    """One line for the foot of a figure: machine, versions, date."""
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items() if k not in ("jaxlib", "scipy"))
    device = "" if "cpu" in record["device"] else f", {record['device']}"
    return f"{record['processor']}, {record['cores']} cores{device} | {versions} | {record['date']}"


def figure(rows: int, columns: int, *, width: float = 3.4, height: float = 2.7):
    """Return a Matplotlib figure and its axes as a flat list, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    return fig, list(axes.ravel())


def colours(names: Iterable[str], ours: Callable[[str], bool]) -> dict[str, str]:
    """Choose a colour for every name: blue where it is ours, in shades if there are several, and no blue elsewhere."""
    blues, others = iter(BLUES), iter(RIVALS)
    return {name: next(blues if ours(name) else others) for name in dict.fromkeys(names)}


def plain_ticks(axis) -> None:
    """Write powers of ten along a logarithmic axis, or, where fewer than two of them show, numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_minor_formatter(NullFormatter())
    if math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def save_figure(fig, path: Path, record: dict[str, Any]) -> None:
    """Write the figure with the machine at its foot and close it."""
    import matplotlib.pyplot as plt

    foot = "\n".join(textwrap.wrap(caption(record), round(24 * fig.get_figwidth())))
    fig.text(0.5, -0.03, foot, ha="center", va="top", fontsize=6.5, color="#555555")
    fig.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(fig)
    print(f"wrote {path}", flush=True)
