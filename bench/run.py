"""Run every benchmark, one process each, and end with a line on each.

Each script writes its own results (``bench/results/``, quick ones to a new folder); this one only calls them, so that a
family's benchmark can be repeated alone: ``python bench/linear.py --quick``. Once results were written to
``bench/results/`` the table in the README is renewed from them.

    python bench/run.py --quick                                    all of them, one after the other
    python bench/run.py --quick --family linear,pde --limit 300    these two, each ended after five minutes
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
DONE = "done"
FAMILIES = (
    "transport",
    "transport_scale",
    "constrained",
    "interior",
    "linear",
    "pde",
    "lowrank",
    "lowrank_data",
    "statespace",
    "tensor",
    "inverse",
    "inverse_images",
    "convexnets",
    "curvature",
    "curvature_network",
    "curvature_training",
    "stochastic",
    "bilevel",
    "dynamics",
    "neural_pde",
    "constrained_large",
    "equations",
)


def ended_code(command: list[str], limit: float | None) -> int | None:
    """Run a script and return its exit status, or None where it took too long; no process of it is left behind."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # races in parts have processes of their own
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> int:
    """Run the chosen scripts; return 0 when all of them did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter caps and fewer repeats")
    parser.add_argument("--gpu", action="store_true", help="the instances and targets meant for one accelerator")
    parser.add_argument("--out", type=Path, help="folder of all results (default: bench/results; quick: a new one)")
    parser.add_argument("--limit", type=float, help="seconds after which a script is ended and counts as failed")
    parser.add_argument("--family", default=",".join(FAMILIES), help="comma-separated scripts (default: all of them)")
    options = parser.parse_args()
    flags = [f"--{name}" for name in ("quick", "gpu") if getattr(options, name)]
    chosen = [name for name in options.family.split(",") if name]
    if unknown := sorted(set(chosen) - set(FAMILIES)):
        parser.error(f"--family: {', '.join(unknown)} is not among {', '.join(FAMILIES)}")

    if options.out is None and options.quick:
        options.out = Path(tempfile.mkdtemp(prefix="quick-results-"))
    flags += [] if options.out is None else ["--out", str(options.out)]
    ended: list[tuple[str, str, float]] = []
    for name in chosen:
        print(f"\n== {name} {' '.join(flags)}", flush=True)
        start = time.monotonic()
        code = ended_code([sys.executable, str(HERE / f"{name}.py"), *flags], options.limit)
        how = "ended by --limit" if code is None else f"failed with exit status {code}" if code else DONE
        ended.append((name, how, time.monotonic() - start))
    print()
    for name, how, seconds in ended:
        print(f"{name:<18} {how} in {seconds:.0f} s")
    if options.out is None:
        subprocess.run([sys.executable, HERE / "readme_table.py"], check=False)
    return int(any(how != DONE for _, how, _ in ended))


if __name__ == "__main__":
    sys.exit(main())
