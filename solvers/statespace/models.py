"""Linear Gaussian models: filtering, smoothing and sampling, one step after another or in parallel, in either form."""

from __future__ import annotations

from math import log, pi
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import choice, fail, float_array
from ..core.gaussian.filtering import Belief, Steps, default_block, filter_steps, mv, smooth_steps
from ..core.gaussian.square_root import smooth_factors, tria
from ..core.precision import eps
from ..core.scans import affine_scan
from ..core.solution import SolveError, StatusCode
from ..core.typing import Array, Bool, Float, Int

FORMS = ("covariance", "square_root")
ROUTES = ("sequential", "parallel")


class GaussianStatus(StatusCode):
    """Whether beliefs can be trusted."""

    CONVERGED = 0, "solved"
    NONFINITE = 3, "nonfinite: NaN or infinity in the data or the beliefs; mark missing data by `observed`"
    INDEFINITE = (
        100,
        "indefinite: a covariance is not positive in this precision, or was given so; use form='square_root', float64, "
        "or more noise",
    )
    IMPRECISE = (
        102,
        "imprecise: conditioning took a variance down so far that half of its digits are lost; use "
        "form='square_root', float64, or a less diffuse start",
    )
    UNSORTED = 101, "unsorted: times fall; sort them"


class Beliefs(eqx.Module):
    """Gaussian marginals of the states of a model, made by `kalman_filter` and `kalman_smoother`.

    Attributes
    ----------
    mean : Float[Array, "T n"]
        Of each state.
    covariance : Float[Array, "T n n"]
        Of each state.
    log_likelihood : Float[Array, ""]
        Logarithm of the density of all that was observed.
    status : Int[Array, ""]
        0 when solved; ``GaussianStatus(code)`` decodes the others.
    """

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    log_likelihood: Float[Array, ""]
    status: Int[Array, ""]

    statuses: ClassVar[type[GaussianStatus]] = GaussianStatus

    @property
    def converged(self):
        """Whether all numbers are finite and all covariances positive; one entry a lane."""
        return self.status == 0

    @property
    def message(self) -> str:
        """What happened, for a batch in its worst lane. Host only."""
        return GaussianStatus(int(np.max(np.asarray(self.status)))).message

    def check(self) -> Self:
        """Return the beliefs, or raise `SolveError` where a lane has none. Host only."""
        if np.any(np.asarray(self.status) != 0):
            raise SolveError(f"{type(self).__name__}: {self.message}")
        return self


class LinearGaussian(eqx.Module):
    """``x_(t+1) = A_t x_t + b_t + q_t, y_t = H_t x_t + c_t + r_t`` with Gaussian noise and a Gaussian first state.

    Each array is constant or stacked, one entry a step; all are differentiable.

    Attributes
    ----------
    A, Q : Float[Array, "n n"] or [Array, "T-1 n n"]
        Transitions and covariances of their noise.
    H : Float[Array, "p n"] or [Array, "T p n"]
        What is observed.
    R : Float[Array, "p p"] or [Array, "T p p"]
        Covariance of the observations' noise; positive for the square-root form.
    mean, covariance : Float[Array, "n"], Float[Array, "n n"]
        Of the state at the first observation, before it.
    b : Float[Array, "n"] or [Array, "T-1 n"] or None
        Drift.
    c : Float[Array, "p"] or [Array, "T p"] or None
        Offset.
    """

    A: Any
    Q: Any
    H: Any
    R: Any
    mean: Any
    covariance: Any
    b: Any = None
    c: Any = None

    def sample(self, steps: int, *, key: Array, method: str = "sequential") -> tuple[Array, Array]:
        """Draw states and observations of so many steps.

        Parameters
        ----------
        steps : int
            T, static.
        key : jax.random.key
            Same key, same draw.
        method : {"sequential", "associative", "blocked"}
            Of `solvers.core.scans.affine_scan`.

        Returns
        -------
        x : Float[Array, "T n"]
            States.
        y : Float[Array, "T p"]
            Observations.
        """
        s, c = _steps("LinearGaussian.sample", self, steps)
        for_x, for_y = jax.random.split(key)
        q = jax.random.normal(for_x, s.b.shape, s.b.dtype)
        r = jax.random.normal(for_y, s.y.shape, s.b.dtype)
        x = affine_scan(s.A, s.b + mv(factor(s.Q)[0], q), method=method)
        return x, mv(s.H, x) + c + mv(factor(s.R)[0], r)

    def posterior_sample(self, y: Array, *, key: Array, observed: Array | None = None, **options: Any) -> Array:
        """Draw states given observations: a draw of the model, moved by the smoothed mean of what it missed.

        Parameters
        ----------
        y : Float[Array, "T p"]
            Observations.
        key : jax.random.key
            Same key, same draw; ``jax.vmap`` over keys for several.
        observed : Bool[Array, "T"] or [Array, "T p"], optional
            Which were made.
        **options
            Of `kalman_smoother`.

        Returns
        -------
        Float[Array, "T n"]
            States.
        """
        y = jnp.asarray(y)
        x, seen = self.sample(y.shape[0], key=key)
        still = eqx.tree_at(lambda m: m.mean, self, jnp.zeros_like(jnp.asarray(self.mean)))
        still = LinearGaussian(still.A, still.Q, still.H, still.R, still.mean, still.covariance)
        return x + kalman_smoother(still, y - seen, observed=observed, **options).mean


