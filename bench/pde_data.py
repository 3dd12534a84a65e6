"""Where Chebyshev collocation loses: few nodes, noise, scattered data, unknown coefficients. Used by `bench/pde.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from pde_reference import chebyshev, interpolate, timed
from scipy.stats import beta

from solvers import Box, Dirichlet, Observe, PDEProblem, SquaredExponential, gp_solve
from solvers.problems.pde import PAPER

TWO_PI = 2 * np.pi
POINTS = jnp.linspace(0, TWO_PI, 300)
WAVE = jnp.sin(100 * POINTS)


def relative(u, truth):
    return float(jnp.linalg.norm(u - truth) / jnp.linalg.norm(truth))


def inside(solution, points, truth):
    """Return the share of points at which the truth lies in the 95 % band."""
    return float(jnp.mean(jnp.abs(solution.mean(points) - truth) <= 1.96 * solution.std(points)))


def fast(x, u, args):
    return u.dxx + 1e4 * jnp.sin(100 * x[0])


def by_chebyshev(count, source, left, right, length=TWO_PI):
    """Return Chebyshev collocation of ``u'' = source`` at POINTS."""
    x, d, w = chebyshev(count, length)
    v = np.zeros(count)
    v[[0, -1]] = right, left  # nodes run from the right end to the left
    dd = (d @ d)[1:-1]
    v[1:-1] = np.linalg.solve(dd[:, 1:-1], source(x)[1:-1] - dd @ v)
    return jnp.asarray(interpolate(x, w, np.asarray(POINTS)) @ v)


def below_nyquist(count):
    problem = PDEProblem(fast, Box((0.0, TWO_PI)), [Dirichlet("all")])
    nodes = jnp.linspace(0, TWO_PI, count)
    solution, seconds, first = timed(lambda nodes: gp_solve(problem, grid=(nodes,), basis="kernel"), nodes)
    error = relative(solution.mean(POINTS), WAVE)
    classical = relative(by_chebyshev(count, lambda x: -1e4 * np.sin(100 * x), 0.0, 0.0), WAVE)
    return {"problem": f"sin(100x) on {count} nodes", "method": "gp_solve, kernel basis", "grid": str(count),
            "error": error, "seconds": seconds, "compile_seconds": first, "status": int(solution.status),
            "chebyshev_error": classical}  # fmt: skip


def noisy(count=400, level=0.05):
    """5 % noise on the source and on both boundary values; prior and noise found by maximising the evidence."""
    rng = np.random.default_rng(17)
    nodes = np.linspace(0, TWO_PI, count)
    scale = level * 1e4 / np.sqrt(2), level / np.sqrt(2)
    values = -1e4 * np.sin(100 * nodes) + scale[0] * rng.standard_normal(count)
    ends = scale[1] * rng.standard_normal(2)

    def solve(values, ends):
        faces = [Dirichlet("x-", ends[0], noise=scale[1]), Dirichlet("x+", ends[1], noise=scale[1])]
        problem = PDEProblem(lambda x, u, f: u.dxx - f, Box((0.0, TWO_PI)), faces, noise=scale[0])
        return gp_solve(problem, grid=(jnp.asarray(nodes),), args=values, learn="prior", basis="kernel")

    solution, seconds, first = timed(solve, jnp.asarray(values), jnp.asarray(ends), repeat=3)

    def source(x):
        return -1e4 * np.sin(100 * x) + scale[0] * rng.standard_normal(x.size)

    error = relative(solution.mean(POINTS), WAVE)
    classical = relative(by_chebyshev(count, source, *ends), WAVE)
    return {"problem": f"sin(100x), {level:.0%} noise on source and boundary", "method": "gp_solve, learn='prior'",
            "grid": str(count), "error": error, "inside_95": inside(solution, POINTS, WAVE), "seconds": seconds,
            "compile_seconds": first, "status": int(solution.status), "chebyshev_error": classical,
            "atoms": int(jnp.sum(solution.prior[0].weights > 0))}  # fmt: skip


def scattered(count=20, noise=0.01):
    """Interior observations at random places, no boundary data; beside the same Gaussian process without equation."""
    instance = next(p for p in PAPER if p.name == "poisson mix")
    rng = np.random.default_rng(18)
    seen = np.sort(rng.uniform(0.05, 0.95, count))
    values = np.asarray(instance.exact(jnp.asarray(seen))) + noise * rng.standard_normal(count)

    def solve(values):
        problem = PDEProblem(instance.residual, Box(**instance.bounds), [Observe(seen, values, noise)])
        return gp_solve(problem, grid=112)

    def blind(values):
        problem = PDEProblem(lambda x, u, a: 0 * u.v, Box(**instance.bounds), [Observe(seen, values, noise)], noise=1.0)
        return gp_solve(problem, grid=8, prior=SquaredExponential(0.2), learn="prior")

    solution, seconds, first = timed(solve, jnp.asarray(values), repeat=3)
    (points,) = instance.test_points()
    truth = instance.exact(points)
    other = relative(jax.jit(blind)(jnp.asarray(values)).mean(points), truth)
    error = relative(solution.mean(points), truth)
    return {"problem": f"mix, {count} scattered observations, no boundary data", "method": "gp_solve", "grid": "112",
            "error": error, "inside_95": inside(solution, points, truth), "seconds": seconds, "compile_seconds": first,
            "status": int(solution.status), "error_without_equation": other}  # fmt: skip


def coverage(draws=200, groups=10):
    """How often the 95 % interval of an unknown diffusion coefficient holds the truth.

    With p = 0.95 the share of `draws` draws falls outside [0.93, 0.97] once in five, so
    the share of ten times as many is the figure that tells bias from chance.
    """
    seen, truth, noise = np.array([0.15, 0.5, 0.85]), np.log(0.5), 2e-3
    values = np.sin(np.pi * seen) / (0.5 * np.pi**2) + noise * np.random.default_rng(11).standard_normal(
        (groups * draws, 3)
    )

    def residual(x, u, args):
        return jnp.exp(args) * u.dxx + jnp.sin(np.pi * x[0])

    def one(v):
        problem = PDEProblem(residual, Box((0.0, 1.0)), [Dirichlet("all"), Observe(seen, v, noise)])
        return gp_solve(problem, grid=16, args=0.0, infer=1.5, rank=20, prior=SquaredExponential(0.4, 1.0))

    found, seconds, first = timed(jax.vmap(one), jnp.asarray(values), repeat=1)
    hits = np.asarray(jnp.abs(found.args - truth) <= 1.96 * found.args_std)
    k, n = int(hits.sum()), hits.size
    interval = float(beta.ppf(0.025, k, n - k + 1)), float(beta.ppf(0.975, k + 1, n - k))
    bias = abs(float(jnp.exp(jnp.mean(found.args))) / 0.5 - 1)
    worst = float(jnp.max(jnp.abs(jnp.exp(found.args) / 0.5 - 1)))
    return {"problem": f"unknown diffusion, {n} draws", "method": "gp_solve, kernel basis", "coverage_95": k / n,
            "coverage_interval": interval, "coverage_by_200": hits.reshape(groups, draws).mean(1).tolist(),
            "error": bias, "worst_error": worst, "seconds": seconds, "compile_seconds": first,
            "converged": float(jnp.mean(found.converged))}  # fmt: skip
