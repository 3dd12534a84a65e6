"""Long races in parts: some problems a process, each saved as soon as it is done, so that nothing is lost."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import harness
import jax

CHUNK = 12
"""Problems a process."""
PATIENCE = 120.0
"""Seconds a problem before a process is given up."""
FLAGS = ("quick", "ours")


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what a race in parts takes."""
    parser.add_argument("--seconds", type=float, default=7200, help="start no new part after this long")
    parser.add_argument("--ours", action="store_true", help="without the peers")
    parser.add_argument("--resume", action="store_true", help="only problems that the file lacks")
    parser.add_argument("--report", action="store_true", help="print what the file says, run nothing")
    parser.add_argument("--part", default="", help="names of problems to do in this process")
    return parser


def race_all(options, script: str, file: str, names: Sequence[str], mine: str):
    """Run the script on the chosen names, a part a process; with ``--resume`` those that only `mine` has run."""
    path, begin = options.out / file, time.monotonic()
    names = [name for name in names if harness.chosen(f"/{name}/", [f"/{part}" for part in options.only])]
    if options.resume and path.exists():
        rows = json.loads(path.read_text())["rows"]
        done = {row["problem"] for row in rows if options.ours or row["solver"] != mine}
        names = [name for name in names if name not in done]
    chunks = [names[k : k + CHUNK] for k in range(0, len(names), CHUNK)]
    flags = [f"--{flag}" for flag in FLAGS if getattr(options, flag)]
    for k, chunk in enumerate(chunks):
        left = options.seconds - (time.monotonic() - begin)
        if left <= 0:
            print(f"out of time: {len(chunks) - k} of {len(chunks)} parts are left; --resume goes on")
            break
        command = [sys.executable, script, "--part", ",".join(chunk), "--out", str(options.out), *flags]
        try:
            subprocess.run(command, check=False, timeout=min(left, PATIENCE * len(chunk)))
        except subprocess.TimeoutExpired:
            print(f"given up: {', '.join(chunk)}")


def race_part(options, file: str, race: Callable, packages: Sequence[str]):
    """Race the problems named in ``--part`` in this process; ``race(name)`` yields rows."""
    record = harness.machine(*packages)
    for name in options.part.split(","):
        try:
            rows = list(race(name))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        print(
            name, rows[0]["says"], *(harness.number(rows[0].get(key)) for key in ("violation", "kkt", "ms")), flush=True
        )
        harness.save(options.out / file, rows, key=("problem", "solver"), record=record)
        jax.clear_caches()
