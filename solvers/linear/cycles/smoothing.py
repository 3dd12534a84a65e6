"""Smoothers: Chebyshev polynomials, which carry the residual along, and Gauss-Seidel by colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core.typing import Array, Scalar
from ..systems.stencil import Phases, Stencil
from ..systems.system import repeat, settle

FEW_COLOURS = 4
"""Sweeps over more colours than this are loops over them."""


class Smoother(NamedTuple):
    """Smoothing from zero and, its adjoint, after a coarse correction d.

    ``before(r)`` returns z and ``r - A z``; ``after(z, d, r)`` returns a better ``z + d`` where r is the residual at z.
    """

    before: Callable[[Any], tuple[Any, Any]]
    after: Callable[[Any, Any, Any], Any]


def chebyshev(mv: Callable[[Any], Any], inverse: Any, low, high, degree) -> Callable[[Any], Any]:
    """Return ``r -> z``, `degree` steps of Chebyshev's method for ``A z = r`` from zero.

    The method is tuned to eigenvalues of ``inverse A`` in [low, high], where ``mv`` is the product with A; degree 1 is
    Jacobi's method if `inverse` is that of the diagonal. ``low == high`` is ordinary.
    """
    centre, half = (high + low) / 2, (high - low) / 2

    def scaled(r):
        return jax.tree.map(jnp.multiply, r, inverse)

    def body(carry):
        z, r, d, rho = carry
        r = settle(jax.tree.map(jnp.subtract, r, mv(settle(d))))
        below = 2 * centre - rho * half
        rho_next = half / below
        d = jax.tree.map(lambda u, v: rho_next * rho * u + 2 / below * v, d, scaled(r))
        return jax.tree.map(jnp.add, z, d), r, d, rho_next

    def apply(r):
        d = jax.tree.map(lambda u: (1 / centre) * u, scaled(r))
        start = (d, r, d, half / centre)
        if isinstance(degree, int):
            return repeat(body, start, degree - 1)[0]
        return lax.fori_loop(1, degree, lambda _, carry: body(carry), start)[0]

    return apply


def chebyshev_smoother(mv: Callable[[Array], Array], inverse: Array, ratio: Scalar, degree: int) -> Smoother:
    """Return Chebyshev smoothing of eigenvalues of ``inverse A`` in ``[1 / ratio, 1]``, `degree` products each way.

    Both ways share one loop, in which every direction is followed by its product: the residual after smoothing costs
    nothing more, and the program has two products a level, whatever the degree.
    """
    low = 1 / jnp.asarray(ratio, inverse.dtype)
    centre, half = (1 + low) / 2, (1 - low) / 2
    rho, momentum, gains = half / centre, [jnp.zeros_like(centre)], [1 / centre]
    for _ in range(degree - 1):
        below = 2 * centre - rho * half
        momentum.append(half / below * rho)
        gains.append(2 / below)
        rho = half / below
    plan = jnp.stack([*momentum, jnp.zeros_like(low)]), jnp.stack([*gains, jnp.zeros_like(low)])

    def follow(start: int):
        """Take the direction, then make the next one by the row `k` of the plan."""

        def body(carry):
            z, r, d, k = carry
            d = settle(d)
            r = settle(r - mv(d))
            return z + d, r, plan[0][k] * d + plan[1][k] * inverse * r, k + 1

        return lambda z, r, d: repeat(body, (z, r, d, jnp.asarray(start, jnp.int32)), degree)

    def before(r):
        z, r, _, _ = follow(1)(jnp.zeros_like(r), r, gains[0] * inverse * r)
        return z, r

    def after(z, d, r):
        z, _, d, _ = follow(0)(z, r, d)
        return z + d

    return Smoother(before, after)


def gauss_seidel(stencil: Stencil, shape: tuple[int, ...], sweeps: int) -> Smoother:
    """Return Gauss-Seidel smoothing by parity classes, `sweeps` sweeps each way; red-black where two colours do."""
    phases = Phases(stencil, shape)
    if len(phases.colours) > FEW_COLOURS:
        one_by_one = by_colours(stencil, shape)

        def looped(z, r, reverse):
            return repeat(lambda z: one_by_one(z, r, reverse), z, sweeps)

        relax = looped
    else:
        sweep = phases.sweeper(jnp.ones((), stencil.coefficients.dtype))

        def packed(z, r, reverse):
            z, r = phases.pack(z), phases.pack(r)
            for _ in range(sweeps):
                z = sweep(z, r, reverse=reverse)
            return phases.unpack(z)

        relax = packed

    def before(r):
        z = settle(relax(jnp.zeros_like(r), r, False))
        return z, r - stencil.mv(z)

    return Smoother(before, lambda z, d, r: z + relax(d, r, True))


def by_colours(stencil: Stencil, shape: tuple[int, ...]) -> Callable:
    """Return a multicolour sweep that takes a whole product a colour: slower to run than `Phases`, a loop to compile.

    Written out, the 8 classes of a 27-point stencil take minutes to compile; below the finest level they cost little.
    """
    parities = [lax.broadcasted_iota(jnp.int32, shape, axis) % 2 for axis in range(len(shape))]
    colour = sum(p * 2**k for k, p in enumerate(reversed(parities)))  # the order of `Phases.parities`
    last, gain = 2 ** len(shape) - 1, 1 / stencil.diagonal()

    def sweep(z, r, reverse):
        def one(k, z):
            here = colour == (last - k if reverse else k)
            return jnp.where(here, z + gain * (r - stencil.mv(z)), z)

        return lax.fori_loop(jnp.zeros((), jnp.int32), last + 1, one, z)

    return sweep