def kalman_filter(
    model: LinearGaussian,
    y: Float[Array, "T p"],
    *,
    observed: Bool[Array, "T *p"] | None = None,
    form: str = "covariance",
    method: str = "sequential",
    block: int | None = None,
) -> Beliefs:
    """Return beliefs of each state given the observations up to it, and the likelihood of all.

    Parameters
    ----------
    model, y, observed, form, method, block
        As in `kalman_smoother`.

    Returns
    -------
    Beliefs
        Means, covariances, log-likelihood and a status.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that do not fit.
    """
    return _solved("kalman_filter", model, y, observed, (form, method, block), True)


def kalman_smoother(
    model: LinearGaussian,
    y: Float[Array, "T p"],
    *,
    observed: Bool[Array, "T *p"] | None = None,
    form: str = "covariance",
    method: str = "sequential",
    block: int | None = None,
) -> Beliefs:
    """Return beliefs of each state given all observations, and their likelihood.

    For Gaussian-process regression in one variable see `gp_regression`.

    Parameters
    ----------
    model : LinearGaussian
        Differentiable, as `y` is.
    y : Float[Array, "T p"]
        Observations.
    observed : Bool[Array, "T"] or [Array, "T p"], optional
        Which were made; all by default. What the others hold does not matter, NaN included.
    form : {"covariance", "square_root"}
        Static. The square-root form keeps triangular factors: covariances stay positive, with about twice the digits,
        at some three times the cost. It needs a positive R, and its derivatives are not promised.
    method : {"sequential", "parallel"}
        Static. In parallel, blocks of steps go side by side, twice: ``3 b + 2 T / b`` dependent steps; where there are
        many blocks they go in groups, and steps are of order ``T^(1/3)``.
    block : int, optional
        Static length b of a block; ``sqrt(2 T / 3)`` by default, of order ``T^(1/3)`` for 4e5 steps and more.

    Returns
    -------
    Beliefs
        Means, covariances, log-likelihood and a status, which is solved only if everything is finite, every innovation
        has a positive covariance, no state a negative variance, and, in covariance form, no variance fell by more than
        ``1 / sqrt(eps)`` in one conditioning, which subtracts.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or options that do not fit.

    Notes
    -----
    Covariance form: forward a Kalman filter; backward ``r_(t-1) = A' (H' S^-1 v + (I - K H)' r_t)``, the adjoint
    recursion of de Jong and of Durbin and Koopman, whose N gives ``P - P N P``: no state covariance is inverted, so
    that singular Q and repeated steps are ordinary. A block is summarised by a filter from a known start and its
    sensitivity to that start, so only one n x n system a block is solved (Sarkka and Garcia-Fernandez solve one in
    every combination).
    Square-root form: a forward filter and a backward information filter, by reflections. What the future says of a
    state stays a least-squares problem, its rows of the size of one over the noise; reflections with pivots keep the
    digits of small rows beside large ones, so that in float32, too, means are exact to what rounding the data would
    do, however small the noise.
    Memory O(T n^2). Batches by ``jax.vmap``.

    References
    ----------
    J. Durbin, S. J. Koopman, *Time series analysis by state space methods*, 2nd ed. 2012, 4.4. S. Sarkka,
    A. F. Garcia-Fernandez, *Temporal parallelization of Bayesian smoothers*, IEEE TAC 2021. F. Yaghoobi, A. Corenflos,
    S. Hassan, S. Sarkka, *Parallel square-root statistical linear regression for inference in nonlinear state space
    models*, 2022.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers import LinearGaussian, kalman_smoother
    >>> one = jnp.ones((1, 1))
    >>> level = LinearGaussian(A=one, Q=0.0 * one, H=one, R=one, mean=jnp.zeros(1), covariance=1e3 * one)
    >>> found = kalman_smoother(level, jnp.array([[1.0], [2.0], [6.0]]))
    >>> print(jnp.round(found.mean[:, 0], 1), found.message)
    [3. 3. 3.] solved
    """
    return _solved("kalman_smoother", model, y, observed, (form, method, block), False)


