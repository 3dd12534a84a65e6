"""The algebra of linear operators against dense matrices; those of derivatives against `jax.hessian`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from solvers.core.operators import (
    FunctionOperator,
    Identity,
    MatrixOperator,
    Scaled,
    Stacked,
    gauss_newton,
    hessian,
    jacobian,
)
from solvers.core.precision import matmul
from solvers.core.vectors import inner

from ..conftest import FLOAT

TOL = {"float64": 1e-12, "float32": 1e-4}[FLOAT.name]


def arrays(rng, *shapes):
    return [jnp.asarray(rng.standard_normal(s), FLOAT) for s in shapes]


@pytest.mark.long
def test_the_algebra_is_that_of_matrices(rng):
    a, b, c = (MatrixOperator(x) for x in arrays(rng, (4, 3), (3, 5), (3, 5)))
    A, B, C = (np.asarray(x.entries, float) for x in (a, b, c))
    for operator, dense in (
        (a @ (b + c), A @ (B + C)),
        (a @ (b - c), A @ (B - C)),
        (2.0 * a, 2 * A),
        (-a, -A),
        (a.T, A.T),
        (a.T.T, A),
        ((a @ b).T, B.T @ A.T),
        (Scaled(b, 3.0).T, 3 * B.T),
        (a + a @ Identity(jax.ShapeDtypeStruct((3,), FLOAT)), 2 * A),
        (Stacked((b, a @ c)), np.concatenate([B, A @ C])),
    ):
        np.testing.assert_allclose(operator.matrix(), dense, atol=10 * TOL)
        np.testing.assert_allclose(operator.T.matrix(), dense.T, atol=10 * TOL)
    x = arrays(rng, (3,))[0]
    np.testing.assert_allclose(a.normal_mv(x), A.T @ A @ np.asarray(x), atol=10 * TOL)


def test_a_function_on_pytrees_has_its_adjoint_and_its_derivative(rng):
    weight, u, v = arrays(rng, (2, 3), (2, 3), (4,))

    def blur(x, args):
        return {"sum": jnp.sum(args * x["u"]) + x["v"][1:], "shift": jnp.roll(x["u"], 1, axis=1) * args}

    x = {"u": u, "v": v}
    operator = FunctionOperator(blur, x, weight)
    y = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), operator.codomain)
    np.testing.assert_allclose(inner(operator(x), y), inner(x, operator.transpose_mv(y)), rtol=10 * TOL)
    slope = jax.grad(lambda w: inner(FunctionOperator(blur, x, w).transpose_mv(y), x))(weight)
    np.testing.assert_allclose(slope, jax.grad(lambda w: inner(blur(x, w), y))(weight), rtol=1e-5)


def test_operators_pass_through_jit_and_vmap(rng):
    (A,), (x,) = arrays(rng, (5, 4, 3)), arrays(rng, (3,))
    apply = jax.jit(jax.vmap(lambda a, x: a.T.mv(a.mv(x)), in_axes=(0, None)))
    np.testing.assert_allclose(
        apply(MatrixOperator(A), x), np.einsum("bij,bik,k->bj", *np.asarray((A, A), float), x), rtol=10 * TOL
    )


def model(p):
    return jnp.tanh(matmul(p["w"], jnp.arange(1.0, 4.0, dtype=FLOAT)) / 3) * p["s"]


def loss(y):
    return jnp.sum(jnp.cosh(y) + y**2 / 3)


@pytest.fixture
def point(rng):
    return {"w": arrays(rng, (2, 3))[0] / 2, "s": arrays(rng, (2,))[0]}


@pytest.mark.long
def test_hessian_and_jacobian_of_a_pytree(point, rng):
    flat, unravel = ravel_pytree(point)
    dense = jax.hessian(lambda p: loss(model(unravel(p))))(flat)
    H = hessian(lambda p: loss(model(p)), point)
    np.testing.assert_allclose(H.matrix(), dense, atol=100 * TOL)
    np.testing.assert_allclose(H.T.matrix(), dense, atol=100 * TOL)
    J = jax.jacobian(lambda p: model(unravel(p)))(flat)
    np.testing.assert_allclose(jacobian(model, point).matrix(), J, atol=10 * TOL)
    np.testing.assert_allclose(jacobian(model, point).T.matrix(), J.T, atol=10 * TOL)


def test_gauss_newton_is_the_hessian_less_the_curvature_of_the_model(point):
    flat, unravel = ravel_pytree(point)
    J = np.asarray(jax.jacobian(lambda p: model(unravel(p)))(flat))
    bend = np.asarray(jax.hessian(loss)(model(point)))
    G = gauss_newton(model, loss, point)
    np.testing.assert_allclose(G.matrix(), J.T @ bend @ J, atol=100 * TOL)
    assert np.linalg.eigvalsh(np.asarray(G.matrix(), float)).min() > -1e-5


def test_a_linearised_operator_leaves_jit(point):
    H = jax.jit(lambda p: hessian(lambda q: loss(model(q)), p))(point)
    np.testing.assert_allclose(
        ravel_pytree(H.mv(point))[0], matmul(H.matrix(), ravel_pytree(point)[0]), rtol=1e-4, atol=100 * TOL
    )
