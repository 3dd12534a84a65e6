"""Networks from a function, given by numbers, to a function of points: DeepONet and MultiONet.

With b and t the outputs of the layers of two networks:

(1) ``G(a)(x) = <b(a), t(x)> + bias`` of the last layers: DeepONet, Lu et al. 2021
(2) ``G(a)(x) = (1 / l) sum_k scales[k] <b_k(a), t_k(x)> + bias`` over the last l: MultiONet, Zang and Koutsourelakis
    2025
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.checks import fail
from ...core.precision import dot, matmul
from ...core.typing import Array, Float


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent; a function of this module, so that networks pickle."""
    return jnp.tanh(x)


def dense_layers(key: Array, widths: Sequence[int], dtype) -> tuple:
    """Return (matrix, bias) of layers with the given widths, Glorot's normal start."""
    keys = jax.random.split(key, len(widths) - 1)
    return tuple(
        ((2 / (n + m)) ** 0.5 * jax.random.normal(k, (m, n), dtype), jnp.zeros(m, dtype))
        for k, n, m in zip(keys, widths[:-1], widths[1:], strict=True)
    )


def outputs(layers, x, activation: Callable) -> list[Array]:
    """Return what every layer gives, the last one without activation."""
    found = []
    for k, (matrix, bias) in enumerate(layers):
        x = matmul(matrix, x) + bias
        x = activation(x) if k < len(layers) - 1 else x
        found.append(x)
    return found


class DeepONet(eqx.Module):
    """``G(a)(x) = <branch(a), trunk(x)> + bias``: a function of points for each vector of numbers a.

    Parameters
    ----------
    branch, trunk : tuple of (matrix, bias)
        Their last layers have one width.
    bias : scalar
    activation : callable
        Static.

    References
    ----------
    L. Lu et al., Learning nonlinear operators via DeepONet, Nature Machine Intelligence 3 (2021).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import DeepONet
    >>> model = DeepONet.init(jax.random.key(3), inputs=5, ndim=2, width=8, depth=2)
    >>> model(jnp.ones(5), jnp.array([0.2, 0.3])).shape
    ()
    """

    branch: tuple[Any, ...]
    trunk: tuple[Any, ...]
    bias: Float[Array, ""]
    activation: Callable = eqx.field(static=True, default=tanh)

    def __check_init__(self):
        widths = [layers[-1][1].shape for layers in (self.branch, self.trunk)]
        if widths[0] != widths[1]:
            fail("DeepONet", "trunk", f"as wide at the end as the branch, {widths[0]}", widths[1])

    @classmethod
    def init(cls, key: Array, *, inputs: int, ndim: int, width: int = 64, depth: int = 4, dtype=None):
        """Return a random one: `inputs` numbers a, points in `ndim` dimensions, `depth` layers of one `width`."""
        one, two = jax.random.split(key)
        dtype = jnp.result_type(float) if dtype is None else dtype
        branch, trunk = (dense_layers(k, (n, *(width,) * depth), dtype) for k, n in ((one, inputs), (two, ndim)))
        return cls(branch, trunk, jnp.zeros((), dtype))

    def __call__(self, a: Float[Array, " p"], x: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the value at one point."""
        _fits("DeepONet", self, a, x)
        b, t = outputs(self.branch, a, self.activation)[-1], outputs(self.trunk, x, self.activation)[-1]
        return dot(b, t) + self.bias  # (1)


class MultiONet(eqx.Module):
    """``G(a)(x) = (1 / l) sum_k scales[k] <branch_k(a), trunk_k(x)> + bias`` over the last l layers of both.

    No larger than a `DeepONet` but for l numbers; deeper layers need not carry alone what shallow ones already know.
    With l = 1 and a scale of one it is a `DeepONet`, to the bit.

    Parameters
    ----------
    branch, trunk : tuple of (matrix, bias)
        The last l layers have equal widths.
    scales : Float[Array, "l"]
    bias : scalar
    activation : callable
        Static.

    Notes
    -----
    The authors start from scales of zero; `init` starts from one, which trains from the first step.

    References
    ----------
    Y. Zang, P.-S. Koutsourelakis, DGenNO, 2025, section 3.2.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import MultiONet
    >>> model = MultiONet.init(jax.random.key(3), inputs=5, ndim=2, width=8, depth=3, last=2)
    >>> model(jnp.ones(5), jnp.array([0.2, 0.3])).shape
    ()
    """

    branch: tuple[Any, ...]
    trunk: tuple[Any, ...]
    scales: Float[Array, " l"]
    bias: Float[Array, ""]
    activation: Callable = eqx.field(static=True, default=tanh)

    def __check_init__(self):
        last = self.scales.shape[0]
        widths = [[b.shape for _, b in layers[-last:]] for layers in (self.branch, self.trunk)]
        if not last or len(widths[0]) < last or widths[0] != widths[1]:
            fail("MultiONet", "scales", "one a layer of a branch and a trunk with equal widths", (last, widths))

    @classmethod
    def init(cls, key: Array, *, inputs: int, ndim: int, width: int = 64, depth: int = 4, last: int = 4, dtype=None):
        """Return a random one that uses its `last` layers."""
        one = DeepONet.init(key, inputs=inputs, ndim=ndim, width=width, depth=depth, dtype=dtype)
        return cls(one.branch, one.trunk, jnp.ones(last, one.bias.dtype), one.bias)

    def __call__(self, a: Float[Array, " p"], x: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the value at one point."""
        _fits("MultiONet", self, a, x)
        last = self.scales.shape[0]
        pairs = zip(
            self.scales,
            outputs(self.branch, a, self.activation)[-last:],
            outputs(self.trunk, x, self.activation)[-last:],
            strict=True,
        )
        parts = [scale * dot(b, t) for scale, b, t in pairs]
        return sum(parts[1:], parts[0]) / last + self.bias  # (2)


def _fits(name: str, model, a, x):
    expected = (model.branch[0][0].shape[1:], model.trunk[0][0].shape[1:])
    if (jnp.shape(a), jnp.shape(x)) != expected:
        fail(name, "a", f"numbers and one point of shapes {expected} (use jax.vmap)", (jnp.shape(a), jnp.shape(x)))
