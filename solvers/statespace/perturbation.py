"""Perturb a matrix, then diagonalise it: eigenvectors that can be used, at a backward error that is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..core.checks import choice, fail

METHODS = ("random", "optimal")


class Diagonalization(NamedTuple):
    """``A + E = V diag(poles) V^-1``, made by `perturb_then_diagonalize`; NumPy arrays on the host.

    Attributes
    ----------
    poles : (N,) complex
        Eigenvalues of ``A + E``.
    V : (N, N) complex
        Eigenvectors in columns of length one.
    E : (N, N)
        The perturbation.
    condition : float
        ``|V|_2 |V^-1|_2``.
    backward_error : float
        ``|A - V diag(poles) V^-1|_2``: the size of E, and what rounding adds to it.
    """

    poles: np.ndarray
    V: np.ndarray
    E: np.ndarray
    condition: float
    backward_error: float


def perturb_then_diagonalize(
    A, *, size: float = 0.1, method: str = "random", seed: int = 7, real: bool = False, steps: int = 100
) -> Diagonalization:
    """Return eigenvalues and well-conditioned eigenvectors of ``A + E`` with ``|E|_2 = size``.

    For matrices whose own eigenvectors are useless, as HiPPO's are (condition 1e19 at N = 32). For a normal matrix use
    ``numpy.linalg.eigh``.

    Parameters
    ----------
    A : array, (N, N)
        Real or complex; taken to double precision on the host.
    size : float
        Spectral norm of E, in the units of A.
    method : {"random", "optimal"}
        "random": E is a Gaussian matrix. "optimal": from there, descent on ``|V^-1|_F`` over matrices of that norm.
    seed : int
        Of the Gaussian matrix.
    real : bool
        Keep E real, so that eigenvalues of a real A come in conjugate pairs.
    steps : int
        Of the descent, each O(N^3).

    Returns
    -------
    Diagonalization
        With ``condition`` and ``backward_error``, both measured on the result.

    Raises
    ------
    ValueError
        For a matrix that is not square or not finite, a size that is not positive, or an unknown method.

    Notes
    -----
    A random E gives a condition of order ``N^(3/2) |A| / size`` at the most expected (Davies; the constant is not
    checked here). The descent lowers the third below and scales E back to its norm after each step; the best E seen is
    returned, so "optimal" is never worse than "random".

    (1) ``A + E = V diag(poles) V^-1,  |E|_2 = size``
    (2) ``dV = V X,  X_ij = (V^-1 dE V)_ij / (l_j - l_i)``, and on the diagonal what keeps columns of length one
    (3) ``log |V^-1|_F``

    It departs from the paper, whose objective is ``cond(V)^2 + 3e-3 |E|_F`` without a constraint: here the norm is
    given and the condition follows.

    References
    ----------
    A. Yu, A. Nigmetov, D. Morozov, M. W. Mahoney, N. B. Erichson, *Robustifying state-space models for long sequences
    via approximate diagonalization*, ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from solvers.statespace import hippo, perturb_then_diagonalize
    >>> found = perturb_then_diagonalize(hippo("legs", 16)[0], size=0.1)
    >>> bool(found.condition < 1e4 and abs(found.backward_error - 0.1) < 1e-8)
    True
    """
    name = "perturb_then_diagonalize"
    choice(name, "method", method, METHODS)
    A = np.asarray(A)
    A = A.astype(complex if np.iscomplexobj(A) else float)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not A.size:
        fail(name, "A", "a square matrix", f"shape {A.shape}")
    if not np.all(np.isfinite(A)):
        fail(name, "A", "finite", "NaN or infinity")
    if not (np.isfinite(size) and size > 0):
        fail(name, "size", "a positive number", size)
    rng = np.random.default_rng(seed)
    E = rng.standard_normal(A.shape)
    if not real:
        E = E + 1j * rng.standard_normal(A.shape)
    E = E * (size / np.linalg.norm(E, 2))
    if method == "optimal":
        E = _descended(A, E, size, steps)
    poles, V = np.linalg.eig(A + E)  # (1)
    V = V / np.linalg.norm(V, axis=0)
    back = np.linalg.solve(V.T, (V * poles).T).T
    return Diagonalization(poles, V, E, float(np.linalg.cond(V)), float(np.linalg.norm(A - back, 2)))


def _descended(A, E, size: float, steps: int):
    """Lower ``log |V^-1|_F`` by steps along its normalised gradient, longer after a success and shorter after none."""
    stride, (value, gradient) = 0.3, _conditioning(A + E)
    for _ in range(steps):
        move = np.real(gradient) if np.isrealobj(E) else gradient
        trial = E - stride * size * move / np.linalg.norm(move, 2)
        trial = trial * (size / np.linalg.norm(trial, 2))
        lower, slope = _conditioning(A + trial)
        if lower < value:
            E, value, gradient, stride = trial, lower, slope, 1.3 * stride
        else:
            stride = stride / 3
        if stride < 1e-6:
            break
    return E


def _conditioning(M):
    """Return ``log |V^-1|_F`` of the unit eigenvectors of M, and its gradient in M."""
    poles, V = np.linalg.eig(M)
    V = V / np.linalg.norm(V, axis=0)
    W = np.linalg.inv(V)
    G, gram = W @ W.conj().T, V.conj().T @ V
    total = np.trace(G).real
    gaps = poles[None, :] - poles[:, None]
    # d|W|_F^2 = Re sum_ij c_ij X_ij, where X_jj keeps the columns' length
    c = -2 * G.T + 2 * np.real(np.diag(G))[None, :] * gram.T
    D = np.where(gaps == 0, 0, c / np.where(gaps == 0, 1, gaps))  # (2)
    return 0.5 * np.log(total), (V @ D.T @ W).conj().T / (2 * total)  # (3)
