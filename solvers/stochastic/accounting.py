"""What Gaussian noise costs in privacy: zero-concentrated, Renyi and (epsilon, delta), exactly.

Numbered as in the comments; the sources are those of each function:

(1) ``rho = sensitivity^2 / (2 deviation^2)``
(2) ``rho order``: the Renyi divergence of that order
(3) ``delta = Phi(m / 2 - epsilon / m) - e^epsilon Phi(-m / 2 - epsilon / m)``, ``m = sqrt(2 rho)``
(4) ``epsilon = min over orders a of rho a + log(1 - 1 / a) - log(delta a) / (a - 1)``
(5) ``epsilon = rho + 2 sqrt(rho log(1 / delta))``
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from ..core import checks
from ..core.typing import Array, Float, Scalar

CONVERSIONS = ("exact", "renyi", "simple")


def gaussian_rho(sensitivity: Scalar, deviation: Scalar) -> Float[Array, ""]:
    """Return ``sensitivity^2 / (2 deviation^2)``, the zCDP cost of one release with Gaussian noise.

    Costs add up over releases, also when a release is chosen in view of earlier ones.

    Parameters
    ----------
    sensitivity : scalar
        Largest Euclidean distance between the releases of neighbouring data.
    deviation : scalar
        Standard deviation of the noise in every coordinate.

    References
    ----------
    Bun, Steinke, "Concentrated differential privacy", TCC 2016, proposition 1.6 and lemma 1.7.
    """
    ratio = jnp.asarray(sensitivity) / jnp.asarray(deviation)
    return ratio * ratio / 2  # (1)


def renyi_divergence(rho: Scalar, order: Scalar) -> Float[Array, ""]:
    """Return ``rho order``, the Renyi divergence of that order of a Gaussian release of cost rho.

    Parameters
    ----------
    rho, order : scalar
    """
    return jnp.asarray(rho) * order  # (2)


def gaussian_delta(rho: Scalar, epsilon: Scalar) -> Float[Array, ""]:
    """Return the smallest delta for which Gaussian releases of total cost rho are (epsilon, delta)-private.

    ``Phi(m / 2 - epsilon / m) - e^epsilon Phi(-m / 2 - epsilon / m)`` with ``m = sqrt(2 rho)``; exact, both ways.

    Parameters
    ----------
    rho, epsilon : scalar
        Traced.

    References
    ----------
    Balle, Wang, "Improving the Gaussian mechanism", ICML 2018, theorem 8; composition: Dong, Roth, Su, "Gaussian
    differential privacy", J. R. Stat. Soc. B 84 (2022), corollary 3.3.
    """
    rho, epsilon = jnp.asarray(rho, jnp.result_type(float)), jnp.asarray(epsilon, jnp.result_type(float))
    m = jnp.sqrt(2 * rho)
    usable = jnp.where(m > 0, m, 1)
    first, second = log_ndtr(usable / 2 - epsilon / usable), epsilon + log_ndtr(-usable / 2 - epsilon / usable)
    # In logarithms: both terms of a tiny delta are tiny.
    delta = -jnp.exp(first) * jnp.expm1(jnp.minimum(second - first, 0))  # (3)
    return jnp.where(m > 0, delta, 0)


def rho_to_epsilon(rho: Scalar, delta: Scalar, *, conversion: str = "exact") -> Float[Array, ""]:
    """Return an epsilon for which releases of total zCDP cost rho are (epsilon, delta)-private.

    Parameters
    ----------
    rho : scalar
        Total cost, see `gaussian_rho`.
    delta : scalar
        In (0, 1); traced.
    conversion : {"exact", "renyi", "simple"}
        "exact": the smallest, when every release is Gaussian. "renyi": of any zCDP release, the best that its Renyi
        divergences imply, ``min over orders a of rho a + log(1 - 1/a) - log(delta a) / (a - 1)``. "simple": ``rho + 2
        sqrt(rho log(1 / delta))``. Static.

    Raises
    ------
    ValueError
        An unknown conversion, or a delta outside (0, 1).

    References
    ----------
    Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, proposition 12.

    Examples
    --------
    >>> from solvers import rho_to_epsilon
    >>> for how in ("exact", "renyi", "simple"):
    ...     print(how, f"{rho_to_epsilon(0.05, 1e-5, conversion=how):.2f}")
    exact 1.20
    renyi 1.31
    simple 1.57
    """
    name = "rho_to_epsilon"
    checks.choice(name, "conversion", conversion, CONVERSIONS)
    if isinstance(delta, float | int) and not 0 < delta < 1:
        checks.fail(name, "delta", "in (0, 1)", delta)
    dtype = jnp.result_type(float)
    rho, delta = jnp.asarray(rho, dtype), jnp.asarray(delta, dtype)
    simple = rho + 2 * jnp.sqrt(rho * jnp.log(1 / delta))  # (5)
    if conversion == "simple":
        return simple
    if conversion == "renyi":

        def cost(s):
            order = 1 + jnp.exp(s)
            return rho * order + jnp.log1p(-1 / order) - (jnp.log(delta) + jnp.log(order)) / jnp.exp(s)  # (4)

        # The cost is quasiconvex in the order; its minimum lies near sqrt(log(1 / delta) / rho).
        middle = jnp.log(jnp.log(1 / delta) / rho) / 2
        low, high = golden(cost, middle - 5, middle + 5)
        return jnp.where(rho > 0, jnp.maximum(jnp.minimum(cost((low + high) / 2), simple), 0), 0)
    high = simple + 1e-3
    return jnp.where(rho > 0, bisect(lambda e: gaussian_delta(rho, e) > delta, jnp.zeros((), dtype), high), 0)


def epsilon_to_rho(epsilon: Scalar, delta: Scalar, *, conversion: str = "exact") -> Float[Array, ""]:
    """Return the largest total zCDP cost with which releases are (epsilon, delta)-private.

    Parameters
    ----------
    epsilon, delta : scalar
        Positive; traced.
    conversion : str
        As for `rho_to_epsilon`.
    """
    dtype = jnp.result_type(float)
    epsilon = jnp.asarray(epsilon, dtype)
    most = jnp.square(epsilon) + epsilon + 10  # beyond what even delta near one allows
    exceeds = lambda r: rho_to_epsilon(jnp.exp(r), delta, conversion=conversion) <= epsilon  # noqa: E731
    return jnp.exp(bisect(exceeds, jnp.asarray(-60.0, dtype), jnp.log(most)))


def bisect(go_on, low: Array, high: Array) -> Array:
    """Return where ``go_on`` turns from true to false between low and high."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        more = go_on(middle)
        return jnp.where(more, middle, low), jnp.where(more, high, middle)

    return lax.fori_loop(0, 60, halve, (low, high))[1]


def golden(function, low: Array, high: Array) -> tuple[Array, Array]:
    """Return an interval around the minimum of a quasiconvex function."""
    share = (5**0.5 - 1) / 2

    def shrink(_, ends):
        low, high = ends
        left, right = high - share * (high - low), low + share * (high - low)
        lower = function(left) < function(right)
        return jnp.where(lower, low, left), jnp.where(lower, right, high)

    return lax.fori_loop(0, 60, shrink, (low, high))


def noise_for(rho: ArrayLike, releases: int, sensitivity: Scalar) -> Float[Array, ""]:
    """Return the deviation with which that many releases of one sensitivity cost rho in all.

    Parameters
    ----------
    rho : scalar
    releases : int
    sensitivity : scalar
    """
    return jnp.asarray(sensitivity) * jnp.sqrt(releases / (2 * jnp.asarray(rho)))  # (1): solved for the deviation
