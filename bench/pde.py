"""`gp_solve` on the eleven problems of GP-HM beside Chebyshev collocation in NumPy and the authors' own figures.

    python bench/pde.py                    # two CPU cores, float64: the table, three dimensions, below Nyquist
    python bench/pde.py --gpu              # one accelerator: 2-D N = 1000 per right-hand side, 1,024 at once, 400^3
    python bench/pde.py --quick --gpu      # the same at small size, anywhere

Relative L2 error on the papers' 300-point test grids, at the last state. Seconds are the median of several calls of
the compiled solve, data included; compilation apart. The published errors are the smallest over checkpoints chosen by
test error, after 1e5 to 3e6 Adam steps (1300 to 18000 s on the authors' machine).
"""

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from harness import arguments, chosen, clock, compiled, machine, save, table  # noqa: E402

from solvers import Box, Dirichlet, PDEProblem, gp_solve  # noqa: E402
from solvers.pde.kronecker import KroneckerSum  # noqa: E402
from solvers.pde.spaces import line  # noqa: E402
from solvers.pde.spectral import Discretisation  # noqa: E402
from solvers.pde.tracing import trace  # noqa: E402
from solvers.problems.pde import PAPER  # noqa: E402

TARGETS = [(1e-10, 0.5)] * 5 + [(1e-10, 0.5)] * 2 + [(1e-12, 1.0)] * 2 + [(1e-11, 0.5), (1e-12, 0.2)]


def stated(instance):
    faces = [Dirichlet(face, lambda x, args: instance.exact(*x)) for face in instance.faces]
    return PDEProblem(instance.residual, Box(**instance.bounds), faces)


def size(grid):
    """Write a grid as text."""
    return " x ".join(map(str, grid))


def timed(solve, *args, repeat=7):
    program = compiled(solve, *args)
    timing = clock(lambda: program(*args), repeat=repeat, budget=6.0)
    return timing.output, timing.seconds, program.first_call_seconds


def ours(instance, target):
    problem = stated(instance)
    solution, seconds, first = timed(lambda zero: gp_solve(problem, grid=instance.grid, args=zero), jnp.zeros(()))
    spectrum = clock(lambda: jax.block_until_ready(solution.spectrum[0]), repeat=3, budget=2.0)
    error = instance.error(solution.mean)
    return {"problem": instance.name, "method": "gp_solve", "grid": size(instance.grid), "error": error,
            "seconds": seconds, "spectrum_seconds": spectrum.seconds, "compile_seconds": first, "status": int(solution.status),
            "residual": float(solution.residual), "target_error": target[0], "target_seconds": target[1],
            "met": bool(error <= target[0] and seconds <= target[1]),
            "gp_hm_published": instance.published}  # fmt: skip


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
    gap = points[:, None] - x
    hit = gap == 0
    rows = w / np.where(hit, 1, gap)
    rows = np.where(hit.any(1)[:, None], hit, rows)
    return rows / rows.sum(1, keepdims=True)


def numpy_reference(instance):
    """Dense collocation with boundary bordering: the classical answer for the one-dimensional problems."""
    length, n = instance.bounds["x"][1], instance.grid[0]
    reaction = "allen" in instance.name
    exact = jax.jit(jax.vmap(instance.exact))
    second = jax.jit(jax.vmap(jax.grad(jax.grad(instance.exact))))
    x, _d, w = chebyshev(n, length)
    truth, curvature = np.asarray(exact(x)), np.asarray(second(x))

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
    return {"problem": instance.name, "method": "Chebyshev collocation, NumPy", "grid": size(instance.grid),
            "error": error, "seconds": timing.seconds}  # fmt: skip


