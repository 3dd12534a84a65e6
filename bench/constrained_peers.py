"""Constrained solvers of other people: ``solve(problem, calls) -> Ended``, with exact derivatives."""

import contextlib
import functools
import importlib
import importlib.util
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
from inequalities import Bounded, Derivatives, fitted

STEPS, TOL = 500, 1e-8


class Ended(NamedTuple):
    """Where a peer ended; `success` is its own word."""

    x: Any
    multipliers: tuple
    steps: int
    success: bool


class _Callbacks:
    """IPOPT's interface, one compiled call each."""

    def __init__(self, problem: Bounded, calls: Derivatives):
        self.calls, self.p, self.m, self.steps = calls, problem.p, problem.p + problem.q, 0
        self.zero = np.zeros(problem.p), np.zeros(problem.q)
        self.n = problem.x0.size
        self.rows = np.tril_indices(self.n)

    def objective(self, x):
        return float(self.calls.values(x)[0])

    def gradient(self, x):
        return np.asarray(self.calls.model(x, *self.zero, 1.0)[0])

    def constraints(self, x):
        return np.concatenate([np.asarray(v) for v in self.calls.values(x)[1:]])

    def jacobianstructure(self):
        return tuple(np.indices((self.m, self.n)).reshape(2, -1))

    def jacobian(self, x):
        return np.concatenate([np.asarray(v) for v in self.calls.model(x, *self.zero, 1.0)[1:3]]).ravel()

    def hessianstructure(self):
        return self.rows

    def hessian(self, x, multipliers, sigma):
        H = self.calls.model(x, multipliers[: self.p], multipliers[self.p :], float(sigma))[3]
        return np.asarray(H)[self.rows]

    def intermediate(self, mode, step, *rest):
        self.steps = step


def ipopt(problem: Bounded, calls: Derivatives, *options, module="cyipopt") -> Ended:
    """IPOPT through cyipopt (or pounce, its descendant with the same interface), exact derivatives."""
    library: Any = importlib.import_module(module)
    n, m, p = problem.x0.size, problem.p + problem.q, problem.p
    callbacks = _Callbacks(problem, calls)
    nlp = library.Problem(
        n, m, problem_obj=callbacks,
        lb=np.maximum(problem.lower, -1e20), ub=np.minimum(problem.upper, 1e20),
        cl=np.concatenate([np.zeros(p), np.full(problem.q, -1e20)]), cu=np.zeros(m),
    )  # fmt: skip
    for key, value in (("print_level", 0), ("sb", "yes"), ("tol", TOL), ("max_iter", STEPS), *options):
        nlp.add_option(key, value)
    x, info = nlp.solve(problem.x0)
    y = np.asarray(info["mult_g"])
    multipliers = y[:p], y[p:], np.asarray(info["mult_x_L"]), np.asarray(info["mult_x_U"])
    return Ended(np.asarray(x), multipliers, callbacks.steps, info["status"] == 0)


def from_scipy(problem: Bounded, calls: Derivatives, *, method) -> Ended:
    """SciPy's SLSQP and trust-constr with exact derivatives; their multipliers are fitted to the point they end at.

    trust-constr's test of the gradient disregards complementarity, so with inequalities it stops by radius and barrier.
    """
    p, q = problem.p, problem.q
    zero = np.zeros(p), np.zeros(q)
    free = problem.lower < problem.upper

    def value(x):
        return float(calls.values(x)[0]), np.asarray(calls.model(x, *zero, 1.0)[0])

    limited = q or np.any(np.isfinite(problem.lower)) or np.any(np.isfinite(problem.upper))
    options: dict = {"gtol": 0.0, "xtol": 1e-9, "barrier_tol": TOL} if limited else {"gtol": TOL, "xtol": 1e-12}
    options = {"ftol": 1e-12} if method == "SLSQP" else options
    constraints: list = []
    extra = {}
    if method == "SLSQP":
        kinds = (("eq", 1, 1.0, p), ("ineq", 2, -1.0, q))
        for kind, k, sign, size in kinds:
            if size:
                constraints.append({
                    "type": kind,
                    "fun": lambda x, k=k, sign=sign: sign * np.asarray(calls.values(x)[k]),
                    "jac": lambda x, k=k, sign=sign: sign * np.asarray(calls.model(x, *zero, 1.0)[k]),
                })  # fmt: skip
    else:
        extra["hess"] = lambda x: np.asarray(calls.model(x, *zero, 1.0)[3])
        if p + q:
            constraints = [
                scipy.optimize.NonlinearConstraint(
                    lambda x: np.concatenate([np.asarray(v) for v in calls.values(x)[1:]]),
                    np.concatenate([np.zeros(p), np.full(q, -np.inf)]),
                    0.0,
                    jac=lambda x: np.concatenate([np.asarray(v) for v in calls.model(x, *zero, 1.0)[1:3]]),
                    hess=lambda x, v: np.asarray(calls.model(x, v[:p], v[p:], 0.0)[3]),
                )
            ]
    bounds = scipy.optimize.Bounds(problem.lower, problem.upper) if np.any(free) else None
    x0 = np.clip(problem.x0, problem.lower, problem.upper)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end = scipy.optimize.minimize(
            value, x0, jac=True, method=method, bounds=bounds, constraints=constraints,
            options={"maxiter": STEPS, **options}, **extra,
        )  # fmt: skip
    done = end.status == 0 if method == "SLSQP" else end.status in (1, 2)
    return Ended(np.asarray(end.x), fitted(problem, calls, np.asarray(end.x)), int(end.nit), bool(done))


