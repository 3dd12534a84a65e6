"""HiPPO's identities, perturbed diagonalisation, and the certified distance, against closed forms."""

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import eval_laguerre, eval_legendre

from solvers.statespace import (
    LinearSystem,
    hinf_distance,
    hippo,
    perturb_then_diagonalize,
    ptd,
    s4d_inv,
    s4d_legs,
    s4d_lin,
    s4d_real,
    s5,
    transfer,
)
from solvers.statespace.initialization import normal_legs
from solvers.statespace.perturbation import _conditioning

from ..conftest import needs_x64


@pytest.mark.parametrize("N", [5, 64])
def test_legs_states_are_scaled_legendre_polynomials(N):
    A, B = hippo("legs", N)
    n = np.arange(N)
    for t in (0.05, 0.7, 2.0):
        expected = np.sqrt(2 * n + 1) * np.exp(-t) * eval_legendre(n, 2 * np.exp(-t) - 1)
        np.testing.assert_allclose(expm(t * A) @ B, expected, atol=1e-11)


def test_lagt_states_are_laguerre_functions():
    A, B = hippo("lagt", 12)
    for t in (0.1, 1.3, 4.0):
        np.testing.assert_allclose(expm(t * A) @ B, np.exp(-t / 2) * eval_laguerre(np.arange(12), t), atol=1e-12)


def test_legt_states_are_legendre_polynomials_on_a_window():
    """In the limit of many states: nearly so inside the window of length one, nearly nothing after it."""
    n = np.arange(4)
    for N, tol in ((32, 0.25), (128, 0.07)):
        A, B = hippo("legt", N)
        basis = [np.sqrt(2 * n + 1) * eval_legendre(n, 1 - 2 * t) for t in (0.3, 0.5, 0.7)]
        states = [(expm(t * A) @ B)[:4] for t in (0.3, 0.5, 0.7)]
        inside = np.abs(np.abs(states) - np.abs(basis))
        outside = [np.abs(expm(t * A) @ B)[:4] for t in (1.3, 1.6)]
        assert np.max(inside) < tol
        assert np.max(outside) < tol


def test_poles_of_s4d():
    np.testing.assert_allclose(s4d_lin(3), [-0.5, -0.5 + np.pi * 1j, -0.5 + 2j * np.pi])
    np.testing.assert_allclose(s4d_real(3), [-1, -2, -3])
    np.testing.assert_allclose(s4d_inv(2), -0.5 + 1j * 4 / np.pi * np.array([3.0, 1 / 3]))
    A, _ = hippo("legs", 10)
    P = np.sqrt(np.arange(10) + 0.5)
    dense = np.linalg.eigvals(A + np.outer(P, P))
    np.testing.assert_allclose(s4d_legs(5), sorted(dense[dense.imag > 0], key=lambda z: z.imag), atol=1e-11)
    assert abs(s4d_legs(256)[-1].imag * np.pi / 512**2 - 1) < 1e-5
    poles, V = s5(8, 2)
    np.testing.assert_allclose(V @ np.diag(poles) @ V.conj().T, np.kron(np.eye(2), normal(4)), atol=1e-12)
    with pytest.raises(ValueError, match="divisor"):
        s5(8, 3)


def normal(N):
    A, _ = hippo("legs", N)
    P = np.sqrt(np.arange(N) + 0.5)
    return A + np.outer(P, P)


def legs_system(N):
    A, B = hippo("legs", N)
    return LinearSystem(A, B, np.eye(N)[0])


def s4d_system(N):
    poles, V = normal_legs(N)
    return LinearSystem(poles, V.conj().T @ hippo("legs", N)[1] / 2, V[0])


def ptd_system(N, **options):
    poles, B, V = ptd(N, **options)
    return LinearSystem(poles, B, V[0])


@needs_x64
@pytest.mark.long
def test_s4d_is_exact_at_integers_and_converges_at_other_points():
    """And its error is ``(1 + P' (s - A_D)^-1 P) / 2`` of the function everywhere (Sherman-Morrison)."""
    for s in (1.0, 5.0):
        np.testing.assert_allclose(transfer(s4d_system(16), s), transfer(legs_system(16), s), rtol=1e-12)
    s = 1 + 10j
    errors = [abs(transfer(s4d_system(N), s) / transfer(legs_system(N), s) - 1) for N in (32, 64, 128)]
    assert 6.5 < errors[0] / errors[1] < 9
    assert 6.5 < errors[1] / errors[2] < 9.5
    P = np.sqrt(np.arange(16) + 0.5)
    ratio = (1 + P @ np.linalg.solve(s * np.eye(16) - normal(16), P)) / 2
    np.testing.assert_allclose(transfer(s4d_system(16), s) / transfer(legs_system(16), s), ratio, rtol=1e-11)


