"""The transfer function of a linear system, and a certified distance between two of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core.checks import fail


class LinearSystem(NamedTuple):
    """``x' = A x + B u, y = C x + D u``.

    Attributes
    ----------
    A : (N, N), or (N,) for a diagonal
        Dynamics; real or complex.
    B : (N,) or (N, inputs)
        Input weights.
    C : (N,) or (outputs, N)
        Output weights.
    D : scalar or (outputs, inputs)
        What passes by the states.
    """

    A: Any
    B: Any
    C: Any
    D: Any = 0.0


class HinfDistance(NamedTuple):
    """A certified interval for ``sup_w |G1(iw) - G2(iw)|_2``, made by `hinf_distance`.

    Attributes
    ----------
    lower, upper : float
        The distance lies between them, up to rounding.
    frequency : float
        Where the lower bound is attained; infinite when it is the limit at infinity.
    converged : bool
        Whether ``error <= width``.
    evaluations : int
        Of the transfer functions.
    """

    lower: float
    upper: float
    frequency: float
    converged: bool
    evaluations: int

    @property
    def error(self) -> float:
        """``(upper - lower) / upper``; zero where both vanish, infinite where there is no upper bound yet."""
        if not np.isfinite(self.upper):
            return np.inf
        return (self.upper - self.lower) / self.upper if self.upper > 0 else 0.0


def transfer(system: LinearSystem, s: Any) -> Any:
    """Return ``C (s - A)^-1 B + D`` at complex points s.

    Parameters
    ----------
    system : LinearSystem
        Its arrays are differentiable.
    s : complex array, (...,)
        Where; not an eigenvalue of A.

    Returns
    -------
    complex array, (...,) or (..., outputs, inputs)
        A scalar at each point when B and C are vectors.

    Raises
    ------
    ValueError
        For shapes that do not fit.

    Notes
    -----
    O(N) a point for a diagonal A, one dense solve otherwise.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers.statespace import LinearSystem, transfer
    >>> print(transfer(LinearSystem(jnp.array([-1.0]), jnp.ones(1), jnp.ones(1)), jnp.array(1.0)).real)
    0.5
    """
    A, B, C, D, scalar = _matrices("transfer", system, jnp)
    dtype = np.result_type(A.dtype, B.dtype, C.dtype, np.complex64)
    A, B, C, D, s = (jnp.asarray(x, dtype) for x in (A, B, C, D, s))
    flat = s.reshape(-1)
    if A.ndim == 1:
        X = B[None] / (flat[:, None] - A[None])[..., None]
    else:
        eye = jnp.eye(A.shape[0], dtype=dtype)
        X = jnp.linalg.solve(flat[:, None, None] * eye[None] - A[None], jnp.broadcast_to(B, (flat.size, *B.shape)))
    G = jnp.einsum("on,sni->soi", C, X, precision="highest") + D[None]
    return G[:, 0, 0].reshape(s.shape) if scalar else G.reshape(*s.shape, *G.shape[1:])


def hinf_distance(
    first: LinearSystem, second: LinearSystem, *, width: float = 1e-2, max_evaluations: int = 200_000
) -> HinfDistance:
    """Return an interval that contains ``sup_w |G1(iw) - G2(iw)|_2``, of relative width `width` where it converged.

    Certified: between the frequencies that were looked at, a bound on the resolvent says how much can happen. On the
    host, in double precision.

    Parameters
    ----------
    first, second : LinearSystem
        Stable, with as many inputs and outputs each.
    width : float
        Converged at ``(upper - lower) / upper <= width``.
    max_evaluations : int
        After as many the interval found so far is returned, as not converged.

    Returns
    -------
    HinfDistance
        Bounds, where the lower one is attained, and whether they meet.

    Raises
    ------
    ValueError
        For shapes that do not fit, entries that are not finite and systems that are not stable.

    Notes
    -----
    Branch and bound over intervals of frequencies. With E the difference and ``R(w) = (iw - A)^-1``, on an interval of
    half-width h about w with ``rho = h |R| < 1``,
    ``|E(v)| <= |E(w)| + h |C R^2 B| + h^2 |C R| |R| |R B| / (1 - rho)^3``, summed over both systems. ``|R(w)|`` is at
    most ``1 / (-alpha)`` for a numerical abscissa alpha < 0 and one over the distance to the poles of a diagonal A, and
    the inverse of the smallest singular value otherwise. From W on, ``|E| <= |D| + |C| |B| / (W - |A|)``.
    Rounding in the evaluations, of order eps times the condition of ``iw - A``, is not enclosed.
    A bisection on Hamiltonian eigenvalues would take fewer steps, but those of HiPPO matrices, with eigenvectors of
    condition 1e19, cannot be told from imaginary ones.

    Examples
    --------
    >>> import numpy as np
    >>> from solvers.statespace import LinearSystem, hinf_distance
    >>> one, two = (LinearSystem(np.array([-p]), np.ones(1), np.ones(1)) for p in (1.0, 2.0))
    >>> found = hinf_distance(one, two)  # 1/(s+1) - 1/(s+2) is largest at s = 0
    >>> print(found.converged, round(found.lower, 4))
    True 0.5
    """
    name = "hinf_distance"
    sides = []
    for argument, system in (("first", first), ("second", second)):
        A, B, C, D, _ = _matrices(name, system, np, argument)
        if not all(np.all(np.isfinite(x)) for x in (A, B, C, D)):
            fail(name, argument, "finite", "NaN or infinity")
        sides.append(_Side(A, B, C, D))
        if not np.max((A if A.ndim == 1 else np.linalg.eigvals(A)).real) < 0:
            fail(name, argument, "stable, with eigenvalues of negative real part", "one that is not")
    one, two = sides
    D = one.D - two.D
    if one.B.shape[1] != two.B.shape[1] or one.C.shape[0] != two.C.shape[0]:
        fail(name, "second", "of as many inputs and outputs as `first`", f"{two.C.shape[0]} x {two.B.shape[1]}")
    top = 2 * max(one.norm, two.norm) + 1.0
    edges = np.concatenate([[0.0], np.geomspace(top * 1e-3, top, 64)])
    low, high = edges[:-1], edges[1:]
    if any(np.iscomplexobj(x) for side in sides for x in side[:4]):
        low, high = np.concatenate([low, -high]), np.concatenate([high, -low])
        both = True
    else:
        both = False
    lower, frequency, count = float(np.linalg.norm(D, 2)), np.inf, 0
    settled = lower
    while True:
        if not low.size:
            tail = float(np.linalg.norm(D, 2)) + sum(s.tail / (top - s.norm) for s in sides)
            if tail * (1 - width) <= lower or count >= max_evaluations:
                settled = max(settled, tail)
                break
            low, high, top = np.array([top]), np.array([2 * top]), 2 * top
            if both:
                low, high = np.append(low, -high), np.append(high, -low[:1])
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        value, bound = _bounds(one, two, D, middle, half)
        count += middle.size
        best = int(np.argmax(value))
        if value[best] > lower:
            lower, frequency = float(value[best]), float(middle[best])
        open_ = bound * (1 - width) > lower
        settled = max(settled, float(np.max(bound[~open_], initial=0.0)))
        if count >= max_evaluations:
            tail = float(np.linalg.norm(D, 2)) + sum(s.tail / (top - s.norm) for s in sides)
            settled = max(settled, float(np.max(bound[open_], initial=0.0)), tail)
            break
        low, high, middle = low[open_], high[open_], middle[open_]
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    upper = max(settled, lower)
    return HinfDistance(lower, upper, frequency, bool(np.isfinite(upper) and upper - lower <= width * upper), count)


class _Side(NamedTuple):
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray

    @property
    def norm(self) -> float:
        return float(np.max(np.abs(self.A)) if self.A.ndim == 1 else np.linalg.norm(self.A, 2))

    @property
    def tail(self) -> float:
        return float(np.linalg.norm(self.B, 2) * np.linalg.norm(self.C, 2))


def _bounds(one: _Side, two: _Side, D, middle, half):
    """Return ``|E|`` at the midpoints and a bound on it over each interval; small pieces bound the memory."""
    value, bound = np.empty(middle.size), np.empty(middle.size)
    for k in range(0, middle.size, 256):
        piece = slice(k, k + 256)
        h = half[piece]
        parts = [_resolved(side, middle[piece]) for side in (one, two)]
        E = parts[0].G - parts[1].G + D
        slope = _norms(parts[0].slope - parts[1].slope)
        rest = np.zeros_like(h)
        for p in parts:
            room = 1 - h * p.resolvent
            rest += np.where(room > 0, h**2 * p.CR * p.resolvent * p.RB / np.where(room > 0, room, 1) ** 3, np.inf)
        value[piece] = _norms(E)
        bound[piece] = value[piece] + h * slope + rest
    return value, bound


class _Resolved(NamedTuple):
    G: np.ndarray
    slope: np.ndarray
    CR: np.ndarray
    RB: np.ndarray
    resolvent: np.ndarray


def _resolved(side: _Side, w) -> _Resolved:
    A, B, C, _ = side
    if A.ndim == 1:
        R = 1 / (1j * w[:, None] - A)
        RB, CR, size = R[..., None] * B, R[:, None, :] * C, np.max(np.abs(R), 1)
    else:
        M = 1j * w[:, None, None] * np.eye(A.shape[0]) - A
        RB = np.linalg.solve(M, np.broadcast_to(B, (w.size, *B.shape)))
        CR = np.linalg.solve(M.swapaxes(1, 2), np.broadcast_to(C.T, (w.size, *C.T.shape))).swapaxes(1, 2)
        alpha = np.linalg.eigvalsh(0.5 * (A + A.conj().T))[-1]
        if alpha < 0:
            size = np.full(w.size, -1 / alpha)
            norm = side.norm
            size = np.where(np.abs(w) > norm, np.minimum(size, 1 / np.maximum(np.abs(w) - norm, 1e-300)), size)
        else:
            size = 1 / np.linalg.svd(M, compute_uv=False)[:, -1]
    return _Resolved(C @ RB, CR @ RB, _norms(CR), _norms(RB), size)


def _norms(M):
    """Spectral norms of a stack of matrices."""
    return np.linalg.norm(M[:, 0], axis=-1) if M.shape[1] == 1 else np.linalg.norm(M, 2, axis=(1, 2))


def _matrices(function: str, system, numpy, argument: str = "system"):
    """Return A, B (N, inputs), C (outputs, N), D and whether input and output are one number each."""
    A, B, C, D = (numpy.asarray(x) for x in system)
    scalar = B.ndim == 1 and C.ndim == 1
    B, C = B[:, None] if B.ndim == 1 else B, C[None] if C.ndim == 1 else C
    n = A.shape[0] if A.ndim else 0
    if A.ndim not in (1, 2) or n == 0 or A.shape != (n,) * A.ndim or B.shape[0] != n or C.shape[1] != n:
        fail(function, argument, "A (N, N) or (N,), B (N, ...), C (..., N)", f"{A.shape}, {B.shape}, {C.shape}")
    D = numpy.broadcast_to(D, (C.shape[0], B.shape[1])) if D.ndim == 0 else D
    if D.shape != (C.shape[0], B.shape[1]):
        fail(function, argument, f"with D {(C.shape[0], B.shape[1])}", f"shape {D.shape}")
    return A, B, C, D, scalar
