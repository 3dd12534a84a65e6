"""The answer to an entropic transport problem: potentials, and all that follows from them.

Numbered as in the comments; P is the plan, R the rounded one with the exact marginals, H the sum of ``P (log P - 1)``:

(1) ``x_i -> sum_j P_ij y_j / sum_j P_ij``: the barycentric map
(2) ``T(x) = sum_j w_j y_j / sum_j w_j``, ``w_j = exp((g_j - c(x, y_j)) / epsilon)`` where b_j is positive: the entropic
    map of Pooladian, Niles-Weed (2021), who have b_j in front and so another g
(3) ``<a, f> + <b, g> - epsilon sum P``: the dual
(4) ``<C, R> + epsilon H(R) - dual``: the duality gap
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.checks import fail, float_array
from ..core.implicit import distrust, envelope
from ..core.solution import Solution, Status, StatusCode
from ..core.typing import Array, Bool, Float, Int
from .costs.cost import as_cost
from .costs.pointcloud import PointCloud
from .plan import Rounding, entropy_term, linear_cost, round_to_marginals
from .problem import TransportStatus


class Potentials(Solution):
    """Potentials of a transport problem: ``value = (f, g)``, and a plan that follows from them.

    Attributes
    ----------
    cost, a, b, epsilon : arrays
        The problem, kept so that the plan can be formed on demand; the cost as given if it is not stored.
    trusted : Bool[Array, "*batch"]
        Whether derivatives may be taken: converged, or approximate ones were asked for. Otherwise they are NaN.
    """

    cost: Any
    a: Float[Array, "*batch n"]
    b: Float[Array, "*batch m"]
    epsilon: Float[Array, "*batch"]
    trusted: Bool[Array, "*batch"]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, TransportStatus)

    @property
    def f(self) -> Float[Array, "*batch n"]:
        """Potential of the rows, in units of the cost."""
        return self.value[0]

    @property
    def g(self) -> Float[Array, "*batch m"]:
        """Potential of the columns."""
        return self.value[1]

    def plan(self) -> Float[Array, "*batch n m"]:
        """Return the plan; forms one array of the cost's shape."""
        return self._lanes(lambda plan, _: plan.dense())

    @property
    def _shifted(self) -> tuple[Any, Any]:
        """Potentials of ``cost - shift`` whose plan is ``exp((f + g - cost + shift) / epsilon)``, and the shift."""
        raise NotImplementedError

    def _lanes(self, function: Callable, *more: Any) -> Any:
        """Return ``function(plan, (cost, a, b, epsilon), ...)``, lane by lane of a batch."""

        def one(shifted, cost, a, b, epsilon, *more):
            potentials, shift = shifted
            cost = as_cost(cost)
            return function(cost.plan(potentials, a, b, epsilon, shift), (cost, a, b, epsilon), *more)

        return self._vmapped(one)(self._shifted, self.cost, self.a, self.b, self.epsilon, *more)

    def _optimum(self, dual: Callable, potentials: Any, data: Any) -> Float[Array, "*batch"]:
        """Return ``dual(potentials, data)`` with the derivatives of an optimal value, NaN where it is not trusted."""

        def one(potentials, data, trusted):
            return distrust(envelope(dual, potentials, data), trusted)

        return self._vmapped(one)(potentials, data, self.trusted)


