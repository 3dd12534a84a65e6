"""The sketched solvers: their rates, and the counts of the paper's code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from solvers import SketchProject
from solvers.constrained.sketching import sketch_and_project
from solvers.core.linalg.sketch import SKETCHES, draw, hadamard

from ..compiled import sketched_newton
from ..conftest import FLOAT, needs_x64
from .shared import alike, problem, shape

TOL = {"float64": 1e-8, "float32": 1e-4}[FLOAT.name]


def test_hadamard_against_scipy(rng):
    M = rng.standard_normal((16, 3))
    np.testing.assert_allclose(hadamard(jnp.asarray(M, FLOAT)), scipy.linalg.hadamard(16) @ M, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SKETCHES)
def test_a_sketch_is_one_linear_map_and_keeps_norms_in_the_mean(kind, rng):
    x = jnp.asarray(rng.standard_normal((20, 2)), FLOAT)
    apply = draw(kind, jax.random.key(7), 20, 5, FLOAT)
    np.testing.assert_allclose(apply(2 * x), 2 * apply(x), rtol=1e-4, atol=1e-5)
    S = np.asarray(apply(jnp.eye(20, dtype=FLOAT)), float)
    np.testing.assert_allclose(S @ np.asarray(x, float), apply(x), rtol=1e-3, atol=1e-4)
    norms = jax.vmap(lambda k: jnp.sum(draw(kind, k, 20, 5, FLOAT)(x) ** 2))(jax.random.split(jax.random.key(8), 4000))
    scale = {"gaussian": 5, "kaczmarz": 5 / 20, "countsketch": 1, "srht": 1}[kind]
    np.testing.assert_allclose(jnp.mean(norms), scale * jnp.sum(x**2), rtol=0.1)


@pytest.mark.parametrize("kind", SKETCHES)
@pytest.mark.parametrize("block", [1, 4])
def test_every_sketch_solves_a_system(kind, block, rng):
    A = np.eye(12) + 0.1 * rng.standard_normal((12, 12))
    b = rng.standard_normal(12)
    s = sketch_and_project(
        jnp.asarray(A, FLOAT), jnp.asarray(b, FLOAT), key=jax.random.key(5), sketch=kind, block=block, tol=TOL
    )
    np.testing.assert_allclose(s.x, np.linalg.solve(A, b), atol=20 * TOL)
    assert s.residual <= TOL


@pytest.mark.parametrize("poison", ["A", "b"])
def test_a_nan_ends_a_linear_solve_at_once(poison, rng):
    A, b = jnp.asarray(np.eye(12) + 0.1 * rng.standard_normal((12, 12)), FLOAT), jnp.ones(12, FLOAT)
    A, b = (A.at[3, 4].set(jnp.nan), b) if poison == "A" else (A, b.at[3].set(jnp.nan))
    s = sketch_and_project(A, b, key=jax.random.key(5), block=4, tol=TOL)
    assert s.num_steps <= 1
    assert jnp.isnan(s.residual)


def test_zero_data_and_a_step_limit_of_a_linear_solve(rng):
    A = jnp.asarray(rng.standard_normal((12, 12)), FLOAT)
    assert sketch_and_project(A, jnp.zeros(12, FLOAT), key=jax.random.key(5), block=4, tol=TOL).num_steps == 0
    cut = sketch_and_project(A, jnp.ones(12, FLOAT), key=jax.random.key(5), block=4, tol=TOL, max_steps=3)
    assert cut.num_steps == 3
    np.testing.assert_allclose(
        cut.residual, np.linalg.norm(np.asarray(A, float) @ np.asarray(cut.x, float) - 1), rtol=1e-3
    )


def test_the_rate_of_kaczmarz_is_that_of_strohmer_and_vershynin(rng):
    """On rows of equal norm the squared error falls by 1 - sigma_min^2 / |A|_F^2 a step in the mean."""
    A = rng.standard_normal((10, 10)) + 3 * np.eye(10)
    A /= np.linalg.norm(A, axis=1)[:, None]
    x = rng.standard_normal(10)
    A_, b = jnp.asarray(A, FLOAT), jnp.asarray(A @ x, FLOAT)

    def error(key):
        s = sketch_and_project(A_, b, key=key, sketch="kaczmarz", tol=0.0, max_steps=60)
        return jnp.sum((s.x - jnp.asarray(x, FLOAT)) ** 2)

    mean = jnp.mean(jax.vmap(error)(jax.random.split(jax.random.key(9), 2000)))
    bound = (1 - np.linalg.svd(A)[1][-1] ** 2 / 10) ** 60 * np.sum(x**2)
    assert 0.01 * bound < mean <= 1.05 * bound


PUBLISHED = [  # problem, sketch, outer steps, KKT residual of the authors' result files; `bench` runs all twelve
    ("HS48", "kaczmarz", 1, 4.2e-10),
    ("HS7", "kaczmarz", 10, 5.6e-7),
    ("HS42", "kaczmarz", 4, 7.4e-5),
    ("HS28", "gaussian", 1, 1.1e-10),
    ("BT3", "gaussian", 1, 5.8e-10),
    ("HS78", "gaussian", 4, 1.9e-9),
]


@functools.cache
def paper(n, m, sketch):
    """Return one program for all problems of a shape."""
    names, objective, equality = alike(n, m)

    @jax.jit
    def solve(x0, which, key):
        zero = jnp.zeros(m, x0.dtype)
        kkt = SketchProject(key, sketch=sketch)
        return sketched_newton(objective, x0, equality=equality, args=which, multipliers=zero, kkt=kkt, tol=1e-4)

    return names, solve


@needs_x64
@pytest.mark.parametrize(("name", "sketch", "steps", "residual"), PUBLISHED)
def test_the_published_step_counts_and_residuals(name, sketch, steps, residual):
    names, solve = paper(*shape(name), sketch)
    s = solve(problem(name).x0, names.index(name), jax.random.key(3))
    assert s.num_steps == steps
    if steps > 1:
        np.testing.assert_allclose(s.error, residual, rtol=0.05)
    else:
        assert 0.1 * residual < s.error < 2 * residual


@pytest.mark.long
def test_the_adaptive_rule_needs_fewer_sketches_and_the_key_decides():
    p = problem("HS78")

    def solve(seed, accuracy):
        kkt = SketchProject(jax.random.key(seed), sketch="kaczmarz", accuracy=accuracy)
        return sketched_newton(p.objective, p.x0, equality=p.equality, kkt=kkt, tol=1e-3)

    adaptive, again, other = solve(3, "adaptive"), solve(3, "adaptive"), solve(4, "adaptive")
    np.testing.assert_array_equal(adaptive.value, again.value)
    assert adaptive.num_inner != other.num_inner
    assert adaptive.converged
    assert other.converged
    if FLOAT.name == "float64":
        assert 2 * adaptive.num_inner < solve(3, "paper").num_inner