def ipax(problem: Bounded, calls: Derivatives) -> Ended:
    """Solve by ipax's interior-point method with exact dense derivatives."""
    library: Any = importlib.import_module("ipax")
    p, q = problem.p, problem.q
    zero = np.zeros(p), np.zeros(q)
    parts: dict = {}
    if p:
        parts["eq_constraints"] = lambda x: np.asarray(calls.values(x)[1])
        parts["eq_jacobian"] = lambda x: np.asarray(calls.model(x, *zero, 1.0)[1])
    if q:
        parts["ineq_constraints"] = lambda x: np.asarray(calls.values(x)[2])
        parts["ineq_jacobian"] = lambda x: np.asarray(calls.model(x, *zero, 1.0)[2])

    def hessian(x, y, z, sigma=1.0):
        y, z = zero[0] if y is None else y, zero[1] if z is None else z
        return np.asarray(calls.model(x, y, z, sigma)[3])

    whole = library.FunctionProblem(
        problem.x0.size,
        lambda x: float(calls.values(x)[0]),
        gradient=lambda x: np.asarray(calls.model(x, *zero, 1.0)[0]),
        lagrangian_hessian=hessian,
        bounds=(problem.lower, problem.upper),
        **parts,
    )
    end = library.solve(whole, x0=problem.x0, options=library.Options(hessian="exact", linsolve="dense"))
    x = np.asarray(end.x)
    return Ended(x, fitted(problem, calls, x), int(end.n_iter), bool(end.success))


def available() -> dict:
    """Return the peers that are installed, the quick ones first."""
    found: dict = {}
    if importlib.util.find_spec("cyipopt"):
        found["IPOPT"] = ipopt
        exact = ("bound_relax_factor", 0.0)
        found["IPOPT exact bounds"] = lambda problem, calls: ipopt(problem, calls, exact)
    if importlib.util.find_spec("pounce"):
        found["pounce"] = functools.partial(ipopt, module="pounce")
    for method in ("SLSQP", "trust-constr"):
        found[f"scipy {method}"] = functools.partial(from_scipy, method=method)
    if importlib.util.find_spec("ipax"):
        found["ipax"] = ipax
    if importlib.util.find_spec("slsqp_jax"):
        found["slsqp-jax"] = slsqp_jax
    return found


def slsqp_jax(problem: Bounded, calls: Derivatives) -> Ended:
    """Solve by slsqp-jax, the whole solve in one jitted program."""
    if problem.name not in _PROGRAMS:
        _PROGRAMS[problem.name] = _slsqp_program(problem)
    end = _PROGRAMS[problem.name](jnp.asarray(problem.x0))
    x = np.asarray(end[0])
    return Ended(x, fitted(problem, calls, x), int(end[1]), bool(end[2]))


_PROGRAMS: dict = {}


