"""Equality-constrained solvers of other people: each is ``solve(functions, x0) -> (x, iterations)``."""

import contextlib
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
    return Functions(*calls, m)


def ipopt(fs: Functions, x0):
    """IPOPT 3.14 through cyipopt, exact derivatives, tol 1e-8."""
    import cyipopt

    n, rows = x0.size, np.tril_indices(x0.size)
    count = [0]

    class Callbacks:
        def objective(self, x):
            return float(fs.f(x))

        def gradient(self, x):
            return np.asarray(fs.g(x))

        def constraints(self, x):
            return np.asarray(fs.c(x))

        def jacobian(self, x):
            return np.asarray(fs.G(x)).ravel()

        def hessianstructure(self):
            return rows

        def hessian(self, x, lam, sigma):
            return np.asarray(fs.H(x, lam, sigma))[rows]

        def intermediate(self, mode, step, *rest):
            count[0] = step

    zero = np.zeros(fs.m)
    nlp = cyipopt.Problem(n, fs.m, problem_obj=Callbacks(), lb=[-1e20] * n, ub=[1e20] * n, cl=zero, cu=zero)
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


def available() -> dict:
    """Return the peers that are installed."""
    found = {
        "scipy SLSQP": _scipy("SLSQP", {"ftol": 1e-12, "maxiter": 1000}),
        "scipy trust-constr": _scipy("trust-constr", {"gtol": 1e-8, "xtol": 1e-12, "maxiter": 1000}),
    }
    with contextlib.suppress(ImportError):
        import cyipopt  # noqa: F401

        found["IPOPT"] = ipopt
    return found
