"""Where diagonal state-space models start: HiPPO matrices and the poles that S4D, S5 and perturbation make of them.

HiPPO (Gu et al., NeurIPS 2020; ICLR 2023), with n, k from 0, and the poles of S4D (Gu et al., NeurIPS 2022), M states:

(1) ``A_nk = -sqrt((2n+1)(2k+1))`` for n > k, ``-(n+1)`` for n = k, 0 above; ``B_n = sqrt(2n+1)``: LegS
(2) ``A_nk = -sqrt((2n+1)(2k+1))``, times ``(-1)^(k-n)`` for n < k; ``B_n = sqrt(2n+1)``: LegT
(3) ``A_nk = -1`` for n > k, ``-1/2`` for n = k, 0 above; ``B_n = 1``: LagT
(4) ``-1/2 + i pi n``: Lin
(5) ``-1/2 + i (M / pi) (M / (2n+1) - 1)``: Inv
(6) ``-(n+1)``: Real
(7) ``A + P P^T = -I/2 + skew,  P_n = sqrt(n + 1/2)``, whose eigenvalues are LegS's and S5's
"""

from __future__ import annotations

import numpy as np

from ..core.checks import choice, fail
from .perturbation import perturb_then_diagonalize

KINDS = ("legs", "legt", "lagt")


