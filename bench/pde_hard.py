"""Forward problems that are hard for one reason or another, on defaults, beside dense Chebyshev collocation.

Every answer is held to 1e-8 in relative L2 against a known solution, or to a status that says it is not there.
Collocation gets the best of several sizes. Used by `bench/pde.py`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import clock
from pde_reference import chebyshev, interpolate, size

from solvers import Box, Dirichlet, Neumann, Observe, PDEProblem, Robin, gp_solve

PI = np.pi
SIZES = {1: (48, 96, 192, 384, 768), 2: (16, 24, 32, 40)}


@dataclass(frozen=True, eq=False)
class Hard:
    """A problem with its solution: ``exact(*x)``, a tuple of arrays for a system."""

    name: str
    problem: PDEProblem
    exact: Any
    args: Any = None
    guess: Any = None
    singular: bool = False
    peer: bool = True


def _square(**options):
    return Box((0.0, 1.0), (0.0, 1.0), **options)


def _poisson_like(u, ndim):
    """Return the pure second derivatives of a scalar function, on arrays."""

    def second(d):
        f = jax.grad(jax.grad(u, d), d)
        return lambda *x: jnp.vectorize(f)(*jnp.broadcast_arrays(*x))

    return [second(d) for d in range(ndim)]


def helmholtz():
    """Forty wavelengths across a line and a square whose speed varies in x, ten across one where it varies in both."""
    found = []
    for name, waves, ndim, speed in (
        ("helmholtz 1-D, 40 wavelengths", 40, 1, lambda *x: 1 + 0.3 * jnp.sin(5 * x[0])),
        ("helmholtz 2-D layered, 40 wavelengths", 40, 2, lambda *x: 1 + 0.3 * jnp.sin(5 * x[0])),
        ("helmholtz 2-D, 10 wavelengths", 10, 2, lambda *x: 1 + 0.3 * jnp.sin(5 * x[0]) * jnp.cos(3 * x[1])),
    ):
        k = 2 * PI * waves

        def u(*x, k=k):
            return jnp.sin(k * (x[0] + 0.1 * x[0] ** 2) / 1.2) * (jnp.cos(0.8 * k * x[1]) if len(x) > 1 else 1)

        seconds = _poisson_like(u, ndim)

        def residual(x, v, a, k=k, u=u, seconds=seconds, speed=speed):
            n = k**2 * speed(*x)
            source = sum(s(*x) for s in seconds) + n * u(*jnp.broadcast_arrays(*x))
            return v.dxx + (v.dyy if len(x) > 1 else 0) + n * v.v - source

        box = Box((0.0, 1.0)) if ndim == 1 else _square()
        found.append(Hard(name, PDEProblem(residual, box, [Dirichlet("all", lambda x, a, u=u: u(*x))]), u))
    return found


def layers():
    """``-e u'' + u' = 1``, and its square with two outflow layers."""

    def profile(x, e):
        return x - (jnp.exp((x - 1) / e) - jnp.exp(-1 / e)) / (1 - jnp.exp(-1 / e))

    thin, wide = 1e-3, 0.02
    line = PDEProblem(lambda x, v, a: -thin * v.dxx + v.dx - 1, Box((0.0, 1.0)), [Dirichlet("all")])

    def u(x, y):
        return profile(x, wide) * profile(y, wide)

    def residual(x, v, a):
        one = [profile(c, wide) for c in x]
        return -wide * (v.dxx + v.dyy) + v.dx + v.dy - (one[0] + one[1])

    square = PDEProblem(residual, _square(), [Dirichlet("all")])
    return [Hard("convection 1-D, layer of 0.001", line, lambda x: profile(x, thin)),
            Hard("convection 2-D, two layers of 0.02", square, u)]  # fmt: skip


