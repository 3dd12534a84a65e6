"""Equality-constrained solvers of other people: each is ``solve(functions, x0) -> (x, iterations)``."""

import contextlib
import functools
import importlib
import importlib.util
import warnings
from typing import NamedTuple

import jax
import numpy as np
import scipy.optimize


class Functions(NamedTuple):
    """Jitted values and exact derivatives, and how many equations there are."""

    f: object
    g: object
    c: object
    G: object
    H: object
    m: int
    problem: object


def functions(problem) -> Functions:
    """Compile what the callback solvers need, so that only their own work is timed."""

    def f(x):
        return problem.objective(x, problem.args)

    def c(x):
        return problem.equality(x, problem.args)

    def lagrangian(x, lam, sigma):
        return sigma * f(x) + lam @ c(x)

    calls = tuple(jax.jit(h) for h in (f, jax.grad(f), c, jax.jacrev(c), jax.hessian(lagrangian)))
    m = jax.eval_shape(c, problem.x0).shape[0]
    x, lam = np.asarray(problem.x0), np.zeros(m)
    for call in calls[:4]:
        call(x)
    calls[4](x, lam, 1.0)
    return Functions(*calls, m, problem)


def ipopt(module, fs: Functions, x0):
    """IPOPT 3.14 through cyipopt, or pounce, its descendant with the same interface; exact derivatives, tol 1e-8."""
    n, rows = x0.size, np.tril_indices(x0.size)
    count = [0]

    class Callbacks:
        def objective(self, x):
            return float(fs.f(x))

        def gradient(self, x):
            return np.asarray(fs.g(x))

        def constraints(self, x):
            return np.asarray(fs.c(x))

        def jacobianstructure(self):
            return tuple(np.indices((fs.m, n)).reshape(2, -1))

        def jacobian(self, x):
            return np.asarray(fs.G(x)).ravel()

        def hessianstructure(self):
            return rows

        def hessian(self, x, lam, sigma):
            return np.asarray(fs.H(x, lam, sigma))[rows]

        def intermediate(self, mode, step, *rest):
            count[0] = step

    zero = np.zeros(fs.m)
    nlp = module.Problem(n, fs.m, problem_obj=Callbacks(), lb=[-1e20] * n, ub=[1e20] * n, cl=zero, cu=zero)
    for key, value in (("print_level", 0), ("sb", "yes"), ("tol", 1e-8), ("max_iter", 1000)):
        nlp.add_option(key, value)
    return nlp.solve(x0)[0], count[0]


def _scipy(method, options):
    def solve(fs: Functions, x0):
        def value(x):
            return float(fs.f(x)), np.asarray(fs.g(x))

        extra = {}
        if method == "trust-constr":
            zero = np.zeros(fs.m)
            extra["hess"] = lambda x: np.asarray(fs.H(x, zero, 1.0))
            constraint = scipy.optimize.NonlinearConstraint(
                fs.c, 0, 0, jac=fs.G, hess=lambda x, v: np.asarray(fs.H(x, np.asarray(v), 0.0))
            )
        else:
            constraint = {"type": "eq", "fun": lambda x: np.asarray(fs.c(x)), "jac": lambda x: np.asarray(fs.G(x))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            end = scipy.optimize.minimize(
                value, x0, jac=True, method=method, constraints=constraint, options=options, **extra
            )
        return end.x, end.nit

    return solve


def ipax(fs: Functions, x0):
    """Solve by ipax's interior point method with exact dense derivatives."""
    import ipax as module

    zero = np.zeros(fs.m)
    problem = module.FunctionProblem(
        x0.size,
        lambda x: float(fs.f(x)),
        gradient=lambda x: np.asarray(fs.g(x)),
        eq_constraints=lambda x: np.asarray(fs.c(x)),
        eq_jacobian=lambda x: np.asarray(fs.G(x)),
        lagrangian_hessian=lambda x, y, _, sigma=1.0: np.asarray(fs.H(x, zero if y is None else y, sigma)),
    )
    end = module.solve(problem, x0=x0, options=module.Options(hessian="exact", linsolve="dense"))
    return np.asarray(end.x), end.n_iter


_PROGRAMS: dict = {}


def _slsqp_program(problem, m):
    if problem.name in _PROGRAMS:
        return _PROGRAMS[problem.name]
    import optimistix
    from slsqp_jax import SLSQP, SLSQPConfig, ToleranceConfig

    solver = SLSQP(
        eq_constraint_fn=problem.equality,
        n_eq_constraints=m,
        config=SLSQPConfig(tolerance=ToleranceConfig(rtol=1e-8, atol=1e-8)),
    )

    @jax.jit
    def run(x):
        end = optimistix.minimise(
            lambda x, args: (problem.objective(x, args), None), solver, x, problem.args, has_aux=True, max_steps=500,
            throw=False,
        )  # fmt: skip
        return end.value, end.stats["num_steps"]

    return _PROGRAMS.setdefault(problem.name, run)


def slsqp_jax(fs: Functions, x0):
    """Solve by slsqp-jax, the whole solve in one jitted program."""
    return jax.block_until_ready(_slsqp_program(fs.problem, fs.m)(x0))


JITTED = ["HS7", "HS40", "HS78", "BT11", "HS47", "HS100LNP", "HS77", "HS79", "HS56", "BT5", "HS28", "ORTHREGB"]
"""The problems for slsqp-jax, whose compilation takes ten seconds each."""


def available(name: str) -> dict:
    """Return the peers that are installed and bearable on the problem `name`."""
    found = {
        "scipy SLSQP": _scipy("SLSQP", {"ftol": 1e-12, "maxiter": 1000}),
        "scipy trust-constr": _scipy("trust-constr", {"gtol": 1e-8, "xtol": 1e-12, "maxiter": 1000}),
    }
    for title, module in (("IPOPT", "cyipopt"), ("pounce", "pounce")):
        with contextlib.suppress(ImportError):
            found[title] = functools.partial(ipopt, importlib.import_module(module))
    if importlib.util.find_spec("ipax"):
        found["ipax"] = ipax
    if importlib.util.find_spec("slsqp_jax") and name in JITTED:
        found["slsqp-jax"] = slsqp_jax
    slow = ("pounce", "ipax", "scipy SLSQP") if name in ("MSS1", "MANCINONE") else ()
    return {title: peer for title, peer in found.items() if title not in slow}
