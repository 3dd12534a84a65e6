"""The sketched solvers: their rates, and the counts of the paper's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from solvers import SketchProject, sketched_newton
from solvers.constrained.sketching import sketch_and_project
from solvers.core.sketch import SKETCHES, draw, hadamard
from solvers.problems.constrained import HAND_WRITTEN

from ..conftest import FLOAT, needs_x64

TOL = {"float64": 1e-8, "float32": 1e-4}[FLOAT.name]


def test_hadamard_against_scipy(rng):
    M = rng.standard_normal((16, 3))
    np.testing.assert_allclose(hadamard(jnp.asarray(M, FLOAT)), scipy.linalg.hadamard(16) @ M, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SKETCHES)
def test_a_sketch_is_one_linear_map_and_keeps_norms_in_the_mean(kind, rng):
    x = jnp.asarray(rng.standard_normal((20, 2)), FLOAT)
    apply = draw(kind, jax.random.key(7), 20, 5, FLOAT)
    np.testing.assert_allclose(apply(2 * x), 2 * apply(x), rtol=1e-4, atol=1e-5)
    S = apply(jnp.eye(20, dtype=FLOAT))
    np.testing.assert_allclose(S @ x, apply(x), rtol=1e-3, atol=1e-4)
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


PUBLISHED = [  # problem, outer steps, KKT residual of the authors' result files
    ("HS28", 1, 1.1e-10),
    ("HS48", 1, 4.2e-10),
    ("BT3", 1, 5.9e-10),
    ("HS7", 10, 5.6e-7),
    ("HS78", 4, 1.9e-9),
    ("HS42", 4, 7.4e-5),
]


@needs_x64
@pytest.mark.parametrize(("name", "steps", "residual"), PUBLISHED)
@pytest.mark.parametrize("sketch", ["kaczmarz", "gaussian"])
def test_the_published_step_counts_and_residuals(name, steps, residual, sketch):
    p = HAND_WRITTEN[name]()
    m = jax.eval_shape(p.equality, p.x0, None).shape[0]
    s = sketched_newton(
        p.objective,
        p.x0,
        equality=p.equality,
        multipliers=jnp.zeros(m),
        kkt=SketchProject(jax.random.key(3), sketch=sketch),
        tol=1e-4,
    )
    assert s.num_steps == steps
    if steps > 1:
        np.testing.assert_allclose(s.error, residual, rtol=0.05)
    else:
        assert 0.1 * residual < s.error < 2 * residual


def test_the_adaptive_rule_needs_fewer_sketches_and_the_key_decides():
    p = HAND_WRITTEN["HS78"]()

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