def mixed():
    """Robin, Neumann and Dirichlet conditions on the sides of one square, coefficients that do not separate."""

    def u(x, y):
        return jnp.exp(x * y) + jnp.sin(2 * x - y)

    def du(d):
        f = jax.grad(u, d)
        return lambda x: jnp.vectorize(f)(*jnp.broadcast_arrays(*x))

    seconds = _poisson_like(u, 2)

    def residual(x, v, a):
        c = 1 + 0.4 * x[0] * x[1]
        return c * v.dxx + v.dyy + 0.5 * v.dx - v.v - (c * seconds[0](*x) + seconds[1](*x) + 0.5 * du(0)(x) - u(*x))

    faces = [Dirichlet("x-", lambda x, a: u(*x)),
             Robin("x+", lambda x, a: 2 * u(*x) + du(0)(x), a=2.0, b=1.0), Neumann("y-", lambda x, a: -du(1)(x)),
             Robin("y+", lambda x, a: u(*x) + 3 * du(1)(x), a=1.0, b=3.0)]  # fmt: skip
    return [Hard("Robin, Neumann and Dirichlet on one square", PDEProblem(residual, _square(), faces), u)]


def coupled():
    """Two unknowns that feed each other, in one and two dimensions."""

    def exact1(x):
        return jnp.sin(PI * x), x * (1 - x) * jnp.exp(x)

    def curve(x):
        return -(x**2) * jnp.exp(x) - 3 * x * jnp.exp(x)

    def line(x, u, a):
        s, q = exact1(x[0])
        return (u[0].dxx + 3 * u[1].v - u[0].v * u[1].v + PI**2 * s - 3 * q + s * q,
                u[1].dxx - u[0].dx + PI * jnp.cos(PI * x[0]) - curve(x[0]))  # fmt: skip

    def exact2(x, y):
        return jnp.sin(PI * x) * jnp.sin(PI * y), jnp.sin(PI * x) * jnp.sin(2 * PI * y)

    def square(x, u, a):
        s, q = exact2(*x)
        return (u[0].dxx + u[0].dyy + 4 * u[1].v + 2 * PI**2 * s - 4 * q,
                u[1].dxx + u[1].dyy - 2 * u[0].v + 5 * PI**2 * q + 2 * s)  # fmt: skip

    def zeros(n):
        return [Dirichlet("all", field=k) for k in range(n)]

    return [Hard("two coupled equations, 1-D, nonlinear", PDEProblem(line, Box((0.0, 1.0)), zeros(2), fields=2),
                 exact1),
            Hard("two coupled equations, 2-D", PDEProblem(square, _square(), zeros(2), fields=2), exact2)]  # fmt: skip


def plates():
    """Return the clamped beam and the clamped plate."""

    def u(x, y):
        return (jnp.sin(PI * x) * jnp.sin(PI * y)) ** 2

    def residual(x, v, a):
        c, d = (jnp.cos(2 * PI * s) for s in x)
        source = 4 * PI**4 * (4 * c * d - c - d) - 0 * c * d
        return v.dxxxx + 2 * v.dxxyy + v.dyyyy - source

    beam = PDEProblem(lambda x, v, a: v.dxxxx - 24, Box((0.0, 1.0)), [Dirichlet("all"), Neumann("all")])
    plate = PDEProblem(residual, _square(), [Dirichlet("all"), Neumann("all")])
    return [Hard("clamped beam", beam, lambda x: (x * (1 - x)) ** 2, peer=False),
            Hard("clamped plate (biharmonic)", plate, u, peer=False)]  # fmt: skip


def waves():
    """Return a standing wave over five periods."""

    def u(x, t):
        return jnp.sin(2 * PI * x) * jnp.cos(2 * PI * t)

    faces = [Dirichlet("x-"), Dirichlet("x+"), Dirichlet("t-", lambda x, a: u(*x)), Neumann("t-")]
    problem = PDEProblem(lambda x, v, a: v.dtt - v.dxx, Box(x=(0.0, 1.0), t=(0.0, 5.0)), faces)
    return [Hard("wave equation, five periods", problem, u, peer=False)]


def resonances():
    """``u'' + pi^2 (1 + d) u`` close to its eigenvalue, driven by the eigenfunction, and at it."""
    found = []
    for d in (1e-4, 1e-6, 1e-13, 0.0):

        def residual(x, v, a, d=d):
            return v.dxx + PI**2 * (1 + d) * v.v - PI**2 * max(d, 1e-4) * jnp.sin(PI * x[0])

        def u(x, d=d):
            return max(d, 1e-4) / d * jnp.sin(PI * x) if d > 1e-12 else jnp.full_like(x, np.nan)

        problem = PDEProblem(residual, Box((0.0, 1.0)), [Dirichlet("all")])
        found.append(Hard(f"resonance, {d:g} from the eigenvalue", problem, u, singular=d < 1e-12))
    return found


