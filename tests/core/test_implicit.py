"""Derivatives of solved points and of linear solves whose parts do not all depend on what is differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from solvers.core.implicit import attach, linear_solve

from ..conftest import FLOAT, X64


def directly(matvec, b):
    flat, unravel = ravel_pytree(b)
    columns = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    return unravel(jnp.linalg.solve(columns.T, flat))


def first_and_second(function, t):
    slopes = (jax.grad(function)(t), jax.jvp(function, (t,), (jnp.ones_like(t),))[1], jax.jit(jax.grad(function))(t))
    return *slopes, jax.hessian(function)(t)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("depends", ["matrix", "one part", "both"])
def test_a_solve_of_which_only_one_part_depends(symmetric, depends):
    """Against the inverse of the matrix [[2 + s, 1], [1, 3]], by automatic differentiation of its formula."""

    def parts(t):
        return t if depends != "one part" else 0 * t, t if depends != "matrix" else 0 * t + 1

    def solved(t):
        s, right = parts(t)
        fixed = jnp.full(2, 2, FLOAT)
        matvec = lambda x: {"a": (2 + s) * x["a"] + x["b"], "b": x["a"] + 3 * x["b"]}  # noqa: E731
        if depends == "one part":
            matvec = lambda x: {"a": 2 * x["a"] + x["b"], "b": x["a"] + 3 * x["b"]}  # noqa: E731
        b = {"a": right * jnp.ones(2, FLOAT) if depends != "matrix" else jnp.ones(2, FLOAT), "b": fixed}
        x = linear_solve(matvec, b, directly, symmetric=symmetric)
        return jnp.sum(x["a"] ** 2) + jnp.sum(x["b"])

    def formula(t):
        s, right = parts(t)
        determinant = 3 * (2 + s) - 1
        a, b = (3 * right - 2) / determinant, (2 * (2 + s) - right) / determinant
        return 2 * a**2 + 2 * b

    t = jnp.asarray(0.9, FLOAT)
    expected = jax.grad(formula)(t), jax.grad(formula)(t), jax.grad(formula)(t), jax.hessian(formula)(t)
    np.testing.assert_allclose(first_and_second(solved, t), expected, rtol=1e-9 if X64 else 2e-5)


@pytest.mark.parametrize("depends", ["first", "second"])
def test_a_root_of_which_only_one_equation_depends(depends):
    """The root of ``p a^2 + b = 3, b = q``, differentiated in p or in q with the other one constant."""

    def formula(t):
        p, q = (t, 0.5) if depends == "first" else (2.0, t)
        return jnp.sqrt((3 - q) / p) + q

    def solved(t):
        p, q = (t, 0.5) if depends == "first" else (2.0, t)
        data = {"p": jnp.asarray(p, FLOAT), "q": jnp.asarray(q, FLOAT)}
        point = {"a": jnp.sqrt((3 - data["q"]) / data["p"])[None], "b": data["q"][None]}
        residual = lambda x, d: {"a": d["p"] * x["a"] ** 2 + x["b"] - 3, "b": x["b"] - d["q"]}  # noqa: E731
        solve = lambda jacobian, b: linear_solve(jacobian, b, directly, symmetric=False)  # noqa: E731
        x = attach(residual, point, data, solve=solve)
        return jnp.sum(x["a"] + x["b"])

    t = jnp.asarray(0.7, FLOAT)
    expected = jax.grad(formula)(t), jax.grad(formula)(t), jax.grad(formula)(t), jax.hessian(formula)(t)
    np.testing.assert_allclose(first_and_second(solved, t), expected, rtol=1e-9 if X64 else 2e-5)
