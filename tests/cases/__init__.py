"""One entry a public solver, one file a family. Adding a solver is adding an entry to its family's `CASES`.

Other kinds of public object have lists of their own (`collect` finds them), each with its contract test.
"""

import importlib
import pkgutil

from .case import Case as Case
from .case import Data as Data


def collect(kind: str) -> list:
    """Return the entries of that kind of all families, in alphabetical order of the families."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return [entry for module in modules for entry in getattr(module, kind, ())]


CASES: list[Case] = collect("CASES")

WITHOUT_ENTRY = {
    "gossip_rates": "its data are a graph, with nothing to differentiate or batch: tests/stochastic/test_graph.py",
    "lv_hba": "has no derivatives to check, and a step to take before it knows: tests/bilevel/test_value_function.py",
    "fit_transport_map": "trains a network by a fixed schedule: tests/transport/test_scale.py",
    "solve_sequence": "returns one solution a system, with a learner's state: tests/linear/test_sequence.py",
    "learned_sor": "is `solve_sequence` with a learner and arms chosen: tests/linear/test_sequence.py",
}
"""Public calls that iterate and have no entry here, why, and where they are tested instead."""