def _solved(name: str, model, y, observed, how, only_filter: bool) -> Beliefs:
    if np.ndim(y) == 1:
        fail(name, "y", "(T, p), times by values; a single series is `y[:, None]`", f"shape {np.shape(y)}")
    y = float_array(name, "y", y, ndim=2)
    if not isinstance(model, LinearGaussian):
        fail(name, "model", "a LinearGaussian", type(model).__name__, TypeError)
    if observed is None:
        seen = jnp.ones(y.shape, bool)
    else:
        seen = jnp.asarray(observed)
        if seen.dtype != jnp.bool_ or seen.shape not in (y.shape, y.shape[:1]):
            fail(name, "observed", f"booleans {y.shape} or {y.shape[:1]}", f"{seen.dtype} {seen.shape}")
        seen = jnp.broadcast_to(seen if seen.ndim == 2 else seen[:, None], y.shape)
    return _of_model(name, model, y, seen, how, only_filter)


@eqx.filter_jit  # one program, not hundreds of small ones
def _of_model(name: str, model, y, seen, how, only_filter: bool) -> Beliefs:
    steps, c = _steps(name, model, y.shape[0], y)
    return beliefs_of(name, steps._replace(y=y - c), seen, how, only_filter)


def beliefs_of(name: str, steps: Steps, seen, how, only_filter: bool) -> Beliefs:
    """Filter or smooth steps of which some observations were not made."""
    form, method, block = how
    choice(name, "form", form, FORMS)
    choice(name, "method", method, ROUTES)
    T = steps.b.shape[0]
    if block is not None and (not isinstance(block, int) or block < 1):
        fail(name, "block", "a positive integer", block)
    length = (block or default_block(T)) if method == "parallel" else 0
    steps = masked(steps, seen)
    given = _finite(steps)
    proper = precise = jnp.ones((), bool)
    if form == "square_root":
        (Q, one), (R, two) = factor(steps.Q), factor(steps.R)
        proper = one & two
        found = smooth_factors(steps._replace(Q=Q, R=tria(R)), length, only_filter=only_filter)
        after, belief = found.after, found.smoothed
        log_density, pivot = found.log_density, found.pivot
    else:
        filtered = filter_steps(steps, length)
        after, log_density, pivot = filtered.after, filtered.steps.log_density, filtered.steps.definite
        belief = after if only_filter else smooth_steps(steps, filtered, length)[0]
        precise = _precise(filtered.ahead, after) & _precise(after, belief)
    log_likelihood = jnp.sum(log_density) - 0.5 * log(2 * pi) * jnp.sum(seen.astype(steps.b.dtype))
    status = _verdict(given, proper, (after, belief), pivot, log_likelihood)
    status = jnp.where((status == 0) & ~precise, int(GaussianStatus.IMPRECISE), status).astype(jnp.int32)
    return Beliefs(belief.mean, belief.cov, log_likelihood, status)


def _precise(before: Belief, after: Belief):
    """Whether no variance fell so far, by a subtraction, that half of its digits are gone."""
    old, new = (jnp.diagonal(b.cov, axis1=-2, axis2=-1) for b in (before, after))
    return jnp.all(jnp.sqrt(jnp.asarray(eps(new.dtype), new.dtype)) * old <= new)


def masked(steps: Steps, seen: Bool[Array, "T p"]) -> Steps:
    """Take out of the steps what was not seen: no rows of H, no innovation, noise of variance one apart."""
    kept = seen.astype(steps.b.dtype)
    eye = jnp.eye(kept.shape[1], dtype=kept.dtype)
    R = jnp.where(seen[:, :, None] & seen[:, None, :], steps.R, eye[None] * (1 - kept[:, :, None]))
    return steps._replace(H=jnp.where(seen[:, :, None], steps.H, 0), y=jnp.where(seen, steps.y, 0), R=R)


