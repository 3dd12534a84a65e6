"""What `gp_solve` is compared with: Chebyshev collocation and differences in NumPy, GP-HM's own route, its logs."""

import jax
import jax.numpy as jnp
import numpy as np
from harness import clock, compiled
from scipy.linalg import solve_banded

from solvers import Box, Dirichlet, PDEProblem, PublishedGPHM, gp_solve

AUTHORS = {
    "poisson sin(100x)": (3.99e-7, 1329),
    "poisson sin(6x)cos(100x)": (1.52e-6, 1329),
    "poisson x sin(200x)": (8.98e-7, 7451),
    "poisson mix": (3.5e-4, 4667),
    "poisson sin(500x)-2(x-.5)^2": (4.22e-4, 5705),
    "allen-cahn sin(100x)": (7.71e-7, 1998),
    "allen-cahn sin(6x)cos(100x)": (4.24e-6, 1996),
    "poisson2d sin(100x)sin(100y)": (4.69e-6, 2109),
    "poisson2d additive": (1.02e-3, 6627),
    "allen-cahn2d mix": (2.58e-3, 15926),
    "advection beta=200": (1.43e-4, 11152),
}
"""Relative L2 error (the smallest over checkpoints of the test error) and seconds, from the logs of GP-HM's authors."""


def stated(instance):
    faces = [Dirichlet(face, lambda x, args: instance.exact(*x)) for face in instance.faces]
    return PDEProblem(instance.residual, Box(**instance.bounds), faces)


def size(grid):
    """Write a grid as text."""
    return " x ".join(map(str, grid))


def timed(solve, *args, repeat=7):
    """Return the output, the median seconds of several runs, and what the first call costs beyond that."""
    program = compiled(solve, *args)
    timing = clock(lambda: program(*args), repeat=repeat, budget=6.0)
    return timing.output, timing.seconds, program.first_call_seconds


def chebyshev(n, length):
    """Chebyshev points on [0, length], the differentiation matrix, barycentric weights."""
    k = np.arange(n)
    x = np.cos(np.pi * k / (n - 1))
    w = (-1.0) ** k
    w[[0, -1]] /= 2
    d = np.divide.outer(1 / w, 1 / w) / (x[:, None] - x + np.eye(n))
    d -= np.diag(d.sum(1))
    return length * (x + 1) / 2, d * 2 / length, w


def interpolate(x, w, points):
    """Return the barycentric interpolation matrix from Chebyshev points."""
    s, p = 2 * x / x[0] - 1, 2 * points / x[0] - 1
    gap = p[:, None] - s
    hit = gap == 0
    rows = w / np.where(hit, 1, gap)
    rows = np.where(hit.any(1)[:, None], hit, rows)
    return rows / rows.sum(1, keepdims=True)


def _exact(instance):
    """Return the exact solution and the sum of its second derivatives as functions of coordinate arrays."""
    ndim = len(instance.bounds)

    def laplacian(*x):
        return sum(jax.grad(jax.grad(instance.exact, d), d)(*x) for d in range(ndim))

    def on(f):
        return lambda *x: np.asarray(jax.jit(jnp.vectorize(f))(*jnp.broadcast_arrays(*map(jnp.asarray, x))))

    return on(instance.exact), on(laplacian)


def collocation(instance, n):
    """Dense Chebyshev collocation in one dimension, by Newton's method where there is a reaction."""
    length, reaction = instance.bounds["x"][1], "allen" in instance.name
    x, _d, w = chebyshev(n, length)
    exact, second = _exact(instance)
    truth, curvature = exact(x), second(x)

    def solve():
        _x, d, _w = chebyshev(n, length)
        dd = (d @ d)[1:-1]
        f = (curvature + (truth * (truth**2 - 1) if reaction else 0))[1:-1]
        v = np.zeros(n)
        v[[0, -1]] = truth[[0, -1]]
        for _ in range(20 if reaction else 1):
            inner = v[1:-1]
            r = dd @ v + (inner * (inner**2 - 1) if reaction else 0) - f
            step = np.linalg.solve(dd[:, 1:-1] + (np.diag(3 * inner**2 - 1) if reaction else 0), -r)
            v[1:-1] += step
            if np.linalg.norm(step) < 1e-12 * np.linalg.norm(v):
                break
        return v

    timing = clock(solve, repeat=5, budget=3.0)
    error = instance.error(lambda points: jnp.asarray(interpolate(x, w, np.asarray(points[0])) @ timing.output))
    return {"problem": instance.name, "method": "Chebyshev collocation, NumPy", "grid": size((n,)), "error": error,
            "seconds": timing.seconds}  # fmt: skip


