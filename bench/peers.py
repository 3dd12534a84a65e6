"""Other people's solvers behind one interface; a peer that is not installed is left out.

Transport. A contestant is a function ``contestant(problem, dtype)`` that returns ``ready``; ``ready(iterations)``
compiles where the peer compiles and returns ``solve``; ``solve(tol)`` runs to the marginal error ``tol`` in L1 or to
``iterations`` steps of its own and returns an `Answer`. Only ``solve`` is timed as a run. Each peer has the settings
that its documentation recommends, and its own stopping measure is scaled to imply ours.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import harness
import jax
import numpy as np

from solvers.problems.transport import TransportProblem


class Answer(NamedTuple):
    """Potentials or a plan, as the solver gave them; a plan where there are both.

    In float32 a solver should give its plan: rounding the potentials alone changes the plan by 1e-7 of cost / epsilon.
    """

    f: Any = None
    g: Any = None
    plan: Any = None
    iterations: Any = 0
    stopped: Any = True
    """Whether the solver says it reached its tolerance."""


class Ready(NamedTuple):
    """A solve ready to be run, and the seconds that getting there took."""

    solve: Callable[[float], Answer]
    compile_seconds: float = 0.0


Contestant = Callable[[TransportProblem, Any], Callable[[int], Ready]]


def marginal_error(problem: TransportProblem, answer: Answer) -> float:
    """Judge an answer by ``|P 1 - a|_1 + |P' 1 - b|_1`` in float64 on the data the solver was given."""
    plan = problem.plan(answer.f, answer.g) if answer.plan is None else answer.plan
    return problem.marginal_error(plan)


def ott(problem: TransportProblem, dtype, *, momentum: bool = False) -> Callable[[int], Ready]:
    """OTT-JAX's log-domain Sinkhorn: its defaults, or adaptive momentum from step 300 as its tutorial sets it."""
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear import acceleration
    from ott.solvers.linear.sinkhorn import Sinkhorn

    given = problem.astype(dtype)
    data = jax.device_put((given.cost, given.a, given.b, given.epsilon))

    @cache
    def ready(iterations: int) -> Ready:
        def run(cost, a, b, epsilon, tol):
            options = {"momentum": acceleration.Momentum(start=300)} if momentum else {}
            solver = Sinkhorn(threshold=tol, max_iterations=iterations, **options)
            out = solver(LinearProblem(Geometry(cost, epsilon=epsilon), a, b))
            return Answer(out.f, out.g, None if dtype == "float64" else out.matrix, out.n_iters, out.converged)

        program = harness.compiled(run, *data, np.asarray(1e-2, dtype))
        return Ready(lambda tol: program(*data, np.asarray(tol, dtype)), program.first_call_seconds)

    return lambda iterations: ready(max(10, 10 * -(-iterations // 10)))  # it looks at its error every ten


def pot_log(problem: TransportProblem, dtype) -> Callable[[int], Ready]:
    """POT's log-domain Sinkhorn; it stops on the L2 norm of one marginal, checked every ten steps."""
    import ot

    given = problem.astype(dtype)
    scale = 1 / np.sqrt(len(given.b))

    def ready(iterations: int) -> Ready:
        def solve(tol: float) -> Answer:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan, log = ot.sinkhorn(
                    given.a, given.b, given.cost, float(given.epsilon), method="sinkhorn_log",
                    stopThr=tol * scale, numItermax=iterations, log=True,
                )  # fmt: skip
            return Answer(
                plan=plan, iterations=log["niter"] + 1, stopped=min(log["err"], default=np.inf) <= tol * scale
            )

        return Ready(solve)

    return ready


def pot_exact(problem: TransportProblem, dtype) -> Callable[[int], Ready]:
    """POT's network simplex: no entropy, the exact plan; another problem, shown as a bar to clear."""
    import ot

    given = problem.astype(np.float64)

    def ready(iterations: int) -> Ready:
        def solve(tol: float) -> Answer:
            return Answer(plan=ot.emd(given.a, given.b, given.cost, numItermax=10**7))

        return Ready(solve)

    return ready


def regot(problem: TransportProblem, dtype, *, method: str) -> Callable[[int], Ready]:
    """RegOT's C++ solvers at their defaults (float64 only); they stop on the L2 norm of the dual gradient."""
    import regot as package

    given = problem.astype(np.float64)
    cost = np.asfortranarray(given.cost)
    n, m = cost.shape
    function = getattr(package, f"sinkhorn_{method}")

    def ready(iterations: int) -> Ready:
        def solve(tol: float) -> Answer:
            tol = tol / np.sqrt(n + m)
            out = function(cost, given.a, given.b, float(given.epsilon), tol, iterations)
            dual = np.append(out.dual, np.zeros(n + m - len(out.dual)))  # the last potential is fixed at zero
            return Answer(dual[:n], dual[n:], None, out.niter, out.mar_errs[-1] <= tol)

        return Ready(solve)

    return ready


def _installed(**contestants: tuple[str, Contestant]) -> dict[str, Contestant]:
    return {
        name.replace("_", " "): contestant
        for name, (module, contestant) in contestants.items()
        if importlib.util.find_spec(module) is not None
    }


TRANSPORT: dict[str, Contestant] = _installed(
    OTT_JAX=("ott", ott),
    OTT_JAX_momentum=("ott", partial(ott, momentum=True)),
    POT_sinkhorn_log=("ot", pot_log),
    RegOT_SSNS=("regot", partial(regot, method="ssns")),
    RegOT_SPLR=("regot", partial(regot, method="splr")),
    RegOT_Newton=("regot", partial(regot, method="newton")),
    POT_exact=("ot", pot_exact),
)
"""Those that are installed here."""

DOUBLE_ONLY = ("RegOT SSNS", "RegOT SPLR", "RegOT Newton", "POT exact")
EXACT = ("POT exact",)
