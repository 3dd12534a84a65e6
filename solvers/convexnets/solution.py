"""What training returns, the network it stands for, and its derivatives."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ..core.precision import matmul, unit_of
from ..core.solution import Solution
from ..core.typing import Array, Float
from .problem import Blocks, ConvexReLU, dual_bound, lengths, network_objective


class ConvexReLUSolution(Solution):
    """A trained network, as the blocks of the convex problem.

    Attributes
    ----------
    value : Float[Array, "b d"]
        v_1 .. v_p, then w_1 .. w_p; u_1 .. u_p of a gated network.
    objective : Float[Array, ""]
        Of the network, weight decay included: an upper bound of the problem's optimum.
    lower_bound : Float[Array, ""]
        Of the problem's optimum, from a feasible point of the dual problem.
    slope : Float[Array, "n"]
        Derivatives of the loss in the outputs; with a radius (n, 1 + d), those in the outputs' gradients behind them.
    multipliers : Float[Array, "b n"]
        Of the cones; zero for a gated network.
    signs : Float[Array, "b"]
        Of the blocks; 0 for a repeated pattern.
    gates : Float[Array, "p d"] or None
        Of a gated network.
    """

    objective: Float[Array, "..."]
    lower_bound: Float[Array, "..."]
    slope: Float[Array, "..."]
    multipliers: Float[Array, "..."]
    signs: Float[Array, "..."]
    gates: Any

    @property
    def duality_gap(self) -> Array:
        """``objective - lower_bound``, in the units of the objective."""
        return self.objective - self.lower_bound

    def to_network(self) -> "ReLUNetwork":
        """Return the network, ``hidden_i = u_i / sqrt|u_i|, output_i = sign_i sqrt|u_i|`` (1).

        Its objective, `ReLUNetwork.objective`, is `objective`.
        """
        hidden, root = self._vmapped(halves)(self.value)
        # (1)
        return ReLUNetwork(jnp.abs(self.signs)[..., None] * hidden, self.signs * root, self.gates)


def halves(u: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], Float[Array, " b"]]:
    """Return ``u_i / sqrt|u_i|`` and ``sqrt|u_i|``, in units in which the squares of the weights do not overflow."""
    unit = lax.stop_gradient(unit_of(u))
    root = jnp.sqrt(lengths(unit * u))
    return unit * u / (jnp.where(root > 0, root, 1)[:, None] * jnp.sqrt(unit)), root / jnp.sqrt(unit)


class ReLUNetwork(eqx.Module):
    """``x -> sum_i output_i relu(hidden_i x)``, or gated, ``sum_i output_i 1[gate_i x >= 0] hidden_i x``.

    Attributes
    ----------
    hidden : Float[Array, "b d"]
    output : Float[Array, "b"]
    gates : Float[Array, "b d"] or None
    """

    hidden: Float[Array, "b d"]
    output: Float[Array, " b"]
    gates: Any = None

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the output for one example."""
        inside = matmul(self.hidden, x)
        if self.gates is None:
            return jnp.sum(self.output * jnp.maximum(inside, 0))
        return jnp.sum(self.output * jnp.where(matmul(self.gates, x) >= 0, inside, 0))

    def weight_decay(self) -> Float[Array, ""]:
        """Return ``(|hidden|^2 + |output|^2) / 2``."""
        return (jnp.sum(self.hidden**2) + jnp.sum(self.output**2)) / 2

    def pruned(self, least: float = 1e-6) -> "ReLUNetwork":
        """Return the neurons whose share is at least `least` of the largest. Host only: the number is data."""
        share = jnp.abs(self.output)
        kept = share > least * jnp.max(share)
        return ReLUNetwork(self.hidden[kept], self.output[kept], None if self.gates is None else self.gates[kept])


class Certificate(eqx.Module):
    """An upper and a lower bound of the optimum, and ``(objective - lower_bound) / objective`` (2)."""

    objective: Array
    lower_bound: Array
    error: Array


def certificate(problem: ConvexReLU, u: Array, slope: Array, z: Array) -> Certificate:
    """Return the bounds that a point gives, whatever it is."""
    blocks = Blocks.of(problem)
    args = blocks, problem.loss, problem.y, problem.beta
    objective = network_objective(*args, u)
    bound = jnp.maximum(dual_bound(*args, slope, z if blocks.cone else None), 0)
    # (2)
    error = jnp.maximum(objective - bound, 0) / jnp.where(objective > 0, objective, 1)
    return Certificate(objective, bound, error)