def _slsqp_program(problem: Bounded):
    import optimistix
    from slsqp_jax import SLSQP, SLSQPConfig, ToleranceConfig

    parts: dict = {}
    if problem.p:
        parts |= {"eq_constraint_fn": lambda x, _: problem.constraints(x)[0], "n_eq_constraints": problem.p}
    if problem.q:
        parts |= {"ineq_constraint_fn": lambda x, _: -problem.constraints(x)[1], "n_ineq_constraints": problem.q}
    if np.any(np.isfinite(problem.lower)) or np.any(np.isfinite(problem.upper)):
        parts["bounds"] = jnp.stack([jnp.asarray(problem.lower), jnp.asarray(problem.upper)], axis=1)
    solver = SLSQP(config=SLSQPConfig(tolerance=ToleranceConfig(rtol=TOL, atol=TOL)), **parts)

    @jax.jit
    def run(x):
        end = optimistix.minimise(
            lambda x, _: (problem.f(x), None), solver, x, None, has_aux=True, max_steps=STEPS, throw=False
        )
        return end.value, end.stats["num_steps"], end.result == optimistix.RESULTS.successful

    return run


class Quadratic(NamedTuple):
    """``min x'Px/2 + q'x`` subject to ``Ax = b``, ``Gx <= h``, bounds among the latter."""

    P: Any
    q: Any
    A: Any
    b: Any
    G: Any
    h: Any


def convex_quadratic(problem: Bounded, calls: Derivatives) -> Quadratic | None:
    """Return the matrices if second derivatives are constant, convex, and those of constraints zero."""
    rng, n, p, q = np.random.default_rng(17), problem.x0.size, problem.p, problem.q
    ones = np.ones(p), np.ones(q)
    at = [problem.x0, problem.x0 + rng.standard_normal(n), problem.x0 - 2 * rng.standard_normal(n)]
    found = [calls.model(x, *(1.0 * v for v in ones), 1.0) for x in at]
    bare = [np.asarray(calls.model(x, 0 * ones[0], 0 * ones[1], 1.0)[3]) for x in at]
    H = [np.asarray(m[3]) for m in found]
    size = 1 + np.max(np.abs(bare[0]))
    linear = all(np.allclose(a, b, atol=1e-12 * size) for a, b in zip(H, bare, strict=True))
    steady = all(np.allclose(b, bare[0], atol=1e-9 * size) for b in bare)
    if not (linear and steady and np.all(np.isfinite(bare[0]))):
        return None
    if n and np.linalg.eigvalsh(bare[0])[0] < -1e-9 * size:
        return None
    zero = np.zeros(n)
    f, c, g = (np.asarray(v) for v in calls.values(zero))
    df, C, G, _ = (np.asarray(v) for v in calls.model(zero, *ones, 1.0))
    if not all(np.all(np.isfinite(v)) for v in (f, c, g, df, C, G)):
        return None
    low, high, eye = np.isfinite(problem.lower), np.isfinite(problem.upper), np.eye(n)
    rows = np.concatenate([G, -eye[low], eye[high]])
    return Quadratic(bare[0], df, C, -c, rows, np.concatenate([-g, -problem.lower[low], problem.upper[high]]))


def clarabel(problem: Bounded, calls: Derivatives, program: Quadratic) -> Ended:
    """Clarabel, an interior-point method in Rust, from the matrices."""
    library: Any = importlib.import_module("clarabel")
    settings = library.DefaultSettings()
    settings.verbose = False
    for key in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
        setattr(settings, key, 1e-9)
    cones = [library.ZeroConeT(problem.p)] if problem.p else []
    cones += [library.NonnegativeConeT(program.h.size)] if program.h.size else []
    solver = library.DefaultSolver(
        scipy.sparse.csc_matrix(np.triu(program.P)), program.q,
        scipy.sparse.csc_matrix(np.concatenate([program.A, program.G])), np.concatenate([program.b, program.h]),
        cones, settings,
    )  # fmt: skip
    end = solver.solve()
    x = np.asarray(end.x)
    return Ended(x, fitted(problem, calls, x), int(end.iterations), str(end.status) == "Solved")


def qpax(problem: Bounded, calls: Derivatives, program: Quadratic) -> Ended:
    """Solve by qpax, a dense primal-dual method in JAX, jitted; compiled before it is timed."""
    end = _qpax_program()(*program)
    x = np.asarray(end[0])
    return Ended(x, fitted(problem, calls, x), int(end[5]), bool(end[4]))


@functools.cache
def _qpax_program():
    library: Any = importlib.import_module("qpax")
    return jax.jit(functools.partial(library.solve_qp, solver_tol=1e-9))


def for_quadratics() -> dict:
    """Return the solvers of convex quadratic programs that are installed."""
    found = {}
    for name, solve in (("clarabel", clarabel), ("qpax", qpax)):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            found[name] = solve
    return found
