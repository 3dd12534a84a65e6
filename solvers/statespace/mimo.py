"""A diagonal state-space layer whose channels share their states (S5)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import choice, fail, known, random_key
from ..core.precision import complex_of, matmul, real_of
from ..core.scans import diagonal_scan
from ..core.typing import Array, Bool, Float
from .diagonal import MODES, RULES, _refuse_unstable, _sequence, powers, sampled
from .initialization import s5


class DiagonalMIMO(eqx.Module):
    """One system ``x' = A x + B u, y = Re(C x) + D u`` of N states for H inputs and outputs, A diagonal (S5).

    (1) ``x_l = a x_(l-1) + b u_l``, a and b of A and B sampled by `rule` with a step for each state
    (2) ``y_l = 2 Re(C x_l) + D u_l`` of one pole of each conjugate pair, otherwise Re without the 2
    (3) ``K_l = 2 Re(C a^l b)``, so that ``y_l = sum_j K_j u_(l-j) + D u_l``
    (4) ``C (s - A)^-1 B + D``: the transfer function

    Fewer states than H separate channels have, and they mix; `DiagonalSSM` keeps channels apart.

    Attributes
    ----------
    log_decay, frequency : Float[Array, "N"]
        Poles ``-exp(log_decay) + i frequency``.
    B : Float[Array, "N H 2"]
        Input weights, real and imaginary parts.
    C : Float[Array, "H N 2"]
        Output weights, real and imaginary parts.
    skip : Float[Array, "H"]
        D, diagonal.
    log_step : Float[Array, "N"]
        Logarithm of the step, one a state.
    pairs : bool
        Outputs are ``2 Re`` of one pole of each conjugate pair; otherwise ``Re``. Static.
    rule : {"zoh", "bilinear"}
        How it is sampled. Static.

    References
    ----------
    J. T. H. Smith, A. Warrington, S. W. Linderman, *Simplified state space layers for sequence modeling*, ICLR 2023.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import DiagonalMIMO
    >>> layer = DiagonalMIMO.create(channels=3, states=8, key=jax.random.key(5))
    >>> u = jnp.ones((50, 3))
    >>> print(bool(jnp.allclose(layer(u), layer.apply(u, mode="fft"), atol=1e-4)))
    True
    """

    log_decay: Float[Array, " N"]
    frequency: Float[Array, " N"]
    B: Float[Array, "N H 2"]
    C: Float[Array, "H N 2"]
    skip: Float[Array, " H"]
    log_step: Float[Array, " N"]
    pairs: bool = eqx.field(static=True)
    rule: str = eqx.field(static=True)

    def __init__(self, poles, B, C, *, step, skip=None, pairs: bool = True, rule: str = "zoh"):
        """Make a layer of given matrices.

        Parameters
        ----------
        poles : complex array, (N,)
            With negative real parts.
        B : complex array, (N, H)
            Input weights.
        C : complex array, (H, N)
            Output weights.
        step : float or array (N,)
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
        name = "DiagonalMIMO"
        choice(name, "rule", rule, RULES)
        poles, B, C = jnp.asarray(poles), jnp.asarray(B), jnp.asarray(C)
        _refuse_unstable(name, poles)
        if poles.ndim != 1 or B.ndim != 2 or B.shape[0] != poles.size or C.shape != B.shape[::-1]:
            fail(name, "B", "(N, H) for poles (N,) and C (H, N)", f"{B.shape} for {poles.shape} and {C.shape}")
        real = real_of(np.result_type(poles.dtype, B.dtype, C.dtype))
        step = jnp.broadcast_to(jnp.asarray(step, real), poles.shape)
        if known(step) and not bool(jnp.all((step > 0) & jnp.isfinite(step))):
            fail(name, "step", "positive", step)
        self.log_decay = jnp.log(-poles.real).astype(real)
        self.frequency = poles.imag.astype(real)
        self.B, self.C = (jnp.stack([x.real, x.imag], -1).astype(real) for x in (B, C))
        self.skip = jnp.zeros(C.shape[0], real) if skip is None else jnp.asarray(skip, real)
        if self.skip.shape != C.shape[:1]:
            fail(name, "skip", f"({C.shape[0]},), one a channel", f"shape {self.skip.shape}")
        self.log_step = jnp.log(step)
        self.pairs, self.rule = pairs, rule

    @classmethod
    def create(
        cls,
        *,
        channels: int,
        states: int,
        key: Array,
        blocks: int = 1,
        steps: tuple[float, float] = (1e-3, 1e-1),
        rule: str = "zoh",
        dtype: Any = None,
    ) -> "DiagonalMIMO":
        """Draw a layer as S5 does: poles of `s5`, ``B = V^H b`` and ``C = c V`` with Gaussian real b and c.

        Parameters
        ----------
        channels, states : int
            H, and the number N of poles kept, one of each conjugate pair.
        key : jax.random.key
            For weights, steps and D.
        blocks : int
            Of the initial matrix; a divisor of N.
        steps : pair of floats
            Range of the log-uniform steps.
        rule : {"zoh", "bilinear"}
            See the attributes.
        dtype : optional
            Real dtype; JAX's default float.

        Returns
        -------
        DiagonalMIMO
            The layer.
        """
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        wide = complex_of(dtype)
        poles, V = s5(2 * states, blocks)
        kept = np.flatnonzero(np.imag(poles) > 0)
        V = jnp.asarray(V[:, kept], wide)
        random_key("DiagonalMIMO.create", "key", key)
        for_b, for_c, for_steps, for_skip = jax.random.split(key, 4)
        b = jax.random.normal(for_b, (2 * states, channels), dtype) / np.sqrt(2 * states).astype(dtype)
        c = jax.random.normal(for_c, (channels, 2 * states), dtype) / np.sqrt(2 * states).astype(dtype)
        low, high = np.log(np.asarray(steps, dtype))
        step = jnp.exp(jax.random.uniform(for_steps, (states,), dtype, low, high))
        skip = jax.random.normal(for_skip, (channels,), dtype)
        B, C = matmul(V.conj().T, b.astype(wide)), matmul(c.astype(wide), V)
        return cls(jnp.asarray(poles[kept], wide), B, C, step=step, skip=skip, rule=rule)

    @property
    def poles(self) -> Array:
        """The poles, complex (N,)."""
        return lax.complex(-jnp.exp(self.log_decay), self.frequency)

    def discretize(self) -> tuple[Array, Array]:
        """Return ``(log a, B)``: states follow ``x_l = a x_(l-1) + B u_l``."""
        log_a, gain = sampled(self.poles, jnp.exp(self.log_step), self.rule)
        return log_a, lax.complex(self.B[..., 0], self.B[..., 1]) * gain[:, None]  # (1)

    def kernel(self, L: int) -> Float[Array, "L H H"]:
        """Return the first L matrices ``[2] Re(C a^l B)``, outputs by inputs, without the skip; O(L H^2 N)."""
        if L < 1:
            fail("DiagonalMIMO.kernel", "L", "a positive integer", L)
        log_a, B = self.discretize()
        C = lax.complex(self.C[..., 0], self.C[..., 1])
        moved = powers(log_a, np.arange(L)).T[:, None, :] * C[None]
        return (2 if self.pairs else 1) * matmul(moved, B[None]).real  # (3)

    def __call__(self, u: Float[Array, "L H"]) -> Float[Array, "L H"]:
        """Return the outputs of one sequence by a scan; see `apply`."""
        return self.apply(u)

    def apply(
        self,
        u: Float[Array, "L H"],
        *,
        mode: str = "scan",
        resets: Bool[Array, " L"] | None = None,
        method: str = "blocked",
    ) -> Float[Array, "L H"]:
        """Return the outputs of one sequence from rest, by one of three routes that agree to rounding.

        Parameters
        ----------
        u : Float[Array, "L H"]
            Inputs, time first.
        mode : {"scan", "fft", "step"}
            "scan": all states at once, memory O(L N). "fft": one convolution a state. "step": one after the other,
            memory O(N). Static.
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
        choice("DiagonalMIMO.apply", "mode", mode, MODES)
        u = _sequence("DiagonalMIMO.apply", u, self.skip)
        if mode == "step":
            return self.stream(self.start(), u, resets=resets)[1]
        log_a, B = self.discretize()
        inputs = matmul(u.astype(B.dtype), B.T)
        if mode == "scan":
            states = diagonal_scan(jnp.exp(log_a), inputs, resets=resets, method=method)  # (1)
        else:
            if resets is not None:
                fail("DiagonalMIMO.apply", "mode", "'scan' or 'step' where there are resets", repr(mode))
            n = 1 << (2 * u.shape[0] - 1).bit_length()
            K = powers(log_a, np.arange(u.shape[0])).T
            spectrum = jnp.fft.fft(K, n, axis=0) * jnp.fft.fft(inputs, n, axis=0)
            states = jnp.fft.ifft(spectrum, n, axis=0)[: u.shape[0]]
        return self._read(states) + self.skip[None] * u  # (2)

    def start(self) -> Array:
        """Return the state of a layer at rest, complex (N,)."""
        return jnp.zeros_like(self.poles)

    def step(self, state: Array, u: Float[Array, " H"]) -> tuple[Array, Float[Array, " H"]]:
        """Return the next state and the output of one input."""
        log_a, B = self.discretize()
        state = jnp.exp(log_a) * state + matmul(B, u.astype(B.dtype))  # (1)
        return state, self._read(state) + self.skip * u

    def stream(
        self, state: Array, u: Float[Array, "L H"], *, resets: Bool[Array, " L"] | None = None
    ) -> tuple[Array, Float[Array, "L H"]]:
        """Return the state after a piece of a sequence, and the piece's outputs."""
        u = _sequence("DiagonalMIMO.stream", u, self.skip)
        log_a, B = self.discretize()
        a = jnp.exp(log_a)

        def one(state, given):
            u, kept = given
            state = a * state * kept + matmul(B, u.astype(B.dtype))  # (1)
            return state, self._read(state) + self.skip * u

        kept = jnp.ones(u.shape[0], B.dtype) if resets is None else (~resets).astype(B.dtype)
        return lax.scan(one, state, (u, kept))

    def transfer(self, s: Array) -> Array:
        """Return ``C (s - A)^-1 B + D`` at complex points s (...,): (..., H, H)."""
        s = jnp.asarray(s, self.poles.dtype)
        B, C = lax.complex(self.B[..., 0], self.B[..., 1]), lax.complex(self.C[..., 0], self.C[..., 1])
        lead = (1,) * s.ndim

        def through(poles, B, C):
            resolvent = 1 / (s[..., None] - poles.reshape((*lead, -1)))
            return matmul(C.reshape(lead + C.shape) * resolvent[..., None, :], B.reshape(lead + B.shape))

        both = through(self.poles, B, C) + through(self.poles.conj(), B.conj(), C.conj())
        skip = jnp.diag(self.skip).astype(both.dtype)
        # (4)
        return (both if self.pairs else 0.5 * both) + skip.reshape(lead + skip.shape)

    def _read(self, states):
        real = matmul(states.real, self.C[..., 0].T) - matmul(states.imag, self.C[..., 1].T)
        return (2 if self.pairs else 1) * real  # (2)
