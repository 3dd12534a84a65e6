"""Exact equations with data: closed forms, dense regression, coverage in one, two and three dimensions, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.pde import Box, Dirichlet, Neumann, Observe, PDEProblem, Robin, SpectralMixture, gp_solve

from ..conftest import FLOAT, needs_x64

SQUARE = Box((0.0, 1.0), (0.0, 1.0))
S = jnp.asarray(np.linspace(0, 1, 11), FLOAT)


def hill(x, u, args):
    return u.dxx + u.dyy + 2 * np.pi**2 * jnp.sin(np.pi * x[0]) * jnp.sin(np.pi * x[1])


def truth(x, y):
    return jnp.sin(np.pi * x) * jnp.sin(np.pi * y)


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(5).random((30, 2))


@needs_x64
@pytest.mark.long
def test_a_plane_with_noisy_faces_is_exact_where_its_equation_says_so():
    solution = gp_solve(PDEProblem(hill, SQUARE, [Dirichlet("all", noise=0.01)]))
    gap = jnp.abs(solution.mean((S, S)) - truth(S[:, None], S[None]))
    spread = solution.std((S, S))
    assert bool(solution.converged)
    assert float(solution.residual) < 1e-10
    assert float(gap.max()) < 1e-10
    assert bool(jnp.all(gap <= 2 * spread))
    assert 5e-4 < float(spread[5, 5]) < 4e-3  # eighty data of 0.01 each make a mean of some 0.01 / sqrt(80)


@needs_x64
@pytest.mark.long
def test_observations_beside_exact_faces_change_nothing_and_are_judged(points, rng):
    values = np.asarray(truth(*points.T)) + 0.02 * rng.standard_normal(30)
    good, bad = (gp_solve(PDEProblem(hill, SQUARE, [Dirichlet("all"), Observe(points, v, 0.02)]), grid=(22, 22))
                 for v in (values, values + 0.1))  # fmt: skip
    assert bool(good.converged)
    gap = jnp.abs(good.mean((S, S)) - truth(S[:, None], S[None]))
    assert float(gap.max()) < 1e-12
    assert bool(jnp.all(gap <= 2 * good.std((S, S))))
    assert good.status != bad.status


@needs_x64
@pytest.mark.long
def test_a_coefficient_in_two_dimensions(points, rng):
    def residual(x, u, a):
        return jnp.exp(a) * (u.dxx + u.dyy) + 2 * np.pi**2 * jnp.exp(0.531) * truth(*x)

    values = np.asarray(truth(*points.T)) + 0.02 * rng.standard_normal(30)
    solution = gp_solve(PDEProblem(residual, SQUARE, [Dirichlet("all"), Observe(points, values, 0.02)]), args=0.0,
                        infer=1.0, grid=(18, 18))  # fmt: skip
    signal = np.asarray(truth(*points.T))
    assert bool(solution.converged)
    assert abs(float(solution.args) - 0.531) < 2.6 * float(solution.args_std)
    np.testing.assert_allclose(solution.args_std, 0.02 / np.linalg.norm(signal), rtol=2e-2)  # du / da = -u


@needs_x64
@pytest.mark.long
def test_two_numbers_that_do_not_enter_linearly(rng):
    """A frequency and a slope at the wall, from one end and twelve observations; both at their attainable errors."""
    seen = np.linspace(0.08, 1.0, 12)
    values = np.sin(7 * seen) / 7 * 3 + 0.02 * rng.standard_normal(12)
    problem = PDEProblem(lambda x, u, a: u.dxx + a**2 * u.v, Box((0.0, 1.0)),
                         [Dirichlet("x-"), Observe(seen, values, 0.02)])  # fmt: skip
    solution = gp_solve(problem, args=6.5, infer=1.0, grid=28)
    slope = np.stack([3 * (seen * np.cos(7 * seen) / 7 - np.sin(7 * seen) / 49), np.sin(7 * seen) / 7], 1)
    attainable = 0.02 * np.sqrt(np.linalg.inv(slope.T @ slope)[0, 0])
    assert bool(solution.converged)
    np.testing.assert_allclose(solution.args_std, attainable, rtol=0.1)
    assert abs(float(solution.args) - 7) < 2.6 * attainable


WAVES = (0.5, 1.0, 2.0, 3.0)


@needs_x64
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ndim", "lengths"),
    [(1, WAVES), (1, (6.0, 8.0, 10.0)), (2, WAVES), (2, (2.0, 4.0, 6.0)), (2, (0.3, 0.6)), (3, WAVES)],
)
def test_intervals_cover_what_they_say(ndim, lengths, rng):
    """Five hundred draws of the noise and of the truth, waves of several lengths; 93 to 97 % on average."""
    grid = {1: (16,), 2: (16, 16), 3: (8, 8, 8)}[ndim]
    box = Box(*[(0.0, 1.0)] * ndim)
    x = [np.polynomial.legendre.leggauss(n)[0] / 2 + 0.5 for n in grid]
    at = jnp.asarray(0.5 + 0.3 * (rng.random((5, ndim)) - 0.5))

    def waves(a, *c):
        phases = [
            sum((k * v for k, v in zip(row, c, strict=True)), p) for row, p in zip(a["wave"], a["phase"], strict=True)
        ]
        return [h * jnp.sin(s) for h, s in zip(a["height"], phases, strict=True)]

    def u(a, *c):
        return sum(waves(a, *c), a["level"])

    def load(x, v, a):
        second = [v.dxx, *([v.dyy] if ndim > 1 else []), *([v.dzz] if ndim > 2 else [])]
        return sum(second) + sum(k @ k * w for k, w in zip(a["wave"], waves(a, *x), strict=True))

    def solve(a):
        conditions = []
        for d, name in enumerate("xyz"[:ndim]):
            for side, end in (("-", 0.0), ("+", 1.0)):
                others = [jnp.asarray([end]) if e == d else jnp.asarray(c) for e, c in enumerate(x)]
                values = u(a, *jnp.meshgrid(*others, indexing="ij"))
                noise = jax.random.normal(jax.random.fold_in(a["key"], 2 * d + (side == "+")), values.shape)
                conditions.append(Dirichlet(name + side, values + 0.05 * noise, noise=0.05))
        numbers = {k: a[k] for k in ("wave", "phase", "height", "level")}
        solution = gp_solve(PDEProblem(load, box, conditions), grid=grid, args=numbers)
        where = at[:, 0] if ndim == 1 else at
        return (solution.mean(where) - u(a, *at.T)) / solution.std(where), solution.status

    lanes = {"wave": rng.standard_normal((500, len(lengths), ndim)) * np.reshape(lengths, (1, -1, 1)),
             "phase": 6.3 * rng.random((500, len(lengths))), "height": 0.5 * rng.standard_normal((500, len(lengths))),
             "level": rng.standard_normal(500)}  # fmt: skip
    lanes = {**jax.tree.map(jnp.asarray, lanes), "key": jax.random.split(jax.random.key(5), 500)}
    away, status = jax.jit(lambda lanes: jax.lax.map(solve, lanes))(lanes)
    good = status == 0
    assert float(jnp.mean(good)) > 0.95, np.unique(np.asarray(status), return_counts=True)
    inside = float(jnp.mean(jnp.abs(away[good]) <= 1.96))
    assert 0.93 <= inside <= 0.97, inside


@needs_x64
def test_std_holds_what_the_grid_leaves_where_that_is_more_than_the_noise(rng):
    """Waves of up to some forty radians on 16 nodes, ends known to 1e-6: std is the grid's error, not the noise's."""

    def u(a, x):
        return jnp.sin(a["wave"] * x + a["phase"])

    def solve(a):
        ends = [Dirichlet(f, u(a, e) + 1e-6 * n, noise=1e-6) for f, e, n in zip(("x-", "x+"), (0.0, 1.0), a["draw"])]
        problem = PDEProblem(lambda x, v, a: v.dxx + a["wave"] ** 2 * u(a, x[0]), Box((0.0, 1.0)), ends)
        solution = gp_solve(problem, grid=16, args={k: a[k] for k in ("wave", "phase")})
        return jnp.max(jnp.abs(solution.mean(S) - u(a, S)) / solution.std(S)), jnp.max(solution.std(S)), solution.status

    lanes = {"wave": 40 * rng.random(96), "phase": 6.3 * rng.random(96), "draw": rng.standard_normal((96, 2))}
    off, spread, status = jax.jit(lambda a: jax.lax.map(solve, a))(jax.tree.map(jnp.asarray, lanes))
    good = status == 0
    assert 0.3 < float(jnp.mean(good)) < 1  # the fastest are not resolved
    assert float(jnp.max(jnp.where(good, off, 0))) < 4
    assert float(jnp.max(jnp.where(good, spread, 0))) > 3e-6
    assert bool(jnp.all(jnp.isnan(spread) == ~good))


@needs_x64
@pytest.mark.long
def test_derivatives_of_an_answer_conditioned_on_data():
    """The answer is linear in the observations: one difference is exact; in the coefficient a central one."""
    seen = np.array([0.2, 0.5, 0.9])

    def answer(values, stiffness):
        problem = PDEProblem(lambda x, u, a: u.dxx - a * u.v - 1, Box((0.0, 1.0)),
                             [Dirichlet("x-"), Observe(seen, values, 0.05)])  # fmt: skip
        return gp_solve(problem, args=stiffness, grid=14).mean(0.7)

    values = jnp.asarray([0.1, 0.2, 0.5])
    gain, slope = jax.jit(jax.grad(answer, (0, 1)))(values, 2.0)
    ahead = jax.jit(jax.jacfwd(answer))(values, 2.0)
    jitted = jax.jit(answer)
    steps = np.array([float(jitted(values + 1e-3 * e, 2.0) - jitted(values - 1e-3 * e, 2.0)) / 2e-3 for e in np.eye(3)])
    np.testing.assert_allclose(gain, steps, rtol=1e-6)
    np.testing.assert_allclose(ahead, gain, rtol=1e-8)
    difference = float(jitted(values, 2.0 + 1e-4) - jitted(values, 2.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


@pytest.mark.long
def test_single_precision_says_what_it_reaches():
    problem = PDEProblem(lambda x, u, a: u.dxx - 1, Box((jnp.float32(0), jnp.float32(1))),
                         [Dirichlet("x-"), Robin("x+", np.float32(1), noise=np.float32(0.05)),
                          Observe(np.float32([0.5]), np.float32([0.1]), np.float32(0.05))])  # fmt: skip
    solution = gp_solve(problem, grid=12)
    assert bool(solution.converged)
    assert solution.value.dtype == jnp.float32
    # u = x^2 / 2 + c x: Robin 1 + 1/2 + 2 c = 1, the observation 1/8 + c / 2 = 0.1
    weights = np.array([2.0, 0.5]) / 0.05
    c = weights @ (np.array([-0.5, -0.025]) / 0.05) / (weights @ weights)
    np.testing.assert_allclose(float(solution.mean(jnp.float32(0.8))), 0.32 + 0.8 * c, atol=1e-3)
    np.testing.assert_allclose(float(solution.std(jnp.float32(0.8))), 0.8 / np.linalg.norm(weights), rtol=5e-2)


@needs_x64
@pytest.mark.long
def test_noise_in_the_equation_is_what_a_dense_regression_says():
    """u'' = 1 + q with q = 0.3 at each node, ends exact: the spread of u is that of q integrated twice."""
    problem = PDEProblem(lambda x, u, a: u.dxx - 1, Box((0.0, 1.0)), [Dirichlet("all")], noise=0.3)
    solution = gp_solve(problem, grid=12)
    assert bool(solution.converged)
    np.testing.assert_allclose(solution.mean(S), S * (S - 1) / 2, atol=1e-12)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    # Ten moments of the noise are tested: their polynomial times Green's function, which has its kink at one half.
    half, w = np.polynomial.legendre.leggauss(20)
    t = np.concatenate([half / 4 + 0.25, half / 4 + 0.75])
    green = np.minimum(t, 1 - t) / 2 * np.tile(w, 2) / 4
    size = np.arange(10) + 0.5
    through = np.polynomial.legendre.legvander(2 * t - 1, 9) * size
    row = green @ through @ (np.polynomial.legendre.legvander(nodes, 9) * weights[:, None]).T
    np.testing.assert_allclose(float(solution.std(0.5)), 0.3 * np.linalg.norm(row), rtol=1e-9)


@needs_x64
@pytest.mark.long
def test_noise_in_few_directions_is_what_every_node_says(monkeypatch, rng):
    """Sixteen directions of forty: intervals and mean as with all of them; what is left out stays as uncertain."""
    from solvers.pde.exact import answer, noise

    seen = np.linspace(0.1, 0.9, 9)
    values = seen * (seen - 1) / 2 + 0.02 * rng.standard_normal(9)

    def solve():
        faces = [Dirichlet("all"), Observe(seen, values, 0.02)]
        return gp_solve(PDEProblem(lambda x, u, a: u.dxx - 1, Box((0.0, 1.0)), faces, noise=4.0), grid=40)

    whole = solve()
    monkeypatch.setattr(answer, "EVERY_NODE", 20)
    monkeypatch.setattr(noise, "LEADING", 16)
    few = solve()
    assert whole.posterior.mean.size == 40 + 1  # one for what no test function saw
    assert few.posterior.mean.size == 16 + noise.PROBES + 1
    where = S[1:-1]
    np.testing.assert_allclose(few.std(where), whole.std(where), rtol=0.03)
    assert float(jnp.max(jnp.abs(few.mean(where) - whole.mean(where)) / whole.std(where))) < 0.1


@needs_x64
@pytest.mark.long
def test_noisy_slopes_all_round_leave_the_level_to_the_observations():
    level = Observe(np.array([[0.5, 0.5]]), np.array([2.0]), 0.1)
    problem = PDEProblem(lambda x, u, a: u.dxx + u.dyy, SQUARE, [Neumann("all", noise=0.05), level])
    solution = gp_solve(problem, grid=(12, 12))
    assert bool(solution.converged)
    middle = jnp.asarray([0.5, 0.5])
    assert abs(float(solution.mean(middle)) - 2) < 0.02
    assert abs(float(solution.std(middle)) - 0.1) < 0.01


@pytest.mark.long
def test_many_solutions_at_scattered_points_are_what_one_after_another_gives(monkeypatch, rng):
    """Points that are few enough for one product, and more than that, whose last block is not full."""
    from types import SimpleNamespace

    from solvers.pde.exact import reduced
    from solvers.pde.spectral.axes import Legendre

    ends = jnp.zeros((), FLOAT), jnp.ones((), FLOAT)
    lines = [SimpleNamespace(basis=Legendre(*ends, n, 1)) for n in (3, 4, 5)]
    model = SimpleNamespace(found=SimpleNamespace(lines=[lines]), nugget=jnp.asarray(1e-8, FLOAT))
    seen = Observe(rng.random((11, 3)), np.zeros(11), 0.1)
    z = jnp.asarray(rng.standard_normal((3, 4, 5, 6)), FLOAT)
    for numbers in (10_000, 240):
        monkeypatch.setattr(reduced, "NUMBERS", numbers)
        target = reduced.Reduced._points(model, seen)
        one = jnp.stack([target.observe((z[..., j],)) for j in range(6)], 1)
        np.testing.assert_allclose(target.columns((z,)), one, atol=1e-5 if FLOAT.itemsize == 4 else 1e-13)


@pytest.mark.long
def test_the_prior_of_faces_of_one_size_is_that_of_any():
    """The general way on faces of two sizes holds the special way on those of one as a block."""
    from solvers.pde.exact import completion, face_prior
    from solvers.pde.spectral.spaces import line

    problem = PDEProblem(hill, SQUARE, [Dirichlet("x-", noise=0.1), Robin("x+", 1.0, a=2.0, b=0.5, noise=0.1),
                                        Dirichlet("y-", noise=0.1), Dirichlet("y+", noise=0.1)])  # fmt: skip
    found = completion.completed(problem, (((2, 0), (0, 2)),))
    lines = [[line(found.problem, 0, d, n, 2, True, FLOAT) for d, n in enumerate((5, 6))]]
    spaces = completion.face_spaces(found, lines, FLOAT)
    shares, lengths = jnp.asarray(face_prior.TAIL, FLOAT).T
    kernel = SpectralMixture(1.3 * shares, jnp.zeros_like(lengths), 0.4 * lengths)
    whole = face_prior.covariance(spaces, lines, kernel)
    part = face_prior.covariance(spaces[:2], lines, kernel)
    assert [s.size for s in spaces] == [6, 6, 5, 5]
    np.testing.assert_allclose(
        part, whole[:12, :12], rtol=1e-5 if FLOAT.itemsize == 4 else 1e-12, atol=1e-6 * part.max()
    )
    np.testing.assert_allclose(whole, whole.T, atol=1e-6 * float(whole.max()))


@needs_x64
@pytest.mark.long
def test_a_source_known_at_the_nodes_alone_is_judged_there(rng):
    """Waves that the grid does not hold: the residual at the nodes says so, and the last degrees are in `std`."""
    n = 16
    x = np.polynomial.legendre.leggauss(n)[0] / 2 + 0.5

    @jax.jit
    def solve(omega):
        ends = [Dirichlet("x-", noise=1e-3), Dirichlet("x+", jnp.sin(omega), noise=1e-3)]
        problem = PDEProblem(lambda _, u, a: u.dxx + a, Box((0.0, 1.0)), ends)
        return gp_solve(problem, grid=n, args=omega**2 * jnp.sin(omega * x))

    for omega, resolved in ((3.0, True), (20.0, True), (30.0, False), (40.0, False)):
        solution = solve(omega)
        gap = jnp.abs(solution.mean(S) - jnp.sin(omega * S))
        assert bool(solution.converged) == resolved
        assert float(solution.residual) < 0.03 or not resolved
        if resolved:
            assert bool(jnp.all(gap <= 3 * solution.std(S)))
