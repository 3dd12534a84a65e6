"""The tour: ``python -m solvers`` solves a real problem with every family, times it, compares it and draws it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .tour import FAMILIES
from .tour import run as run_family

DEMO = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "scipy": "scipy", "PIL": "pillow"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tour; return 0 when every solve converged."""
    options = _arguments(argv)
    if options.list:
        for name, what in FAMILIES.items():
            print(f"{name:<12} {what}")
        return 0
    missing = [package for module, package in DEMO.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f'The tour needs {", ".join(missing)}: pip install -e ".[demo]"', file=sys.stderr)
        return 2
    os.environ.setdefault("MPLBACKEND", "agg")
    import jax

    if "JAX_ENABLE_X64" not in os.environ:
        jax.config.update("jax_enable_x64", True)
    out = sys.stderr if options.json else sys.stdout
    options.plots.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    print(f"solvers {__version__}, jax {jax.__version__}, {device.device_kind} ({device.platform})", file=out)

    start = time.perf_counter()
    records = []
    for family in options.only:
        print(f"\n{family}: {FAMILIES[family]}", file=out, flush=True)
        records += run_family(family, options.plots, lambda line: print(f"  {line}", file=out, flush=True))
    good = sum(record.converged for record in records)
    print(f"\n{good} of {len(records)} converged; {time.perf_counter() - start:.0f} s in all", file=out)
    if options.json:
        print(json.dumps([record.to_json() for record in records], indent=1))
    return 0 if good == len(records) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m solvers", description=__doc__)
    parser.add_argument("--version", action="version", version=f"solvers {__version__}")
    parser.add_argument("--list", action="store_true", help="name the parts of the tour and stop")
    parser.add_argument("--only", default=",".join(FAMILIES), metavar="NAMES", help="comma-separated parts to run")
    parser.add_argument("--json", action="store_true", help="print the results as JSON; all else goes to stderr")
    parser.add_argument("--plots", type=Path, default=Path("solvers-tour"), metavar="DIR",
                        help="where the pictures go (default: ./solvers-tour)")  # fmt: skip
    options = parser.parse_args(argv)
    options.only = [name for name in options.only.split(",") if name]
    unknown = sorted(set(options.only) - set(FAMILIES))
    if unknown or not options.only:
        parser.error(f"--only: {', '.join(unknown) or 'nothing'} is not among {', '.join(FAMILIES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
