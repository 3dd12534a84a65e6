"""Contract entries of first-order methods."""

import jax
import jax.numpy as jnp
import numpy as np

import solvers

from .case import Case
from .transformation import Transformation

NODES, D = 4, 3
RING = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])


def _node_gradient(x, node):
    return 2 * x + 0.5 * node["bend"] * jnp.tanh(x) - node["target"]


def _nodes(rng, n=NODES, d=D):
    return {"bend": 0.5 + rng.random((n, d)), "target": rng.standard_normal((n, d)), "x0": np.zeros(d)}


def _edges(data):
    n = data["target"].shape[0]
    return RING if n == NODES else np.array([[0, 1]])


def _decentralised(method, **own):
    def solve(data, **options):
        nodes = {"bend": data["bend"], "target": data["target"]}
        options = {**own, **options}
        curvature = {"mu": 2.0, "smoothness": 4.0, **{k: options.pop(k) for k in ("mu",) if k in options}}
        gradient = options.pop("gradient", _node_gradient)
        return method(gradient, data["x0"], nodes, _edges(data), **curvature, **options)

    def user_function(data, count):
        def gradient(x, node):
            count()
            return _node_gradient(x, node)

        return solve(data, gradient=gradient)

    def zero():
        data = _nodes(np.random.default_rng(23))
        return {**data, "target": np.zeros((NODES, D))}

    return Case(
        name=method.__name__,
        solution=solvers.DecentralisedSolution,
        make=_nodes,
        solve=solve,
        poison="target",
        warm=lambda data, solution: ({**data, "x0": solution.value}, {}),
        zero=zero,
        single=lambda: _nodes(np.random.default_rng(24), 2, 1),
        failing=lambda data: (data, {"mu": 3.9}, int(solvers.DecentralisedStatus.CURVATURE)),
        differentiable=("bend", "target"),
        direction=lambda rng, data: {k: 0.3 * rng.standard_normal((NODES, D)) for k in ("bend", "target")},
        observe=lambda s: jnp.sum(jnp.sin(s.value)) + s.nodes[1, 0] ** 2,
        tol={"float64": 1e-8, "float32": 2e-4},
        exact={"tol": 1e-13, "max_steps": 3000},
    )


N, K = 12, 3


def _regression(rng, n=N, k=K):
    return {"X": rng.standard_normal((n, k)), "y": rng.standard_normal(n), "w0": np.zeros(k)}


def _model(w, args):
    return args["X"] @ w


def _logcosh(z, args):
    return jnp.sum(jnp.logaddexp(z - args["y"], args["y"] - z) + 0.05 * (z - args["y"]) ** 2)


def _surrogate(data, **options):
    model, eta = options.pop("model", _model), options.pop("eta", 0.9)
    args = {"X": data["X"], "y": data["y"]}
    return solvers.target_surrogate(model, _logcosh, data["w0"], args, **{"eta": eta, **options})


def _traced_surrogate(data, count):
    def model(w, args):
        count()
        return args["X"] @ w

    return _surrogate(data, model=model)


SURROGATE = Case(
    name="target_surrogate",
    solution=solvers.SurrogateSolution,
    make=_regression,
    solve=_surrogate,
    poison="X",
    warm=lambda data, solution: ({**data, "w0": solution.value}, {}),
    zero=lambda: {**_regression(np.random.default_rng(23)), "y": np.zeros(N)},
    single=lambda: _regression(np.random.default_rng(24), 1, 1),
    failing=lambda data: (
        data,
        {"tol": jnp.asarray(0, data["X"].dtype), "max_steps": 2},
        int(solvers.Status.MAX_STEPS),
    ),
    differentiable=("X", "y"),
    direction=lambda rng, data: {"X": 0.3 * rng.standard_normal((N, K)), "y": 0.3 * rng.standard_normal(N)},
    observe=lambda s: jnp.sum(jnp.sin(s.value)),
    tol={"float64": 1e-6, "float32": 1e-4},
    exact={"tol": 1e-12},
)

CASES = [
    SURROGATE,
    _decentralised(solvers.dadao, key=jax.random.key(5), every=32),
    _decentralised(solvers.mudag),
]


def _hvp(objective, params, key):
    return {"hvp": lambda x, v: jax.jvp(jax.grad(objective), (x,), (v,))[1]}


def _same_sample(objective, params, key):
    return {"gradient": jax.grad(objective)}


def _same_examples(objective, params, key):
    return {"before": lambda x: DIFF2.gradient(objective, x)}


DIFF2 = Transformation(
    name="diff2",
    make=lambda learning_rate=0.01: solvers.diff2(
        learning_rate, clip=1e4, clip_difference=300.0, noise=1e-7, noise_difference=1e-7, restart=4,
        key=jax.random.key(5),
    ),
    number=("learning_rate", 0.01),
    extra=_same_examples,
    descends=0.5,
    examples=3,
)  # fmt: skip

TRANSFORMATIONS = [
    DIFF2,
    Transformation(
        name="igt_momentum",
        make=lambda learning_rate=0.05: solvers.igt_momentum(learning_rate),
        number=("learning_rate", 0.05),
    ),
    Transformation(
        name="hessian_aided_momentum",
        make=lambda learning_rate=0.005: solvers.hessian_aided_momentum(learning_rate),
        number=("learning_rate", 0.005),
        extra=_hvp,
    ),
    Transformation(
        name="storm_momentum",
        make=lambda learning_rate=0.005: solvers.storm_momentum(learning_rate),
        number=("learning_rate", 0.005),
        extra=_same_sample,
        descends=0.5,
        steps=100,
    ),
    Transformation(
        name="optimistic_descent",
        make=lambda diameter=4.0: solvers.optimistic_descent(diameter, 100.0, 100.0),
        number=("diameter", 4.0),
    ),
]
