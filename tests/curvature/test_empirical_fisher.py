"""The inverse empirical Fisher matrix and M-FAC against dense NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from solvers import EmpiricalFisher, mfac, scale_by_mfac

from ..conftest import X64

TOL = 1e-8 if X64 else 1e-5
M, D = 7, 12


def data(seed=5, m=M, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((m, D)), rng.standard_normal(D)


def dense(g, damping):
    g = np.asarray(g, np.float64)
    return damping * np.eye(g.shape[1]) + g.T @ g / len(g)


def tree(x):
    return {"a": jnp.asarray(x[..., :8].reshape(*x.shape[:-1], 4, 2)), "b": jnp.asarray(x[..., 8:])}


def flat(t):
    return np.concatenate([np.asarray(t["a"]).ravel(), np.asarray(t["b"])])


def close(ours, truth, tol=TOL):
    assert np.linalg.norm(ours - truth) <= tol * np.linalg.norm(truth)


@pytest.mark.parametrize("m", [1, M, 40])
def test_queries_equal_the_dense_matrix(m):
    g, x = data(m=m)
    fisher, full = EmpiricalFisher(tree(g), 0.1), dense(g, 0.1)
    inverse = np.linalg.inv(full)
    close(flat(fisher.mv(tree(x))), full @ x)
    close(flat(fisher.solve(tree(x))), inverse @ x)
    close(flat(fisher.diagonal()), np.diag(full))
    close(flat(fisher.inverse_diagonal()), np.diag(inverse))
    assert abs(fisher.inverse_element(3, 9) - inverse[3, 9]) <= TOL * abs(inverse).max()
    assert abs(fisher.inverse_element(4, 4) - inverse[4, 4]) <= TOL * abs(inverse).max()
    assert abs(fisher.logdet() - np.linalg.slogdet(full)[1]) <= 10 * TOL
    assert fisher.resolved


def test_combinations_of_the_gradients_do_not_cancel():
    """The span's own form keeps its digits where Woodbury's difference has lost all of them."""
    g, _ = data()
    damping = 1e-2 * float(jnp.finfo(jnp.result_type(float)).eps)
    c = np.linspace(1, 2, M)
    weights = np.linalg.solve(damping * np.eye(M) + g @ g.T / M, c)
    close(np.asarray(EmpiricalFisher(jnp.asarray(g), damping).solve_combination(jnp.asarray(c))), g.T @ weights)
    assert not EmpiricalFisher(jnp.asarray(g), damping).resolved


@pytest.mark.parametrize("exponent", [-150, 150] if X64 else [-15, 15])
def test_scale_of_the_gradients_is_harmless(exponent):
    g, x = data()
    unit = 10.0**exponent
    fisher = EmpiricalFisher(jnp.asarray(g * unit), 0.1 * unit**2 if exponent < 0 else 0.1)
    assert jnp.all(jnp.isfinite(fisher.factor))
    if exponent < 0:
        close(np.asarray(fisher.solve(jnp.asarray(x))) * unit**2, np.linalg.solve(dense(g, 0.1), x))
    else:
        assert not fisher.resolved


def test_a_bad_lane_leaves_its_neighbour_alone_and_says_so():
    g, x = data()
    both = jnp.asarray(np.stack([g, g])).at[1, 0, 0].set(jnp.nan)
    fishers = jax.vmap(lambda g: EmpiricalFisher(g, 0.1))(both)
    assert fishers.resolved.tolist() == [True, False]
    close(np.asarray(jax.vmap(lambda f: f.solve(jnp.asarray(x)))(fishers))[0], np.linalg.solve(dense(g, 0.1), x))
    assert not jax.jit(lambda d: EmpiricalFisher(jnp.asarray(g), d).resolved)(-0.1)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_impossible_damping_raises(damping):
    with pytest.raises(ValueError, match="damping"):
        EmpiricalFisher(jnp.ones((2, 3)), damping)
    with pytest.raises(ValueError, match="damping"):
        mfac(damping=damping)


def test_impossible_gradients_and_windows_raise():
    for grads in ({}, jnp.zeros((0, 3)), jnp.zeros(()), [jnp.ones((2, 3)), jnp.ones((3, 3))]):
        with pytest.raises(ValueError, match="grads"):
            EmpiricalFisher(grads, 0.1)
    with pytest.raises(ValueError, match="num_grads"):
        mfac(num_grads=0)
    with pytest.raises(TypeError, match="num_grads"):
        mfac(num_grads=2.5)
    with pytest.raises(TypeError, match="params"):
        mfac().init(jnp.ones(3, jnp.int32))


def test_the_window_equals_a_dense_solve_before_and_after_it_is_full():
    g, _ = data(m=11)
    transform = scale_by_mfac(4, 0.01)
    _, steps = jax.lax.scan(lambda s, u: transform.update(u, s)[::-1], transform.init(tree(g[0])), tree(g))
    for t in range(11):
        window = g[max(0, t - 3) : t + 1]
        ours = flat({k: v[t] for k, v in steps.items()})
        close(ours, np.linalg.solve(dense(window, 0.01), g[t]))


def test_repeated_and_zero_gradients_give_finite_steps():
    """A singular window with a damping below rounding: g / (damping + |g|^2), and zero for zero."""
    g, _ = data()
    transform = scale_by_mfac(4, 1e-30)
    state = transform.init(jnp.zeros(D))
    for _ in range(6):
        step, state = transform.update(jnp.asarray(g[0]), state)
    # The damping is raised to sqrt(eps) |g|^2 / 4, and as much may be lost to rounding.
    close(np.asarray(step), g[0] / (g[0] @ g[0]), 2 * float(jnp.finfo(step.dtype).eps) ** 0.5)
    step, _ = transform.update(jnp.zeros(D), transform.init(jnp.zeros(D)))
    assert jnp.all(step == 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parameters_keep_their_dtype_in_a_chain_and_under_a_mask(dtype):
    params = {"a": jnp.ones((4, 2), dtype), "b": jnp.ones(4, dtype)}
    inner = optax.inject_hyperparams(mfac, static_args="num_grads")(learning_rate=0.1, num_grads=3, damping=0.1)
    optimiser = optax.chain(optax.clip(1.0), optax.masked(inner, {"a": True, "b": False}))
    updates, _ = jax.jit(optimiser.update)(params, optimiser.init(params), params)
    assert updates["a"].dtype == updates["b"].dtype == dtype
    assert jnp.all(updates["b"] == params["b"])
    np.testing.assert_allclose(np.asarray(updates["a"], np.float64), -0.1 / 8.1, rtol=1e-2)


def test_momentum_is_a_moving_average():
    g, _ = data()
    one, averaged = mfac(0.5, 4, 0.1), mfac(0.5, 4, 0.1, momentum=0.75)
    params = jnp.zeros(D)
    plain, _ = one.update(jnp.asarray(g[0]), one.init(params))
    slow, _ = averaged.update(jnp.asarray(g[0]), averaged.init(params))
    close(np.asarray(slow), 0.25 * np.asarray(plain))


def test_a_long_run_equals_dense_solves_while_scales_and_damping_move():
    """Slides of the factor over 200 steps, the norm of gradients falling three decades: factored anew only seldom."""
    rng = np.random.default_rng(8)
    g = rng.standard_normal((200, D)) * np.geomspace(30, 0.03, 200)[:, None]
    transform = scale_by_mfac(20, 1e-2)
    step = jax.jit(transform.update)
    state = transform.init(tree(g[0]))
    for t in range(200):
        before = state
        update, state = step(tree(g[t]), state)
        if t > 180:
            close(flat(update), np.linalg.solve(dense(g[max(0, t - 19) : t + 1], 1e-2), g[t]), 10 * TOL)
            assert state.shift == before.shift


def test_the_full_window_slides_its_factor():
    """A factor that is not that of the Gram matrix shows in the next step: it was not made anew."""
    g, _ = data(m=6)
    transform = scale_by_mfac(4, 0.5)
    state = transform.init(jnp.zeros(D))
    for row in g[:5]:
        _, state = transform.update(jnp.asarray(row), state)
    wrong = state._replace(factor=2 * state.factor)
    right, after = transform.update(jnp.asarray(g[5]), state)
    other, _ = transform.update(jnp.asarray(g[5]), wrong)
    assert after.shift == state.shift
    assert np.linalg.norm(right - other) > 1e-2 * np.linalg.norm(right)


def test_a_nan_leaves_with_its_gradient():
    g, _ = data(m=8)
    transform = scale_by_mfac(4, 0.1)
    state = transform.init(jnp.zeros(D))
    for t, row in enumerate(g):
        step, state = transform.update(jnp.asarray(row if t != 2 else np.nan * row), state)
        assert bool(jnp.all(jnp.isfinite(step))) == (t not in range(2, 6))
    close(np.asarray(step), np.linalg.solve(dense(g[4:], 0.1), g[7]))