def below_nyquist(count):
    problem = PDEProblem(lambda x, u, a: u.dxx + 1e4 * jnp.sin(100 * x[0]), Box((0.0, 2 * np.pi)), [Dirichlet("all")])
    nodes = jnp.linspace(0, 2 * np.pi, count)
    solution, seconds, first = timed(lambda nodes: gp_solve(problem, grid=(nodes,), basis="kernel"), nodes)
    x = jnp.linspace(0, 2 * np.pi, 300)
    error = float(jnp.linalg.norm(solution.mean(x) - jnp.sin(100 * x)) / jnp.linalg.norm(jnp.sin(100 * x)))
    target = {30: 3e-3, 60: 6e-4}[count]
    return {"problem": f"sin(100x) on {count} nodes", "method": "gp_solve, kernel basis", "grid": str(count),
            "error": error, "seconds": seconds, "compile_seconds": first, "status": int(solution.status),
            "target_error": target, "met": error <= target}  # fmt: skip


def coverage(draws=200):
    """How often the 95 % interval of an unknown diffusion coefficient holds the truth."""
    from solvers import Observe, SquaredExponential

    seen, truth, noise = np.array([0.15, 0.5, 0.85]), np.log(0.5), 2e-3
    values = np.sin(np.pi * seen) / (0.5 * np.pi**2) + noise * np.random.default_rng(11).standard_normal((draws, 3))

    def residual(x, u, args):
        return jnp.exp(args) * u.dxx + jnp.sin(np.pi * x[0])

    def one(v):
        problem = PDEProblem(residual, Box((0.0, 1.0)), [Dirichlet("all"), Observe(seen, v, noise)])
        return gp_solve(problem, grid=16, args=0.0, infer=1.5, rank=20, prior=SquaredExponential(0.4, 1.0))

    found, seconds, first = timed(jax.vmap(one), jnp.asarray(values), repeat=3)
    inside = float(jnp.mean(jnp.abs(found.args - truth) <= 1.96 * found.args_std))
    bias = abs(float(jnp.exp(jnp.mean(found.args))) / 0.5 - 1)
    return {"problem": f"unknown diffusion, {draws} draws", "method": "gp_solve, kernel basis", "coverage_95": inside,
            "error": bias, "seconds": seconds, "compile_seconds": first, "target_error": 0.01,
            "converged": float(jnp.mean(found.converged)),
            "met": bool(bias <= 0.01 and 0.93 <= inside <= 0.97)}  # fmt: skip


def poisson3(n):
    def u(x, y, z):
        return jnp.sin(3 * x) * jnp.cos(2 * y) * jnp.exp(z)

    problem = PDEProblem(lambda x, v, a: v.dxx + v.dyy + v.dzz + 12 * a * u(*x),
                         Box((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)),
                         [Dirichlet("all", lambda x, a: a * u(*x))])  # fmt: skip
    return problem, u, (n, n, n), f"poisson3d {n}^3", (1.0, 1.0, 1.0)


