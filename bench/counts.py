"""Counts that do not depend on the machine: steps, inner steps and evaluations, and the size of each solver's program.

``python bench/counts.py --write`` stores them in ``bench/results/counts.json``; the contract tests compare with them,
so that a solver which begins to need more steps, or whose program grows, is noticed in review.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.extend import core

BASELINE = Path(__file__).parent / "results" / "counts.json"
ROOT = Path(__file__).resolve().parents[1]
COUNTERS = ("num_steps", "linear_steps", "num_evaluations", "num_inner")


def counts(solution) -> dict[str, list[int]]:
    """Read a batched solution's counters, one entry a lane."""
    return {name: np.asarray(getattr(solution, name)).tolist() for name in COUNTERS if hasattr(solution, name)}


def program_size(function, *args) -> int:
    """Count the equations of the traced program, those of its loops and branches included."""
    return _equations(jax.make_jaxpr(function)(*args).jaxpr)


def _equations(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += 1
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(parameter, core.ClosedJaxpr):
                total += _equations(parameter.jaxpr)
            elif isinstance(parameter, core.Jaxpr):
                total += _equations(parameter)
    return total


def main() -> int:
    """Print the counts of the contract's problems, beside the stored ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store them as the new baseline")
    parser.add_argument("--only", default="", help="comma-separated entries (default: all of them)")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests import test_contract as contract

    stored = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    only = {name for name in options.only.split(",") if name}
    if unknown := only - {case.name for case in contract.CASES}:
        parser.error(f"--only: no entry named {', '.join(sorted(unknown))}")
    for x64 in (False, True):
        jax.config.update("jax_enable_x64", x64)
        dtype = np.dtype("float64" if x64 else "float32")
        for case in contract.CASES:
            if only and case.name not in only:
                continue
            lanes = [contract.data_of(case, dtype, seed=20 + i) for i in range(contract.LANES)]
            batch = jax.tree.map(lambda *x: jax.numpy.stack(x), *lanes)
            now = counts(jax.jit(jax.vmap(case.solve))(batch))
            now["equations"] = program_size(case.solve, lanes[0])
            entry = stored.setdefault(case.name, {})
            print(f"{case.name:<16} {dtype.name} {now}", "" if entry.get(dtype.name) == now else
                  f"(stored: {entry.get(dtype.name)})")  # fmt: skip
            if options.write:
                entry[dtype.name] = now
    if options.write:
        BASELINE.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
