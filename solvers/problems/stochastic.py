"""First-order problems with known answers: a chain that no method can shorten, control, graphs, and lower bounds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal

from ..core.precision import dot, matmul
from ..core.typing import Array, Float


def zero_chain(x: Float[Array, " T"]) -> Float[Array, ""]:
    """Return the chain of Carmon, Duchi, Hinder and Sidford: to see coordinate t+1, a gradient must have seen t.

    (1) ``f(x) = -Psi(1) Phi(x_1) + sum_i Psi(-x_(i-1)) Phi(-x_i) - Psi(x_(i-1)) Phi(x_i)``
    (2) ``Psi(x) = exp(1 - 1 / (2 x - 1)^2)`` for x > 1/2, else 0
    (3) ``Phi(x) = sqrt(2 pi e)`` times the normal distribution function

    While any coordinate is below 1 in size, ``|grad f| > 1``. From zero, whatever moves only along gradients seen so
    far has ``x_T = 0`` before its T-th gradient.

    Parameters
    ----------
    x : Float[Array, "T"]

    References
    ----------
    Carmon, Duchi, Hinder, Sidford, "Lower bounds for finding stationary points I", Math. Program. 184 (2020), (10).
    """
    before, after = x[:-1], x[1:]
    links = _bump(-before) * _step(-after) - _bump(before) * _step(after)
    # (1)
    return jnp.sum(links) - _bump(jnp.ones((), x.dtype)) * _step(x[0])


def _bump(x):
    open_ = x > 0.5
    inside = jnp.where(open_, 2 * x - 1, 1)
    return jnp.where(open_, jnp.exp(1 - 1 / inside**2), 0)  # (2)


def _step(x):
    return jnp.asarray(np.sqrt(2 * np.pi * np.e), x.dtype) * normal.cdf(x)  # (3)


SETTINGS = ("deterministic", "stochastic", "mean_squared_smooth")


def query_lower_bound(
    setting: str, eps: float, p: int = 1, *, gap: float = 1.0, smoothness: float = 1.0, deviation: float = 1.0
) -> float:
    """Return how many oracle queries a point with ``|grad f| <= eps`` needs in the worst case, constants left out.

    The rates hold for classical randomised algorithms and for quantum ones alike: with f only known to be smooth and
    bounded below, superposition does not help.

    Parameters
    ----------
    setting : {"deterministic", "stochastic", "mean_squared_smooth"}
        Exact derivatives up to order p; unbiased gradients of bounded variance; the same with stochastic gradients that
        are Lipschitz on average and may be asked at two points.
    eps : float
        Norm of the gradient to be reached.
    p : int
        Order of the derivatives ("deterministic" only).
    gap, smoothness, deviation : float
        ``f(x_0) - inf f``, the Lipschitz constant of the p-th derivative, the standard deviation of a gradient.

    Returns
    -------
    float
        A number of queries, up to a factor that does not depend on any of these:

        (4) ``gap smoothness^(1 / p) eps^(-(1 + p) / p)``: deterministic
        (5) ``gap smoothness deviation^2 eps^-4``: stochastic
        (6) ``gap smoothness deviation eps^-3``: mean_squared_smooth

    References
    ----------
    C. Zhang, T. Li, "Quantum lower bounds for finding stationary points of nonconvex functions", ICML 2023, theorems 1
    to 3. Classical: Carmon et al., Math. Program. 184 (2020), theorem 2; Arjevani et al., Math. Program. 199 (2023).

    Examples
    --------
    >>> from solvers.problems.stochastic import query_lower_bound
    >>> query_lower_bound("deterministic", 0.1) < query_lower_bound("stochastic", 0.1)
    True
    """
    if setting == "deterministic":
        return gap * smoothness ** (1 / p) * eps ** (-(1 + p) / p)  # (4)
    if setting == "stochastic":
        return gap * smoothness * deviation**2 * eps**-4  # (5)
    if setting == "mean_squared_smooth":
        return gap * smoothness * deviation * eps**-3  # (6)
    raise ValueError(f"query_lower_bound: `setting` must be one of {SETTINGS}, got {setting!r}")


def ring(n: int) -> np.ndarray:
    """Return the edges (n, 2) of a ring of n nodes."""
    nodes = np.arange(n)
    edges = np.stack([nodes, (nodes + 1) % n], axis=1)
    return edges[:1] if n == 2 else edges


def grid(rows: int, columns: int) -> np.ndarray:
    """Return the edges of a grid of rows x columns nodes, numbered row by row."""
    at = np.arange(rows * columns).reshape(rows, columns)
    across = np.stack([at[:, :-1].ravel(), at[:, 1:].ravel()], axis=1)
    down = np.stack([at[:-1].ravel(), at[1:].ravel()], axis=1)
    return np.concatenate([across, down])


def complete(n: int) -> np.ndarray:
    """Return the edges of the complete graph on n nodes."""
    return np.stack(np.triu_indices(n, 1), axis=1)


def star(n: int) -> np.ndarray:
    """Return the edges of a star: node 0 and n - 1 others."""
    return np.stack([np.zeros(n - 1, int), np.arange(1, n)], axis=1)


def barbell(n: int) -> np.ndarray:
    """Return two complete graphs on n nodes each, joined by one edge."""
    return np.concatenate([complete(n), complete(n) + n, [[n - 1, n]]])


class Network(NamedTuple):
    """Quadratics ``f_i(x) = x'A_i x / 2 - b_i'x`` on the nodes of a network; the mean has its minimum at `optimum`.

    ``mu`` and ``smoothness`` are the least and largest eigenvalue of any A_i.
    """

    A: Float[Array, "n d d"]
    b: Float[Array, "n d"]
    optimum: Float[Array, " d"]
    mu: float
    smoothness: float


def network(rng: np.random.Generator, n: int, d: int, *, ridge: float = 0.1) -> Network:
    """Return least squares with 20 d / 5 random rows a node; the condition number falls with `ridge`."""
    rows = rng.standard_normal((n, 4 * d, d))
    A = np.einsum("nij,nik->njk", rows, rows) / (4 * d) + ridge * np.eye(d)
    b = rng.standard_normal((n, d))
    values = np.linalg.eigvalsh(A)
    return Network(A, b, np.linalg.solve(A.sum(0), b.sum(0)), float(values.min()), float(values.max()))  # type: ignore


class LQR(NamedTuple):
    """Discounted linear-quadratic control: ``x' = A x + B u + w``, reward ``-(x'Q x + u'R u)``.

    The policy is ``u = -K x + exploration * normal``, starts are normal with covariance `start` times the
    identity, w is normal with standard deviation `noise`.
    """

    A: Float[Array, "n n"]
    B: Float[Array, "n m"]
    Q: Float[Array, "n n"]
    R: Float[Array, "m m"]
    discount: float
    exploration: float
    noise: float
    start: float
    horizon: int

    def log_policy(self, K, state, action):
        """Return the log density of an action, the constant left out."""
        return -jnp.sum((action + matmul(K, state)) ** 2) / (2 * self.exploration**2)

    def rollout(self, K, key):
        """Return states, actions and rewards of one trajectory of length `horizon`."""
        first, rest = jax.random.split(key)
        n, m = self.B.shape
        x0 = self.start**0.5 * jax.random.normal(first, (n,), K.dtype)

        def step(x, key):
            one, two = jax.random.split(key)
            u = -matmul(K, x) + self.exploration * jax.random.normal(one, (m,), K.dtype)
            reward = -(dot(x, matmul(self.Q, x)) + dot(u, matmul(self.R, u)))
            after = matmul(self.A, x) + matmul(self.B, u) + self.noise * jax.random.normal(two, (n,), K.dtype)
            return after, (x, u, reward)

        return jax.lax.scan(step, x0, jax.random.split(rest, self.horizon))[1]

    def cost(self, K):
        """Return minus the expected discounted return over an infinite time, by Lyapunov's equation.

        Infinite where the closed loop is not stable in the discounted sense.
        """
        gamma, n = self.discount, self.A.shape[0]
        closed = self.A - matmul(self.B, K)
        weight = self.Q + matmul(K.T, matmul(self.R, K))
        system = jnp.eye(n * n, dtype=K.dtype) - gamma * jnp.kron(closed.T, closed.T)
        P = jnp.linalg.solve(system, weight.reshape(-1)).reshape(n, n)
        explore = self.exploration**2 * (jnp.trace(self.R) + gamma * jnp.trace(matmul(self.B.T, matmul(P, self.B))))
        value = self.start * jnp.trace(P) + (explore + gamma * self.noise**2 * jnp.trace(P)) / (1 - gamma)
        # For positive definite weights P is positive definite exactly where the closed loop is stable.
        return jnp.where(jnp.min(jnp.linalg.eigvalsh((P + P.T) / 2)) > 0, value, jnp.inf)

    def optimal_gain(self, steps: int = 500):
        """Return the K of least cost, by iterating Riccati's equation."""
        A, B = (jnp.sqrt(self.discount) * M for M in (self.A, self.B))

        def gain(P):
            return jnp.linalg.solve(self.R + matmul(B.T, matmul(P, B)), matmul(B.T, matmul(P, A)))

        def iterate(_, P):
            return self.Q + matmul(A.T, matmul(P, A - matmul(B, gain(P))))

        return gain(jax.lax.fori_loop(0, steps, iterate, self.Q))


def scalar_lqr(dtype=None) -> LQR:
    """Return an unstable system of one state and one input, horizon 40, discount 0.8."""
    one = jnp.ones((1, 1), dtype)
    return LQR(1.1 * one, one, one, 0.5 * one, 0.8, 0.3, 0.1, 1.0, 40)