def heat3(n):
    def u(x, y, t):
        return jnp.sin(2 * np.pi * x) * jnp.sin(np.pi * y) * jnp.exp(-5 * np.pi**2 * t)

    walls = [Dirichlet(face) for face in ("x-", "x+", "y-", "y+")]
    problem = PDEProblem(lambda x, v, a: v.dt - v.dxx - v.dyy, Box(x=(0.0, 1.0), y=(0.0, 1.0), t=(0.0, 0.1)),
                         [*walls, Dirichlet("t-", lambda x, a: a * u(*x))])  # fmt: skip
    return problem, u, (n, n, max(n // 4, 12)), f"heat 2d+t {n}x{n}x{max(n // 4, 12)}", (1.0, 1.0, 0.1)


def three(problem, exact, grid, name, lengths, target=2.0):
    solution, seconds, first = timed(lambda a: gp_solve(problem, grid=grid, args=a), jnp.ones(()), repeat=3)
    points = tuple(jnp.linspace(0, length, 40) for length in lengths)
    truth = exact(*jnp.meshgrid(*points, indexing="ij"))
    error = float(jnp.linalg.norm(solution.mean(points) - truth) / jnp.linalg.norm(truth))
    return {"problem": name, "method": "gp_solve", "grid": size(grid), "error": error, "seconds": seconds,
            "compile_seconds": first, "status": int(solution.status), "target_seconds": target,
            "met": seconds <= target}  # fmt: skip


def direct(n, ndim, batch):
    """Seconds per new right-hand side of the factorised direct solve: project, 2 d mode products, expand."""
    problem = PDEProblem(lambda x, u, a: u.dxx + u.dyy + (u.dzz if ndim == 3 else 0) - a,
                         Box(*[(0.0, 1.0)] * ndim), [Dirichlet("all")])  # fmt: skip

    @jax.jit
    def setup():
        lines = [line(problem, 0, d, n, 2, True, jnp.float64) for d in range(ndim)]
        x = tuple(ln.basis.nodes.reshape([-1 if e == d else 1 for e in range(ndim)]) for d, ln in enumerate(lines))
        small = tuple(c[:4] if d == 0 else c[tuple([slice(None)] * d + [slice(0, 4)])] for d, c in enumerate(x))
        equation = trace(problem.residual, problem.domain.names, 1, small, 0.0)
        zeros = [[jnp.zeros((n,) * ndim) for _ in equation.orders[0]]]
        del zeros
        found = object.__new__(Discretisation)
        found.equation, found.lines = equation, [lines]
        found.values = [[{p: ln.values(p) for p in (0, 2)} for ln in lines]]
        ones = [jnp.ones((n,) + (1,) * (ndim - 1)).swapaxes(0, max(o.index(2), 0)) for o in equation.orders[0]]
        return KroneckerSum.build(found.pencils(0, ones, True)), [ln.test for ln in lines], [ln.null for ln in lines]

    from solvers.pde.kronecker import mode_products

    def solve(ready, f):
        factors, tests, nulls = ready
        return mode_products(nulls, factors.solve(mode_products([t.T for t in tests], f)))

    ready = jax.block_until_ready(setup())
    f = jax.random.normal(jax.random.key(5), ((batch,) if batch else ()) + (n,) * ndim)
    mapped = jax.vmap(solve, (None, 0)) if batch else solve
    _, seconds, first = timed(mapped, ready, f, repeat=9)
    count = max(batch, 1)
    flops = count * 8 * ndim * float(n) ** (ndim + 1)
    target = 0.002 if ndim == 2 else None
    return {"problem": f"direct {n}^{ndim}" + (f" x {batch}" if batch else ""), "method": "Kronecker sum",
            "seconds": seconds, "seconds_per_rhs": seconds / count, "tflops": flops / seconds / 1e12,
            "roofline_fraction_of_67_tf": flops / seconds / 67e12, "compile_seconds": first,
            "target_seconds": target, "met": None if target is None else seconds / count <= target}  # fmt: skip


def main():
    options = arguments(__doc__)
    record, jobs = machine("equinox"), []
    if options.gpu:
        n2, n3, batch = (48, 24, 8) if options.quick else (1000, 400, 1024)
        jobs += [("direct2", lambda: direct(n2, 2, 0)), ("batch", lambda: direct(max(n2 // 8, 24), 2, batch)),
                 ("direct3", lambda: direct(n3, 3, 0)), ("poisson3", lambda: three(*poisson3(n3 // 2)))]  # fmt: skip
    else:
        for instance, target in zip(PAPER, TARGETS, strict=True):
            jobs.append((instance.name, lambda i=instance, t=target: ours(i, t)))
            if len(instance.grid) == 1:
                jobs.append((instance.name, lambda i=instance: numpy_reference(i)))
        jobs += [(f"nyquist{c}", lambda c=c: below_nyquist(c)) for c in (30, 60)]
        jobs += [("coverage", coverage)]
        n = 24 if options.quick else 100
        jobs += [("poisson3", lambda: three(*poisson3(n))), ("heat3", lambda: three(*heat3(n)))]
    rows = []
    for name, job in jobs:
        if chosen(name, options.only):
            rows.append(job())
            print(
                table(rows[-1:], ("problem", "method", "grid", "error", "seconds", "target_error", "met")), flush=True
            )
    stem = "pde_gpu" if options.gpu else "pde"
    save(options.out / f"{stem}.json", rows, key=("problem", "method"), record=record)


if __name__ == "__main__":
    main()
