"""Real systems for linear.py: finite elements by scikit-fem and PyAMG's gallery, ours against PyAMG and factorisations.

Every contestant gets the same matrix and right-hand side and stops at a relative residual of 1e-8, which is judged
again in NumPy. Set-up, solve and their sum are apart; ours compiles once for a pattern, which is a column of its own.
Columns of CPU seconds count the work of all threads: they hold on a busy machine, where those of the wall do not.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg

from solvers import AMG, Stencil, multigrid_cg

TOL = 1e-8
LARGE = 500_000
"""Rows from which on set-ups take seconds and are not repeated."""


class Own(NamedTuple):
    """Settings of ours."""

    kind: str = "ruge_stuben"
    improve: int = 3
    degree: int = 2
    ratio: float = 4.0


PLAIN, QUICK, FEW, FEWEST = Own(improve=0, degree=3, ratio=8.0), Own(improve=1), Own(), Own(improve=5)
AGGREGATES, ROOTS = Own("smoothed_aggregation", 0, 3, 8.0), Own("rootnode", 0, 3, 16.0)


class System(NamedTuple):
    """A matrix, its near-null vectors or None, a stencil if it is one, and the settings of ours, a row each."""

    matrix: Any
    motions: Any = None
    grid: tuple[Stencil, tuple[int, ...]] | None = None
    own: tuple[Own, ...] = (QUICK, FEW)


class Spent(NamedTuple):
    """Median seconds of a call, on the wall and of the processor, and what it returned."""

    wall: float
    cpu: float
    output: Any


def spent(call: Callable[[], Any], repeat: int, budget: float) -> Spent:
    """Time a call up to `repeat` times, while `budget` seconds last, until its arrays are ready."""
    runs: list[tuple[float, float]] = []
    while len(runs) < repeat and (not runs or sum(w for w, _ in runs) + runs[-1][0] <= budget):
        start = time.perf_counter(), time.process_time()
        output = jax.block_until_ready(call())
        runs.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return Spent(*np.median(runs, axis=0).tolist(), output)


def columns(setup: Spent, solve: Spent) -> dict[str, float]:
    """Return the columns of time."""
    return {
        "set-up": setup.wall, "solve": solve.wall, "set-up CPU": setup.cpu, "solve CPU": solve.cpu,
        "total": setup.wall + solve.wall, "total CPU": setup.cpu + solve.cpu,
    }  # fmt: skip


NOTHING = Spent(0.0, 0.0, None)


def mesh(n: int):
    """Return the Delaunay triangulation of a grid of n points a side whose inner points are moved at random."""
    import skfem
    from scipy.spatial import Delaunay

    x = np.stack(np.meshgrid(*[np.linspace(0, 1, n)] * 2, indexing="ij"), -1).reshape(-1, 2)
    inner = np.all((x > 0) & (x < 1), 1)
    x[inner] += np.random.default_rng(73).uniform(-0.3, 0.3, (inner.sum(), 2)) / (n - 1)
    return skfem.MeshTri(np.ascontiguousarray(x.T), np.ascontiguousarray(Delaunay(x).simplices.T))


def elements(mesh: Any, element: Any):
    """Return the Laplacian of these finite elements without the boundary."""
    import skfem
    from skfem.models.poisson import laplace

    basis = skfem.Basis(mesh, element)
    return skfem.condense(laplace.assemble(basis), D=basis.get_dofs(), expand=False).tocsr()


def linear_triangles(n: int) -> System:
    import skfem

    return System(elements(mesh(n), skfem.ElementTriP1()), own=(AGGREGATES, ROOTS, QUICK, FEW))


def quadratic_triangles(n: int) -> System:
    import skfem

    return System(elements(mesh(n // 2), skfem.ElementTriP2()), own=(AGGREGATES, ROOTS, QUICK, FEW))


def tetrahedra(n: int) -> System:
    import skfem

    side = np.linspace(0, 1, round(n ** (2 / 3)))
    box = skfem.MeshTet.init_tensor(side, side, side)
    return System(elements(box, skfem.ElementTetP1()), own=(AGGREGATES, ROOTS, QUICK))


def rotated(n: int) -> System:
    from pyamg.gallery import diffusion_stencil_2d, stencil_grid

    stencil = diffusion_stencil_2d(epsilon=1e-3, theta=np.pi / 6, type="FE")
    return System(stencil_grid(stencil, (n, n)).tocsr(), own=(PLAIN, QUICK, FEW))


def of_stencil(stencil: Stencil, shape: tuple[int, ...], **more: Any) -> System:
    rows = stencil.rows(shape)
    size = int(np.prod(shape))
    return System(sp.coo_matrix((np.asarray(rows.values), rows.places()), (size, size)).tocsr(), **more)


def islands(n: int) -> System:
    k = 10 ** np.random.default_rng(61).uniform(-3, 3, (n, n))
    return of_stencil(Stencil.diffusion(jnp.asarray(k), shift=0), (n, n), own=(FEW, FEWEST))


def elasticity(n: int) -> System:
    from pyamg.gallery import linear_elasticity

    matrix, motions = linear_elasticity((n // 2, n // 2), format="bsr")
    return System(matrix, motions, own=(AGGREGATES,))


def three_scales(n: int) -> System:
    unit, side = np.eye(3, dtype=int), min(32, round(n ** (2 / 3)))
    offsets = [(0, 0, 0), *map(tuple, unit), *map(tuple, -unit)]
    stencil, shape = Stencil(jnp.asarray([222.0, -1, -10, -100, -1, -10, -100]), offsets), (side,) * 3
    return of_stencil(stencil, shape, grid=(stencil, shape), own=(FEW,))


SYSTEMS: dict[str, tuple[Callable[[int], System], int]] = {
    "three scales in 3-D (stencil)": (three_scales, 256),
    "rotated anisotropy 1e-3": (rotated, 256),
    "jumps of 1e6 from point to point": (islands, 256),
    "elasticity, Q1": (elasticity, 256),
    "P1 triangles": (linear_triangles, 320),
    "P2 triangles": (quadratic_triangles, 320),
    "P1 tetrahedra": (tetrahedra, 256),
    "a million P1 rows": (linear_triangles, 1002),
}
"""What makes each system, and the size it is made at: about the root of the rows. Meshes are unstructured."""


def built(system: System, own: Own) -> Callable[[], Any]:
    """Return the set-up of ours, which returns the system to solve."""
    if system.grid is not None:
        return lambda: system.grid[0]
    if system.motions is not None:
        import pyamg

        return lambda: AMG.from_pyamg(
            pyamg.smoothed_aggregation_solver(system.matrix, B=system.motions, max_coarse=200)
        )
    more = {"improve": own.improve} if own.improve else {}
    return lambda: AMG(system.matrix, kind=own.kind, **more)


def ours(system: System, b: np.ndarray, repeat: int, own: Own) -> dict[str, Any]:
    """Return the row of ours with these settings."""
    build = built(system, own)
    if b.size < LARGE:
        build()
    setup = spent(build, repeat if b.size < LARGE else 1, 4)
    A, degree, ratio = setup.output, own.degree, own.ratio
    rhs = jnp.asarray(b if system.grid is None else b.reshape(system.grid[1]))
    kind = {} if system.grid is None else {"coarsening": plan(system)}
    program = harness.compiled(lambda A, rhs: multigrid_cg(A, rhs, tol=TOL, degree=degree, ratio=ratio, **kind), A, rhs)
    jax.block_until_ready(program(A, rhs))
    solve = spent(lambda: program(A, rhs), 2 * repeat + 1, 4)
    name = "multigrid_cg" if system.grid is not None else f"AMG {own.kind}, improve {own.improve}"
    weight = None
    if system.grid is None:
        weight = sum(d.size for d in A.data) / A.data[0].size
    return {
        "solver": name, **columns(setup if system.grid is None else NOTHING, solve),
        "steps": int(solve.output.num_steps), "compile": program.first_call_seconds, "complexity": weight,
        "x": np.ravel(solve.output.value),
    }  # fmt: skip


def plan(system: System):
    from solvers.linear import coarsening_plan

    return coarsening_plan(*system.grid)


def algebraic_peers(system: System, b: np.ndarray, repeat: int) -> Iterator[dict[str, Any]]:
    """Yield PyAMG's rows: every construction with conjugate gradients, rotated anisotropy with evolution as well."""
    import pyamg

    A, near = system.matrix, {"B": system.motions} if system.motions is not None else {}
    evolution = {"strength": ("evolution", {"epsilon": 4.0, "k": 2})}
    calls = {
        "PyAMG smoothed aggregation": lambda: pyamg.smoothed_aggregation_solver(A, **near),
        "PyAMG aggregation, evolution": lambda: pyamg.smoothed_aggregation_solver(A, **near, **evolution),
        "PyAMG rootnode, energy": lambda: pyamg.rootnode_solver(A, **near),
    }
    if system.motions is None:
        calls["PyAMG Ruge-Stuben"] = lambda: pyamg.ruge_stuben_solver(A)
    for name, build in calls.items():
        setup = spent(build, repeat, 2)
        residuals: list[float] = []
        options = {"tol": TOL, "accel": "cg", "maxiter": 100}
        setup.output.solve(b, residuals=residuals, **options)
        solve = spent(lambda s=setup.output, o=options: s.solve(b, **o), repeat, 2)
        yield {
            "solver": name, **columns(setup, solve), "steps": len(residuals) - 1,
            "complexity": setup.output.operator_complexity(), "x": solve.output,
        }  # fmt: skip


