"""Inverse problems with known answers: a phantom, and priors whose scores and posteriors are exact."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.precision import dot, matmul
from ..core.typing import Array, Float, Scalar

# Toft's version of the head of Shepp and Logan: contrast, half axes, centre, and angle in degrees, in a square [-1, 1].
ELLIPSES = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0),
)


def ellipses(parameters: Float[Array, "k 6"], n: int) -> Float[Array, "n n"]:
    """Return the sum of k ellipses on n x n pixels.

    Rows are contrast, half axes, centre (x to the right, y up) and angle in degrees, in the square [-1, 1].
    """
    dtype = parameters.dtype
    grid = (jnp.arange(n, dtype=dtype) - n // 2) * (2 / n)
    x, y = grid[None, :], -grid[:, None]

    def one(p):
        angle = jnp.deg2rad(p[5])
        across = (x - p[3]) * jnp.cos(angle) + (y - p[4]) * jnp.sin(angle)
        along = -(x - p[3]) * jnp.sin(angle) + (y - p[4]) * jnp.cos(angle)
        return jnp.where((across / p[1]) ** 2 + (along / p[2]) ** 2 <= 1, p[0], 0).astype(dtype)

    return jnp.sum(jax.vmap(one)(parameters), axis=0)


def phantom(n: int, dtype=None) -> Float[Array, "n n"]:
    """Return the head phantom of Shepp and Logan with Toft's contrasts, values from 0 to 1."""
    return ellipses(jnp.asarray(np.array(ELLIPSES), dtype or jnp.result_type(float)), n)


def random_ellipses(key: Array, n: int, *, count: int = 8, dtype=None) -> Float[Array, "n n"]:
    """Return a random phantom: an outer ellipse with smaller ones inside, values clipped to [0, 1]."""
    dtype = dtype or jnp.result_type(float)
    keys = jax.random.split(key, 6)
    draw = lambda i, low, high: jax.random.uniform(keys[i], (count,), dtype, low, high)  # noqa: E731
    contrast, wide, high = draw(0, -0.4, 0.5), draw(1, 0.03, 0.35), draw(2, 0.03, 0.35)
    radius, turn, angle = draw(3, 0, 0.55), draw(4, 0, 2 * jnp.pi), draw(5, 0, 180)
    rows = jnp.stack([contrast, wide, high, radius * jnp.cos(turn), radius * jnp.sin(turn), angle], 1)
    outer = jnp.stack([0.2 + 0.4 * jnp.abs(contrast[0]), 0.6 + wide[0] / 2, 0.7 + high[0] / 2, *jnp.zeros(3, dtype)])
    return jnp.clip(ellipses(jnp.concatenate([outer[None], rows]), n), 0, 1)


class GaussianPrior(eqx.Module):
    """A normal distribution, its score at every noise level, and its exact posteriors.

    Attributes
    ----------
    mean : Float[Array, "d"]
    covariance : Float[Array, "d d"]
    """

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]

    def score(self, x: Float[Array, " d"], alpha: Scalar, sigma: Scalar) -> Float[Array, " d"]:
        """Return the score of ``alpha x_0 + sigma noise`` at x."""
        spread = alpha**2 * self.covariance + sigma**2 * jnp.eye(x.size, dtype=x.dtype)
        return -jnp.linalg.solve(spread, x - alpha * self.mean)

    def posterior(self, matrix: Float[Array, "m d"], y: Float[Array, " m"], noise: Scalar) -> "GaussianPrior":
        """Return the posterior of x given ``y = matrix x + noise``, independent with that deviation."""
        gram = matmul(matmul(matrix, self.covariance), matrix.T) + noise**2 * jnp.eye(y.size, dtype=y.dtype)
        gain = jnp.linalg.solve(gram, matmul(matrix, self.covariance)).T
        mean = self.mean + matmul(gain, y - matmul(matrix, self.mean))
        return GaussianPrior(mean, self.covariance - matmul(gain, matmul(matrix, self.covariance)))

    def sample(self, key: Array) -> Float[Array, " d"]:
        """Return one draw."""
        values, vectors = jnp.linalg.eigh(self.covariance)
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        # By the symmetric root, which does not depend on the signs that a backend gives its eigenvectors.
        return self.mean + matmul(vectors, jnp.sqrt(jnp.maximum(values, 0)) * matmul(vectors.T, noise))


