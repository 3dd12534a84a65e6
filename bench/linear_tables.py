"""Record how many steps every omega takes on every system of Learning to Relax's experiments, in natural order.

    python bench/linear_tables.py            all tables, a few minutes on two cores
    python bench/linear_tables.py --only iid

Writes bench/results/linear_tables.npz: exact counts of our own `sor` and `ssor_cg`, which do not depend on the load of
the machine. The heat run between sampled steps is advanced exactly, by sine transforms.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")

import hashlib
import time
from functools import partial

import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from solvers import Stencil, chebyshev_cg, sor, ssor_cg, young_omega, young_rate
from solvers.linear.systems.system import Layout, System
from solvers.problems.linear import heat_start, heat_step, model_radius, shifted_laplacians

GRID = np.linspace(1, 1.95, 20)
TOL, CAP = 1e-8, 10_000


class Wavefront(System, Layout):
    """``shift + scale (4 - neighbours)`` on an n x n grid, swept in natural order one antidiagonal at a time.

    Point (i, j) is stored at (i + j, i); two points of one antidiagonal do not see each other, so updating all of one
    at once is the row by row sweep.
    """

    centre: jax.Array
    side: jax.Array
    relaxable = True

    def mv(self, x):
        """Return A x on the plain grid."""
        p = jnp.pad(x, 1)
        return self.centre * x - self.side * (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:])

    def layout(self, shape, *, sweeps):
        """Return the skewed layout for sweeps."""
        return Skewed(self.centre, self.side) if sweeps else self

    def check(self, function, b):
        """Accept any square grid."""

    @property
    def transposed(self):
        """Itself."""
        return self

    def diagonal(self):
        """Return the diagonal, a scalar."""
        return self.centre


class Skewed(Layout):
    """The antidiagonals as rows, padded by zeros: a vector is (2 n + 1, n + 2)."""

    centre: jax.Array
    side: jax.Array

    def pack(self, x):
        """Shear the grid."""
        n = x.shape[0]
        rows = jnp.pad(x, ((0, 0), (0, n)))  # (n, 2 n): row i of the grid, to be moved right by i
        sheared = jnp.pad(rows.ravel()[: n * (2 * n - 1)].reshape(n, 2 * n - 1), ((1, 1), (1, 1)))
        return sheared.T

    def unpack(self, y):
        """Undo `pack`."""
        n = y.shape[1] - 2
        rows = y.T[1:-1, 1:-1].ravel()
        return jnp.pad(rows, (0, n)).reshape(n, 2 * n)[:, :n]

    def inside(self, n):
        """Return which entries are points of the grid."""
        g, i = np.indices((2 * n + 1, n + 2)) - 1
        return (i >= 0) & (i < n) & (g - i >= 0) & (g - i < n)

    def neighbours(self, before, after):
        """Return the sums over the neighbours on the antidiagonals before and after."""
        low, high = before[..., 1:-1] + before[..., :-2], after[..., 1:-1] + after[..., 2:]
        return low + high

    def mv(self, y):
        """Return A y."""
        n = y.shape[1] - 2
        inner = self.centre * y[1:-1, 1:-1] - self.side * self.neighbours(y[:-2], y[2:])
        return jnp.where(self.inside(n), jnp.pad(inner, 1), 0)

    def diagonal(self):
        """Return the diagonal, a scalar."""
        return self.centre

    def sweeper(self, omega):
        """Return the sweep in natural order, or in its reverse."""
        gain = omega / self.centre

        def sweep(y, b, reverse=False):
            n = y.shape[1] - 2
            inside = jnp.asarray(self.inside(n))

            def body(k, y):
                g = 2 * n - 1 - k if reverse else k + 1
                three = lax.dynamic_slice_in_dim(y, g - 1, 3)
                old = three[1, 1:-1]
                new = (1 - omega) * old + gain * (b[g, 1:-1] + self.side * self.neighbours(three[0], three[2]))
                new = jnp.where(inside[g, 1:-1], new, 0)
                return lax.dynamic_update_slice(y, new[None], (g, 1))

            return lax.fori_loop(0, 2 * n - 1, body, y)

        return sweep


@partial(jax.jit, static_argnames=("nx",))
def heat_systems(nx):
    """Return start, right-hand side, s and diffusivity of all 5,000 steps of the heat run, solved exactly."""
    k = np.arange(1, nx)
    sine = jnp.asarray(np.sqrt(2 / nx) * np.sin(np.pi * np.outer(k, k) / nx))
    eigenvalue = jnp.asarray(2 - 2 * np.cos(np.pi * k / nx))

    def body(u, t):
        step = heat_step(t, u)
        spectrum = sine @ step.rhs @ sine / (1 + step.s * (eigenvalue[:, None] + eigenvalue[None, :]))
        return sine @ spectrum @ sine, (u, step.rhs, step.s, step.kappa)

    return lax.scan(body, heat_start(nx), jnp.arange(5000, dtype=jnp.int32))[1]


@partial(jax.jit, static_argnames="method")
def count(centre, side, b, start, which, omega, method):
    """Return steps of `method` on systems ``which[k]`` with ``omega[k]``, row by row of these (rows, lanes) arrays."""

    def one(lane):
        t, w = lane
        A = Wavefront(centre[t], side[t])
        # The paper's SOR stops on the residual over the first one, its conjugate gradients on that over b.
        first = jnp.linalg.norm(b[t] - A.mv(start[t])) / jnp.linalg.norm(b[t]) if "SOR" in method.split()[-1:] else 1.0
        options = dict(x0=start[t], tol=TOL * first, max_steps=CAP)
        if method == "CG":
            return chebyshev_cg(five_points(centre[t], side[t]), b[t], degree=1, **options).num_steps
        if method == "red-black SOR":
            return sor(five_points(centre[t], side[t]), b[t], omega=w, every=8, **options).num_steps
        if method == "red-black SSOR-CG":
            return ssor_cg(five_points(centre[t], side[t]), b[t], omega=w, **options).num_steps
        if method == "SOR":
            return sor(A, b[t], omega=w, every=8, **options).num_steps
        return ssor_cg(A, b[t], omega=w, **options).num_steps

    return lax.map(jax.vmap(one), (which, omega))


def five_points(centre, side):
    """Return the same system as a stencil, for red-black sweeps."""
    return Stencil(jnp.stack([centre, -side, -side, -side, -side]), [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)])


def steps_of(method, systems, omega, radius):
    """Return steps (T, k) for omega (k,) or (T, 1), similar lanes together so that none waits long for another."""
    T = len(radius)
    omega = np.broadcast_to(omega, (T, np.shape(omega)[-1]))
    guess = np.log(np.asarray(young_rate(omega, radius[:, None])))
    order = np.argsort(guess.ravel(), kind="stable")
    together = min(128, max(4, 40_000 // systems[2][0].size))  # as many as a cache holds
    lanes = np.concatenate([order, np.repeat(order[-1:], -len(order) % together)]).reshape(-1, together)
    counted = count(*systems, jnp.asarray(lanes // omega.shape[1]), jnp.asarray(omega.ravel()[lanes]), method)
    out = np.empty(T * omega.shape[1], np.int32)
    out[lanes] = counted
    return out.reshape(omega.shape)


def heat(nx, every, method):
    """Return the table of the heat run, every so many steps."""
    start, rhs, s, kappa = (x[::every] for x in heat_systems(nx))
    s = np.asarray(s)
    radius = 4 * s * np.cos(np.pi / nx) / (1 + 4 * s)
    systems = tuple(map(jnp.asarray, (1 + 4 * s, s, rhs, start)))
    out = dict(steps=steps_of(method, systems, GRID, radius), context=np.asarray(kappa), s=s, radius=radius)
    young = np.asarray(young_omega(radius))[:, None]
    if method == "SOR":
        out["young"] = steps_of("SOR", systems, young, radius)
        out["young_red_black"] = steps_of("red-black SOR", systems, young, radius)
    else:
        one = np.ones(1)
        out["cg"] = steps_of("CG", systems, one, radius)
        out["red_black"] = steps_of("red-black SSOR-CG", systems, one, radius)
    return out | {"every": np.asarray(every)}


def iid(spread, size):
    """Return the table of SOR on shifted Laplacians."""
    c, rhs = shifted_laplacians(np.random.default_rng(50), size, spread=spread)
    radius = model_radius(c, 10)
    systems = tuple(map(jnp.asarray, (4 + c, np.ones_like(c), rhs, np.zeros_like(rhs))))
    young = np.asarray(young_omega(radius))[:, None]
    return dict(
        steps=steps_of("SOR", systems, GRID, radius), context=c, radius=radius, every=np.asarray(1),
        young=steps_of("SOR", systems, young, radius),
        young_red_black=steps_of("red-black SOR", systems, young, radius),
    )  # fmt: skip


def main():
    options = harness.arguments(__doc__.splitlines()[0])
    quick = 25 if options.quick else 1
    jobs = {f"iid_{spread}": partial(iid, spread, 5000 // quick) for spread in ("high", "low")}
    jobs |= {f"ssor_cg_{nx}": partial(heat, nx, e * quick, "SSOR-CG") for nx, e in ((25, 1), (50, 10), (100, 20))}
    jobs |= {f"sor_{nx}": partial(heat, nx, e * quick, "SOR") for nx, e in ((25, 5), (50, 10), (100, 25))}
    path = options.out / "linear_tables.npz"
    tables = dict(np.load(path)) if path.exists() else {}
    for name, job in jobs.items():
        if harness.chosen(name, options.only):
            begin = time.perf_counter()
            for key, value in job().items():
                tables[f"{name}.{key}"] = value.astype(np.uint16) if value.dtype == np.int32 else value
            steps, seconds = tables[f"{name}.steps"], time.perf_counter() - begin
            digest = hashlib.sha256(steps.tobytes()).hexdigest()[:12]
            print(name, steps.shape, f"{seconds:.0f} s", digest, np.round(steps.mean(0), 2), flush=True)
            np.savez_compressed(path, **tables)


if __name__ == "__main__":
    main()