def direct_peers(system: System, b: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield CHOLMOD's row by sparsax, factorisation and solve in one, and SuperLU's by SciPy."""
    matrix = system.matrix.tocsr()
    try:
        import sparsax

        upper = sp.triu(matrix).tocoo()
        at = jnp.asarray(upper.row.astype(np.int32)), jnp.asarray(upper.col.astype(np.int32))
        program = harness.compiled(lambda v, r: sparsax.solve(*at, v, r), jnp.asarray(upper.data), jnp.asarray(b))
        for k, matter in enumerate(("matrix", "values")):  # the first call orders the rows as well
            values = jnp.asarray(upper.data * (1 + 1e-13 * k))  # a factor is remembered by its values
            solve = spent(lambda v=values: program(v, jnp.asarray(b)), 1, 0)
            yield {"solver": f"CHOLMOD, new {matter}", **columns(NOTHING, solve), "x": np.asarray(solve.output)}
    except Exception as cause:
        print("sparsax left out:", cause)
    if matrix.shape[0] <= 110_000 and QUICK in system.own:
        order = {"permc_spec": "MMD_AT_PLUS_A", "options": {"SymmetricMode": True}}
        setup = spent(lambda: scipy.sparse.linalg.splu(matrix.tocsc(), **order), 1, 0)
        solve = spent(lambda: setup.output.solve(b), 3, 1)
        yield {"solver": "SciPy SuperLU", **columns(setup, solve), "x": solve.output}


def systems(options: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of all chosen systems; `--only` takes parts of their names beside ``systems``."""
    repeat = 1 if options.quick else 3
    parts = [part for part in options.only if part not in "systems"]
    for name, (make, size) in SYSTEMS.items():
        if not harness.chosen(name, parts) or (options.quick and size > 1000):
            continue
        system = make(64 if options.quick else size)
        b = np.random.default_rng(79).standard_normal(system.matrix.shape[0])
        mine = (ours(system, b, repeat, own) for own in system.own)
        for row in itertools.chain(mine, algebraic_peers(system, b, repeat), direct_peers(system, b)):
            x = row.pop("x")
            error = float(np.linalg.norm(b - system.matrix @ x) / np.linalg.norm(b))
            yield {"system": name, "rows": int(b.size), **row, "error": error}
