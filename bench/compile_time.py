"""What the first call costs: tracing, lowering and XLA's compilation of every solver of the contract, on small data.

``python bench/compile_time.py`` takes four minutes and writes ``bench/results/compile_time.json``; the size of each
traced program, which does not depend on the machine, is compared in the tests (``bench/counts.py``).
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "")  # the tests' set-up would ask for less optimisation
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from tests import test_contract as contract  # noqa: E402


def measure(data, call) -> dict[str, float]:
    """Return the median seconds of three compilations from nothing."""
    runs = []
    for _ in range(3):
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(call).lower(data)
        middle = time.perf_counter()
        lowered.compile()
        runs.append((middle - start, time.perf_counter() - middle))
    trace, build = np.median(runs, axis=0)
    return {"trace s": trace, "compile s": build, "together s": trace + build}


def main() -> None:
    """Measure the solve, the batched solve and the gradient."""
    options = harness.arguments(__doc__)
    record, rows = harness.machine("equinox"), []
    for case in contract.CASES:
        if not harness.chosen(case.name, options.only):
            continue
        data = contract.data_of(case, np.dtype("float64"))
        lanes = jax.tree.map(lambda x: jax.numpy.stack([x] * contract.LANES), data)
        calls = {
            "solve": (data, case.solve),
            "vmap": (lanes, jax.vmap(case.solve)),
            "gradient": (data, jax.grad(lambda d, case=case: case.observe(case.solve(d)), allow_int=True)),
        }
        for what, (inputs, call) in calls.items():
            rows.append({"solver": case.name, "what": what, **measure(inputs, call)})
    harness.table(rows, title="seconds to the first answer, two cores")
    harness.save(options.out / "compile_time.json", rows, key=("solver", "what"), record=record)


if __name__ == "__main__":
    main()