class TransportSolution(Potentials):
    """Potentials of ``min <C, P> + epsilon sum P (log P - 1)`` over ``P 1 = a, P' 1 = b``.

    ``value`` is the pair ``(f, g)`` in units of the cost, fixed by ``<a, f> = <b, g>``; the plan is
    ``P = exp((f + g - C) / epsilon)``. Where a weight is zero the potential is the soft c-transform (finite) and the
    plan has no mass. ``error`` is ``(|P 1 - a|_1 + |P' 1 - b|_1) / sum(a)`` of that plan, made of `reduced`. Under
    ``jax.vmap`` every field, and the kept cost too, gets a batch axis: return what you need rather than the whole
    solution when costs are large.

    Attributes
    ----------
    cost, a, b, epsilon, trusted : arrays
        See `Potentials`.
    shift : Float[Array, "*batch"]
        Smallest finite cost where that is larger than the costs' spread, else zero.
    reduced : pair of arrays
        Potentials of ``cost - shift``, of which `plan` is made: `value` where `shift` is zero, else they keep digits
        that the cost's offset takes from `value`.
    linear_steps : Int[Array, "*batch"]
        Conjugate-gradient steps spent in all Newton systems; zero for `sinkhorn`.
    cloud : PointCloud or None
        The points, where the cost was given by them; see `map`.
    """

    shift: Float[Array, "*batch"]
    reduced: tuple[Float[Array, "*batch n"], Float[Array, "*batch m"]]
    linear_steps: Int[Array, "*batch"]
    cloud: PointCloud | None = None

    def between(self, cost: Any) -> Self:
        """Return the solution with the points of `cost` kept: small clouds are solved by their matrix."""
        if not isinstance(cost, PointCloud):
            return self
        return eqx.tree_at(lambda s: s.cloud, self, cost, is_leaf=lambda x: x is None)

    @property
    def marginal_error(self) -> Float[Array, "*batch"]:
        """The same as `error`."""
        return self.error

    @property
    def _shifted(self):
        return self.reduced, self.shift

    def apply(self, x, *, transpose: bool = False, rounded: bool = False) -> Float[Array, "..."]:
        """Return the plan's product with vectors, without forming the plan when the cost is not stored.

        Parameters
        ----------
        x : Float[Array, "*batch m"] or Float[Array, "*batch m k"]
            One vector or k of them, with n rows if `transpose`.
        transpose : bool
            Multiply by the transposed plan. Static.
        rounded : bool
            Multiply by `rounded_plan` instead. Static.

        Returns
        -------
        Float[Array, "*batch n"] or Float[Array, "*batch n k"]
            For instance ``sol.apply(y) / sol.a[:, None]``, where the plan sends each point on average.
        """
        x = jnp.asarray(x)
        batch, length = jnp.ndim(self.status), (self.a if transpose else self.b).shape[-1]
        if x.ndim not in (batch + 1, batch + 2) or x.shape[batch] != length:
            side = "first" if transpose else "second"
            got = f"{x.shape}; to move new points, see `map`"
            fail("TransportSolution.apply", "x", f"one entry or row for each of the {length} {side} points", got)

        def product(plan, x, cost, a, b, epsilon):
            rounding = Rounding.of(plan, a, b) if rounded else None
            if transpose:
                plan, rounding = plan.T, rounding and rounding.T
            one = plan.times if rounding is None else lambda v: rounding.times(plan, v)
            return one(x) if x.ndim == 1 else jax.vmap(one, 1, 1)(x)

        return self._lanes(lambda plan, data, x: product(plan, x, *data), x)

    def barycentric_map(self, y) -> Float[Array, "*batch n d"]:
        """Return ``sum_j P_ij y_j / sum_j P_ij``: where the plan sends each point on average."""
        mass = self.apply(jnp.ones(y.shape[:-1], y.dtype))
        return self.apply(y) / jnp.where(mass > 0, mass, 1)[..., None]  # (1)

    def map(self, points, *, transpose: bool = False) -> Float[Array, "*batch k d"]:
        """Return where the entropic map sends new points: for a problem between the points of a `PointCloud`.

        ``T(x) = sum_j w_j(x) y_j`` with weights ``w_j`` in proportion to ``b_j exp((g_j - c(x, y_j)) / epsilon)`` and
        sum one, g the potential without the reference weights. At the cloud's own points it is `barycentric_map`; for
        squared distances it estimates the optimal map [1]_, with a bias of the order of epsilon.

        Parameters
        ----------
        points : Float[Array, "*batch k d"]
            Any points of the first space. Differentiable.
        transpose : bool
            From the second cloud to the first instead. Static.

        Returns
        -------
        Float[Array, "*batch k d"]
            In the convex hull of the targets.

        Raises
        ------
        TypeError, ValueError
            If the cost was not given as a `PointCloud`, or the points have another number of coordinates.

        Notes
        -----
        Tile by tile, like the cost. Differentiable in the points and in all data of the problem.

        References
        ----------
        .. [1] A.-A. Pooladian, J. Niles-Weed, "Entropic estimation of optimal transport maps", 2021: section 3.
        """
        name = "TransportSolution.map"
        if self.cloud is None:
            fail(
                name, "cost", "given as `PointCloud(x, y)`, which knows the points", type(self.cost).__name__, TypeError
            )
        points = float_array(name, "points", points, dtype=self.cloud.dtype).astype(self.cloud.dtype)
        if points.ndim != jnp.ndim(self.status) + 2 or points.shape[-1] != self.cloud.x.shape[-1]:
            fail(name, "points", f"(k, {self.cloud.x.shape[-1]}), after any batch axes", points.shape)

        def one(reduced, shift, cost, weights, epsilon, points):
            cost = cost.T if transpose else cost
            return cost.soft_map(points, reduced[0 if transpose else 1], weights > 0, epsilon, shift)  # (2)

        weights = self.a if transpose else self.b
        return self._vmapped(one)(self.reduced, self.shift, self.cloud, weights, self.epsilon, points)

    @property
    def transport_cost(self) -> Float[Array, "*batch"]:
        """``<C, P>``: the linear cost of the regularised plan."""
        return self._lanes(lambda plan, data: plan.costs(data[0]))

    @property
    def regularized_cost(self) -> Float[Array, "*batch"]:
        """The optimal value, evaluated as the dual ``<a, f> + <b, g> - epsilon sum P``.

        First derivatives follow from the envelope theorem without a linear solve: P for the cost, f and g for the
        weights (along changes that keep both masses equal), ``sum P (log P - 1)`` for epsilon.
        """
        data = (self.cost, self.a, self.b, self.epsilon, self.shift)
        return self._optimum(_dual, (self.value, self.reduced), data)

    def rounded_plan(self) -> Float[Array, "*batch n m"]:
        """Return a plan with the exact marginals (to rounding), close to `plan` when the error is small."""
        return round_to_marginals(self.plan(), self.a, self.b)

    @property
    def duality_gap(self) -> Float[Array, "*batch"]:
        """Objective of `rounded_plan` minus the dual value: a certificate, since the optimum lies between the two.

        In units of the cost times mass; infinite when rounding had to use a forbidden pair. For costs that are not
        stored an upper bound of the objective is used, which is sharp when the error is small.
        """
        if not as_cost(self.cost).stored:

            def upper(plan, data):
                cost, a, b, epsilon = data
                rounding = Rounding.of(plan, a, b)
                return rounding.cost(plan, cost) + epsilon * rounding.entropy_bound(plan)

            return self._lanes(upper) - self.regularized_cost  # (4): an upper bound
        plan = self.rounded_plan()
        # (4)
        return linear_cost(self.cost, plan) + self.epsilon * entropy_term(plan) - self.regularized_cost


def _dual(potentials, data):
    (f, g), reduced = potentials
    cost, a, b, epsilon, shift = data
    mass = as_cost(cost).plan(reduced, a, b, epsilon, shift).mass()
    return jnp.sum(a * f) + jnp.sum(b * g) - epsilon * mass  # (3)
