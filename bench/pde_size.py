"""Conditioning at size: noisy faces, ten thousand data, noise in the equation, three dimensions, unknown fields.

Used by `bench/pde.py`. There is no peer that conditions a differential equation on data at these sizes; what is
compared is the answer with the truth, and its intervals with its errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
from harness import clock, compiled, on_device, on_host
from pde_reference import size

from solvers import Box, Dirichlet, Observe, PDEProblem, RandomField, SquaredExponential, gp_solve

NOISE, LEVEL = 0.02, 0.01
"""Standard deviations of the observations and of the face values; the solution is of size one."""


def hill(*x):
    total = 1.0
    for c in x:
        total = total * jnp.sin(np.pi * c)
    return total


def poisson(x, u, a):
    """``laplacian u = -d pi^2 u_true``, `a` times."""
    second = [u.dxx, u.dyy, *([u.dzz] if len(x) > 2 else [])]
    return sum(second) + a * len(x) * np.pi**2 * hill(*x)


def conditioned(n, ndim, count, noise=None, faces=LEVEL):
    """Time one compiled call; errors and intervals on a grid of 17 points a dimension."""
    rng = np.random.default_rng(23)
    with on_host():
        points = jnp.asarray(rng.random((count, ndim)))
        values = hill(*points.T) + NOISE * rng.standard_normal(count)
        box, one = Box(*[(0.0, 1.0)] * ndim), jnp.ones(())
    points, values, one = on_device((points, values, one))

    def solve(points, values, a):
        seen = Observe(points, values, NOISE)
        return gp_solve(PDEProblem(poisson, box, [Dirichlet("all", noise=faces), seen], noise=noise), grid=(n,) * ndim,
                        args=a)  # fmt: skip

    program = compiled(solve, points, values, one)
    timing = clock(lambda: program(points, values, one), repeat=3, budget=12.0)
    with on_host():
        solution, x = jax.device_get(timing.output), (jnp.linspace(0.03, 0.97, 17),) * ndim
        gap = jnp.abs(solution.mean(x) - hill(*jnp.meshgrid(*x, indexing="ij")))
        spread = solution.std(x)
    parts = f"{count:,} data" + (", noisy faces" if faces else "") + (", noisy equation" if noise else "")
    return {"problem": f"poisson {n}^{ndim}, {parts}", "method": "gp_solve", "grid": size((n,) * ndim),
            "error": float(gap.max()), "std": float(spread.mean()), "inside_95": float(jnp.mean(gap <= 1.96 * spread)),
            "seconds": timing.seconds, "compile_seconds": program.first_call_seconds, "status": int(solution.status),
            "residual": float(solution.residual), "megabytes": program.temporary_bytes / 2**20}  # fmt: skip


def flow(x, u, a):
    load = 20 * jnp.sin(np.pi * x[0]) * jnp.sin(np.pi * x[1])
    return u.dxx + u.dyy + a(x, (1, 0)) * u.dx + a(x, (0, 1)) * u.dy + jnp.exp(-a(x)) * load


def diffusivity(n, count, rank):
    """Find a diffusivity ``exp(a)`` on a square from `count` observations of what it lets through."""
    with on_host():
        rng, square = np.random.default_rng(24), Box((0.0, 1.0), (0.0, 1.0))
        prior = RandomField(square, SquaredExponential(0.25, 0.5), rank=rank)
        drawn = prior.drawn(jax.random.key(7))
        forward = gp_solve(PDEProblem(flow, square, [Dirichlet("all")]), grid=(34, 34), args=drawn)
        points = jnp.asarray(rng.random((count, 2)))
        values = forward.mean(points) + 0.01 * rng.standard_normal(count)
    points, values, prior = on_device((points, values, prior))

    def solve(points, values, prior):
        problem = PDEProblem(flow, square, [Dirichlet("all"), Observe(points, values, 0.01)])
        return gp_solve(problem, grid=(n, n), args=prior, infer=1.0)

    program = compiled(solve, points, values, prior)
    timing = clock(lambda: program(points, values, prior), repeat=3, budget=12.0)
    with on_host():
        solution, x = jax.device_get(timing.output), (jnp.linspace(0.03, 0.97, 17),) * 2
        found, spread = solution.of_args(lambda a: a(x))
        gap = jnp.abs(found - drawn(x))
    return {"problem": f"diffusivity field of {rank**2} numbers from {count} data", "method": "gp_solve",
            "grid": size((n, n)), "error": float(jnp.sqrt(jnp.mean(gap**2))), "std": float(spread.mean()),
            "prior_std": 0.5, "inside_95": float(jnp.mean(gap <= 1.96 * spread)), "seconds": timing.seconds,
            "compile_seconds": program.first_call_seconds, "status": int(solution.status),
            "steps": int(solution.num_steps), "residual": float(solution.residual),
            "megabytes": program.temporary_bytes / 2**20}  # fmt: skip


TRUTHS = {"smooth": (0.3, 0.6), "mixed": (0.5, 1.0, 2.0, 3.0), "rough": (2.0, 4.0, 6.0), "very rough": (6.0, 8.0, 10.0)}
"""Scales of the wave numbers that random solutions are made of."""


AT_ONCE = 25
"""Draws a call: what is found is told after each, so that a run that is stopped says what it saw."""


def coverage(ndim, kind, sigma=0.05, draws=500, at=None):
    """How often 95 % intervals hold: sums of random waves, noisy faces, each draw with a noise of its own.

    At 12 places in the middle eight tenths of the box, or `at` those given, whose rows then tell each of them. After
    every `AT_ONCE` draws the rows of all so far.
    """
    n, scales = {1: 16, 2: 16, 3: 8}[ndim], np.asarray(TRUTHS[kind])
    rng = np.random.default_rng(20)
    x = np.polynomial.legendre.leggauss(n)[0] / 2 + 0.5
    middle = 0.5 + 0.8 * (rng.random((12, ndim)) - 0.5)
    places = jnp.asarray(middle if at is None else at)
    box = Box(*[(0.0, 1.0)] * ndim)

    def waves(a, *c):
        return a["height"] * jnp.sin(sum(w * v[..., None] for w, v in zip(a["wave"], c, strict=True)) + a["phase"])

    def u(a, *c):
        return jnp.sum(waves(a, *jnp.broadcast_arrays(*c)), -1) + a["level"]

    def load(x, v, a):
        second = [v.dxx, *([v.dyy] if ndim > 1 else []), *([v.dzz] if ndim > 2 else [])]
        return sum(second) + waves(a, *jnp.broadcast_arrays(*x)) @ jnp.sum(a["wave"] ** 2, 0)

    def one(a):
        conditions = []
        for d, name in enumerate("xyz"[:ndim]):
            for side, end in (("-", 0.0), ("+", 1.0)):
                values = u(a, *jnp.meshgrid(*[jnp.asarray([end]) if e == d else jnp.asarray(x) for e in range(ndim)],
                                            indexing="ij"))  # fmt: skip
                noise = jax.random.normal(jax.random.fold_in(a["key"], 2 * d + (side == "+")), values.shape)
                conditions.append(Dirichlet(name + side, values + sigma * noise, noise=sigma))
        numbers = {k: a[k] for k in ("wave", "phase", "height", "level")}
        solution = gp_solve(PDEProblem(load, box, conditions), grid=(n,) * ndim, args=numbers)
        where = places[:, 0] if ndim == 1 else places
        return (solution.mean(where) - u(a, *places.T)) / solution.std(where), solution.status

    lanes = {
        "wave": rng.standard_normal((draws, ndim, len(scales))) * scales,
        "phase": 2 * np.pi * rng.random((draws, len(scales))),
        "height": 0.5 * rng.standard_normal((draws, len(scales))), "level": rng.standard_normal(draws),
    }  # fmt: skip
    lanes = {**jax.tree.map(jnp.asarray, lanes), "key": jax.random.split(jax.random.key(5), draws)}
    program = compiled(lambda lanes: jax.lax.map(one, lanes), jax.tree.map(lambda v: v[:AT_ONCE], lanes))
    gaps, statuses, seconds = [], [], 0.0
    for begin in range(0, draws, AT_ONCE):
        some = jax.tree.map(lambda v, b=begin: v[b : b + AT_ONCE], lanes)
        timing = clock(lambda some=some: program(some), repeat=1)
        gaps.append(np.asarray(timing.output[0]))
        statuses.append(np.asarray(timing.output[1]))
        seconds += timing.seconds
        good = np.concatenate(statuses) == 0
        z = np.concatenate(gaps)[good]
        held = np.abs(z) <= 1.96
        name = f"coverage of intervals, {ndim}-D, {kind} waves, noise {sigma:g}"
        row = {"method": "gp_solve", "grid": size((n,) * ndim), "draws": good.size, "converged": float(good.mean())}
        if at is None:
            yield [{"problem": name, **row, "coverage_95": float(held.mean()),
                    "worst_place_95": float(held.mean(0).min()), "spread_of_z": float(z.std()),
                    "largest_z": float(np.abs(z).max()), "seconds": seconds,
                    "compile_seconds": program.first_call_seconds}]  # fmt: skip
        else:
            yield [{"problem": f"{name}, at ({', '.join(f'{c:g}' for c in where)})", **row,
                    "coverage_95": float(h.mean()), "spread_of_z": float(v.std()), "largest_z": float(np.abs(v).max())}
                   for where, h, v in zip(np.asarray(at), held.T, z.T, strict=True)]  # fmt: skip


PLACES = [(a, b) for a in (0.01, 0.1, 0.3, 0.5) for b in (0.01, 0.1, 0.3, 0.5) if a <= b]
"""From a corner to the middle."""


def size_jobs(quick):
    """Return name and job of each row."""
    if quick:
        return [("size 2d", lambda: conditioned(20, 2, 500)),
                ("size 2d equation", lambda: conditioned(26, 2, 500, 1.0)),
                ("size 3d", lambda: conditioned(8, 3, 500)), ("size field", lambda: diffusivity(14, 100, 6)),
                ("size coverage 1", lambda: coverage(1, "mixed", 0.05, 100)),
                ("size places", lambda: coverage(2, "mixed", 0.05, 50, PLACES))]  # fmt: skip
    return [("size 2d", lambda: conditioned(64, 2, 10_000)),
            ("size 2d equation", lambda: conditioned(64, 2, 10_000, 1.0)),
            ("size 3d", lambda: conditioned(24, 3, 10_000)),
            ("size 3d exact faces", lambda: conditioned(24, 3, 10_000, None, None)),
            ("size field", lambda: diffusivity(30, 400, 10)),
            *((f"size coverage {d} {kind} {sigma:g}", lambda d=d, kind=kind, sigma=sigma: coverage(d, kind, sigma))
              for d, kinds in ((1, TRUTHS), (2, TRUTHS), (3, ("smooth", "mixed", "rough")))
              for kind in kinds for sigma in (0.05, 1e-3)),
            ("size places", lambda: coverage(2, "mixed", 0.05, 2000, PLACES))]  # fmt: skip