def fold(amplitudes=(0.2, 0.6, 1.0, 1.1868, 1.4, 2.0, 3.0)):
    """Bratu's problem along its branch, through the fold: the amplitude is stated and the load inferred."""

    def theta_of(a):
        return 4 * np.arccosh(np.exp(a / 2))

    row, solution, load = [], None, 1.0
    for a in amplitudes:
        problem = PDEProblem(lambda x, u, s: u.dxx + s * jnp.exp(u.v), Box((0.0, 1.0)),
                             [Dirichlet("all"), Observe(np.array([0.5]), np.array([a]), 1e-10)])  # fmt: skip
        guess = solution or (lambda x, args, a=a: 4 * a * x[0] * (1 - x[0]))
        solution = gp_solve(problem, args=load, infer=3.0, guess=guess, grid=(40,))
        theta = theta_of(a)
        truth = theta**2 / (2 * np.cosh(theta / 4) ** 2)
        load = float(solution.args)
        row.append((a, abs(load / truth - 1), int(solution.status)))
    errors = [r[1] for r in row]
    return {"problem": "Bratu through its fold, load inferred", "method": "gp_solve", "grid": "40",
            "error": max(errors), "status": max(r[2] for r in row), "points": row}  # fmt: skip


def hard_problems():
    """Return all of them."""
    return [*helmholtz(), *layers(), *mixed(), *coupled(), *plates(), *waves(), *resonances()]


def _points(problem, count):
    return tuple(jnp.linspace(float(a), float(b), count) for a, b in problem.domain.bounds)


def _error(instance, mean, count):
    points = _points(instance.problem, count)
    truth = instance.exact(*jnp.meshgrid(*points, indexing="ij"))
    truth = truth if isinstance(truth, tuple) else (truth,)
    gap = sum(float(jnp.sum((mean(points, k) - t) ** 2)) for k, t in enumerate(truth))
    return float(np.sqrt(gap / sum(float(jnp.sum(t**2)) for t in truth)))


def ours(instance):
    """Time whole calls on defaults and say how far off they are, or that they say so."""

    def solve():
        return gp_solve(instance.problem, args=instance.args, guess=instance.guess)

    first = clock(solve, repeat=1).seconds
    timing = clock(solve, repeat=3, budget=4.0)
    solution = timing.output
    error = _error(instance, lambda p, k: solution.mean(p, field=k), 400 if len(solution.grid) == 1 else 60)
    return {"problem": instance.name, "method": "gp_solve", "grid": size(solution.grid), "error": error,
            "seconds": timing.seconds, "compile_seconds": first - timing.seconds, "status": int(solution.status),
            "residual": float(solution.residual), "says": str(solution).split(": ", 1)[1][:80]}  # fmt: skip


class _Jet:
    """Derivatives on a flat grid by differentiation matrices; reads names as `gp_solve` does."""

    def __init__(self, names, arrays):
        self.names, self.arrays = names, arrays

    def __getattr__(self, name):
        letters = "" if name == "v" else name[1:]
        return self.arrays(tuple(letters.count(n) for n in self.names))


def collocation(instance):
    """Return the best of several sizes of dense Chebyshev collocation: Newton's method, rows replaced on the faces."""
    best = None
    for n in SIZES[instance.problem.domain.ndim]:
        try:
            row = _collocation(instance, n)
        except np.linalg.LinAlgError:
            continue
        if best is None or not row["error"] >= best["error"]:
            best = row
    return best