def hippo(kind: str, N: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(A, B)`` of ``x' = A x + B u``, whose states are the past of u in orthogonal polynomials.

    Parameters
    ----------
    kind : {"legs", "legt", "lagt"}
        "legs": scaled Legendre polynomials, ``(e^(At) B)_n = sqrt(2n+1) e^-t P_n(2e^-t - 1)`` exactly. "legt": Legendre
        polynomials on a sliding window of length one, in the limit of many states. "lagt": Laguerre functions,
        ``(e^(At) B)_n = e^(-t/2) L_n(t)`` exactly.
    N : int
        Number of states.

    Returns
    -------
    A : numpy.ndarray, (N, N), float64
        The matrix, in double precision on the host.
    B : numpy.ndarray, (N,), float64
        The input's weights.

    Raises
    ------
    ValueError
        For an unknown kind or a number of states below one.

    References
    ----------
    A. Gu, T. Dao, S. Ermon, A. Rudra, C. Re, *HiPPO: recurrent memory with optimal polynomial projections*, NeurIPS
    2020; the bases are those of A. Gu, I. Johnson, A. Timalsina, A. Rudra, C. Re, *How to train your HiPPO*, ICLR 2023.

    Examples
    --------
    >>> from solvers.statespace import hippo
    >>> A, B = hippo("lagt", 2)
    >>> print(A)
    [[-0.5  0. ]
     [-1.  -0.5]]
    """
    choice("hippo", "kind", kind, KINDS)
    n = _sizes("hippo", N)
    row, column = n[:, None], n[None, :]
    below = row > column
    if kind == "lagt":
        return np.where(below, -1.0, 0.0) - 0.5 * np.eye(N), np.ones(N)  # (3)
    root = np.sqrt(2 * n + 1.0)
    outer = root[:, None] * root[None, :]
    if kind == "legs":
        return np.where(below, -outer, 0.0) - np.diag(n + 1.0), root  # (1)
    # (2)
    return -outer * np.where(row < column, (-1.0) ** (column - row), 1.0), root


def s4d_lin(N: int) -> np.ndarray:
    """Return poles ``-1/2 + i pi n``: those of S4D-Lin, one of each conjugate pair.

    Parameters
    ----------
    N : int
        Number of poles, that is half the number of states.

    Returns
    -------
    numpy.ndarray, (N,), complex128
        The poles.
    """
    return -0.5 + 1j * np.pi * _sizes("s4d_lin", N)  # (4)


def s4d_inv(N: int) -> np.ndarray:
    """Return poles ``-1/2 + i (M / pi) (M / (2n+1) - 1)``, ``M = 2 N``: those of S4D-Inv, near S4D-LegS's.

    Parameters
    ----------
    N : int
        Number of poles, that is half the number M of states.

    Returns
    -------
    numpy.ndarray, (N,), complex128
        The poles.
    """
    n = _sizes("s4d_inv", N)
    return -0.5 + 1j * (2 * N / np.pi) * (2 * N / (2 * n + 1) - 1)  # (5)


def s4d_real(N: int) -> np.ndarray:
    """Return poles ``-(n + 1)``: those of S4D-Real, the diagonal of HiPPO-LegS.

    Parameters
    ----------
    N : int
        Number of poles.

    Returns
    -------
    numpy.ndarray, (N,), complex128
        The poles.
    """
    return -(_sizes("s4d_real", N) + 1.0).astype(complex)  # (6)


def normal_legs(N: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and unitary eigenvectors of ``A + P P^T``, the normal part of HiPPO-LegS.

    Parameters
    ----------
    N : int
        Number of states.

    Returns
    -------
    poles : numpy.ndarray, (N,), complex128
        By increasing imaginary part.
    V : numpy.ndarray, (N, N), complex128
        Eigenvectors in columns.

    Notes
    -----
    ``P_n = sqrt(n + 1/2)``; ``A + P P^T + I/2`` is skew, so ``-i`` times it is Hermitian and its eigenvalues real. The
    largest imaginary part grows like ``N^2 / pi``.
    """
    A, _ = hippo("legs", N)
    P = np.sqrt(np.arange(N) + 0.5)
    skew = A + np.outer(P, P) + 0.5 * np.eye(N)  # (7)
    imaginary, V = np.linalg.eigh(-0.5j * (skew - skew.T))
    return -0.5 + 1j * imaginary, V


def s4d_legs(N: int) -> np.ndarray:
    """Return the poles of the normal part of HiPPO-LegS with M = 2 N states: S4D-LegS, one of each conjugate pair.

    Parameters
    ----------
    N : int
        Number of poles, that is half the number of states.

    Returns
    -------
    numpy.ndarray, (N,), complex128
        The poles, by increasing imaginary part, all of which are positive.

    Notes
    -----
    With all states and ``B / 2`` the transfer function converges to HiPPO-LegS's at each s as ``N^-3``, but not in the
    H-infinity norm, where the distance stays at ``2 / pi``; `ptd` converges in both.

    References
    ----------
    A. Gu, A. Gupta, K. Goel, C. Re, *On the parameterization and initialization of diagonal state space models*,
    NeurIPS 2022.
    """
    _sizes("s4d_legs", N)
    return normal_legs(2 * N)[0][N:]


def s5(N: int, blocks: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return poles of S5, those of several normal parts of HiPPO-LegS, and their eigenvectors.

    Parameters
    ----------
    N : int
        Number of states in all.
    blocks : int
        Into how many equal blocks they fall.

    Returns
    -------
    poles : numpy.ndarray, (N,), complex128
        Both of each conjugate pair.
    V : numpy.ndarray, (N, N), complex128
        Block diagonal and unitary; ``V^H B`` are input weights in the eigenvectors' coordinates.

    Raises
    ------
    ValueError
        When `blocks` does not divide N.
    """
    _sizes("s5", N)
    if blocks < 1 or N % blocks:
        fail("s5", "blocks", f"a divisor of N = {N}", blocks)
    poles, V = normal_legs(N // blocks)
    return np.tile(poles, blocks), np.kron(np.eye(blocks), V)


def ptd(
    N: int, *, size: float = 0.1, method: str = "random", seed: int = 7, kind: str = "legs"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a HiPPO model, perturbed and then diagonalised: poles, input weights and eigenvectors.

    Parameters
    ----------
    N : int
        Number of states.
    size : float
        Spectral norm of the perturbation: backward error, and to a factor the H-infinity error too.
    method : {"random", "optimal"}
        See `perturb_then_diagonalize`.
    seed : int
        Of the random perturbation.
    kind : str
        Of `hippo`.

    Returns
    -------
    poles : numpy.ndarray, (N,), complex128
        Eigenvalues.
    B : numpy.ndarray, (N,), complex128
        ``V^-1 B``.
    V : numpy.ndarray, (N, N), complex128
        Eigenvectors: an output c of the states is ``c V`` in these coordinates.
    """
    A, B = hippo(kind, N)
    found = perturb_then_diagonalize(A, size=size, method=method, seed=seed)
    return found.poles, np.linalg.solve(found.V, B), found.V


def _sizes(function: str, N) -> np.ndarray:
    if not isinstance(N, int | np.integer) or N < 1:
        fail(function, "N", "a positive integer", N)
    return np.arange(N)
