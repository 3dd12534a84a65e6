"""Diagonal state-space layers: many one-dimensional convolutions whose kernels are sums of exponentials."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import choice, fail, known, random_key
from ..core.precision import HIGHEST, complex_of, eps, real_of
from ..core.scans import diagonal_scan
from ..core.typing import Array, Bool, Float
from .initialization import s4d_inv, s4d_legs, s4d_lin, s4d_real

RULES = ("zoh", "bilinear")
MODES = ("fft", "scan", "step")
ROOM = 1 << 17
"""Complex powers that are held at once when a kernel is made."""
POLES = {"s4d_lin": s4d_lin, "s4d_inv": s4d_inv, "s4d_legs": s4d_legs, "s4d_real": s4d_real}


class DiagonalSSM(eqx.Module):
    """H independent channels ``x' = A x + B u, y = C x + D u`` with diagonal A, sampled with a step for each (S4D).

    Only the product of B and C matters, so one weight a pole is kept. Stable by construction: the real parts of the
    poles are ``-exp(log_decay)``. Differentiable in every array. `DiagonalMIMO` mixes channels through its states.

    Attributes
    ----------
    log_decay, frequency : Float[Array, "H N"]
        Poles ``-exp(log_decay) + i frequency``.
    weights : Float[Array, "H N 2"]
        Real and imaginary parts of ``C B``.
    skip : Float[Array, "H"]
        D.
    log_step : Float[Array, "H"]
        Logarithm of the sampling step.
    pairs : bool
        Each pole stands for itself and its conjugate, so that outputs are ``2 Re``; otherwise ``Re``. Static.
    rule : {"zoh", "bilinear"}
        How it is sampled: inputs held constant over a step, or the trapezoidal rule. Static.

    Notes
    -----
    (1) ``a = e^(h A),  w = C B (a - 1) / A`` for "zoh"
    (2) ``a = (1 + h A / 2) / (1 - h A / 2),  w = C B h / (1 - h A / 2)`` for "bilinear"
    (3) ``K_l = 2 Re sum_n w_n a_n^l + D [l = 0]``
    (4) ``x_l = a x_(l-1) + u_l,  y_l = 2 Re w x_l + D u_l``
    (5) ``C (s - A)^-1 B + D``, the transfer function

    Kernels are made in two levels, ``l = b i + j``: powers ``a^(b i)`` and ``a^j`` and one contraction over n, so
    nothing of size H N L exists. Rounding of ``l h A`` turns phases by ``eps |l h A|``, in float32 visible where
    ``|h A|`` is large and the decay slow.

    References
    ----------
    A. Gu, A. Gupta, K. Goel, C. Re, *On the parameterization and initialization of diagonal state space models*,
    NeurIPS 2022.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import DiagonalSSM
    >>> layer = DiagonalSSM.create("s4d_lin", channels=3, states=8, key=jax.random.key(5))
    >>> u = jnp.ones((100, 3))
    >>> y = layer(u)
    >>> print(y.shape, bool(jnp.allclose(y, layer.apply(u, mode="step"), atol=1e-4)))
    (100, 3) True
    """

    log_decay: Float[Array, "H N"]
    frequency: Float[Array, "H N"]
    weights: Float[Array, "H N 2"]
    skip: Float[Array, " H"]
    log_step: Float[Array, " H"]
    pairs: bool = eqx.field(static=True)
    rule: str = eqx.field(static=True)

    def __init__(self, poles, weights, *, step, skip=None, pairs: bool = True, rule: str = "zoh"):
        """Make a layer of given poles.

        Parameters
        ----------
        poles : complex array, (N,) or (H, N)
            With negative real parts; the same for all channels, or each its own.
        weights : complex array, (N,) or (H, N)
            ``C B``.
        step : float or array (H,)
            Sampling steps; positive.
        skip : array (H,), optional
            D; zero by default.
        pairs, rule
            See the attributes.

        Raises
        ------
        ValueError
            For poles that are not stable, steps that are not positive, and shapes that do not fit.
        """
        name = "DiagonalSSM"
        choice(name, "rule", rule, RULES)
        poles, weights = jnp.asarray(poles), jnp.asarray(weights)
        _refuse_unstable(name, poles)
        real = real_of(np.result_type(poles.dtype, weights.dtype))
        step = jnp.asarray(step, real)
        if known(step) and not bool(jnp.all((step > 0) & jnp.isfinite(step))):
            fail(name, "step", "positive", step)
        shape = jnp.broadcast_shapes(jnp.atleast_2d(poles).shape, jnp.atleast_2d(weights).shape, (step.size, 1))
        skip = jnp.zeros(shape[0], real) if skip is None else jnp.asarray(skip, real)
        if skip.shape != shape[:1]:
            fail(name, "skip", f"({shape[0]},), one a channel", f"shape {skip.shape}")
        poles, weights = (jnp.broadcast_to(jnp.atleast_2d(x), shape) for x in (poles, weights))
        self.log_decay = jnp.log(-poles.real).astype(real)
        self.frequency = poles.imag.astype(real)
        self.weights = jnp.stack([weights.real, weights.imag], -1).astype(real)
        self.skip = skip
        self.log_step = jnp.log(jnp.broadcast_to(step.reshape(-1), shape[:1]))
        self.pairs, self.rule = pairs, rule

    @classmethod
    def create(
        cls,
        kind: str,
        *,
        channels: int,
        states: int,
        key: Array,
        steps: tuple[float, float] = (1e-3, 1e-1),
        rule: str = "zoh",
        dtype: Any = None,
    ) -> "DiagonalSSM":
        """Draw a layer as S4D does: given poles, Gaussian weights, steps log-uniform in a range, ``D`` Gaussian.

        Parameters
        ----------
        kind : {"s4d_lin", "s4d_inv", "s4d_legs", "s4d_real"}
            Poles. For those of `ptd`, which are no conjugate pairs, call the class with ``pairs=False``.
        channels, states : int
            H, and the number N of poles, each with its conjugate.
        key : jax.random.key
            For weights, steps and D.
        steps : pair of floats
            Range of the steps.
        rule : {"zoh", "bilinear"}
            See the attributes.
        dtype : optional
            Real dtype; JAX's default float.

        Returns
        -------
        DiagonalSSM
            The layer.
        """
        choice("DiagonalSSM.create", "kind", kind, tuple(POLES))
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        random_key("DiagonalSSM.create", "key", key)
        for_weights, for_steps, for_skip = jax.random.split(key, 3)
        both = jax.random.normal(for_weights, (2, channels, states), dtype) * np.sqrt(0.5).astype(dtype)
        low, high = np.log(np.asarray(steps, dtype))
        log_step = jax.random.uniform(for_steps, (channels,), dtype, low, high)
        poles = jnp.asarray(POLES[kind](states), complex_of(dtype))
        skip = jax.random.normal(for_skip, (channels,), dtype)
        return cls(poles, lax.complex(both[0], both[1]), step=jnp.exp(log_step), skip=skip, rule=rule)

    @property
    def poles(self) -> Array:
        """The poles, complex (H, N)."""
        return lax.complex(-jnp.exp(self.log_decay), self.frequency)

    def discretize(self) -> tuple[Array, Array]:
        """Return ``(log a, w)``, both complex (H, N): states follow ``x_l = a x_(l-1) + u_l`` and outputs ``w x``."""
        step = jnp.exp(self.log_step)[:, None]
        log_a, gain = sampled(self.poles, step, self.rule)
        return log_a, lax.complex(self.weights[..., 0], self.weights[..., 1]) * gain

    def kernel(self, L: int, *, block: int | None = None) -> Float[Array, "H L"]:
        """Return the first L entries of the kernels, without the skip.

        Parameters
        ----------
        L : int
            Static length.
        block : int, optional
            Static length of the lower level; about ``sqrt(L)`` by default.

        Returns
        -------
        Float[Array, "H L"]
            The kernels, at a cost of O(H N sqrt(L)) exponentials and 4 H N L operations; channels go in groups, so that
            beyond the result itself some megabytes are enough.
        """
        if L < 1:
            fail("DiagonalSSM.kernel", "L", "a positive integer", L)
        block = 1 << max(int(np.log2(L)) + 1, 0) // 2 if block is None else block
        log_a, w = self.discretize()
        w, rows = (2 * w if self.pairs else w), -(-L // block)

        def one(given):
            log_a, w = given
            low = powers(log_a, np.arange(block))
            high = powers(log_a, block * np.arange(rows)) * w[:, None]
            left = jnp.concatenate([high.real, -high.imag])
            right = jnp.concatenate([low.real, low.imag])
            return jnp.matmul(left.T, right, precision=HIGHEST)  # (3)

        together = max(1, ROOM // (log_a.shape[1] * (block + rows)))
        all_at_once = together >= log_a.shape[0]
        K = jax.vmap(one)((log_a, w)) if all_at_once else lax.map(one, (log_a, w), batch_size=together)
        return K.reshape(K.shape[0], -1)[:, :L]

    def __call__(self, u: Float[Array, "L H"]) -> Float[Array, "L H"]:
        """Return the outputs of one sequence; see `apply`."""
        return self.apply(u)

    def apply(
        self,
        u: Float[Array, "L H"],
        *,
        mode: str = "fft",
        resets: Bool[Array, " L"] | None = None,
        method: str = "blocked",
    ) -> Float[Array, "L H"]:
        """Return the outputs of one sequence from rest, by one of three routes that agree to rounding.

        Parameters
        ----------
        u : Float[Array, "L H"]
            Inputs, time first.
        mode : {"fft", "scan", "step"}
            "fft": convolution with the kernel, O(L log L) a channel, the fastest for training. "scan": all states at
            once, memory O(L H N). "step": one after the other, memory O(H N), as in generation. Static.
        resets : Bool[Array, "L"], optional
            Steps before which the state is forgotten; not with "fft".
        method : {"blocked", "associative", "sequential"}
            How "scan" goes, see `solvers.core.scans.diagonal_scan`. Static.

        Returns
        -------
        Float[Array, "L H"]
            Outputs.

        Raises
        ------
        ValueError, TypeError
            For shapes, dtypes or options that do not fit.
        """
        choice("DiagonalSSM.apply", "mode", mode, MODES)
        u = _sequence("DiagonalSSM.apply", u, self.skip)
        if mode == "fft":
            if resets is not None:
                fail("DiagonalSSM.apply", "mode", "'scan' or 'step' where there are resets", repr(mode))
            return convolve(self.kernel(u.shape[0]).T, u) + self.skip[None] * u
        if mode == "step":
            return self.stream(self.start(), u, resets=resets)[1]
        log_a, w = self.discretize()
        inputs = jnp.broadcast_to(u[..., None], (*u.shape, w.shape[1])).astype(w.dtype)
        states = diagonal_scan(jnp.exp(log_a), inputs, resets=resets, method=method)  # (4)
        return self._read(w[None], states) + self.skip[None] * u

    def start(self) -> Array:
        """Return the state of a layer at rest, complex (H, N)."""
        return jnp.zeros_like(self.poles)

    def step(self, state: Array, u: Float[Array, " H"]) -> tuple[Array, Float[Array, " H"]]:
        """Return the next state and the output of one input."""
        log_a, w = self.discretize()
        state = jnp.exp(log_a) * state + u[:, None].astype(w.dtype)  # (4)
        return state, self._read(w, state) + self.skip * u

    def stream(
        self, state: Array, u: Float[Array, "L H"], *, resets: Bool[Array, " L"] | None = None
    ) -> tuple[Array, Float[Array, "L H"]]:
        """Return the state after a piece of a sequence, and the piece's outputs."""
        u = _sequence("DiagonalSSM.stream", u, self.skip)
        log_a, w = self.discretize()
        a, u = jnp.exp(log_a), u.astype(w.dtype)

        def one(state, given):
            u, kept = given
            state = a * state * kept + u[:, None]  # (4)
            return state, self._read(w, state) + self.skip * u.real

        kept = jnp.ones(u.shape[0], u.dtype) if resets is None else (~resets).astype(u.dtype)
        return lax.scan(one, state, (u, kept))

    def transfer(self, s: Array) -> Array:
        """Return ``C (s - A)^-1 B + D`` of all channels at complex points s (...,): (..., H)."""
        s = jnp.asarray(s, self.poles.dtype)[..., None, None]
        w = lax.complex(self.weights[..., 0], self.weights[..., 1])
        poles, w = (x.reshape((1,) * (s.ndim - 2) + x.shape) for x in (self.poles, w))
        G = w / (s - poles)  # (5)
        both = G + w.conj() / (s - poles.conj())
        total = jnp.sum(both, -1) * (1.0 if self.pairs else 0.5)
        return total + self.skip.astype(total.dtype).reshape((1,) * (s.ndim - 2) + (-1,))

    def _read(self, w, state):
        return (2 if self.pairs else 1) * jnp.sum(w.real * state.real - w.imag * state.imag, -1)


