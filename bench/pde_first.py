"""What somebody waits for who calls `gp_solve` for the first time: two dimensions, all on defaults, a process each.

Used by `bench/pde.py --only "first call"`. CPU seconds of the whole first call (the imports are done), median of fresh
processes on one thread, without a cache of compiled programs; and what does not depend on the machine: the kernels that
XLA's CPU backend compiles, a module each (JAX 0.10 writes them out, 0.12 does not), most of those seconds, and the
equations that JAX traced. As a script, ``python bench/pde_first.py NAME [count]``, it is one such process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from solvers import Box, Dirichlet, Observe, PDEProblem, gp_solve  # noqa: E402
from solvers.problems.pde import PAPER  # noqa: E402

SQUARE = Box((0.0, 1.0), (0.0, 1.0))
NOISE, UNKNOWN = 0.02, 0.531


def hill(x, y):
    return jnp.sin(np.pi * x) * jnp.sin(np.pi * y)


def poisson(x, u, a):
    return u.dxx + u.dyy + 2 * np.pi**2 * hill(*x)


def conducting(x, u, a):
    """``exp(a) laplacian u = -exp(UNKNOWN) f``."""
    return jnp.exp(a) * (u.dxx + u.dyy) + 2 * np.pi**2 * np.exp(UNKNOWN) * hill(*x)


def observed():
    rng = np.random.default_rng(31)
    points = rng.random((30, 2))
    return Observe(points, np.asarray(hill(*points.T)) + NOISE * rng.standard_normal(30), NOISE)


def published(name):
    instance = next(i for i in PAPER if i.name == name)
    faces = [Dirichlet(face, lambda x, a: instance.exact(*x)) for face in instance.faces]
    return PDEProblem(instance.residual, Box(**instance.bounds), faces), {"args": instance.args}, instance.exact


CASES = {
    "forward": lambda: (PDEProblem(poisson, SQUARE, [Dirichlet("all")]), {}, hill),
    "forward, poisson2d additive": lambda: published("poisson2d additive"),
    "noisy faces": lambda: (PDEProblem(poisson, SQUARE, [Dirichlet("all", noise=0.01)]), {}, hill),
    "30 observations": lambda: (PDEProblem(poisson, SQUARE, [Dirichlet("all"), observed()]), {}, hill),
    "exp(a) unknown": lambda: (PDEProblem(conducting, SQUARE, [Dirichlet("all"), observed()]),
                               {"args": 0.0, "infer": 1.0}, hill),
}  # fmt: skip


def once(name, counting):
    """Return what one first call in this process took, or the equations of what it traced."""
    problem, given, exact = CASES[name]()
    jax.block_until_ready(jnp.ones(3) + 1)  # the backend is there
    cpu, wall = time.process_time(), time.perf_counter()
    solution = jax.block_until_ready(gp_solve(problem, **given))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if counting:
        from counts import program_size

        def whole(args):
            return gp_solve(problem, grid=solution.grid, **{**given, "args": args})

        return {"equations": program_size(whole, given.get("args"))}
    bounds = [(float(a), float(b)) for a, b in problem.domain.bounds]
    points = tuple(jnp.linspace(a + 0.03 * (b - a), b - 0.03 * (b - a), 17) for a, b in bounds)
    truth = exact(*jnp.meshgrid(*points, indexing="ij"))
    gap = jnp.max(jnp.abs(solution.mean(points) - truth)) / jnp.max(jnp.abs(truth))
    return {"cpu_seconds": cpu, "seconds": wall, "error": float(gap), "status": int(solution.status),
            "grid": " x ".join(str(n) for n in solution.grid)}  # fmt: skip


def fresh(name, flags="", *more):
    """Run `once` in a process of its own and return what it says."""
    here = Path(__file__).resolve()
    flags = f"--xla_cpu_multi_thread_eigen=false {flags}"
    paths = os.pathsep.join(filter(None, (str(here.parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                   "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}  # fmt: skip
    run = subprocess.run([sys.executable, here, name, *more], env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the first call of {name!r} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def first_call(name, repeat):
    runs = [fresh(name) for _ in range(repeat)]
    with tempfile.TemporaryDirectory() as folder:
        counted = fresh(name, f"--xla_dump_to={folder}", "count")
        modules = len(list(Path(folder).glob("*.ir-with-opt.ll")))
    middle = {key: float(np.median([run[key] for run in runs])) for key in ("cpu_seconds", "seconds")}
    return {"problem": f"first call in 2-D: {name}", "method": "gp_solve", **runs[-1], **middle,
            "modules": modules or None, **counted}  # fmt: skip


def first_jobs(quick):
    """Return name and job of each row."""
    return [(f"first call {name}", lambda name=name: first_call(name, 1 if quick else 3)) for name in CASES]


if __name__ == "__main__":
    print(json.dumps(once(sys.argv[1], "count" in sys.argv[2:])))
