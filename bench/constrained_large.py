"""Equality-constrained optimisation beyond tables of small problems.

``python bench/constrained_large.py [--quick] [--only pde,lowrank,table4c]``

- ``table4c``: sketch-and-project with the paper's settings against the authors' published counts and residuals.
- ``pde``: control of a semilinear Poisson equation, matrix-free, against IPOPT with sparse exact derivatives.
- ``lowrank``: a Hessian of decaying spectrum plus a ridge, where a randomised preconditioner pays, against the dense
  path, plain MINRES and sketch-and-project's count.
"""

import contextlib
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.flatten_util import ravel_pytree

jax.config.update("jax_enable_x64", True)

from solvers import DenseKKT, DiagonalPreconditioner, KrylovKKT, NystromPreconditioner, SketchProject  # noqa: E402
from solvers import sketched_newton as solve  # noqa: E402
from solvers.problems.constrained import HAND_WRITTEN, low_rank_regression, pde_control, pde_preconditioner  # noqa: E402

PUBLISHED = {
    "HS28": (1, 1.1e-10),
    "HS48": (1, 4.2e-10),
    "BT3": (1, 5.9e-10),
    "HS7": (10, 5.6e-7),
    "HS78": (4, 1.9e-9),
    "HS42": (4, 7.4e-5),
}


def residual(p, x, lam):
    """Return the KKT residual of our own formula at flat ``(x, lam)``."""
    start, unravel = ravel_pytree(p.x0)
    flat = jnp.asarray(x, start.dtype)

    def lagrangian(x, lam):
        c = ravel_pytree(p.equality(unravel(x), p.args))[0]
        return p.objective(unravel(x), p.args) + lam @ c, c

    (_, c), g = jax.value_and_grad(lagrangian, has_aux=True)(flat, jnp.asarray(lam, start.dtype))
    return float(jnp.sqrt(g @ g + c @ c))


def run(p, kkt, *, repeat=5, **options):
    """Compile, time and judge one solve; return a row."""
    call = harness.compiled(
        lambda x0, args: solve(p.objective, x0, equality=p.equality, args=args, kkt=kkt, **options), p.x0, p.args
    )
    timing = harness.clock(lambda: call(p.x0, p.args), repeat=repeat, budget=20, warm=True)
    s = timing.output
    return {
        "steps": int(s.num_steps),
        "inner": int(s.num_inner),
        "ms": 1e3 * timing.seconds,
        "kkt": residual(p, ravel_pytree(s.value)[0], ravel_pytree(s.multipliers)[0]),
        "f": float(s.objective),
        "status": int(s.status),
        "first call s": call.first_call_seconds,
    }


def table4c():
    """Yield the twelve rows of the fidelity table."""
    for name, (steps, published) in PUBLISHED.items():
        p = HAND_WRITTEN[name]()
        zero = jnp.zeros(jax.eval_shape(p.equality, p.x0, None).shape)
        for sketch in ("kaczmarz", "gaussian"):
            row = run(p, SketchProject(jax.random.key(3), sketch=sketch), repeat=1, tol=1e-4, multipliers=zero)
            as_published = row["steps"] == steps and 0.1 * published < row["kkt"] < 2 * published
            row |= {"published steps": steps, "published kkt": published, "as published": as_published}
            yield {"problem": name, "solver": sketch} | row


def pde(sizes):
    """Yield PDE control at several sizes by us and by IPOPT."""
    for size in sizes:
        p = pde_control(size)
        base = {"problem": f"pde{size}", "n": 2 * size**2, "m": size**2}
        yield base | {"solver": "sketched_newton, sine preconditioner"} | run(p, KrylovKKT(pde_preconditioner(size)))
        with contextlib.suppress(ImportError):
            if size <= 127:
                yield base | {"solver": "IPOPT, sparse"} | sparse_ipopt(p, size)


def sparse_ipopt(p, size, weight=0.1, cubic=1.0):
    """Run IPOPT with the exact sparse derivatives written in NumPy, so that callbacks cost next to nothing."""
    import cyipopt

    m, h = size**2, 2.0 / (size + 1)
    line = scipy.sparse.diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(size, size)) / h**2
    eye = scipy.sparse.identity(size)
    lap = (scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line)).tocoo()
    sparse = lap.tocsr()
    diagonal = np.flatnonzero(lap.row == lap.col)
    target, index = np.asarray(p.args[0]).ravel(), np.arange(m)
    count = [0]

    class Callbacks:
        def objective(self, x):
            return 0.5 * np.sum((x[m:] - target) ** 2) + 0.5 * weight * np.sum(x[:m] ** 2)

        def gradient(self, x):
            return np.concatenate([weight * x[:m], x[m:] - target])

        def constraints(self, x):
            return sparse @ x[m:] + x[:m] - cubic * x[m:] ** 3

        def jacobianstructure(self):
            return np.concatenate([index, lap.row]), np.concatenate([index, m + lap.col])

        def jacobian(self, x):
            values = lap.data.copy()
            values[diagonal] -= 3 * cubic * x[m + lap.row[diagonal]] ** 2
            return np.concatenate([np.ones(m), values])

        def hessianstructure(self):
            return np.arange(2 * m), np.arange(2 * m)

        def hessian(self, x, lam, sigma):
            return np.concatenate([np.full(m, sigma * weight), sigma - 6 * cubic * x[m:] * lam])

        def intermediate(self, mode, step, *rest):
            count[0] = step

    def call():
        nlp = cyipopt.Problem(
            2 * m, m, problem_obj=Callbacks(), lb=[-1e20] * 2 * m, ub=[1e20] * 2 * m, cl=np.zeros(m), cu=np.zeros(m)
        )
        for key, value in (("print_level", 0), ("sb", "yes"), ("tol", 1e-8)):
            nlp.add_option(key, value)
        return nlp.solve(np.asarray(ravel_pytree(p.x0)[0]))

    timing = harness.clock(call, repeat=5, budget=10, warm=True)
    x, info = timing.output
    kkt = residual(p, x, info["mult_g"])
    return {
        "steps": count[0],
        "ms": 1e3 * timing.seconds,
        "kkt": kkt,
        "f": float(info["obj_val"]),
        "status": info["status"],
    }


def low_rank(n, samples, m):
    """Yield one problem with each way of solving its KKT systems."""
    p = low_rank_regression(n, samples, m)
    key = jax.random.key(11)
    ways = {
        "dense": DenseKKT(),
        "MINRES": KrylovKKT(),
        "MINRES, diagonal": KrylovKKT(DiagonalPreconditioner(key)),
        "MINRES, Nystrom 32": KrylovKKT(NystromPreconditioner(key, rank=32)),
        "MINRES, Nystrom 96": KrylovKKT(NystromPreconditioner(key, rank=96)),
    }
    for name, kkt in ways.items():
        yield {"problem": f"lowrank {n}/{m}", "n": n, "m": m, "solver": name} | run(p, kkt, repeat=3)


def main():
    """Run the chosen parts."""
    options = harness.arguments(__doc__)
    record, rows, began = harness.machine("cyipopt-wheels"), [], time.time()
    if harness.chosen("table4c", options.only):
        rows += table4c()
    if harness.chosen("pde", options.only):
        rows += pde((15, 31) if options.quick else (31, 63, 127, 255))
    if harness.chosen("lowrank", options.only):
        rows += low_rank(*((300, 200, 5) if options.quick else (2000, 1500, 20)))
    harness.table(rows)
    harness.save(options.out / "constrained_large.json", rows, key=("problem", "solver"), record=record)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