@pytest.mark.parametrize("N", [16, 32])
def test_s4d_stays_two_over_pi_away_and_perturbation_does_not(N):
    far = hinf_distance(legs_system(N), s4d_system(N))
    assert far.converged
    assert far.error <= 0.01
    assert abs(far.lower - 2 / np.pi) < 0.01
    near = [hinf_distance(legs_system(N), ptd_system(N, size=size)) for size in (0.1, 0.01)]
    assert all(d.converged for d in near)
    assert near[0].upper < 0.03
    assert 8 < near[0].lower / near[1].lower < 12


def test_optimal_perturbation_beats_a_random_one():
    A, _ = hippo("legs", 32)
    found = {m: perturb_then_diagonalize(A, method=m) for m in ("random", "optimal")}
    for d in found.values():
        assert abs(np.linalg.norm(d.E, 2) - 0.1) < 1e-12
        assert abs(d.backward_error - 0.1) < 1e-8
        np.testing.assert_allclose((A + d.E) @ d.V, d.V * d.poles, atol=1e-10)
        assert abs(d.condition - np.linalg.cond(d.V)) < 1e-6 * d.condition
    assert found["optimal"].condition < 1e3 < 1e4 < found["random"].condition
    assert hinf_distance(legs_system(32), ptd_system(32, method="optimal")).upper < 2e-3
    real = perturb_then_diagonalize(A, real=True)
    assert np.isrealobj(real.E)
    np.testing.assert_allclose(np.sort_complex(real.poles), np.sort_complex(real.poles.conj()), atol=1e-9)


def test_the_descent_s_gradient_is_the_derivative():
    rng = np.random.default_rng(3)
    M, d = (rng.standard_normal((5, 5)) + 1j * rng.standard_normal((5, 5)) for _ in range(2))
    numerical = (_conditioning(M + 1e-6 * d)[0] - _conditioning(M - 1e-6 * d)[0]) / 2e-6
    np.testing.assert_allclose(np.vdot(_conditioning(M)[1], d).real, numerical, rtol=1e-7)


def test_distance_of_systems_with_known_ones():
    def one(pole, gain=1.0, D=0.0):
        return LinearSystem(np.array([pole]), np.ones(1), np.array([gain]), D)

    for tol in (1e-2, 1e-5):
        found = hinf_distance(one(-1.0), one(-2.0), width=tol)
        assert found.converged
        assert found.lower <= 0.5 <= found.upper
        assert found.upper - found.lower <= tol * found.upper
    # a resonance of height 1 / (2 zeta sqrt(1 - zeta^2)), far above the axis of the starting grid
    zeta, w = 1e-3, 300.0
    A = np.array([[0.0, w], [-w, -2 * zeta * w]])
    resonant = LinearSystem(A, np.array([0.0, w]), np.array([1.0, 0.0]))
    found = hinf_distance(resonant, one(-1.0, 0.0))
    peak = 1 / (2 * zeta * np.sqrt(1 - zeta**2))
    assert found.lower <= peak * (1 + 1e-12) <= found.upper * (1 + 1e-10)
    assert abs(found.frequency - w) < 1
    # the supremum is the limit at infinity
    found = hinf_distance(one(-1.0, -0.2, 1.0), one(-1.0, 0.0))
    assert found.lower == pytest.approx(1.0)
    assert found.upper < 1.011
    # one sign of frequencies only
    complex_pole = LinearSystem(np.array([-0.1 - 30j]), np.ones(1), np.ones(1))
    found = hinf_distance(complex_pole, one(-1.0, 0.0))
    assert found.lower <= 10.0 <= found.upper
    assert found.frequency == pytest.approx(-30, abs=0.2)


def test_distance_says_when_it_was_not_found_and_refuses_bad_systems():
    found = hinf_distance(legs_system(16), ptd_system(16), width=1e-6, max_evaluations=300)
    assert not found.converged
    assert found.lower <= 0.01206 <= found.upper
    same = hinf_distance(legs_system(4), legs_system(4), max_evaluations=500)
    assert same.lower == 0
    assert not same.converged or same.upper == 0
    good = LinearSystem(np.array([-1.0]), np.ones(1), np.ones(1))
    for bad, word in (
        (good._replace(A=np.array([0.5])), "stable"),
        (good._replace(A=np.array([np.nan])), "finite"),
        (good._replace(B=np.ones(2)), r"\(N, N\)"),
        (good._replace(B=np.ones((1, 2))), "inputs"),
    ):
        with pytest.raises(ValueError, match=word):
            hinf_distance(good, bad)


def test_refusals():
    for call, word in (
        (lambda: hippo("chebyshev", 4), "kind"),
        (lambda: hippo("legs", 0), "positive integer"),
        (lambda: perturb_then_diagonalize(np.ones((2, 3))), "square"),
        (lambda: perturb_then_diagonalize(np.full((2, 2), np.nan)), "finite"),
        (lambda: perturb_then_diagonalize(np.eye(2), size=0.0), "size"),
        (lambda: perturb_then_diagonalize(np.eye(2), method="best"), "method"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
