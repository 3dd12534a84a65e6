"""Functional Tucker decomposition as its authors' code runs it: loops over coordinates in PyTorch, double precision.

Written from the paper and from what that code does, for comparison: messages of all entries at once, the sum over the
entries of a coordinate, the filter and the smoother coordinate by coordinate with pseudo-inverses, the core from one
R^K x R^K matrix an entry. Matern-1/2 or -3/2 processes, a noise that is given.
"""

import numpy as np
import torch


def process(length: float, variance: float, nu: float, gaps):
    """Return transitions, their noise, the stationary covariance and what is seen of a state."""
    if nu == 0.5:
        F = torch.tensor([[-1 / length]], dtype=torch.float64)
        P = torch.tensor([[variance]], dtype=torch.float64)
    else:
        rate = 3**0.5 / length
        F = torch.tensor([[0.0, 1.0], [-(rate**2), -2 * rate]], dtype=torch.float64)
        P = torch.diag(torch.tensor([variance, rate**2 * variance], dtype=torch.float64))
    A = [torch.linalg.matrix_exp(F * g) for g in gaps]
    return A, [P - a @ P @ a.T for a in A], P, torch.eye(len(P), dtype=torch.float64)[:1]


class Loops:
    """The state of the iteration: marginals, messages and core."""

    def __init__(self, coords, y, start, *, length, variance, nu, noise):
        """Take the data and the starting beliefs: means (K, T, R), covariances, core, its covariance or None for CP."""
        self.y, self.tau = torch.tensor(y, dtype=torch.float64), 1 / noise
        self.nodes = [np.unique(c) for c in coords.T]
        self.index = [torch.tensor(np.searchsorted(t, c)) for t, c in zip(self.nodes, coords.T, strict=True)]
        self.entries = [[torch.nonzero(i == t)[:, 0] for t in range(len(n))]
                        for i, n in zip(self.index, self.nodes, strict=True)]  # fmt: skip
        tensor = lambda x: torch.tensor(np.asarray(x, float))  # noqa: E731
        mean, cov, core, core_cov = start
        self.m = [tensor(mean[k][: len(n)]) for k, n in enumerate(self.nodes)]
        self.v = [tensor(cov[k][: len(n)]) for k, n in enumerate(self.nodes)]
        self.core, self.cp = tensor(core), core_cov is None
        self.R, self.K = self.core.shape[0], self.core.ndim
        N = len(y)
        self.lam = [torch.zeros(N, self.R, self.R, dtype=torch.float64) for _ in self.nodes]
        self.eta = [torch.zeros(N, self.R, dtype=torch.float64) for _ in self.nodes]
        size = 0 if self.cp else self.R**self.K
        self.core_lam = torch.zeros(N, size, size, dtype=torch.float64)
        self.core_eta = torch.zeros(N, size, dtype=torch.float64)
        self.processes = []
        for n in self.nodes:
            A, Q, P, H = process(length, variance, nu, np.diff(n))
            eye = torch.eye(self.R, dtype=torch.float64)
            kron = lambda x, eye=eye: torch.kron(eye, x)  # noqa: E731
            self.processes.append(([kron(a) for a in A], [kron(q) for q in Q], kron(P), kron(H)))

    def products(self, modes):
        """Return Kronecker products over modes of means and of second moments, entry by entry."""
        mean = torch.ones(len(self.y), 1, dtype=torch.float64)
        second = torch.ones(len(self.y), 1, 1, dtype=torch.float64)
        for k in modes:
            m, v = self.m[k][self.index[k]], self.v[k][self.index[k]]
            s = v + m[:, :, None] * m[:, None, :]
            mean = torch.einsum("na,nb->nab", mean, m).reshape(len(self.y), -1)
            size = second.shape[1] * s.shape[1]
            second = torch.einsum("nab,ncd->nacbd", second, s).reshape(len(self.y), size, size)
        return mean, second

    def sweep(self, damping):
        """Do one sweep."""
        for k in range(self.K):
            mean, second = self.products([j for j in range(self.K) if j != k])
            W = torch.movedim(self.core, k, 0).reshape(self.R, -1)
            lam, eta = self.tau * (W @ second @ W.T), self.tau * self.y[:, None] * (mean @ W.T)
            self.lam[k] = damping[0] * self.lam[k] + (1 - damping[0]) * lam
            self.eta[k] = damping[0] * self.eta[k] + (1 - damping[0]) * eta
            self.smooth(k)
        if self.cp:
            return
        mean, second = self.products(range(self.K))
        self.core_lam = damping[1] * self.core_lam + (1 - damping[1]) * self.tau * second
        self.core_eta = damping[1] * self.core_eta + (1 - damping[1]) * self.tau * self.y[:, None] * mean
        eye = torch.eye(self.R**self.K, dtype=torch.float64)
        core_cov = torch.linalg.inv(self.core_lam.sum(0) + eye)
        self.core = (core_cov @ self.core_eta.sum(0)).reshape((self.R,) * self.K)

    def apart(self, factors) -> float:
        """Return the largest difference of means and covariances from those given."""
        both = ((factors.mean, self.m), (factors.cov, self.v))
        return max(float(np.max(np.abs(np.asarray(given[k, : len(own)]) - own.numpy())))
                   for given, owns in both for k, own in enumerate(owns))  # fmt: skip

    def smooth(self, k):
        """Filter and smooth one mode, coordinate by coordinate."""
        A, Q, P, H = self.processes[k]
        eye = torch.eye(self.R, dtype=torch.float64)
        m, filtered, ahead = torch.zeros(len(P), dtype=torch.float64), [], []
        for t, who in enumerate(self.entries[k]):
            variance = torch.linalg.pinv(self.lam[k][who].sum(0) + eye)
            seen = variance @ self.eta[k][who].sum(0)
            if t:
                m, P = A[t - 1] @ m, A[t - 1] @ P @ A[t - 1].T + Q[t - 1]
            ahead.append((m, P))
            gain = P @ H.T @ torch.linalg.pinv(H @ P @ H.T + variance)
            m, P = m + gain @ (seen - H @ m), P - gain @ H @ P
            filtered.append((m, P))
        self.m[k][-1], self.v[k][-1] = H @ m, H @ P @ H.T
        for t in range(len(filtered) - 2, -1, -1):
            (mf, Pf), (ma, Pa) = filtered[t], ahead[t + 1]
            G = Pf @ A[t].T @ torch.linalg.pinv(Pa)
            m, P = mf + G @ (m - ma), Pf + G @ (P - Pa) @ G.T
            self.m[k][t], self.v[k][t] = H @ m, H @ P @ H.T