def _collocation(instance, n):
    problem, fields = instance.problem, instance.problem.fields
    names, ndim = problem.domain.names, problem.domain.ndim
    ends = [tuple(map(float, b)) for b in problem.domain.bounds]
    shape, total = (n,) * ndim, n**ndim

    def solve():
        lines = [chebyshev(n, b - a) for a, b in ends]
        grids = np.meshgrid(*[a + ln[0] for (a, _), ln in zip(ends, lines, strict=True)], indexing="ij")
        x = tuple(jnp.asarray(g) for g in grids)
        made = {}

        def matrix(index):
            if index not in made:
                m = np.ones((1, 1))
                for ln, p in zip(lines, index, strict=True):
                    m = np.kron(m, np.linalg.matrix_power(ln[1], p))
                made[index] = m
            return made[index]

        def residual(jets):
            value = problem.residual(x, jets if fields > 1 else jets[0], instance.args)
            return [jnp.broadcast_to(v, shape) for v in (value if fields > 1 else (value,))]

        def at(vectors):
            used = [{} for _ in range(fields)]

            def jet(k):
                def arrays(index):
                    used[k][index] = jnp.asarray((matrix(index) @ vectors[k]).reshape(shape))
                    return used[k][index]

                return _Jet(names, arrays)

            value = residual(tuple(jet(k) for k in range(fields)))

            def function(known):
                jets = tuple(_Jet(names, lambda i, k=k: known[k][i]) for k in range(fields))
                return residual(jets)

            blocks = [[np.zeros((total, total)) for _ in range(fields)] for _ in range(fields)]
            for k in range(fields):
                for index in used[k]:
                    push = [{i: jnp.ones(shape) if (j, i) == (k, index) else jnp.zeros(shape) for i in used[j]}
                            for j in range(fields)]  # fmt: skip
                    slopes = jax.jvp(function, (used,), (push,))[1]
                    for i in range(fields):
                        blocks[i][k] += np.asarray(slopes[i]).reshape(-1, 1) * matrix(index)
            return np.concatenate([np.asarray(v).reshape(-1) for v in value]), np.block(blocks)

        vectors = np.zeros((fields, total))
        for _ in range(12):
            r, jacobian = at(vectors)
            for k in range(fields):
                for d in range(ndim):
                    for c in problem.faces(k, d):
                        end = 0 if c.face[1] == "+" else n - 1  # nodes run from the upper end to the lower
                        rows = np.arange(total).reshape(shape).take(end, d).reshape(-1)
                        outward = 1.0 if end == 0 else -1.0
                        unit = tuple(int(e == d) for e in range(ndim))
                        b = float(c.b) * outward
                        m = float(c.a) * np.eye(total)[rows] + (b * matrix(unit)[rows] if b else 0)
                        value = c.value(tuple(g.reshape(-1)[rows] for g in x), instance.args) if callable(
                            c.value) else c.value  # fmt: skip
                        r[k * total + rows] = m @ vectors[k] - np.asarray(value)
                        jacobian[k * total + rows] = 0
                        jacobian[k * total + rows, k * total : (k + 1) * total] = m
            step = np.linalg.solve(jacobian, -r).reshape(fields, total)
            vectors = vectors + step
            if np.linalg.norm(step) <= 1e-11 * np.linalg.norm(vectors):
                break
        return vectors, lines

    timing = clock(solve, repeat=1)
    vectors, lines = timing.output

    def mean(points, k):
        field = vectors[k].reshape(shape)
        for d, (ln, (a, _)) in enumerate(zip(lines, ends, strict=True)):
            rows = interpolate(ln[0], ln[2], np.asarray(points[d]) - a)
            field = np.moveaxis(np.tensordot(rows, field, (1, d)), 0, d)
        return jnp.asarray(field)

    return {"problem": instance.name, "method": "Chebyshev collocation, NumPy", "grid": size(shape),
            "error": _error(instance, mean, 400 if ndim == 1 else 60), "seconds": timing.seconds}  # fmt: skip


def hard_jobs(quick=False):
    """Return name and job of each row; the quick ones are those of one dimension."""
    jobs = []
    for instance in hard_problems():
        if quick and instance.problem.domain.ndim > 1:
            continue
        jobs.append((f"hard {instance.name}", lambda i=instance: ours(i)))
        if instance.peer and not instance.singular:
            jobs.append((f"hard {instance.name} peer", lambda i=instance: collocation(i)))
    return [*jobs, ("hard fold", fold)]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for name, job in hard_jobs():
        print(name, job(), flush=True)
