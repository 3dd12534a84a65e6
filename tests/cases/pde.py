"""Contract entries of differential equations."""

import jax
import jax.numpy as jnp
import numpy as np

import solvers
from solvers import Status

from .case import Case
from .module import ModuleCase


def _pde() -> Case:
    """``u'' - c u = f sin(3 x)`` with Dirichlet and Robin data."""

    def residual(x, u, args):
        return u.dxx - args["c"] * u.v - args["f"] * jnp.sin(3 * x[0])

    def problem(data, residual=residual):
        faces = [solvers.Dirichlet("x-", data["left"]), solvers.Robin("x+", data["right"], a=1.0, b=0.5)]
        return solvers.PDEProblem(residual, solvers.Box((0.0, 1.0)), faces)

    def solve(data, grid=16, **options):
        return solvers.gp_solve(problem(data), grid=grid, args={"c": data["c"], "f": data["f"]}, **options)

    def counted(data, count):
        def traced(x, u, args):
            count()
            return residual(x, u, args)

        return solvers.gp_solve(problem(data, traced), grid=16, args={"c": data["c"], "f": data["f"]})

    return Case(
        name="gp_solve",
        solution=solvers.GPSolution,
        make=lambda rng: {k: np.asarray(0.5 + rng.random()) for k in ("c", "f", "left", "right")},
        solve=solve,
        poison="f",
        warm=lambda data, solution: (data, {"guess": solution}),
        zero=lambda: {k: np.zeros(()) for k in ("c", "f", "left", "right")},
        single=lambda: {k: np.ones(()) * (k == "c") for k in ("c", "f", "left", "right")},
        failing=lambda data: ({**data, "f": 1e9 * data["f"]}, {"tol": 0.0}, int(Status.STAGNATED)),
        differentiable=("c", "f", "left", "right"),
        direction=lambda rng, data: {k: np.asarray(0.2 * rng.standard_normal()) for k in data},
        observe=lambda s: s.mean(jnp.asarray(0.3, s.value.dtype)) + s.mean(jnp.asarray(0.8, s.value.dtype)) ** 2,
        exact={},
        user_function=counted,
    )


def _conditioned() -> Case:
    """``u'' - c u = f sin(3 x)`` with one end noisy and three observations: conditioned on them."""

    def residual(x, u, args):
        return u.dxx - args["c"] * u.v - args["f"] * jnp.sin(3 * x[0])

    def solve(data, grid=10, **options):
        faces = [solvers.Dirichlet("x-", data["left"]), solvers.Dirichlet("x+", data["right"], noise=0.1)]
        seen = solvers.Observe(np.array([0.3, 0.5, 0.8], data["seen"].dtype), data["seen"], 0.05)
        problem = solvers.PDEProblem(residual, solvers.Box((0.0, 1.0)), [*faces, seen])
        return solvers.gp_solve(problem, grid=grid, args={"c": data["c"], "f": data["f"]}, **options)

    numbers = ("c", "f", "left", "right")
    return Case(
        name="gp_solve_conditioned",
        solution=solvers.GPSolution,
        make=lambda rng: {**{k: np.asarray(0.5 + rng.random()) for k in numbers}, "seen": 0.5 + 0.1 * rng.random(3)},
        solve=solve,
        poison="seen",
        warm=None,
        zero=lambda: {**{k: np.zeros(()) for k in numbers}, "seen": np.zeros(3)},
        single=lambda: {**{k: np.ones(()) * (k == "c") for k in numbers}, "seen": np.zeros(3)},
        failing=lambda data: ({**data, "f": 1e9 * data["f"]}, {"tol": 0.0}, int(Status.STAGNATED)),
        differentiable=("c", "f", "left", "seen"),
        direction=lambda rng, data: {k: 0.1 * rng.standard_normal(np.shape(v)) for k, v in data.items()},
        observe=lambda s: s.mean(jnp.asarray(0.4, s.value.dtype)) + s.mean(jnp.asarray(0.9, s.value.dtype)) ** 2,
        exact={},
    )


