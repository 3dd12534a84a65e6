"""What the first call costs: tracing, lowering and XLA's compilation, on small data, in CPU seconds.

CPU seconds are those of all threads together: what one core needs. Other work beside it inflates them, less than it
does seconds on the clock: by up to 40 % on two hardware threads of a core. Two parts. `contract`: every solver of the
contract, alone, under vmap and in a gradient. `examples`: the docstring example of every public name, all that it
compiles and runs: what somebody waits for who pastes it into a new process.

``python bench/compile_time.py`` takes some twenty minutes on two cores and writes ``bench/results/compile_time.json``;
``--quick`` compiles once instead of three times, ``--slice 0/4`` measures a quarter, ``--only sor`` what has that in
its name. The size of each traced program, which does not depend on the machine, is compared in the tests
(``bench/counts.py``).
"""

import contextlib
import io
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "")  # the tests' set-up would ask for less optimisation
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # nor may what an earlier process compiled be found
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from tests import test_contract as contract  # noqa: E402
from tests import test_layout as layout  # noqa: E402

COMPILED = "/jax/core/compile/backend_compile_duration"


def measure(data, call, repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of so many compilations from nothing."""
    runs = []
    for _ in range(repeats):
        jax.clear_caches()
        start = time.process_time()
        lowered = jax.jit(call).lower(data)
        middle = time.process_time()
        lowered.compile()
        runs.append((middle - start, time.process_time() - middle))
    trace, build = np.median(runs, axis=0)
    return {"trace s": trace, "compile s": build, "together s": trace + build}


def of_contract(case, repeats: int):
    """Yield the rows of one solver: its solve, the batched solve and the gradient."""
    data = contract.data_of(case, np.dtype("float64"))
    lanes = jax.tree.map(lambda x: jax.numpy.stack([x] * contract.LANES), data)
    calls = {
        "solve": (data, case.solve),
        "vmap": (lanes, jax.vmap(case.solve)),
        "gradient": (data, jax.grad(lambda d: case.observe(case.solve(d)), allow_int=True)),
    }
    for what, (inputs, call) in calls.items():
        yield {"solver": case.name, "what": what, **measure(inputs, call, repeats)}


def of_example(name: str, repeats: int):
    """Yield one row, of one run: CPU seconds of the example, and how many programs it compiled."""
    programs = 0

    def listen(event: str, seconds: float, **_) -> None:
        nonlocal programs
        programs += event == COMPILED

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        layout.run_example(name)
    spent = time.process_time() - start
    jax.monitoring.clear_event_listeners()
    yield {"solver": name, "what": "example", "programs": programs, "together s": spent}


def main() -> None:
    """Measure the contract's solvers and the public names' examples."""
    parser = harness.parser(__doc__)
    parser.add_argument("--slice", default="0/1", help="which part of the names, as k/n")
    options = harness.finished(parser.parse_args())
    part, parts = map(int, options.slice.split("/"))
    jobs = [(case.name, "contract", of_contract, case) for case in contract.CASES]
    jobs += [(name, "examples", of_example, name) for name in sorted(layout.EXAMPLES)]
    record, rows = harness.machine("equinox"), []
    for name, kind, rows_of, what in jobs[part::parts]:
        if harness.chosen(f"{kind} {name}", options.only):
            rows += list(rows_of(what, 1 if options.quick else 3))
            harness.save(options.out / "compile_time.json", rows, key=("solver", "what"), record=record)
    harness.table(rows, title="CPU seconds to the first answer")


if __name__ == "__main__":
    main()
