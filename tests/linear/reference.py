"""The methods written out in NumPy float64, row by row."""

import numpy as np


def dense(stencil, shape):
    """Return the matrix of a stencil on a grid."""
    n, out = int(np.prod(shape)), np.zeros((int(np.prod(shape)),) * 2)
    coefficients = np.asarray(stencil.coefficients, np.float64)
    for i in np.ndindex(*shape):
        for c, o in zip(coefficients, stencil.offsets, strict=True):
            j = tuple(a + b for a, b in zip(i, o, strict=True))
            if all(0 <= a < m for a, m in zip(j, shape, strict=True)):
                value = c if np.ndim(c) == 0 else c[i]
                out[np.ravel_multi_index(i, shape), np.ravel_multi_index(j, shape)] = value
    assert out.shape == (n, n)
    return out


def sor_iterates(A, b, omega, steps, order=None, both_ways=False):
    """Return the iterates of SOR from zero, visiting rows in the given order."""
    x, order, out = np.zeros(len(b)), range(len(b)) if order is None else order, []
    for _ in range(steps):
        for i in [*order, *(reversed(order) if both_ways else ())]:
            x[i] += omega * (b[i] - A[i] @ x) / A[i, i]
        out.append(x.copy())
    return out


def count_sor(A, b, omega, tol, order=None, cap=5000):
    """Return after how many sweeps the residual is below tol."""
    for k, x in enumerate(sor_iterates(A, b, omega, cap, order), 1):
        if np.linalg.norm(b - A @ x) <= tol * np.linalg.norm(b):
            return k
    return cap


def pcg(A, b, apply, tol, cap=500):
    """Return steps and solution of preconditioned conjugate gradients."""
    x, r = np.zeros_like(b), b.copy()
    p = z = apply(r)
    rz = r @ z
    for k in range(1, cap + 1):
        q = A @ p
        alpha = rz / (p @ q)
        x, r = x + alpha * p, r - alpha * q
        if np.linalg.norm(r) <= tol * np.linalg.norm(b):
            return k, x
        z = apply(r)
        p, rz = z + (r @ z) / rz * p, r @ z
    return cap, x
