"""Traces whose probes serve the subspace of all others, XTrace and XNysTrace, and the error of their mean.

Epperly, Tropp and Webber, XTrace, 2024, for k probes z_i on the sphere in n dimensions, ``Y = A Z = Q R``:

(1) ``E_i = tr(Q_i^T A Q_i) + s z_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) z_i``, Q_i a basis of Y without its column i
(2) ``s = (n - k + 1) / |(I - Q_i Q_i^T) z_i|^2``
(3) ``E_i = tr(A_i) + s z_i^T (A - A_i) z_i,  A_i = Y_i (Z_i^T Y_i)^-1 Y_i^T``: XNysTrace, in s the part outside Z_i
(4) ``variance = s^2 / k + c,  c = E[(E_i - E_i^j) (E_j - E_j^i)]``, E_i^j the estimate without probe j, s^2 the
    sample's

The paper takes c for zero.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

from ...core.loop import when
from ...core.precision import eps, matmul
from ...core.probes import probes
from ...core.typing import Array, Float
from .interval import Estimate, Flat, Goal, shape_of_mean

FIRST = 8


def outside(x: Float[Array, "b n"], basis: Float[Array, "r n"]) -> Float[Array, "b n"]:
    """Return the rows of x without their parts in the span of the orthonormal rows of `basis`."""
    return x - matmul(matmul(x, basis.T), basis) if basis.shape[0] else x


class _Krylov(NamedTuple):
    """Probes' products and, for XTrace, an orthonormal basis of these with its products; rows are vectors."""

    image: Array
    basis: Array
    basis_image: Array
    value: Array
    error: Array
    skewness: Array
    degrees: Array
    count: Array
    products: Array
    reached: Array