def sampled(poles, step, rule: str):
    """Return ``(log a, gain)``: what one step does to the state, and to an input held over it."""
    step = step.astype(poles.dtype)
    z = step * poles
    if rule == "zoh":
        return z, jnp.expm1(z) / poles  # (1)
    half = z / 2
    # a = (1 + half) / (1 - half) vanishes at half = -1: keep its logarithm finite there
    least = eps(half.real.dtype)
    half = jnp.where(jnp.abs(1 + half) < least, half + least, half)
    return jnp.log1p(half) - jnp.log1p(-half), step / (1 - z / 2)  # (2)


def powers(log_a, exponents: np.ndarray):
    """Return ``a^e`` along a new last axis."""
    e = jnp.asarray(exponents, log_a.real.dtype).reshape((1,) * log_a.ndim + (-1,))
    size, angle = jnp.exp(log_a.real[..., None] * e), log_a.imag[..., None] * e
    return lax.complex(size * jnp.cos(angle), size * jnp.sin(angle))


def convolve(K: Float[Array, "L H"], u: Float[Array, "L H"]) -> Float[Array, "L H"]:
    """Return the causal convolutions ``y_l = sum_j K_j u_(l-j)``, one a column, by a padded transform."""
    L = u.shape[0]
    n = 1 << (2 * L - 1).bit_length()
    return jnp.fft.irfft(jnp.fft.rfft(K, n, axis=0) * jnp.fft.rfft(u, n, axis=0), n, axis=0)[:L]


def _refuse_unstable(function: str, poles) -> None:
    if known(poles) and not bool(jnp.all(poles.real < 0)):
        fail(function, "poles", "stable, with negative real parts", f"a real part of {jnp.max(poles.real):.3g}")


def _sequence(function: str, u, like):
    u = jnp.asarray(u)
    if u.ndim != 2 or u.shape[1] != like.shape[0] or not u.shape[0]:
        fail(function, "u", f"(L, {like.shape[0]}) with L >= 1", f"shape {u.shape}")
    if u.dtype != like.dtype:
        fail(function, "u", f"of the layer's dtype {like.dtype}", u.dtype, TypeError)
    return u
