"""The answer to an entropic transport problem: potentials, and all that follows from them."""

from typing import ClassVar

import jax.numpy as jnp

from ..core.implicit import envelope
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Float, Int
from .plan import entropy_term, linear_cost, log_plan, round_to_marginals
from .problem import TransportStatus


class TransportSolution(Solution):
    """Potentials of ``min <C, P> + epsilon sum P (log P - 1)`` over ``P 1 = a, P' 1 = b``.

    ``value`` is the pair ``(f, g)`` in units of the cost, fixed by ``<a, f> = <b, g>``; the plan is
    ``P = exp((f + g - C) / epsilon)``. Where a weight is zero the potential is the soft c-transform (finite) and the
    plan has no mass. ``error`` is ``(|P 1 - a|_1 + |P' 1 - b|_1) / sum(a)``. Under ``jax.vmap`` every field, and the
    kept cost too, gets a batch axis: return what you need rather than the whole solution when costs are large.

    Attributes
    ----------
    cost, a, b, epsilon : arrays
        The problem, kept so that the plan can be formed on demand.
    shift : Float[Array, "*batch"]
        Smallest finite cost.
    reduced : pair of arrays
        Potentials of ``cost - shift``; they keep their digits when the cost has a large offset.
    linear_steps : Int[Array, "*batch"]
        Conjugate-gradient steps spent in all Newton systems; zero for `sinkhorn`.
    """

    cost: Float[Array, "*batch n m"]
    a: Float[Array, "*batch n"]
    b: Float[Array, "*batch m"]
    epsilon: Float[Array, "*batch"]
    shift: Float[Array, "*batch"]
    reduced: tuple[Float[Array, "*batch n"], Float[Array, "*batch m"]]
    linear_steps: Int[Array, "*batch"]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)

    @property
    def f(self) -> Float[Array, "*batch n"]:
        """Potential of the rows, in units of the cost."""
        return self.value[0]

    @property
    def g(self) -> Float[Array, "*batch m"]:
        """Potential of the columns."""
        return self.value[1]

    @property
    def marginal_error(self) -> Float[Array, "*batch"]:
        """The same as `error`."""
        return self.error

    def plan(self) -> Float[Array, "*batch n m"]:
        """Return the plan; forms one array of the cost's shape."""
        return _plan(self.reduced, (self.cost, self.a, self.b, self.epsilon), self.shift)

    @property
    def transport_cost(self) -> Float[Array, "*batch"]:
        """``<C, P>``: the linear cost of the regularised plan."""
        return linear_cost(self.cost, self.plan())

    @property
    def regularized_cost(self) -> Float[Array, "*batch"]:
        """The optimal value, evaluated as the dual ``<a, f> + <b, g> - epsilon sum P``.

        First derivatives follow from the envelope theorem without a linear solve: P for the cost, f and g for the
        weights (along changes that keep both masses equal), ``sum P (log P - 1)`` for epsilon.
        """
        data = (self.cost, self.a, self.b, self.epsilon)
        return envelope(_dual, (self.value, self.reduced), (*data, self.shift))

    def rounded_plan(self) -> Float[Array, "*batch n m"]:
        """Return a plan with the exact marginals (to rounding), close to `plan` when the error is small."""
        return round_to_marginals(self.plan(), self.a, self.b)

    @property
    def duality_gap(self) -> Float[Array, "*batch"]:
        """Objective of `rounded_plan` minus the dual value: a certificate, since the optimum lies between the two.

        In units of the cost times mass; infinite when rounding had to use a forbidden pair.
        """
        plan = self.rounded_plan()
        return linear_cost(self.cost, plan) + self.epsilon * entropy_term(plan) - self.regularized_cost


def _plan(reduced, data, shift):
    (f, g), (cost, a, b, epsilon) = reduced, data
    return jnp.exp(log_plan(f, g, cost - shift[..., None, None], a, b, epsilon))


def _dual(potentials, data):
    (f, g), reduced = potentials
    *problem, shift = data
    _, a, b, epsilon = problem
    linear = jnp.sum(a * f, -1) + jnp.sum(b * g, -1)
    return linear - epsilon * jnp.sum(_plan(reduced, problem, shift), axis=(-2, -1))
