"""Traces and diagonals against dense matrices: errors, standard errors, coverage, stopping, failure exits."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.core.operators import FunctionOperator, MatrixOperator
from solvers.curvature import BlockFisher, diagonal, fisher, gauss_newton, hessian

from ..compiled import blockwise_trace, trace
from ..conftest import FLOAT, X64

N = 60
SPECTRA = {"geometric": 0.7 ** np.arange(N), "quadratic": 1 / np.arange(1, N + 1.0) ** 2, "flat": np.linspace(1, 3, N)}
METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")


def matrix(name):
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((N, N)))[0]
    return jnp.asarray((q * SPECTRA[name]) @ q.T, FLOAT)


@cache
def many(method, count, products):
    """Estimates for all three spectra over many keys, one after the other."""
    stack = jnp.stack([matrix(name) for name in SPECTRA])
    one = lambda a, key: trace(a, key, method=method, rtol=0.0, max_products=products)  # noqa: E731
    keys = jax.random.split(jax.random.key(7), count)
    return jax.jit(lambda s, k: jax.lax.map(lambda a: jax.lax.map(partial(one, a), k), s))(stack, keys)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_the_truth(method):
    """95 % intervals over 400 keys: 95 % within three deviations."""
    estimates = many(method, 400, 32)
    low, high = estimates.interval()
    for i, spectrum in enumerate(SPECTRA.values()):
        held = np.mean((low[i] <= spectrum.sum()) & (spectrum.sum() <= high[i]))
        assert 0.915 <= held <= 0.985, (list(SPECTRA)[i], held)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_is_the_trace_and_the_standard_error_its_size(method):
    estimates = many(method, 40, 32)
    for i, spectrum in enumerate(SPECTRA.values()):
        error = np.asarray(estimates.value[i], np.float64) - spectrum.sum()
        deviation = np.sqrt(np.mean(error**2))
        claimed = np.sqrt(np.mean(np.asarray(estimates.standard_error[i], np.float64) ** 2))
        assert abs(error.mean()) <= 4 * claimed / np.sqrt(40) + 1e-5 * spectrum.sum()
        assert deviation <= 1.5 * claimed
    assert np.all(estimates.num_products <= 32)


def test_leaving_one_out_is_worth_it():
    """At 32 products on a geometric spectrum each method is at least five times better than the one before."""
    truth = SPECTRA["geometric"].sum()
    errors = [np.median(abs(np.asarray(many(m, 40, 32).value[0], np.float64) - truth)) for m in METHODS]
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 3
    assert errors[3] < errors[2] / (5 if X64 else 2)


@pytest.mark.parametrize("method", METHODS)
def test_it_stops_at_the_requested_error(method):
    loose, tight = (
        jax.jit(lambda a, k, r: trace(a, k, rtol=r, method=method, rank=4, max_products=120))(
            matrix("quadratic"), jax.random.key(3), rtol)
        for rtol in (0.2, 0.02)
    )  # fmt: skip
    for estimate, rtol in ((loose, 0.2), (tight, 0.02)):
        if estimate.converged:
            assert estimate.standard_error <= rtol * abs(estimate.value) * 1.001
        else:
            assert method == "hutchinson"
    assert loose.converged
    assert loose.num_products < tight.num_products
    never = trace(matrix("flat"), jax.random.key(3), rtol=1e-9, method="hutchinson", max_products=24)
    assert not never.converged
    assert never.num_products == 24


@pytest.mark.long
def test_a_subspace_that_holds_everything_is_exact():
    a = matrix("geometric") * 0
    rank_two = a.at[0, 0].set(3.0).at[1, 1].set(2.0)
    for method in METHODS[1:3]:
        assert abs(trace(rank_two, jax.random.key(4), method=method).value - 5) < 1e-4
        assert abs(trace(a, jax.random.key(4), method=method).value) == 0
    small = jnp.asarray([[2.0, 1.0], [1.0, 5.0]], FLOAT)
    for method in METHODS[1:]:
        estimate = trace(small, jax.random.key(4), method=method, max_products=16)
        assert abs(estimate.value - 7) < 1e-3
        assert estimate.converged


@pytest.mark.long
def test_indefinite_and_broken_matrices_say_so():
    a = matrix("flat")
    assert not trace(-a, jax.random.key(4), method="xnystrace").converged
    assert abs(trace(-a, jax.random.key(4), method="xtrace").value + SPECTRA["flat"].sum()) < 5
    for method in METHODS:
        estimate = trace(a.at[0, 0].set(jnp.nan), jax.random.key(4), method=method, max_products=16)
        assert not estimate.converged
        assert np.isnan(estimate.value)


@pytest.mark.parametrize("exponent", [-100, 100] if X64 else [-12, 12])
def test_units_do_not_matter(exponent):
    for method in METHODS:
        plain, scaled = (trace(matrix("quadratic") * u, jax.random.key(5), method=method, max_products=32)
                         for u in (1.0, 10.0**exponent))  # fmt: skip
        np.testing.assert_allclose(scaled.value / 10.0**exponent, plain.value, rtol=1e-3)


def network():
    rng = np.random.default_rng(6)
    draw = lambda *s: jnp.asarray(0.5 * rng.standard_normal(s), FLOAT)  # noqa: E731
    x, params = draw(20, 4), {"a": draw(4, 3), "b": draw(3, 2)}
    model = lambda p: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    return model, (lambda out: jnp.mean(jax.nn.logsumexp(out, axis=1) - out[:, 0])), params


@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.long
def test_blocks_and_diagonal_of_a_network(rank):
    model, loss, params = network()
    operator = hessian(lambda p: loss(model(p)), params)
    dense = np.asarray(operator.matrix(), np.float64)
    truth = {"a": np.trace(dense[:12, :12]), "b": np.trace(dense[12:, 12:])}
    estimate = blockwise_trace(operator, jax.random.key(8), rtol=0.0, max_products=500, rank=rank)
    for name, value in truth.items():
        assert abs(estimate.value[name] - value) <= 4.5 * estimate.standard_error[name]
    d = diagonal(operator, jax.random.key(8), rtol=0.0, max_products=500, rank=rank)
    ours = np.concatenate([np.asarray(d.value[k]).ravel() for k in "ab"])
    spread = np.concatenate([np.asarray(d.standard_error[k]).ravel() for k in "ab"])
    assert np.all(abs(ours - np.diag(dense)) <= 5 * spread + 1e-6)
    assert d.value["a"].shape == (4, 3)


def test_a_deflated_subspace_saves_products():
    spike = jnp.diag(jnp.asarray([100.0, 50, 20] + [0.1] * 57, FLOAT))
    q = jnp.linalg.qr(jnp.asarray(np.random.default_rng(9).standard_normal((N, N)), FLOAT))[0]
    operator = MatrixOperator(q @ spike @ q.T)
    plain, deflated = (
        blockwise_trace(operator, jax.random.key(9), rtol=0.01, max_products=4000, rank=r) for r in (0, 8)
    )
    assert deflated.converged
    assert int(deflated.num_products) < int(plain.num_products) / 10


def test_fisher_matrices_are_their_definitions():
    model, loss, params = network()
    logits, jac = np.asarray(model(params), np.float64), jax.jacobian(model)(params)
    j = np.concatenate([np.asarray(jac[k], np.float64).reshape(20, 2, -1) for k in "ab"], axis=2)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    s = np.einsum("na,ab->nab", p, np.eye(2)) - np.einsum("na,nb->nab", p, p)
    expected = np.einsum("nai,nab,nbj->ij", j, s, j) / 20
    np.testing.assert_allclose(fisher(model, params).matrix(), expected, atol=1e-5 if not X64 else 1e-12)
    np.testing.assert_allclose(gauss_newton(model, loss, params).matrix(), expected, atol=1e-5 if not X64 else 1e-12)
    gaussian = np.einsum("nai,naj->ij", j, j) / 20
    np.testing.assert_allclose(fisher(model, params, likelihood="gaussian").matrix(), gaussian, atol=1e-5)
    with pytest.raises(ValueError, match="likelihood"):
        fisher(model, params, likelihood="poisson")


def test_a_block_fisher_is_block_diagonal():
    rng = np.random.default_rng(10)
    g = {"a": jnp.asarray(rng.standard_normal((5, 3)), FLOAT), "b": jnp.asarray(rng.standard_normal((5, 2, 2)), FLOAT)}
    blocks = BlockFisher(g, 0.3)
    x = {"a": jnp.ones(3, FLOAT), "b": jnp.ones((2, 2), FLOAT)}
    solved, logdet = blocks.solve(blocks.mv(x)), 0.0
    for name in "ab":
        np.testing.assert_allclose(solved[name], x[name], rtol=1e-4)
        rows = np.asarray(g[name], np.float64).reshape(5, -1)
        dense = 0.3 * np.eye(rows.shape[1]) + rows.T @ rows / 5
        logdet += np.linalg.slogdet(dense)[1]
        np.testing.assert_allclose(np.ravel(blocks.inverse_diagonal()[name]), np.diag(np.linalg.inv(dense)), rtol=1e-4)
    np.testing.assert_allclose(blocks.logdet(), logdet, rtol=1e-4)


def test_impossible_requests_raise():
    with pytest.raises(ValueError, match="operator"):
        trace(jnp.ones((2, 3), FLOAT), jax.random.key(0))
    with pytest.raises(ValueError, match="method"):
        trace(matrix("flat"), jax.random.key(0), method="exactly")
    with pytest.raises(ValueError, match="max_products"):
        trace(matrix("flat"), jax.random.key(0), max_products=4)
    with pytest.raises(ValueError, match="rank"):
        blockwise_trace(matrix("flat"), jax.random.key(0), rank=100)
    mixed = FunctionOperator(lambda x, _: x, {"a": jnp.ones(2, "float32"), "b": jnp.ones(2, "bfloat16")})
    with pytest.raises(TypeError, match="dtype"):
        trace(mixed, jax.random.key(0))
