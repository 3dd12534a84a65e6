"""Contract entries of inverse problems."""

import jax
import jax.numpy as jnp
import numpy as np

import solvers
from solvers import inverse
from solvers.core.operators import LinearOperator, MatrixOperator
from solvers.core.precision import matmul
from solvers.core.prox import L1
from solvers.problems.inverse import GaussianPrior

from .case import Case
from .module import ModuleCase
from .sampler import Sampler

M, N = 12, 6


class Skewed(LinearOperator):
    """A matrix whose transpose is wrong by a multiple of what it should be."""

    entries: jax.Array
    skew: jax.Array

    @property
    def domain(self):
        return jax.ShapeDtypeStruct(self.entries.shape[-1:], self.entries.dtype)

    def mv(self, x):
        return matmul(self.entries, x)

    def transpose_mv(self, y):
        return (1 + self.skew) * matmul(self.entries.T, y)


def _data(rng, shape=(M, N)):
    matrix = rng.standard_normal(shape)
    return {
        "matrix": matrix,
        "y": matrix @ (rng.choice([-1, 1], shape[1]) * (1 + rng.random(shape[1])))
        + 0.1 * rng.standard_normal(shape[0]),
        "weight": np.full(shape[1], 0.5),
        "skew": np.zeros(()),
    }


def _zero():
    return {**_data(np.random.default_rng(23)), "y": np.zeros(M)}


def _entry(name, warm, **more):
    solver = getattr(solvers, name)
    return Case(
        name=name,
        solution=solvers.InverseSolution,
        make=_data,
        solve=lambda data, **options: solver(
            Skewed(data["matrix"], data["skew"]), data["y"], L1(data["weight"]), **options
        ),
        poison="y",
        warm=lambda data, solution: (data, warm(solution)),
        zero=_zero,
        single=lambda: _data(np.random.default_rng(24), (1, 1)),
        failing=lambda data: (
            {**data, "skew": data["skew"] + 0.01},
            {},
            int(solvers.InverseStatus.ADJOINT_MISMATCH),
        ),
        differentiable=("matrix", "y", "weight"),
        direction=lambda rng, data: {
            "matrix": 0.3 * rng.standard_normal((M, N)),
            "y": rng.standard_normal(M),
            "weight": 0.3 * rng.standard_normal(N),
        },
        observe=lambda s: jnp.sum(jnp.sin(s.value)) + s.value[1] ** 2,
        **more,
    )


CASES = [
    _entry(
        "admm", lambda s: {"x0": s.value, "dual": s.dual, "penalty": s.penalty}, tol={"float64": 1e-6, "float32": 2e-4}
    ),
    _entry("pgd", lambda s: {"x0": s.value}, tol={"float64": 1e-6, "float32": 1e-4}),
    _entry("hqs", lambda s: {"x0": s.value, "penalty": s.penalty}, tol={"float64": 1e-6, "float32": 1e-4}),
]


def _posterior_data(rng):
    root = rng.standard_normal((4, 4)) / 2
    return {
        "covariance": root @ root.T + 0.1 * np.eye(4),
        "matrix": rng.standard_normal((2, 4)),
        "y": np.array([0.5, -1.0]),
    }


def _exact(data):
    prior = GaussianPrior(jnp.zeros(4, data["y"].dtype), data["covariance"])
    posterior = prior.posterior(data["matrix"], data["y"], 0.3)
    return posterior.mean, posterior.covariance


def _draw(guidance, steps=40):
    schedule = inverse.CosineSchedule()

    def draw(data, key):
        prior = GaussianPrior(jnp.zeros(4, data["y"].dtype), data["covariance"])
        score = lambda x, t: prior.score(x, schedule.alpha(t), schedule.sigma(t))  # noqa: E731
        A = MatrixOperator(data["matrix"])
        return inverse.posterior_sample(score, schedule, A, data["y"], key, noise=0.3, guidance=guidance, steps=steps)

    return draw


def _sampler(guidance, **more):
    return Sampler(f"posterior_sample-{guidance}", _posterior_data, _draw(guidance), _exact, "y", **more)


MODULES = [
    ModuleCase(
        name="LearnedProx",
        module=solvers.LearnedProx,
        make=lambda key, dtype: solvers.LearnedProx(
            inverse.convex_network(key, 3, width=5, depth=2, beta=2.0, dtype=dtype)
        ),
        example=lambda rng: rng.standard_normal(3),
        refuse=(lambda: solvers.LearnedProx(3.0),),
    ),
]

SAMPLERS = [
    _sampler("second_order"),
    # Biased on every prior that is not white; what is asked is that they are no worse than this.
    _sampler("pigdm", bias=0.3, spread=0.5),
    _sampler("dps", bias=1.0, spread=1.0),
    _sampler("stsl", bias=1.0, spread=1.0),
    _sampler("dds", bias=1.0, spread=1.0),
]
