"""What the first call costs: tracing, lowering and XLA's compilation, on small data.

Two parts. `contract`: every solver of the contract, alone, under vmap and in a gradient. `examples`: the docstring
example of every public name, all it compiles together: what somebody waits for who pastes it into a new process.

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

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace s",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace s",
    "/jax/core/compile/backend_compile_duration": "compile s",
}


def measure(data, call, repeats: int) -> dict[str, float]:
    """Return the median seconds of so many compilations from nothing."""
    runs = []
    for _ in range(repeats):
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(call).lower(data)
        middle = time.perf_counter()
        lowered.compile()
        runs.append((middle - start, time.perf_counter() - middle))
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
    """Yield one row, of one run: seconds that JAX spent on programs while the example ran, and how many it compiled."""
    spent, programs = dict.fromkeys(("trace s", "compile s"), 0.0), 0

    def listen(event: str, seconds: float, **_) -> None:
        nonlocal programs
        if event in EVENTS:
            spent[EVENTS[event]] += seconds
            programs += EVENTS[event] == "compile s"

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        layout.run_example(name)
    wall = time.perf_counter() - start
    jax.monitoring.clear_event_listeners()
    together = sum(spent.values())
    yield {"solver": name, "what": "example", **spent, "together s": together, "programs": programs, "wall s": wall}


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
    harness.table(rows, title="seconds to the first answer")


if __name__ == "__main__":
    main()
