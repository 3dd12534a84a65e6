"""Long races in parts: some problems a process, each row saved as soon as it is done, so that nothing is lost.

``--slice 3/12`` does every twelfth problem, so that as many machines or pinned cores share the work, each with an
``--out`` of its own; ``--merge A B C`` then unites the files of these folders. ``--solvers ours,ipopt`` does only some
contestants, and ``--resume`` only what the file lacks.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import jax
import numpy as np

CHUNK = 12
"""Problems a process."""
PATIENCE = 120.0
"""Seconds a problem before a process is given up."""
LARGE = 2000
"""Problems above this size have a process of their own."""
FLAGS = ("quick", "resume")
KEY = ("problem", "solver")


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what a race in parts takes."""
    parser.add_argument("--seconds", type=float, default=14400, help="start no new part after this long")
    parser.add_argument("--solvers", default="", help="comma-separated names: only these contestants")
    parser.add_argument("--resume", action="store_true", help="only what the file lacks")
    parser.add_argument("--slice", default="", help="k/n: every n-th problem, from the k-th on; 0/24 with --quick")
    parser.add_argument("--merge", nargs="+", type=Path, default=[], help="unite the files of these folders")
    parser.add_argument("--report", action="store_true", help="print what the file says, run nothing")
    parser.add_argument("--part", default="", help="names of problems to do in this process")
    return parser


def rows_of(path: Path) -> list[dict]:
    """Return the rows that a file has, none where there is no file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def wanted(options, file: str, name: str) -> Callable[[str], bool]:
    """Return whether a contestant is to run on the problem `name`."""
    done = {row["solver"] for row in rows_of(options.out / file) if row["problem"] == name} if options.resume else ()
    chosen = tuple(filter(None, options.solvers.split(",")))
    return lambda solver: solver not in done and (not chosen or solver in chosen)


def race_all(options, script: str, file: str, sizes: dict[str, int]):
    """Run the script on the chosen names, the smallest first, a part a process."""
    begin = time.monotonic()
    k, n = map(int, (options.slice or ("0/24" if options.quick else "0/1")).split("/"))
    names = sorted(sizes, key=lambda name: (sizes[name], name))[k::n]
    names = [name for name in names if not options.only or name in options.only]
    small = [name for name in names if sizes[name] <= LARGE]
    chunks = [small[k : k + CHUNK] for k in range(0, len(small), CHUNK)]
    chunks += [[name] for name in names if sizes[name] > LARGE]
    flags = [f"--{flag}" for flag in FLAGS if getattr(options, flag)] + ["--solvers", options.solvers]
    for k, chunk in enumerate(chunks):
        left = options.seconds - (time.monotonic() - begin)
        if left <= 0:
            print(f"out of time: {len(chunks) - k} of {len(chunks)} parts are left; --resume goes on")
            break
        command = [sys.executable, script, "--part", ",".join(chunk), "--out", str(options.out), *flags]
        try:
            subprocess.run(command, check=False, timeout=min(left, PATIENCE * len(chunk)))
        except subprocess.TimeoutExpired:
            print(f"given up: {', '.join(chunk)}", flush=True)


def race_part(options, file: str, race: Callable, packages: Sequence[str]):
    """Race the problems named in ``--part`` in this process; ``race(name, wanted)`` yields rows."""
    record = harness.machine(*packages)
    for name in options.part.split(","):
        begin, says = time.monotonic(), []
        try:
            for row in race(name, wanted=wanted(options, file, name)):
                harness.save(options.out / file, [row], key=KEY, record=record)
                says.append(f"{row['solver']} {row['says']} {harness.number(row.get('kkt'))}")
        except Exception as error:
            says.append(f"{type(error).__name__}: {str(error)[:200]}")
        print(f"{name} ({time.monotonic() - begin:.1f} s): {'; '.join(says)}", flush=True)
        jax.clear_caches()


def merge(options, file: str):
    """Unite the files of the folders ``--merge``, later ones first, into that of ``--out``."""
    for folder in options.merge:
        path = folder / file
        if path.exists():
            found = json.loads(path.read_text())
            harness.save(options.out / file, found["rows"], key=KEY, record=found["machine"])


def run(options, script: str, file: str, sizes: dict[str, int], race: Callable, packages: Sequence[str]) -> list[dict]:
    """Do what a race's options ask for (a part, all parts, or only merging) and return the rows there are."""
    if options.part:
        race_part(options, file, functools.partial(race, repeat=3 if options.quick else 7), packages)
    elif options.merge:
        merge(options, file)
    elif not options.report:
        race_all(options, script, file, sizes)
    return rows_of(options.out / file)


def profile(rows: Sequence[dict], good: dict[tuple[str, str], float], title: str, record: dict, path: Path):
    """Draw the Dolan-More performance profile: the share of problems solved within a factor of the fastest.

    ``good[problem, solver]`` is the time of a problem that was solved; the first solver among the rows is ours.
    """
    fig, axes = harness.figure(1, 1, width=6.4, height=3.6)
    problems = list(dict.fromkeys(r["problem"] for r in rows))
    names = sorted(dict.fromkeys(r["solver"] for r in rows), key=lambda name: name != rows[0]["solver"])
    best = {p: min(good.get((p, s), np.inf) for s in names) for p in problems}
    factors = np.logspace(0, 4, 400)
    for name, colour in zip(names, harness.PALETTE, strict=False):
        ran = [p for p in problems if any(r["problem"] == p and r["solver"] == name for r in rows)]
        ratio = np.array([good.get((p, name), np.inf) / best[p] if np.isfinite(best[p]) else np.inf for p in ran])
        label = name if len(ran) == len(problems) else f"{name} (on {len(ran)})"
        width = 2.4 if name == names[0] else 1.3
        share = [np.mean(ratio <= t) for t in factors]
        axes[0].step(factors, share, where="post", label=label, color=colour, linewidth=width)
    axes[0].set(
        xscale="log", ylim=(0, 1.03), xlabel="time over that of the fastest solver", ylabel="share of problems solved"
    )
    axes[0].set_title(title)
    axes[0].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    fig.tight_layout()
    harness.save_figure(fig, path, record)