def _collocated() -> Case:
    """The equation of `_pde` again, by Gaussians whose centres and shapes stay."""

    def residual(x, u, args):
        return u.dxx - args["c"] * u.v - args["f"] * jnp.sin(3 * x[0])

    def solve(data, field=None, residual=residual, **options):
        faces = [solvers.Dirichlet("x-", data["left"]), solvers.Robin("x+", data["right"], a=1.0, b=0.5)]
        problem = solvers.PDEProblem(residual, solvers.Box((0.0, 1.0)), faces)
        if field is None:
            dtype = data["c"].dtype
            field = solvers.GaussianField.on_grid(problem.domain, 20, overlap=4.0, margin=0.5, dtype=dtype)
        args = {"c": data["c"], "f": data["f"]}
        return solvers.collocate(problem, field, args=args, train=False, points=48, **options)

    def counted(data, count):
        def traced(x, u, args):
            count()
            return residual(x, u, args)

        return solve(data, residual=traced)

    return Case(
        name="collocate",
        solution=solvers.FieldSolution,
        make=lambda rng: {k: np.asarray(0.5 + rng.random()) for k in ("c", "f", "left", "right")},
        solve=solve,
        poison="f",
        warm=lambda data, solution: (data, {"field": solution.field}),
        zero=lambda: {k: np.zeros(()) for k in ("c", "f", "left", "right")},
        single=lambda: {k: np.ones(()) * (k == "c") for k in ("c", "f", "left", "right")},
        failing=lambda data: (data, {"tol": 0.0}, int(Status.STAGNATED)),
        differentiable=("c", "f", "left", "right"),
        direction=lambda rng, data: {k: np.asarray(0.2 * rng.standard_normal()) for k in data},
        observe=lambda s: s.mean(jnp.full(1, 0.3, s.error.dtype)) + s.mean(jnp.full(1, 0.8, s.error.dtype)) ** 2,
        tol={"float64": 1e-6, "float32": 1e-3},
        exact={},
        accuracy=1e-4,  # least squares: up to the residual left
        user_function=counted,
    )


SHAPE = (4, 5)


def _quartic(u, args):
    """Return the energy of ``-a Laplace u + c u^3 = f`` on the unit square."""
    steps = [jnp.diff(u, axis=d, prepend=0.0, append=0.0) * (u.shape[d] + 1) for d in range(2)]
    volume = 1.0 / ((u.shape[0] + 1) * (u.shape[1] + 1))
    gradient = sum(jnp.sum(s**2) for s in steps)
    return volume * (args["a"] * gradient / 2 + args["c"] * jnp.sum(u**4) / 4 - jnp.sum(args["f"] * u))


def _descended() -> Case:
    def counted(data, count):
        def traced(u, args):
            count()
            return _quartic(u, args)

        return solvers.sobolev_descent(traced, jnp.zeros(SHAPE, data["f"].dtype), args=data)

    return Case(
        name="sobolev_descent",
        solution=solvers.SobolevSolution,
        make=lambda rng: {
            "a": np.asarray(1 + rng.random()),
            "c": np.asarray(0.5 + rng.random()),
            "f": 20 * rng.standard_normal(SHAPE),
        },
        solve=lambda data, u0=None, **options: solvers.sobolev_descent(
            _quartic, jnp.zeros_like(data["f"]) if u0 is None else u0, args=data, **options
        ),
        poison="f",
        warm=lambda data, solution: (data, {"u0": solution.value}),
        zero=lambda: {"a": np.ones(()), "c": np.ones(()), "f": np.zeros(SHAPE)},
        single=lambda: {"a": np.ones(()), "c": np.ones(()), "f": np.full((1, 1), 3.0)},
        failing=lambda data: ({**data, "a": 1e3 * data["a"]}, {"tol": 0.0, "max_steps": 200}, int(Status.STAGNATED)),
        differentiable=("a", "c", "f"),
        direction=lambda rng, data: {
            "a": np.asarray(0.2),
            "c": np.asarray(0.3),
            "f": rng.standard_normal(SHAPE),
        },
        observe=lambda s: jnp.sum(jnp.sin(s.value)) + s.value[0, 1] ** 2,
        tol={"float64": 1e-8, "float32": 1e-4},
        exact={"tol": 1e-12},
        user_function=counted,
    )


CASES = [
    _pde(),
    _conditioned(),
    _collocated(),
    _descended(),
]


def _field(key, dtype, full=True):
    return solvers.GaussianField.scattered(key, solvers.Box((0, 1), (0, 1)), 3, width=0.5, full=full, dtype=dtype)


