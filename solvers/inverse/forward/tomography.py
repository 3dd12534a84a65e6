"""Parallel-beam tomography: line integrals of an image, and their filtered back-projection.

Numbered as in the comments; x, y are a pixel's column and row from the middle, a an angle. By Joseph (1982), for rays
with ``|cos a| >= |sin a|``, x and y change places for others:

(1) ``x cos a - y sin a = s``: ray s, that is ``x(y) = (s + y sin a) / cos a``
(2) ``(P f)(s) = sum_y ((1 - share) f(left, y) + share f(left + 1, y)) / |cos a|``, ``left + share = x(y)``
(3) ``(P' r)(x, y) = sum_s max(1 - |x(y) - x|, 0) r(s) / |cos a|``, its transpose

By Kak, Slaney (1988), h the band-limited ramp:

(4) ``h(0) = 1 / 4``, ``h(k) = -1 / (pi k)^2`` for odd k, zero for even ones
(5) ``f = pi / angles sum_a P_a' (h * y_a)``
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core import checks
from ...core.operators import LinearOperator
from ...core.typing import Array, Float


class Radon(LinearOperator):
    """Line integrals of an (n, n) image along parallel rays, a sinogram of (angles, detectors).

    Row k holds the rays of angle ``a = angles[k]``: with columns x and rows y counted from pixel ``n // 2``, ray s,
    counted from the middle detector, is ``x cos a - y sin a = s``, as in scikit-image. Pixels and detectors have width
    one.

    Parameters
    ----------
    angles : Float[Array, "angles"]
        In radians; its dtype is that of the images. Not differentiable.
    size : int
        n; static.
    detectors : int, optional
        Rays an angle; n by default, which sees the inscribed disc. Static.

    Notes
    -----
    Joseph's method: the integral is summed over rows where the ray is steep and over columns where it is flat, with
    linear interpolation between two pixels. Both products are gathers (no scattered additions): the forward one reads
    two pixels a row and ray, the adjoint at most three detectors a pixel and angle, with the same weights, so that they
    are adjoint to rounding. Cost: ``2 n detectors angles`` and ``3 n^2 angles`` reads; nothing is stored.

    References
    ----------
    Joseph, "An improved algorithm for reprojecting rays through pixel images", IEEE Trans. Med. Imaging 1 (1982).
    """

    angles: Float[Array, " angles"]
    size: int = eqx.field(static=True)
    detectors: int = eqx.field(static=True)

    def __init__(self, angles: Any, size: int, *, detectors: int | None = None):
        self.angles = checks.float_array("Radon", "angles", angles, ndim=1)
        self.size = size
        self.detectors = size if detectors is None else detectors
        if size < 1 or self.detectors < 1:
            checks.fail("Radon", "size", "a positive integer, as `detectors`", (size, detectors))

    @property
    def domain(self):
        """A square image."""
        return jax.ShapeDtypeStruct((self.size, self.size), self.angles.dtype)

    @property
    def codomain(self):
        """A sinogram."""
        return jax.ShapeDtypeStruct((self.angles.shape[0], self.detectors), self.angles.dtype)

    def mv(self, x):
        """Return the line integrals."""
        return jax.vmap(lambda a: self._project(x.ravel(), a))(jax.lax.stop_gradient(self.angles))

    def transpose_mv(self, y):
        """Return the back-projection, the exact adjoint."""
        parts = jax.vmap(self._spread)(y, jax.lax.stop_gradient(self.angles))
        return jnp.sum(parts, axis=0)

    def _marching(self, angle):
        """Return whether rays are summed over rows, and ``position = (s + march * turn) * stretch`` across them."""
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        # The margin keeps diagonal rays on one side in both products, however a program rounds their cosine.
        steep = jnp.abs(cos) >= 0.999 * jnp.abs(sin)
        stretch = jnp.where(steep, 1 / jnp.where(steep, cos, 1), -1 / jnp.where(steep, 1, sin))  # (1)
        return steep, jnp.where(steep, sin, -cos), stretch

    def _project(self, flat, angle):
        n, middle, dtype = self.size, self.size // 2, flat.dtype
        steep, turn, stretch = self._marching(angle)
        s = jnp.arange(self.detectors, dtype=dtype) - self.detectors // 2
        march = jnp.arange(n, dtype=jnp.int32)
        place = (s[:, None] + ((march - middle).astype(dtype) * turn)[None, :]) * stretch + middle  # (1)
        place = jnp.clip(place, -1, n)  # what lies outside reads the two weights below as zero
        # A program may compute `place` anew for each read, and round it differently. The nearest pixel is found by a
        # generic threshold, on which no ray of a round angle lies; where the sign is in doubt the other one weighs 0.
        nearest = jnp.floor(place + 0.4973)
        beside = jnp.where(place >= nearest, nearest + 1, nearest - 1)
        nearest, beside = nearest.astype(jnp.int32), beside.astype(jnp.int32)

        def read(across):
            weight = jnp.maximum(1 - jnp.abs(place - across.astype(dtype)), 0)
            inside = (across >= 0) & (across < n)
            across = jnp.clip(across, 0, n - 1)
            at = jnp.where(steep, march[None, :] * n + across, across * n + march[None, :])
            return jnp.where(inside, weight * flat[at], 0)

        # (2)
        return jnp.abs(stretch) * jnp.sum(read(nearest) + read(beside), axis=1)

    def _spread(self, row, angle):
        n, middle, dtype = self.size, self.size // 2, row.dtype
        steep, turn, stretch = self._marching(angle)
        first, second = jnp.arange(n)[:, None], jnp.arange(n)[None, :]
        march, across = jnp.where(steep, first, second), jnp.where(steep, second, first)
        march, across = ((c - middle).astype(dtype) for c in (march, across))
        # Rays that pass within one pixel: |(s + march turn) stretch - across| < 1 with |stretch| >= 1.
        # A generic threshold: at one half, where rays of round angles lie, two roundings could disagree.
        centre = jnp.floor(across / stretch - march * turn + 0.4973)

        def read(offset):
            s = centre + offset
            weight = jnp.maximum(1 - jnp.abs((s + march * turn) * stretch - across), 0)
            at = s.astype(jnp.int32) + self.detectors // 2
            inside = (at >= 0) & (at < self.detectors)
            return jnp.where(inside, weight * row[jnp.clip(at, 0, self.detectors - 1)], 0)

        return jnp.abs(stretch) * (read(-1) + read(0) + read(1))  # (3)


def filtered_back_projection(operator: Radon, y: Float[Array, "angles detectors"]) -> Float[Array, "n n"]:
    """Return the classical reconstruction from a sinogram: ramp filter, then back-projection.

    Fast and without a prior: streaks where angles are few, noise where they are many. The angles are taken to be
    equally spaced over half a turn.

    Parameters
    ----------
    operator : Radon
        What measured.
    y : Float[Array, "angles detectors"]
        The sinogram; differentiable.

    Returns
    -------
    Float[Array, "n n"]
        The image.

    References
    ----------
    Kak, Slaney, "Principles of Computerized Tomographic Imaging", 1988, (61): the filter is the transform of the
    band-limited ramp's samples, which keeps the mean right.
    """
    y = checks.float_array("filtered_back_projection", "y", y, ndim=2)
    if y.shape != operator.codomain.shape:
        checks.fail("filtered_back_projection", "y", f"of shape {operator.codomain.shape}", f"shape {y.shape}")
    length = max(64, 2 ** int(np.ceil(np.log2(2 * operator.detectors))))
    k = np.fft.fftfreq(length, 1 / length)
    odd = k % 2 != 0
    # (4)
    ramp = np.where(k == 0, 0.25, np.where(odd, -1 / (np.pi * np.where(odd, k, 1)) ** 2, 0))
    spectrum = jnp.fft.rfft(y, length, axis=1)
    transfer = jnp.asarray(np.fft.rfft(ramp).real, spectrum.dtype)
    filtered = jnp.fft.irfft(spectrum * transfer[None, :], length, axis=1)
    filtered = filtered[:, : operator.detectors].astype(y.dtype)
    return jnp.pi / y.shape[0] * operator.transpose_mv(filtered)  # (5)
