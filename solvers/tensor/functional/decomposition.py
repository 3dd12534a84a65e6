"""Tensors whose modes are functions of continuous coordinates (FunBaT), by message passing."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ...core import checks
from ...core.gaussian.filtering import default_block
from ...core.gaussian.kernels import Kernel
from ...core.gaussian.sde import StateSpaceKernel, to_sde
from ...core.implicit import UNCONVERGED, attach, distrust, linear_solve
from ...core.krylov.gmres import gmres
from ...core.loop import Limits, iterate
from ...core.precision import eps, matmul
from ...core.scans import affine_scan
from ...core.solution import Status
from ...core.typing import Array, Bool, Float, Progress, Scalar
from ...core.vectors import norm
from .anderson import Memory, empty, extrapolated
from .chains import Factors, Sites, chains_of
from .messages import Core
from .posterior import FunctionalTucker, TensorStatus, named, plain
from .sweeps import Beliefs, CorePrior, Method, Model, Swept, all_sites, sweep

CALL = "functional_tucker"
CORES = ("cp", "tucker")
CORE_SOLVERS = ("dense", "cg")
LEAST_KEPT = 100
"""In units of rounding: a variance that fell to less of what it was has fewer than two digits."""


def functional_tucker(
    kernels: Kernel | StateSpaceKernel | tuple,
    coords: Float[Array, "N K"],
    y: Float[Array, " N"],
    rank: int | tuple[int, ...],
    *,
    key: Array | None = None,
    core: str = "tucker",
    noise: Scalar | None = None,
    noise_prior: tuple[Scalar, Scalar] = (1e-3, 1e-3),
    core_variance: Scalar = 1.0,
    observed: Bool[Array, " N"] | None = None,
    prior: FunctionalTucker | None = None,
    damping: Scalar | tuple[Scalar, Scalar, Scalar] = 0.0,
    acceleration: int | None = None,
    core_solver: str = "dense",
    method: str = "sequential",
    published: bool = False,
    x0: tuple | None = None,
    unconverged: str = "nan",
    tol: Scalar | None = None,
    max_steps: int | Array = 500,
    history: bool | int = False,
    progress: Progress | None = None,
) -> FunctionalTucker:
    """Fit a CP or Tucker tensor whose modes are functions of continuous coordinates to scattered values of it.

    ``y_i = sum_r W_(r1..rK) u1_r1(coords_i1) ... uK_rK(coords_iK) + noise``, each function a Gaussian process with its
    mode's kernel, W Gaussian or, for CP, the identity. Use it for values at scattered or gridded points of several
    variables, each of which acts on its own: stations x days x heights. Uncertainties come with it. For the rank-one
    case of one variable, exactly, see `gp_regression`; for a table without coordinates `complete`.

    Parameters
    ----------
    kernels : Kernel, or a tuple of K of them
        What `to_sde` takes; lengths in the units of that mode's coordinates. The product of the kernels' variances,
        times the rank or ``R^K core_variance``, is the prior variance of a value. Differentiable.
    coords : Float[Array, "N K"]
        Where the values are, in any order, repeated or not. Outside of jit equal coordinates share a node, and
        smoothers take as many steps as a mode has different ones; inside jit as many as there are entries.
        Differentiable there.
    y : Float[Array, "N"]
        Values; those not `observed` do not matter. Differentiable.
    rank : int, or a tuple of K of them
        Functions a mode, static; for CP one number.
    key : jax.random.key
        Where to start; needed unless `x0` is given.
    core : {"tucker", "cp"}
        Static.
    noise : scalar, optional
        Variance of the noise. Learned by default, its inverse having a Gamma prior. Differentiable.
    noise_prior : pair of scalars
        Shape and rate of that prior, the rate in the units of y squared.
    core_variance : scalar
        Prior variance of the entries of W. Differentiable.
    observed : Bool[Array, "N"], optional
        Which values there are; all by default.
    prior : FunctionalTucker, optional
        A posterior of earlier data: these are a further batch, whose coordinates join the earlier nodes. Its messages
        stay as they are, so that old data are not needed; kernels, ranks and prior variances must be the same.
    damping : scalar or three
        In [0, 1): how much of the old messages to the factors, the core and the noise is kept in a sweep; zero by
        default, as a sweep without never lowers the evidence bound. Published: 0.5, 0.9 and 0.6.
    acceleration : int, optional
        How many earlier sweeps Anderson's extrapolation mixes, static; 10 by default, none where there is `damping`. Of
        plain sweeps (0) the evidence bound never falls.
    core_solver : {"dense", "cg"}
        Static. "dense": the core's Gaussian with its covariance, R^K x R^K. "cg": its mean alone, by conjugate
        gradients on Kronecker products, in N R^K numbers, for large cores; its variance counts as zero.
    method : {"sequential", "parallel"}
        Of the smoothers, see `kalman_smoother`. Static.
    published : bool
        Messages as in the authors' code: without the core's variance, and with a unit prior added to each node's
        messages. Static.
    x0 : tuple, optional
        The ``value`` of a solution with the same nodes to start from. Its derivative is zero.
    unconverged : str
        Derivatives of a solve that did not converge: ``"nan"``, or ``"approximate"``, those of the equations at the
        point returned. Static.
    tol : scalar, optional
        Traced; 1e-6 in float64, 1e-4 in float32.
    max_steps : int
        Sweeps; traced.
    history : bool or int
        Record the error after each step (the first 256, or as many as given). Static.
    progress : callable, optional
        ``progress(step, error)`` on the host.

    Returns
    -------
    FunctionalTucker
        ``predict(coords)`` returns means and variances anywhere, ``factors(coords)`` the functions; ``value`` the
        beliefs, ``noise`` its variance. ``error``: how much one more sweep without damping changes the values at the
        entries: the larger of ``rms(E f - E f') / s``, ``rms(E f^2 - E f'^2) / s^2`` and the noise's change over
        ``s^2``, with ``s^2 = mean(y^2) + noise``.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes, ranks or options that do not fit.

    Notes
    -----
    The posterior is a product over modes, core and noise, the best such one nearby: a local optimum that depends on
    `key`, with variances that leave out what modes have in common, so that intervals of the function can be narrow
    where data are few, and with all functions zero where data look like noise. Given the other modes it is exact:
    ``K = 1`` is Gaussian-process regression.

    A sweep visits each mode: the entries' messages are summed at their nodes, a Kalman smoother runs over these, and
    new marginals go back to the entries; then the core, then the noise. Cost ``N R^(2K)`` for Tucker ("cg":
    ``N K R^(K+1)`` a product), ``N K R^2`` for CP, and ``K T (R p)^3`` for p states a kernel and T nodes of the longest
    mode. Memory ``N R^K + R^(2K)`` and ``K T (R p)^2``: products over entries are made piece by piece. Modes share one
    compiled smoother, shapes padded to the largest.
    Derivatives: implicit, forward and reverse, first order, through the fixed point of a sweep, by GMRES.

    Departures from the paper's code: the core's variance enters the messages, the processes are the only prior of the
    factors, and nothing is damped unless asked for; see `published`.

    References
    ----------
    S. Fang, X. Yu, Z. Wang, S. Li, M. Kirby, S. Zhe, *Functional Bayesian Tucker decomposition for continuous-indexed
    tensor data*, ICLR 2024. Z. Wang, S. Zhe, *Conditional expectation propagation*, UAI 2019.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from solvers import Matern, functional_tucker
    >>> coords = jax.random.uniform(jax.random.key(4), (200, 2))
    >>> y = jnp.sin(6 * coords[:, 0]) * jnp.cos(3 * coords[:, 1])
    >>> found = functional_tucker(Matern(0.5), coords, y, 1, key=jax.random.key(5), core="cp", noise=1e-3, tol=1e-3)
    >>> mean, variance = found.predict(jnp.array([[0.3, 0.2]]))
    >>> print(bool(found.converged), bool(abs(mean[0] - jnp.sin(1.8) * jnp.cos(0.6)) < 0.1))
    True True
    """
    y, given = checks.float_array(CALL, "y", y, ndim=1), coords
    coords = checks.float_array(CALL, "coords", coords, ndim=2, dtype=y.dtype)
    dtype, (N, K) = y.dtype, coords.shape
    if coords.dtype != dtype or y.shape != (N,) or not N or not K:
        checks.fail(CALL, "coords", f"(N, K) for {y.shape[0]} values of {dtype}", f"{coords.dtype} {coords.shape}")
    for name, x, allowed in (("core", core, CORES), ("core_solver", core_solver, CORE_SOLVERS),
                             ("method", method, ("sequential", "parallel")), ("unconverged", unconverged, UNCONVERGED)
                             ):  # fmt: skip
        checks.choice(CALL, name, x, allowed)
    sdes = _processes(kernels, K, dtype)
    ranks = tuple(rank) if isinstance(rank, tuple | list) else (rank,) * K
    if len(ranks) != K or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in ranks):
        checks.fail(CALL, "rank", f"a positive Python integer, or {K} of them", rank)
    if core == "cp" and len(set(ranks)) > 1:
        checks.fail(CALL, "rank", "one number for CP", rank)
    if key is None and x0 is None:
        checks.fail(CALL, "key", "a jax.random.key where no `x0` is given", key)
    if key is not None:
        checks.random_key(CALL, "key", key)
    seen = jnp.ones(N, bool) if observed is None else jnp.asarray(observed)
    if seen.shape != (N,) or seen.dtype != jnp.bool_:
        checks.fail(CALL, "observed", f"booleans ({N},)", f"{seen.dtype} {seen.shape}")
    tucker = core == "tucker"
    _check_prior(prior, ranks, tucker, core_solver, dtype)
    numbers = {
        "noise": None if noise is None else checks.number(CALL, "noise", noise, positive=True, dtype=dtype),
        "noise_prior": tuple(checks.number(CALL, "noise_prior", x, positive=True, dtype=dtype) for x in noise_prior),
        "core_variance": checks.number(CALL, "core_variance", core_variance, positive=True, dtype=dtype),
    }
    amounts = damping if isinstance(damping, tuple | list) else (damping,) * 3
    amounts = tuple(checks.number(CALL, "damping", x, dtype=dtype) for x in amounts)
    if len(amounts) != 3 or any(checks.known(x) and not 0 <= float(x) < 1 for x in amounts):
        checks.fail(CALL, "damping", "a number in [0, 1), or three of them", damping)
    if acceleration is None:
        acceleration = 10 * (damping == 0.0 if isinstance(damping, float | int) else 0)
    if isinstance(acceleration, bool) or not isinstance(acceleration, int) or acceleration < 0:
        checks.fail(CALL, "acceleration", "a non-negative Python integer", acceleration)
    nodes, index = nodes_of(given if checks.known(given) else coords, dtype, None if prior is None else prior.nodes)
    tol = {"float64": 1e-6}.get(jnp.dtype(dtype).name, 1e-4) if tol is None else tol
    limits = Limits(
        checks.number(CALL, "tol", tol, dtype=dtype), checks.count(CALL, "max_steps", max_steps), history, progress
    )
    block = default_block(nodes.shape[1]) if method == "parallel" else 0
    how = Method(index, block, tucker, core_solver == "dense", bool(published))
    if x0 is not None:
        x0 = _start_given(x0, nodes.shape[1], ranks, how, dtype)
    start, ends = (key, x0), (limits, unconverged)
    return _solve(nodes, (y, seen), ranks, (sdes, numbers, prior), start, (how, amounts, acceleration), ends)


def _processes(kernels, K: int, dtype) -> tuple[StateSpaceKernel, ...]:
    each = tuple(kernels) if isinstance(kernels, tuple | list) else (kernels,) * K
    if len(each) != K or not all(isinstance(k, Kernel | StateSpaceKernel) for k in each):
        checks.fail(CALL, "kernels", f"a kernel, or a tuple of {K} kernels", [type(k).__name__ for k in each])
    return tuple(k if isinstance(k, StateSpaceKernel) else to_sde(k, dtype=dtype) for k in each)


def nodes_of(coords: Float[Array, "N K"], dtype, old: Float[Array, "K T"] | None) -> tuple[Array, Array]:
    """Return rising nodes (K, T), padded with the last one, and which of them each coordinate is."""
    looked_at = checks.known(coords) and (old is None or checks.known(old))
    numpy = np if looked_at else jnp
    new = numpy.asarray(coords, dtype).T
    before = new[:, :0] if old is None else numpy.asarray(old, dtype)
    both = numpy.concatenate([before, new], axis=1)
    if not looked_at:
        order = jnp.argsort(both, axis=1, stable=True)
        place = jnp.argsort(order, axis=1).astype(jnp.int32)
        return jnp.take_along_axis(both, order, axis=1), place[:, before.shape[1] :]
    found = [np.unique(row, return_inverse=True) for row in both]
    T = max(len(nodes) for nodes, _ in found)
    nodes = np.stack([np.pad(nodes, (0, T - len(nodes)), mode="edge") for nodes, _ in found])
    index = np.stack([where.reshape(-1)[before.shape[1] :] for _, where in found])
    return jnp.asarray(nodes), jnp.asarray(index, jnp.int32)


def _check_prior(prior, ranks, tucker: bool, core_solver: str, dtype) -> None:
    if prior is None:
        return
    if not isinstance(prior, FunctionalTucker):
        checks.fail(CALL, "prior", "a FunctionalTucker", type(prior).__name__, TypeError)
    core = prior.beliefs.core
    same = prior.ranks == ranks and (core is not None) == tucker and prior.nodes.dtype == dtype
    if not same:
        checks.fail(CALL, "prior", f"of ranks {ranks}, the same core and dtype", f"{prior.ranks}, {prior.nodes.dtype}")
    if tucker and (core_solver == "cg" or core is None or core.cov is None):
        checks.fail(CALL, "core_solver", "'dense' where there is a `prior`", repr(core_solver))


def _start_given(x0, T: int, ranks, how: Method, dtype) -> Beliefs:
    """Return beliefs to start from, of checked shapes."""
    K, R = len(ranks), max(ranks)
    shapes = [(K, T, R), (K, T, R, R)] + [(R,) * K] * how.tucker + [(R**K,) * 2] * (how.tucker and how.dense) + [()]
    found = [jnp.asarray(x) for x in jax.tree.leaves(x0)]
    if [x.shape for x in found] != shapes or any(x.dtype != dtype for x in found):
        checks.fail(CALL, "x0", f"the value of a solution, of shapes {shapes}", [x.shape for x in found])
    return lax.stop_gradient(named(x0))


class Walk(NamedTuple):
    """Where an iteration is, the sweep from there once it is made, and what acceleration remembers or None."""

    now: Beliefs
    then: Swept
    memory: Memory | None
    ready: Array


@eqx.filter_jit
def _solve(nodes, data, ranks, priors, start, method, ends) -> FunctionalTucker:
    (y, seen), (sdes, numbers, prior), (key, x0) = data, priors, start
    (how, damping, acceleration), (limits, unconverged) = method, ends
    dtype, (K, T), R = y.dtype, nodes.shape, max(ranks)
    model = _model(nodes, (y, seen), sdes, ranks, numbers, prior, how)
    fixed = lax.stop_gradient(model)
    amounts = lax.stop_gradient(damping)
    beliefs = _random(fixed, how, (key, numbers, ranks)) if x0 is None else x0
    sites = Sites(jnp.zeros((K, T, R, R), dtype), jnp.zeros((K, T, R), dtype))
    natural = CorePrior(jnp.zeros((R**K, R**K), dtype), jnp.zeros(R**K, dtype)) if how.tucker and how.dense else None
    nothing = Swept(beliefs, sites, natural, jnp.ones((), dtype), jnp.ones((), dtype))
    improper = _improper(fixed, numbers, amounts)
    largest = jnp.max(jnp.stack(amounts))
    flat, unravel = ravel_pytree(beliefs)

    def where(condition, one, two):
        return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, two)

    def ahead(walk: Walk):
        """Return where to go next, and what to remember."""
        if walk.memory is None:
            return walk.then.beliefs, None
        now, then = (ravel_pytree(x)[0] for x in (walk.now, walk.then.beliefs))
        there, memory = extrapolated(walk.memory, now, then, walk.then.change)
        there = unravel(there)
        valid = jnp.all(jnp.diagonal(there.factors.cov, axis1=-2, axis2=-1) >= 0) & (there.precision > 0)
        return where(valid, there, walk.then.beliefs), where(walk.ready, memory, walk.memory)

    def step(walk: Walk) -> Walk:
        there, memory = ahead(walk)
        now = where(walk.ready, there, walk.now)  # the first step only looks: one sweep in the program, not two
        return Walk(now, sweep(fixed, how, walk.then._replace(beliefs=now), amounts), memory, jnp.ones((), bool))

    run = iterate(
        step,
        Walk(beliefs, nothing, empty(flat, acceleration) if acceleration else None, jnp.zeros((), bool)),
        _with_a_look(limits),
        value=lambda walk: (walk.now, walk.then.kept),
        error=lambda walk: walk.then.change / (1 - largest),
        answers=lambda walk: walk.ready,
        refused=lambda _: jnp.where(improper, int(TensorStatus.IMPROPER), int(Status.RUNNING)),
        stall=100,
    )
    beliefs, kept = run.value
    poor = ~(kept >= LEAST_KEPT * eps(dtype))
    status = jnp.where((run.status == Status.CONVERGED) & poor, int(TensorStatus.IMPRECISE), run.status)
    trusted = (status == Status.CONVERGED) | (unconverged == "approximate")
    # both ends, since a solve of a system whose right-hand side is NaN may return zero
    beliefs = distrust(_attached(distrust(model, trusted), how, beliefs, nothing), trusted)
    gamma = jnp.full(2, jnp.inf, dtype)
    if len(model.noise) == 2:
        shape = model.noise[0] + jnp.sum(model.weight) / 2
        gamma = jnp.stack([shape, shape / beliefs.precision])
    return FunctionalTucker(
        plain(beliefs), status.astype(jnp.int32), jnp.maximum(run.num_steps - 1, 0), run.error, limits.tol,
        None if run.history is None else run.history[1:], nodes, all_sites(model, how, beliefs), gamma, sdes, ranks,
        how.block,
    )  # fmt: skip


def _with_a_look(limits: Limits) -> Limits:
    """Return limits of a loop whose first step does not count."""
    progress = limits.progress
    told = progress and (lambda k, e: progress(k - 1, e) if k > 1 else None)
    most = jnp.minimum(limits.max_steps, np.iinfo(np.int32).max - 1) + 1
    return Limits(limits.tol, most, limits.history + 1 if limits.history else 0, told)


def _model(nodes, data, sdes, ranks, numbers, prior, how: Method) -> Model:
    """Return the data and priors."""
    y, seen = data
    dtype, K, R = y.dtype, len(ranks), max(ranks)
    sites = None
    noise = (numbers["noise"],) if numbers["noise"] is not None else numbers["noise_prior"]
    core: Any = numbers["core_variance"]
    if how.tucker and how.dense:
        eye = jnp.eye(R**K, dtype=dtype)
        core = CorePrior(eye / numbers["core_variance"], jnp.zeros(R**K, dtype))
    if prior is not None:
        sites = _carried(prior, nodes)
        if numbers["noise"] is None:
            noise = (prior.gamma[0], prior.gamma[1])
        if how.tucker:
            before = prior.beliefs.core
            precision = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(before.cov), True), eye)
            core = CorePrior(precision, matmul(precision, before.mean.reshape(-1)))
    chains = chains_of(sdes, nodes, ranks)
    return Model(jnp.where(seen, y, 0), seen.astype(dtype), chains, sites, core, noise)


def _carried(prior: FunctionalTucker, nodes) -> Sites:
    """Return the earlier messages at their places among the nodes."""

    def one(old, new, x):
        at = jnp.searchsorted(new, old)
        return jax.tree.map(lambda v: jnp.zeros((new.shape[0], *v.shape[1:]), v.dtype).at[at].add(v), x)

    return jax.vmap(one)(prior.nodes, nodes, prior.sites)


def _improper(model: Model, numbers, damping) -> Array:
    """Whether a number that must be positive is not, a process grows, or damping is out of range."""
    positive = [numbers["core_variance"], *model.noise]
    variances = jnp.diagonal(model.chains.Q, axis1=-2, axis2=-1)
    decays = jnp.diagonal(model.chains.A, axis1=-2, axis2=-1)
    good = jnp.all(jnp.stack([x > 0 for x in positive])) & jnp.all(variances >= 0) & jnp.all(jnp.abs(decays) <= 1)
    good = good & jnp.all(jnp.any(model.chains.H != 0, axis=(1, 2)))
    good = good & jnp.all(jnp.stack([(x >= 0) & (x < 1) for x in damping]))
    missing = jnp.any(jnp.isnan(jnp.stack(positive))) | jnp.any(jnp.isnan(variances)) | jnp.any(jnp.isnan(decays))
    return ~good & ~missing


def _random(model: Model, how: Method, given) -> Beliefs:
    """Return smooth random functions of the kernels' variances, without uncertainty."""
    key, numbers, ranks = given
    K, T, R = *model.chains.A.shape[:2], max(ranks)
    dtype = model.y.dtype
    for_factors, for_core = jax.random.split(key)

    def one(given):
        chain, key = given
        variance = jnp.diagonal(matmul(matmul(chain.H, chain.Q[0]), chain.H.T))
        fresh = jnp.sqrt(jnp.diagonal(chain.Q, axis1=1, axis2=2)) * jax.random.normal(key, chain.Q.shape[:2], dtype)
        path = matmul(affine_scan(chain.A, fresh), chain.H.T)
        size = jnp.sqrt(jnp.mean(path**2, axis=0))
        return path * jnp.where(size > 0, jnp.sqrt(variance) / jnp.where(size > 0, size, 1), 0)[None]

    mean = lax.map(one, (model.chains, jax.random.split(for_factors, K)))
    count = jnp.maximum(jnp.sum(model.weight), 1)
    square = jnp.sum(model.weight * model.y**2) / count
    precision = 1 / model.noise[0] if len(model.noise) == 1 else 10 / jnp.where(square > 0, square, 10)
    core = None
    if how.tucker:
        entries = jnp.sqrt(numbers["core_variance"]) * jax.random.normal(for_core, (R,) * K, dtype)
        core = Core(entries, jnp.zeros((R**K, R**K), dtype) if how.dense else None)
    return lax.stop_gradient(Beliefs(Factors(mean, jnp.zeros((K, T, R, R), dtype)), core, precision))


def _attached(model: Model, how: Method, beliefs: Beliefs, nothing: Swept) -> Beliefs:
    """Return the beliefs with their derivatives as a fixed point of a sweep without damping."""
    zero = jnp.zeros((), model.y.dtype)

    def residual(point, model):
        new = sweep(model, how, nothing._replace(beliefs=point), (zero, zero, zero)).beliefs
        return jax.tree.map(jnp.subtract, new, point)

    def solve(jacobian, b):
        size = sum(x.size for x in jax.tree.leaves(b))

        def by_gmres(matvec, b):
            tol = 10 * eps(model.y.dtype) * norm(b)
            return gmres(matvec, b, tol=tol, max_steps=10 * size, memory=min(size, 60)).x

        # As one vector: where only some leaves of b depend on what is differentiated, JAX cannot transpose the solve.
        flat, shaped = ravel_pytree(b)
        return shaped(linear_solve(lambda v: ravel_pytree(jacobian(shaped(v)))[0], flat, by_gmres, symmetric=False))

    return attach(residual, beliefs, model, solve=solve)
