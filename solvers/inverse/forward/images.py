"""Operators on images: masks, blurs, block averages, Fourier samples."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import checks
from ...core.operators import LinearOperator
from ...core.typing import Array, Float


class Mask(LinearOperator):
    """Keeps some entries and sets the others to zero: ``(A x)_i = mask_i x_i``.

    Attributes
    ----------
    mask : Float[Array, "..."]
        Of the shape and dtype of x; zeros and ones, or weights. Differentiable.
    """

    mask: Float[Array, "..."]

    def __init__(self, mask: Any):
        self.mask = checks.float_array("Mask", "mask", mask)

    @property
    def domain(self):
        """Arrays like the mask."""
        return jax.ShapeDtypeStruct(self.mask.shape, self.mask.dtype)

    def mv(self, x):
        """Return ``mask x``."""
        return self.mask * x

    def transpose_mv(self, y):
        """Return ``mask y``."""
        return self.mask * y


class Blur(LinearOperator):
    """Convolution with a kernel over the last axes, by fast Fourier transforms.

    ``(A x)_i = sum_k kernel_k x_(i - k)`` with k counted from the kernel's middle entry ``size // 2``.

    Parameters
    ----------
    kernel : Float[Array, "..."]
        With as many axes as are convolved; no longer than the image. Differentiable.
    shape : tuple of int
        Of x; static.
    boundary : str
        "periodic", or "zero" beyond the edges. Static.
    """

    kernel: Float[Array, "..."]
    shape: tuple[int, ...] = eqx.field(static=True)
    boundary: str = eqx.field(static=True)

    def __init__(self, kernel: Any, shape: tuple[int, ...], *, boundary: str = "periodic"):
        self.kernel = checks.float_array("Blur", "kernel", kernel)
        self.shape = tuple(shape)
        self.boundary = boundary
        checks.choice("Blur", "boundary", boundary, ("periodic", "zero"))
        last = self.shape[len(self.shape) - self.kernel.ndim :]
        if self.kernel.ndim > len(self.shape) or any(k > n for k, n in zip(self.kernel.shape, last, strict=True)):
            checks.fail("Blur", "kernel", f"no larger than `shape` = {self.shape}", f"shape {self.kernel.shape}")

    @property
    def domain(self):
        """Arrays of that shape, in the kernel's dtype."""
        return jax.ShapeDtypeStruct(self.shape, self.kernel.dtype)

    def mv(self, x):
        """Return the convolution."""
        axes = tuple(range(x.ndim - self.kernel.ndim, x.ndim))
        last = [x.shape[a] for a in axes]
        width = self.kernel.shape
        size = last if self.boundary == "periodic" else [n + k - 1 for n, k in zip(last, width, strict=True)]
        transfer = jnp.fft.rfftn(self.kernel, size)
        transfer = transfer.reshape((1,) * (x.ndim - self.kernel.ndim) + transfer.shape)
        full = jnp.fft.irfftn(jnp.fft.rfftn(x, size, axes) * transfer, size, axes)
        if self.boundary == "periodic":
            return jnp.roll(full, [-(k // 2) for k in width], axes)
        for axis, n, k in zip(axes, last, width, strict=True):
            full = jax.lax.slice_in_dim(full, k // 2, k // 2 + n, axis=axis)
        return full


class Downsample(LinearOperator):
    """Averages over blocks of the last axes.

    Attributes
    ----------
    factors : tuple of int
        Block lengths of the last axes; they must divide the shape. Static.
    like : jax.ShapeDtypeStruct
        Shape and dtype of x; static.
    """

    factors: tuple[int, ...] = eqx.field(static=True)
    like: jax.ShapeDtypeStruct = eqx.field(static=True)

    def __init__(self, factors: tuple[int, ...], like: Any):
        self.factors = tuple(factors)
        self.like = jax.ShapeDtypeStruct(jnp.shape(like), like.dtype)
        last = self.like.shape[len(self.like.shape) - len(self.factors) :]
        if len(last) != len(self.factors) or any(n % f for n, f in zip(last, self.factors, strict=True)):
            checks.fail("Downsample", "factors", f"divisors of the last axes of {self.like.shape}", self.factors)

    @property
    def domain(self):
        """Arrays of that shape."""
        return self.like

    def mv(self, x):
        """Return the averages."""
        fixed = x.ndim - len(self.factors)
        split, axes = list(x.shape[:fixed]), []
        for n, f in zip(x.shape[fixed:], self.factors, strict=True):
            split += [n // f, f]
            axes.append(len(split) - 1)
        return jnp.sum(x.reshape(split), axis=tuple(axes)) * (1 / math.prod(self.factors))


class FourierSampling(LinearOperator):
    """Some of the orthonormal Fourier coefficients of a real image: ``A x = mask F x``, as in magnetic resonance.

    Real and imaginary parts stand in a last axis of length two, so that the adjoint is that of real vectors.

    Attributes
    ----------
    mask : Float[Array, "..."]
        Of the shape of x, zero frequency first; zeros and ones, or weights. Differentiable.
    """

    mask: Float[Array, "..."]

    def __init__(self, mask: Any):
        self.mask = checks.float_array("FourierSampling", "mask", mask)

    @property
    def domain(self):
        """Arrays like the mask."""
        return jax.ShapeDtypeStruct(self.mask.shape, self.mask.dtype)

    def mv(self, x):
        """Return real and imaginary parts of the masked coefficients."""
        coefficients = jnp.fft.fftn(x, norm="ortho")
        return jnp.stack([self.mask * coefficients.real, self.mask * coefficients.imag], axis=-1)

    def transpose_mv(self, y):
        """Return the real part of the inverse transform of the masked coefficients."""
        return jnp.fft.ifftn(jax.lax.complex(self.mask * y[..., 0], self.mask * y[..., 1]), norm="ortho").real
