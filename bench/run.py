"""Run every benchmark, one process each, and end with a line on each: ``python bench/run.py --quick`` takes minutes.

Each script writes its own results (``bench/results/``); this one only calls them, so that a family's benchmark can be
repeated alone: ``python bench/linear.py --quick``. At the end the table in the README is renewed from the results.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
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


def main() -> int:
    """Run the chosen scripts; return 0 when all of them did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter caps and fewer repeats")
    parser.add_argument("--gpu", action="store_true", help="the instances and targets meant for one accelerator")
    parser.add_argument("--family", default=",".join(FAMILIES), help="comma-separated scripts (default: all of them)")
    options = parser.parse_args()
    flags = [f"--{name}" for name in ("quick", "gpu") if getattr(options, name)]
    chosen = [name for name in options.family.split(",") if name]
    if unknown := sorted(set(chosen) - set(FAMILIES)):
        parser.error(f"--family: {', '.join(unknown)} is not among {', '.join(FAMILIES)}")

    ended: list[tuple[str, int, float]] = []
    for name in chosen:
        print(f"\n== {name} {' '.join(flags)}", flush=True)
        start = time.monotonic()
        code = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *flags], check=False).returncode
        ended.append((name, code, time.monotonic() - start))
    print()
    for name, code, seconds in ended:
        print(f"{name:<16} {'done' if code == 0 else f'failed with exit status {code}'} in {seconds:.0f} s")
    subprocess.run([sys.executable, str(HERE / "readme_table.py")], check=False)
    return max((code for _, code, _ in ended), default=0)


if __name__ == "__main__":
    sys.exit(main())