class GaussianMixture(eqx.Module):
    """A mixture of normal distributions with one covariance each; scores, denoised moments and posteriors exact.

    Attributes
    ----------
    logits : Float[Array, "k"]
        Logarithms of the weights, up to a constant.
    means : Float[Array, "k d"]
    covariances : Float[Array, "k d d"]
    """

    logits: Float[Array, " k"]
    means: Float[Array, "k d"]
    covariances: Float[Array, "k d d"]

    def _conditionals(self, x, alpha, sigma):
        """Return responsibilities at x, and each component's mean and covariance of x_0 given x."""
        eye = jnp.eye(x.size, dtype=x.dtype)

        def component(mean, covariance):
            spread = alpha**2 * covariance + sigma**2 * eye
            rest = x - alpha * mean
            gain = alpha * jnp.linalg.solve(spread, covariance).T
            log_density = -0.5 * (dot(rest, jnp.linalg.solve(spread, rest)) + jnp.linalg.slogdet(spread)[1])
            return log_density, mean + matmul(gain, rest), covariance - alpha * matmul(gain, covariance)

        log_density, means, covariances = jax.vmap(component)(self.means, self.covariances)
        return jax.nn.softmax(self.logits + log_density), means, covariances

    def denoised(self, x: Float[Array, " d"], alpha: Scalar, sigma: Scalar) -> tuple[Array, Array]:
        """Return mean and covariance of x_0 given ``x = alpha x_0 + sigma noise``."""
        weights, means, covariances = self._conditionals(x, alpha, sigma)
        return _moments(weights, means, covariances)

    def score(self, x: Float[Array, " d"], alpha: Scalar, sigma: Scalar) -> Float[Array, " d"]:
        """Return the score of ``alpha x_0 + sigma noise`` at x."""

        def log_density(x):
            def component(logit, mean, covariance):
                spread = alpha**2 * covariance + sigma**2 * jnp.eye(x.size, dtype=x.dtype)
                rest = x - alpha * mean
                return logit - 0.5 * (dot(rest, jnp.linalg.solve(spread, rest)) + jnp.linalg.slogdet(spread)[1])

            return jax.nn.logsumexp(jax.vmap(component)(self.logits, self.means, self.covariances))

        return jax.grad(log_density)(x)

    def posterior(self, matrix: Float[Array, "m d"], y: Float[Array, " m"], noise: Scalar) -> "GaussianMixture":
        """Return the posterior of x given ``y = matrix x + noise``: a mixture with the weights updated."""

        def component(logit, mean, covariance):
            gram = matmul(matmul(matrix, covariance), matrix.T) + noise**2 * jnp.eye(y.size, dtype=y.dtype)
            rest = y - matmul(matrix, mean)
            evidence = -0.5 * (dot(rest, jnp.linalg.solve(gram, rest)) + jnp.linalg.slogdet(gram)[1])
            one = GaussianPrior(mean, covariance).posterior(matrix, y, noise)
            return logit + evidence, one.mean, one.covariance

        return GaussianMixture(*jax.vmap(component)(self.logits, self.means, self.covariances))

    def moments(self) -> tuple[Array, Array]:
        """Return mean and covariance."""
        return _moments(jax.nn.softmax(self.logits), self.means, self.covariances)


def _moments(weights, means, covariances):
    mean = matmul(weights, means)
    rest = means - mean[None]
    spread = covariances + rest[:, :, None] * rest[:, None, :]
    return mean, jnp.sum(weights[:, None, None] * spread, axis=0)


class LinearInstance(NamedTuple):
    """A prior, a measurement ``y = matrix x + noise``, and the exact posterior."""

    prior: GaussianPrior
    matrix: Float[Array, "m d"]
    y: Float[Array, " m"]
    noise: float
    posterior: GaussianPrior


def gaussian_instance(key: Array, *, d: int = 20, m: int = 8, noise: float = 0.1, dtype=None) -> LinearInstance:
    """Return a Gaussian prior with a random basis and spectrum 1 to 1e-3, and m measurements of one draw."""
    dtype = dtype or jnp.result_type(float)
    one, two, three, four = jax.random.split(key, 4)
    basis = jnp.linalg.qr(jax.random.normal(one, (d, d), dtype))[0]
    spectrum = jnp.geomspace(1, 1e-3, d).astype(dtype)
    prior = GaussianPrior(jnp.zeros(d, dtype), matmul(basis * spectrum[None], basis.T))
    matrix = jax.random.normal(two, (m, d), dtype) / jnp.sqrt(d).astype(dtype)
    y = matmul(matrix, prior.sample(three)) + noise * jax.random.normal(four, (m,), dtype)
    return LinearInstance(prior, matrix, y, noise, prior.posterior(matrix, y, noise))