def leave_one_out(flat: Flat, key: Array, goal: Goal, method: str) -> Estimate:
    """Double the number of probes until the error of the mean of estimates, each without one of them, is small enough.

    Estimate i tests with probe i what the other k - 1 do not explain, ``E_i = tr A + e_i``, and e_i has mean zero
    whatever the others are. The estimates are exchangeable, so their mean has variance ``s^2 / k + c``: s^2 is what
    their sample variance estimates, c the covariance of two. With ``e_i^j`` the error where probe j is not used at all,
    ``E[e_i^j e_j] = E[e_i e_j^i] = E[e_i^j e_j^i] = 0``, each by the mean of the probe that only one factor holds, so

        ``c = E[(e_i - e_i^j) (e_j - e_j^i)]``,

    a mean of products of gains, ``E_i - E_i^j``, which are known though tr A is not. No less than ``s^2 / k`` is
    claimed, since positive c need not have positive estimates.
    """
    per = 2 if method == "xtrace" else 1
    most = min(goal.most // per, flat.size)
    sizes = [min(FIRST, most)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    omega = probes("sphere", key, most, jax.ShapeDtypeStruct((flat.size,), flat.dtype))
    estimate = _by_xtrace if method == "xtrace" else _by_xnystrace

    def grown(old, new):
        def grow(s: _Krylov) -> _Krylov:
            image = s.image.at[old:new].set(flat.rows(omega[old:new]))
            basis, basis_image = s.basis, s.basis_image
            if method == "xtrace":
                fresh = image[old:new]
                for _ in range(2):
                    fresh = outside(fresh, basis[:old])
                fresh = jnp.linalg.qr(fresh.T)[0].T
                fresh = jnp.linalg.qr(outside(fresh, basis[:old]).T)[0].T
                basis, basis_image = basis.at[old:new].set(fresh), basis_image.at[old:new].set(flat.rows(fresh))
            parts = estimate(omega[:new], image[:new], basis[:new], basis_image[:new])
            value, error, skewness, degrees = _mean(parts)
            count = jnp.asarray(new, jnp.int32)
            reached = goal.reached(value, error)
            return _Krylov(image, basis, basis_image, value, error, skewness, degrees, count, count * per, reached)

        return grow

    empty, zero = jnp.zeros((most, flat.size), flat.dtype), jnp.zeros((), flat.dtype)
    unused = empty if method == "xtrace" else empty[:0]
    none = jnp.zeros((), jnp.int32)
    begin = _Krylov(empty, unused, unused, zero, zero, zero, zero, none, none, jnp.asarray(False))
    state = grown(0, sizes[0])(begin)
    for old, new in pairwise(sizes):
        state = when(~state.reached, grown(old, new), state)
    exact = jnp.asarray(most >= flat.size) & (state.count >= flat.size)
    converged = (state.reached | exact) & jnp.isfinite(state.value)
    return Estimate(state.value, state.error, state.skewness, state.degrees, state.products, converged)


class _Parts(NamedTuple):
    """Estimates, what each gains by each other probe (``gains[j, i] = E_i - E_i^j``), and what rounding may do."""

    estimates: Float[Array, " k"]
    gains: Float[Array, "k k"]
    rounding: Float[Array, ""]


def _mean(parts: _Parts) -> tuple[Array, Array, Array, Array]:
    """Return the mean of the estimates, its standard error, its skewness and the degrees of freedom of the error."""
    k = parts.estimates.shape[0]
    value = jnp.mean(parts.estimates)
    if k == 1:
        return value, jnp.full_like(value, jnp.inf), jnp.zeros_like(value), jnp.ones_like(value)
    # Squares of the numbers of a small operator would underflow.
    size = jnp.max(jnp.abs(parts.estimates - value)) + jnp.max(jnp.abs(parts.gains))
    unit = jnp.where(size > 0, size, 1)
    gains = parts.gains / unit
    own = jnp.sum(((parts.estimates - value) / unit) ** 2) / (k - 1) / k
    shared = (jnp.sum(gains * gains.T) - jnp.sum(jnp.diagonal(gains) ** 2)) / (k * (k - 1))
    error = unit * jnp.sqrt(own + jnp.maximum(shared, 0))  # (4)
    skewness, degrees = shape_of_mean(parts.estimates, k)
    return value, jnp.maximum(error, parts.rounding), skewness, degrees


def _by_xtrace(
    omega: Float[Array, "k n"], image: Float[Array, "k n"], basis: Float[Array, "k n"], basis_image: Float[Array, "k n"]
) -> _Parts:
    """Return the estimates of which each leaves one probe out of the subspace and tests with it alone.

    With the rows of `image` ``Y = Q R``, and s_i the normed columns of ``R^-T``, the range of Y without its i-th column
    is that of ``Q (I - s_i s_i^T)``, without i and j that of ``Q (I - s_i s_i^T - t t^T)``, t the part of s_j outside
    s_i: all follow from k x k matrices.
    """
    (k, n), dtype = omega.shape, omega.dtype
    size = jnp.max(jnp.abs(image))
    unit = jnp.where(size > 0, size, 1)
    image, basis_image = image / unit, basis_image / unit
    r, h, w = jnp.triu(matmul(basis, image.T)), matmul(basis, basis_image.T), matmul(basis, omega.T)
    h = (h + h.T) / 2
    pivots = jnp.diagonal(r)
    least = eps(dtype) * jnp.max(jnp.abs(pivots))
    safe = jnp.where(jnp.abs(pivots) > least, pivots, jnp.where(least > 0, least, 1))
    s = solve_triangular(r + jnp.diag(safe - pivots), jnp.eye(k, dtype=dtype), trans="T")
    s = s / jnp.sqrt(jnp.sum(s**2, axis=0, keepdims=True))
    hs = matmul(s.T, matmul(h, s))
    eta = w - s * jnp.sum(s * w, axis=0, keepdims=True)
    h_eta = matmul(h, eta)
    tested = jnp.sum(omega * image, axis=1) - 2 * jnp.sum(eta * r, axis=0) + jnp.sum(eta * h_eta, axis=0)
    # On the sphere the part of a probe outside the subspace has a uniform direction: give it its mean length.
    length = jnp.sum(omega**2, axis=1) - jnp.sum(eta**2, axis=0)
    least_length = eps(dtype) * n
    rest = tested * (n - k + 1) / jnp.maximum(length, least_length)  # (2)
    estimates = jnp.trace(h) - jnp.diagonal(hs) + rest  # (1)

    # Row j, column i: probe j is not used, probe i tests.
    along = matmul(s.T, s)
    height = jnp.sqrt(jnp.maximum(1 - along**2, eps(dtype)))
    over = lambda x: (x - along * jnp.diagonal(x)[None, :]) / height  # noqa: E731
    sides = along * jnp.diagonal(hs)[None, :]
    t_h_t = (jnp.diagonal(hs)[:, None] - 2 * along * hs + along * sides) / height**2
    t_w, t_h_eta = over(matmul(s.T, w)), over(matmul(s.T, h_eta))
    t_r = -along * jnp.sum(s * r, axis=0, keepdims=True) / height
    tested_less = tested[None, :] + 2 * t_w * (t_r - t_h_eta) + t_w**2 * t_h_t
    rest_less = tested_less * (n - k + 2) / jnp.maximum(length[None, :] + t_w**2, least_length)
    gains = t_h_t + rest[None, :] - rest_less
    gains = jnp.where(jnp.eye(k, dtype=bool), 0, gains)
    return _Parts(unit * estimates, unit * gains, unit * 8 * eps(dtype) * jnp.mean(jnp.abs(estimates)))


def _by_xnystrace(omega: Float[Array, "k n"], image: Float[Array, "k n"], *_: Array) -> _Parts:
    """Return the estimates with Nystrom's approximation ``Y H^-1 Y^T`` from all probes but one, of residual 1/H^-1_ii.

    The inverse without row and column j is ``H^-1 - h_j h_j^T / h_jj``, h_j the columns of H^-1, and likewise that of
    the probes' own Gram matrix. What is semidefinite has no eigenvalue of H below zero but for rounding, where H is
    raised; an operator that has is not, and gets NaN.
    """
    (k, n), dtype = omega.shape, omega.dtype
    unit = jnp.max(jnp.abs(jnp.sum(omega * image, axis=1)))
    image = image / jnp.where(unit > 0, unit, 1)
    shift = eps(dtype) * jnp.sqrt(jnp.sum(image**2) / n)
    image = image + shift * omega
    gram, eye = matmul(omega, image.T), jnp.eye(k, dtype=dtype)
    values, vectors = jnp.linalg.eigh((gram + gram.T) / 2)
    noise = eps(dtype) * jnp.max(jnp.abs(values))
    semidefinite = values[0] >= -10 * k * noise
    floor = jnp.maximum(k**0.5 * noise, -values[0])
    half = vectors / jnp.sqrt(jnp.where(unit > 0, jnp.maximum(values, floor), 1))[None, :]
    h = matmul(half, half.T)
    r = jnp.linalg.qr(image.T, mode="r")
    columns = matmul(r, h)
    g = matmul(columns.T, columns)
    p = cho_solve((jnp.linalg.cholesky(matmul(omega, omega.T)), True), eye)
    own_h, own_g, own_p = jnp.diagonal(h), jnp.diagonal(g), jnp.diagonal(p)
    tested = ((n - k + 1) * own_p - own_g) / own_h
    # (3)
    estimates = jnp.where(semidefinite, jnp.sum(matmul(r, half) ** 2) + tested - shift * n, jnp.nan)

    # Row j, column i: probe j is not used, probe i tests.
    ratio = h / own_h[:, None]
    less_h = jnp.maximum(own_h[None, :] - ratio * h, eps(dtype) * own_h[None, :])
    less_g = own_g[None, :] - 2 * ratio * g + ratio**2 * own_g[:, None]
    less_p = own_p[None, :] - p**2 / own_p[:, None]
    gains = (own_g / own_h)[:, None] + tested[None, :] - ((n - k + 2) * less_p - less_g) / less_h
    gains = jnp.where(eye == 1, 0, gains)
    # To first order -tr(G dH), with the rounding dH of the entries of H, beside that of the products.
    change = jnp.maximum(8 * eps(dtype) * jnp.max(jnp.diagonal(gram)), -values[0])
    rounding = 8 * eps(dtype) * jnp.mean(jnp.abs(estimates)) + change * jnp.sqrt(jnp.sum(g**2))
    rounding = rounding + jnp.where(values[0] < floor, floor, 0)
    return _Parts(unit * estimates, unit * gains, unit * rounding)