def factor(P: Array) -> tuple[Array, Array]:
    """Return a square matrix L with ``L L^T = P`` for a P that may be singular, and whether there is one.

    Eigenvalues of P scaled to a diagonal of ones: entries of very different sizes keep their digits.
    """
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(P, axis1=-2, axis2=-1), 0))
    safe = jnp.where(scale > 0, scale, 1)
    w, V = jnp.linalg.eigh(P / (safe[..., :, None] * safe[..., None, :]))
    n = P.shape[-1]
    ok = jnp.all(w >= -100 * n * eps(P.dtype)) & jnp.all(jnp.diagonal(P, axis1=-2, axis2=-1) >= 0)
    return safe[..., :, None] * V * jnp.sqrt(jnp.maximum(w, 0))[..., None, :], ok


def _verdict(given, proper, beliefs: tuple[Belief, ...], pivot, log_likelihood):
    variances = [jnp.diagonal(b.cov, axis1=-2, axis2=-1) for b in beliefs]
    # smoothing subtracts from variances: those that vanish may be negative by a rounding
    sizes = jnp.max(variances[0], axis=-1, keepdims=True)
    positive = jnp.all(pivot > 0) & jnp.all(variances[0] >= -8 * eps(sizes.dtype) * sizes)
    positive = positive & jnp.all(variances[1] >= -64 * eps(sizes.dtype) * sizes)
    finite = _finite(beliefs) & jnp.isfinite(log_likelihood)
    indefinite = ~proper | ~jnp.all(pivot > 0) | (finite & ~positive)
    code = jnp.where(indefinite, int(GaussianStatus.INDEFINITE), jnp.where(finite, 0, int(GaussianStatus.NONFINITE)))
    return jnp.where(given, code, int(GaussianStatus.NONFINITE)).astype(jnp.int32)


def _finite(tree):
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def _steps(name: str, model, T: int, y=None) -> tuple[Steps, Array]:
    """Return a model's steps, its first state as one of them, and the observations' offsets."""
    if not isinstance(model, LinearGaussian):
        fail(name, "model", "a LinearGaussian", type(model).__name__, TypeError)
    if T < 1:
        fail(name, "y", "of one step at least", f"{T} steps")
    mean = float_array(name, "model.mean", model.mean, ndim=1)
    n, dtype = mean.shape[0], mean.dtype
    H = float_array(name, "model.H", model.H, dtype=dtype)
    if H.ndim not in (2, 3):
        fail(name, "model.H", f"(p, {n}) or ({T}, p, {n})", f"shape {H.shape}")
    p = H.shape[-2]

    def stacked(argument, x, steps, shape):
        x = float_array(name, f"model.{argument}", x, dtype=dtype)
        if x.shape not in (shape, (steps, *shape)):
            fail(name, f"model.{argument}", f"{shape} or {(steps, *shape)}", f"shape {x.shape}")
        if x.dtype != dtype:
            fail(name, f"model.{argument}", f"of the mean's dtype {dtype}", x.dtype, TypeError)
        return jnp.broadcast_to(x, (steps, *shape))

    zero_b, zero_c = jnp.zeros(n, dtype), jnp.zeros(p, dtype)
    A, Q = stacked("A", model.A, T - 1, (n, n)), stacked("Q", model.Q, T - 1, (n, n))
    b = stacked("b", zero_b if model.b is None else model.b, T - 1, (n,))
    c = stacked("c", zero_c if model.c is None else model.c, T, (p,))
    P = stacked("covariance", model.covariance, 1, (n, n))
    if y is not None and (y.shape[1] != p or y.dtype != dtype):
        fail(name, "y", f"({T}, {p}) of dtype {dtype}", f"{y.dtype} {y.shape}")
    steps = Steps(
        jnp.concatenate([jnp.zeros((1, n, n), dtype), A]),
        jnp.concatenate([mean[None], b]),
        jnp.concatenate([P, Q]),
        stacked("H", H, T, (p, n)),
        jnp.zeros((T, p), dtype) if y is None else y,
        stacked("R", model.R, T, (p, p)),
    )
    return steps, c