MODULES = [
    ModuleCase(
        name="RandomField",
        module=solvers.RandomField,
        make=lambda key, dtype: solvers.RandomField(
            solvers.Box(tuple(jnp.asarray([0.0, 1.0], dtype)), tuple(jnp.asarray([0.0, 2.0], dtype))),
            solvers.SquaredExponential(0.5),
            rank=3,
        ).drawn(key),
        example=lambda rng: rng.random((4, 2)),
        refuse=(lambda: solvers.RandomField(solvers.Box((0.0, 1.0)), solvers.SquaredExponential(0.5), over="y"),),
        trains=False,
    ),
    ModuleCase(
        name="GaussianField",
        module=solvers.GaussianField,
        make=_field,
        example=lambda rng: rng.random(2),
        call=lambda module, x: module.value_grad_laplacian(x),
        refuse=(
            lambda: solvers.GaussianField(jnp.ones(2), jnp.ones((3, 2)), jnp.ones((3, 2))),
            lambda: solvers.GaussianField(jnp.ones(3), jnp.ones((3, 2)), jnp.ones((3, 1))),
            lambda: _field(jax.random.key(3), None)(jnp.ones(3)),
        ),
    ),
    ModuleCase(
        name="PublishedPIG",
        module=solvers.PublishedPIG,
        make=lambda key, dtype: solvers.PublishedPIG.scattered(
            key, solvers.Box((0, 1), (0, 1)), 3, width=0.5, features=2, hidden=3, dtype=dtype
        ),
        example=lambda rng: rng.random(2),
        refuse=(lambda: solvers.PublishedPIG(3.0, ()),),
    ),
    ModuleCase(
        name="DeepONet",
        module=solvers.DeepONet,
        make=lambda key, dtype: solvers.DeepONet.init(key, inputs=2, ndim=1, width=3, depth=2, dtype=dtype),
        example=lambda rng: (rng.standard_normal(2), rng.random(1)),
        call=lambda module, example: module(*example),
        refuse=(lambda: solvers.DeepONet.init(jax.random.key(3), inputs=2, ndim=1)(jnp.ones(3), jnp.ones(1)),),
    ),
    ModuleCase(
        name="MultiONet",
        module=solvers.MultiONet,
        make=lambda key, dtype: solvers.MultiONet.init(key, inputs=2, ndim=1, width=3, depth=3, last=2, dtype=dtype),
        example=lambda rng: (rng.standard_normal(2), rng.random(1)),
        call=lambda module, example: module(*example),
        refuse=(lambda: solvers.MultiONet.init(jax.random.key(3), inputs=2, ndim=1, depth=2, last=3),),
    ),
    ModuleCase(
        name="KernelGridEncoder",
        module=solvers.KernelGridEncoder,
        make=lambda key, dtype: solvers.KernelGridEncoder.init(
            key, solvers.Box((0, 1)), 3, channels=2, width=3, dtype=dtype
        ),
        example=lambda rng: (rng.random((4, 1)), rng.standard_normal((4, 1))),
        call=lambda module, example: module(*example),
        refuse=(lambda: solvers.KernelGridEncoder.init(jax.random.key(3), solvers.Box((0, 1)), 1),),
    ),
    ModuleCase(
        name="GraphKernelIntegral",
        module=solvers.GraphKernelIntegral,
        make=lambda key, dtype: solvers.GraphKernelIntegral.init(
            key, solvers.Box((-1, 2)), radius=0.9, capacity=5, width=3, dtype=dtype
        ),
        example=lambda rng: (
            np.linspace(0, 1, 2)[:, None] + 0.05 * rng.random((2, 1)),
            np.linspace(0.1, 1.2, 5)[:, None] + 0.05 * rng.random((5, 1)),
            rng.standard_normal((5, 1)),
        ),
        call=lambda module, example: module(*example),
        refuse=(
            lambda: solvers.GraphKernelIntegral.init(jax.random.key(3), solvers.Box((0, 1)), radius=0, capacity=1),
        ),
    ),
    ModuleCase(
        name="LowRankGaussian",
        module=solvers.LowRankGaussian,
        make=lambda key, dtype: solvers.LowRankGaussian(
            *(
                jax.random.normal(k, s, dtype) / 2
                for k, s in zip(jax.random.split(key, 3), [(3,), (3,), (3, 2)], strict=True)
            )
        ),
        example=lambda rng: rng.standard_normal(3),
        call=lambda module, x: module.log_density(x),
        refuse=(lambda: solvers.LowRankGaussian(jnp.ones(3), jnp.ones(2), jnp.ones((3, 1))),),
    ),
]
