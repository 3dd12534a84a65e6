"""Polynomials of polynomials: what a network of three layers learns in stages and a kernel method does not."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core.precision import matmul
from ..core.typing import Array, Float


class HierarchicalPolynomial(NamedTuple):
    """A polynomial of a polynomial, of degree six, correlated with the inner one so that this can be seen through it.

    (1) ``p(x) = x'A x``, A traceless and scaled so that p has variance one for normal x
    (2) ``g(z) = (z^3 + z) / sqrt(22)``
    (3) ``h(x) = g(p(x))``
    """

    A: Float[Array, "d d"]

    def feature(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Return p, the feature that is to be found."""
        return jnp.sum(matmul(x, self.A) * x, axis=-1)  # (1)

    def link(self, z: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return g; its second moment is one for normal z."""
        return (z**3 + z) / 22**0.5  # (2)

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Return h."""
        return self.link(self.feature(x))  # (3)


def hierarchical_polynomial(rng: np.random.Generator, d: int, dtype=None) -> HierarchicalPolynomial:
    """Return a random instance; learned in stages it takes of the order of d^2 examples, by a kernel of d^6.

    References
    ----------
    Z. Wang, E. Nichani, J. D. Lee, *Learning hierarchical polynomials with three-layer neural networks*, ICLR 2024.
    """
    A = rng.standard_normal((d, d))
    A = (A + A.T) / 2
    A -= np.eye(d) * np.trace(A) / d
    return HierarchicalPolynomial(jnp.asarray(A / (2**0.5 * np.linalg.norm(A)), dtype))
