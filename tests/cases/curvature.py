"""Contract entries of curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import solvers
from solvers.core.operators import FunctionOperator
from solvers.core.precision import matmul
from solvers.curvature import diagonal

from .case import Case
from .estimator import Estimator
from .transformation import Transformation


def _mfac(learning_rate=20.0, damping=2000.0):
    return solvers.mfac(learning_rate, num_grads=4, damping=damping)


def _scale_by_mfac(damping=2000.0):
    return optax.chain(solvers.scale_by_mfac(num_grads=4, damping=damping), optax.scale(-20.0))


def _objective(loss, params, key):
    return {"obj_fn": loss}


def _adahessian(learning_rate=0.2):
    return solvers.adahessian(learning_rate, update_every=2)


def _scale_by_adahessian(hessian_power=1.0):
    return optax.chain(solvers.scale_by_adahessian(hessian_power=hessian_power), optax.scale(-0.1))


def _slq_heavy_ball(scale=1.0):
    return solvers.slq_heavy_ball(num_steps=8, refresh_every=3, scale=scale)


TRANSFORMATIONS = [
    Transformation(
        name="adahessian", make=_adahessian, number=("learning_rate", 0.2), extra=_objective, descends=0.05, steps=100
    ),
    Transformation(
        name="scale_by_adahessian", make=_scale_by_adahessian, number=("hessian_power", 1.0), extra=_objective
    ),
    Transformation(
        name="slq_heavy_ball",
        make=_slq_heavy_ball,
        number=("scale", 1.0),
        extra=_objective,
        descends=1e-2,
        tol=(("float64", 1e-6), ("float32", 1e-2), ("bfloat16", 5e-2)),
    ),
    Transformation(name="mfac", make=_mfac, number=("learning_rate", 20.0), descends=0.1, steps=100),
    Transformation(name="scale_by_mfac", make=_scale_by_mfac, number=("damping", 2000.0)),
]


def _matrix(rng):
    """A spectrum that decays and turns flat, in no basis of its own."""
    q = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    return {"a": (q * (0.8 ** np.arange(60) + 0.05)) @ q.T}


def _trace(method):
    return lambda data, key, **options: solvers.trace(data["a"], key, method=method, max_products=40, rank=6, **options)


def _tree(data):
    """On a pytree of two leaves of different sizes."""
    like = {"first": jnp.zeros(7, data["a"].dtype), "rest": jnp.zeros((53,), data["a"].dtype)}

    def mv(x, matrix):
        y = matmul(matrix, jnp.concatenate([x["first"], x["rest"]]))
        return {"first": y[:7], "rest": y[7:]}

    return FunctionOperator(mv, like, data["a"])


def _blockwise(data, key, **options):
    return solvers.blockwise_trace(_tree(data), key, max_products=40, **options)


def _diagonal(data, key, **options):
    return diagonal(_tree(data), key, max_products=40, **options)


def _quadrature(data, key):
    return solvers.spectral_density(data["a"], key, num_steps=3, num_probes=20).moment(1)


def _diagonal_truth(data):
    d = np.diag(np.asarray(data["a"], np.float64))
    return {"first": d[:7], "rest": d[7:]}


def _total(data):
    return np.trace(np.asarray(data["a"], np.float64))


ESTIMATORS = [
    *(
        Estimator(name=f"trace-{method}", make=_matrix, estimate=_trace(method), truth=_total, poison="a")
        for method in ("hutchinson", "hutch++", "xtrace", "xnystrace")
    ),
    Estimator(
        name="blockwise_trace",
        make=_matrix,
        estimate=_blockwise,
        truth=lambda data: jax.tree.map(np.sum, _diagonal_truth(data)),
        poison="a",
    ),
    Estimator(name="diagonal", make=_matrix, estimate=_diagonal, truth=_diagonal_truth, poison="a"),
    Estimator(name="spectral_density", make=_matrix, estimate=_quadrature, truth=_total, poison="a", stops=False),
]


def _symmetric(rng, n=12):
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (q * np.linspace(-1, 3, n)) @ q.T


def _eigenpairs(data, **options):
    n = data["a"].shape[0]
    return solvers.extreme_eigenpairs(data["a"], jax.random.key(3), min(2, n), num_basis=min(8, n), **options)


def _direction(rng, data):
    d = rng.standard_normal(data["a"].shape)
    return {"a": (d + d.T) / 4}


def _values_and_vectors(solution):
    return solution.value[0] + solution.value[1] ** 2 + jnp.sum(solution.vectors[0, :3] ** 2)


CASES = [
    Case(
        name="extreme_eigenpairs",
        solution=solvers.EigenSolution,
        make=lambda rng: {"a": _symmetric(rng)},
        solve=_eigenpairs,
        poison="a",
        warm=None,
        zero=lambda: {"a": np.zeros((12, 12))},
        single=lambda: {"a": np.array([[3.0]])},
        failing=lambda data: (data, {"tol": 0.0, "max_steps": 1}, solvers.Status.MAX_STEPS),
        differentiable=("a",),
        direction=_direction,
        observe=_values_and_vectors,
        exact={"tol": 1e-14},
    ),
]