def fast_diagonalisation(instance, n):
    """Chebyshev collocation of Poisson's equation on a square by the eigenvectors of the second derivative."""
    length = instance.bounds["x"][1]
    x, _d, w = chebyshev(n, length)
    exact, laplacian = _exact(instance)
    truth, f = exact(x[:, None], x[None]), laplacian(x[:, None], x[None])
    inner = slice(1, -1)

    def solve():
        _x, d, _w = chebyshev(n, length)
        dd = d @ d
        v = truth.copy()
        v[inner, inner] = 0
        g = (f - dd @ v - v @ dd.T)[inner, inner]
        values, vectors = np.linalg.eig(dd[inner, inner])
        values, vectors = values.real, vectors.real
        back = np.linalg.inv(vectors)
        v[inner, inner] = vectors @ ((back @ g @ back.T) / (values[:, None] + values)) @ vectors.T
        return v

    timing = clock(solve, repeat=3, budget=3.0)

    def mean(points):
        rows = [interpolate(x, w, np.asarray(p)) for p in points]
        return jnp.asarray(rows[0] @ timing.output @ rows[1].T)

    return {"problem": instance.name, "method": "Chebyshev collocation, NumPy", "grid": size((n, n)),
            "error": instance.error(mean), "seconds": timing.seconds}  # fmt: skip


def differences(instance, n=200_000):
    """Second-order differences for a Poisson equation in one dimension."""
    length = instance.bounds["x"][1]
    exact, second = _exact(instance)
    x = np.linspace(0, length, n + 1)
    f, ends, h = second(x[1:-1]), exact(x[[0, -1]]), length / n

    def solve():
        bands = np.full((3, n - 1), 1 / h**2)
        bands[1] = -2 / h**2
        right = f.copy()
        right[[0, -1]] -= ends / h**2
        return np.concatenate([ends[:1], solve_banded((1, 1), bands, right), ends[1:]])

    timing = clock(solve, repeat=3, budget=3.0)
    error = instance.error(lambda points: jnp.interp(points[0], jnp.asarray(x), jnp.asarray(timing.output)))
    return {"problem": instance.name, "method": "second-order differences, NumPy", "grid": size((n,)), "error": error,
            "seconds": timing.seconds}  # fmt: skip


def route(instance, seconds, **settings):
    """GP-HM's own route, Adam on values and kernel together, for about so many seconds."""
    problem, n = stated(instance), 400 if len(instance.grid) == 1 else 60

    def solve(steps):
        return gp_solve(problem, grid=(n,) * len(instance.grid), published=PublishedGPHM(**settings), max_steps=steps,
                        args=instance.args, tol=0.0)  # fmt: skip

    program = compiled(solve, jnp.asarray(10))
    trial = clock(lambda: program(jnp.asarray(20)), repeat=1).seconds / 20
    steps = max(20, int(seconds / trial))
    timing = clock(lambda: program(jnp.asarray(steps)), repeat=1)
    return {"problem": instance.name, "method": "GP-HM as published, Adam", "grid": size((n,) * len(instance.grid)),
            "error": instance.error(timing.output.mean), "seconds": timing.seconds, "steps": steps,
            "compile_seconds": program.first_call_seconds, "status": int(timing.output.status)}  # fmt: skip
