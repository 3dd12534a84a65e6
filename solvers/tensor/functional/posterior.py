"""What `functional_tucker` returns: a tensor whose modes are functions, with its uncertainty."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from ...core.checks import fail, float_array
from ...core.gaussian.sde import StateSpaceKernel
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float
from .chains import Factors, Sites, factors_at
from .messages import Core, at_entries, variance_of
from .sweeps import Beliefs


class TensorStatus(StatusCode):
    """How a functional tensor may have no answer, beside `Status`."""

    IMPROPER = 100, "improper: noise, lengths, variances and the parameters of priors must be positive"
    IMPRECISE = (
        101,
        "imprecise: the data took a variance down so far that less than two of its digits are left; use float64, or "
        "more noise",
    )


class FunctionalTucker(Solution):
    """A tensor whose modes are functions, given data; made by `functional_tucker`.

    ``value = ((mean, cov), (core mean, core cov) or None, precision)``, which `beliefs` names: ``beliefs.factors.mean,
    beliefs.factors.cov`` (K, T, R) and (K, T, R, R) at `nodes`, ``beliefs.core.mean, beliefs.core.cov`` (R,) * K and
    (R^K, R^K), or None for CP, ``beliefs.precision``, the expected inverse variance of the noise. Other fields are
    those of `Solution`.

    Attributes
    ----------
    nodes : Float[Array, "K T"]
        Coordinates that the data have in each mode, rising; a shorter mode is filled up with its last one.
    sites : Sites
        What all data so far say of the factors at their nodes: ``precision, shift``.
    gamma : Float[Array, "2"]
        Shape and rate of the belief of the noise's inverse variance; infinite where the noise was given.
    kernels : tuple of StateSpaceKernel
        Of the modes.
    ranks : tuple of int
        Functions a mode. Static.
    block : int
        Of the smoothers, 0 for sequential ones. Static.
    """

    nodes: Float[Array, "... K T"]
    sites: Sites
    gamma: Float[Array, "... 2"]
    kernels: tuple[StateSpaceKernel, ...]
    ranks: tuple[int, ...] = eqx.field(static=True)
    block: int = eqx.field(static=True)

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TensorStatus)

    @property
    def beliefs(self) -> Beliefs:
        """The value, its parts by name."""
        return named(self.value)

    @property
    def noise(self) -> Array:
        """Variance of the noise, the inverse of its expected precision."""
        return 1 / self.beliefs.precision

    def factors(self, coords: Float[Array, "M K"]) -> Factors:
        """Return the factors at coordinates, a column a mode: mean (K, M, R), covariance (K, M, R, R).

        Parameters
        ----------
        coords : Float[Array, "M K"]
            Anywhere, in any order.

        Returns
        -------
        Factors
            ``mean, cov``, each given the data on both sides.
        """
        coords = float_array("FunctionalTucker.factors", "coords", coords, dtype=self.nodes.dtype)
        if coords.ndim != 2 or coords.shape[1] != len(self.kernels):
            fail("FunctionalTucker.factors", "coords", f"(M, {len(self.kernels)})", f"shape {coords.shape}")
        if coords.dtype != self.nodes.dtype:
            fail("FunctionalTucker.factors", "coords", f"of dtype {self.nodes.dtype}", coords.dtype, TypeError)
        return _factors(self, coords)

    def predict(self, coords: Float[Array, "M K"]) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
        """Return mean and variance of the tensor's values (without noise) at coordinates.

        Parameters
        ----------
        coords : Float[Array, "M K"]
            Anywhere, in any order. For a batch of solutions use ``jax.vmap``.

        Returns
        -------
        mean, variance : Float[Array, "M"]
            Of the value; add `noise` to the variance for that of a new entry.
        """
        return _predicted(self.beliefs.core, self.factors(coords))


@eqx.filter_jit
def _factors(found: FunctionalTucker, coords) -> Factors:
    return factors_at(found.kernels, found.ranks, found.nodes, found.sites, coords.T, found.block)


@eqx.filter_jit
def _predicted(core: Core | None, factors: Factors) -> tuple[Array, Array]:
    K, M, _ = factors.mean.shape
    entries = at_entries(factors, jnp.broadcast_to(jnp.arange(M, dtype=jnp.int32), (K, M)))
    mean = jnp.sum(jnp.prod(entries.mean, 0), -1) if core is None else _value(core.mean, entries.mean)
    return mean, variance_of(entries, factors.cov, core)


def plain(beliefs: Beliefs) -> tuple:
    """Return beliefs as plain tuples, which every serialisation knows."""
    core = beliefs.core
    return tuple(beliefs.factors), None if core is None else tuple(core), beliefs.precision


def named(value) -> Beliefs:
    """Return plain tuples as beliefs."""
    factors, core, precision = value
    return Beliefs(Factors(*factors), None if core is None else Core(*core), precision)


def _value(core: Array, means: Float[Array, "K M R"]) -> Float[Array, " M"]:
    """Return the multilinear form of the core in each entry."""
    x = jnp.tensordot(means[-1], core, axes=([1], [core.ndim - 1]), precision="highest")
    for mean in means[-2::-1]:
        x = jnp.sum(x * mean.reshape(mean.shape[0], *(1,) * (x.ndim - 2), -1), -1)
    return x
