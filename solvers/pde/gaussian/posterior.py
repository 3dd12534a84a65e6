"""The conditioned solve from end to end: prior, bases, learning, the most probable weights, the answer."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from ...core.checks import fail
from ...core.gaussian.kernels import SpectralMixture, per_dimension
from ...core.precision import eps
from ...core.solution import Status
from ..between import between, faces_between
from ..problem import Face, Observe, side
from ..settings import Settings
from ..solution import GPSolution, PDEStatus, Posterior, told
from ..spectral.axes import Fourier, Legendre
from ..spectral.spaces import face_values
from .conditioning import Data, Rows, condition
from .data_prior import data_prior
from .eigenbasis import Eigen, Weighted
from .evidence import functionals, maximise
from .random_field import unseen

HOLDS = 0.03
"""Relative residual between the nodes, and misfit of exact conditions, up to which they hold."""


def conditioned(problem, equation, args, dynamic, x, settings: Settings) -> GPSolution:
    """Return the solution of a problem that needs a prior, at the nodes x; `dynamic` are the traced parts of `args`."""
    prior, infer, learn, rank = settings.prior, settings.infer, settings.learn, settings.rank
    dtype, ndim, fields = x[0].dtype, problem.domain.ndim, problem.fields
    nugget = eps(dtype) ** 0.55
    limits = settings.within(jnp.asarray(30 * eps(dtype) / nugget, dtype))
    if prior is None:
        free = tuple(not p and any(len(problem.faces(k, d)) < max((i[d] for i in o), default=0) for k, o in enumerate(
            equation.orders)) for d, p in enumerate(problem.periodic))  # fmt: skip
        prior, aliased = _below_nyquist(data_prior(problem, equation, dynamic, args, x, dtype), x)
    else:
        free, aliased = (False,) * ndim, jnp.zeros((), bool)
    prior = lax.stop_gradient(per_dimension(prior, ndim))
    sizes = [c.size for c in x]
    rank = rank or {1: 256, 2: 40, 3: 12}[ndim]
    ranks = (rank,) * ndim if isinstance(rank, int) else tuple(rank)
    faces = [
        [Face(d, side(c)[1], jnp.asarray(problem.domain.bounds[d][side(c)[0]], dtype), c.a, c.b,
              face_values(problem, c, d, args, x), c.noise) for d in range(ndim) for c in problem.faces(k, d)]
        for k in range(fields)
    ]  # fmt: skip
    stated = eqx.tree_at(lambda p: (p.residual, p.conditions), problem, (None, problem.observations))
    data = Data(stated, faces, dynamic, infer)

    def conditioning(prior, data, guess):
        bases = tuple(_whitened(problem, d, prior[d], sizes[d], ranks[d], settings.basis, free[d]) for d in range(ndim))
        bases = lax.stop_gradient((bases,) * fields)
        moving, still = eqx.partition(data, eqx.is_inexact_array)

        def build(moving):
            return Rows(equation, bases, x, eqx.combine(moving, still), nugget)

        return bases, condition(build, moving, guess, limits)

    if learn is not None:
        prior, data = _learned(equation, x, prior, data, learn, None if _is_linear(equation, data) else conditioning)
    bases, (rows, (weights, found), posterior, run, evidence) = conditioning(prior, data, _weights(settings.guess))
    z = tuple(_colour(bases[k], f) for k, f in enumerate(weights))
    parts = rows.raw((weights, found))
    count = len(equation.orders)
    gaps = [jnp.max(jnp.abs(p) / s) * nugget for p, s in zip(parts[count:], rows.scales[count:], strict=True)]
    residual = jnp.sqrt(sum(jnp.mean((p / s) ** 2) for p, s in zip(parts[:count], rows.scales, strict=False))) * nugget
    status, spread = jnp.where(aliased & (run.status == Status.CONVERGED), int(PDEStatus.ALIASED), run.status), None
    if infer is not None:
        size = sum(f.size for f in weights)
        inverse = solve_triangular(posterior.root, jnp.eye(posterior.mean.size, dtype=dtype)[:, size:], trans=1)
        whitened = jnp.sqrt(jnp.sum(inverse**2, axis=0))
        unravel = ravel_pytree(found)[1]
        spread = jax.tree.map(jnp.multiply, infer, unravel(whitened))
        status = told(status, unseen(args, unravel(whitened)), PDEStatus.UNIDENTIFIED)
        args = eqx.combine(rows.args(found)[1], args)
    gapped = list(zip(parts[count:], rows.scales[count:], sum(_noises(data)[1:], ()), strict=True))
    noisy = [jnp.max(jnp.abs(p) / s) for p, s, noise in gapped if noise is not None]
    if noisy:
        status = told(status, jnp.max(jnp.stack(noisy)) > 12, PDEStatus.CONTRADICTED)
    judged = between(equation, bases, z, rows.args(found), data.problem.noise)
    if judged is not None:
        residual, excess = judged
        status = told(status, ~(excess <= HOLDS), PDEStatus.UNRESOLVED)
    faced = faces_between(problem, bases, z, args)
    if faced is not None:
        status = told(status, ~(faced <= HOLDS), PDEStatus.UNRESOLVED)
    exact = [p for p, (_, _, noise) in zip(parts[count:], gapped, strict=True) if noise is None]
    if exact:
        stated = [jnp.max(jnp.abs(f.values)) for fs in data.faces for f in fs]
        largest = jnp.max(jnp.stack([jnp.zeros((), dtype), *stated]))
        apart = jnp.max(jnp.stack([jnp.max(jnp.abs(p)) for p in exact])) > HOLDS * largest
        status = told(status, apart & (largest > 0), PDEStatus.CONTRADICTED)
    status = status.astype(jnp.int32)
    trusted = (status == Status.CONVERGED) | (status == PDEStatus.UNIDENTIFIED)
    posterior = Posterior(posterior.mean, jnp.where(trusted, posterior.root, jnp.nan))
    if spread is not None:
        spread = jax.tree.map(lambda s: jnp.where(trusted, s, jnp.nan), spread)
    return GPSolution(
        value=z if fields > 1 else z[0], status=status, num_steps=run.num_steps, error=run.error, tol=limits.tol,
        history=run.history, residual=residual, misfit=jnp.max(jnp.stack([jnp.zeros((), dtype), *gaps])),
        bases=bases, posterior=posterior, args=args, args_std=spread, infer=infer, log_evidence=evidence, prior=prior,
        noise=_noises(data),
    )  # fmt: skip


def _is_linear(equation, data: Data) -> bool:
    return equation.linear and data.spread is None


def _learned(equation, x, prior, data: Data, learn: str, conditioning):
    """Maximise the evidence of the data linearised at zero, or at a first solution where they are not linear."""
    shape, dtype = jnp.broadcast_shapes(*(c.shape for c in x)), x[0].dtype
    args = data.args
    jets = [[jnp.zeros(shape, dtype) for _ in orders] for orders in equation.orders]
    if conditioning is not None:
        rows, w, *_ = conditioning(prior, data, None)[1]
        jets, args = rows.jets(w[0]), rows.args(w[1])
    bounds = [(jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)) for lower, upper in data.problem.domain.bounds]
    facts = functionals(equation, x, jets, args, data, [b - a for a, b in bounds], [a for a, _ in bounds])
    prior, factors = maximise(prior, facts, learn)
    if learn == "prior":
        return lax.stop_gradient(prior), data
    return lax.stop_gradient(prior), _rescaled(data, lax.stop_gradient(factors), len(equation.orders))


def _rescaled(data: Data, factors, equations: int) -> Data:
    """Multiply each stated noise by its factor: equations, which share one, faces, observations."""
    shared, rest = jnp.exp(jnp.mean(jnp.log(factors[:equations]))), iter(factors[equations:])

    def times(noise, factor):
        return None if noise is None else noise * factor

    faces = [[face.with_noise(times(face.noise, next(rest))) for face in fs] for fs in data.faces]
    seen = tuple(Observe(o.points, o.values, times(o.noise, next(rest)), field=o.field)
                 for o in data.problem.observations)  # fmt: skip
    problem = eqx.tree_at(lambda p: (p.noise, p.conditions), data.problem, (times(data.problem.noise, shared), seen),
                          is_leaf=lambda v: v is None)  # fmt: skip
    return Data(problem, faces, data.args, data.spread)


def _noises(data: Data):
    return data.problem.noise, tuple(face.noise for fs in data.faces for face in fs), tuple(
        o.noise for o in data.problem.observations)  # fmt: skip


def _whitened(problem, d: int, kernel, size: int, rank: int, basis: str, free: bool):
    lower, upper = (jnp.asarray(b) for b in problem.domain.bounds[d])
    dtype = lower.dtype
    if problem.periodic[d]:
        return Weighted.build(kernel, Fourier(lower, upper, size), min(rank, size))
    if basis == "polynomial":
        return Weighted.build(kernel, Legendre(lower, upper, size, min(2, size - 1)), min(rank, size))
    anchors = max(128, 2 * size) if problem.domain.ndim == 1 else 128
    line = jnp.sqrt(kernel.derivative(jnp.zeros((), dtype))) if free else None
    return Eigen.build(kernel, lower, upper, anchors, min(rank, anchors), line)


def _colour(bases, tensor):
    for d, b in enumerate(bases):
        tensor = b.colour(tensor, d)
    return tensor


def _weights(guess):
    """Return a function that gives the whitened weights to start from."""
    if guess is None:
        return None
    if isinstance(guess, GPSolution) and guess.posterior is not None:
        start = guess.posterior.mean
        return lambda rows: ravel_pytree(rows.zeros())[1](start)
    fail("gp_solve", "guess", "an earlier solution of the same conditioned problem", type(guess).__name__)


def _below_nyquist(kernels, x):
    """Drop atoms that a uniform grid takes for slow ones, which the background explains; say whether there were any.

    Elsewhere above the Nyquist frequency an atom is harmless: nothing in the prior answers to its alias.
    """
    kept, refused = [], jnp.zeros((), bool)
    for k, c in zip(kernels, x, strict=True):
        steps = jnp.diff(c.reshape(-1))
        if steps.size < 2:
            kept.append(k)
            continue
        uniform = jnp.max(jnp.abs(steps - steps.mean())) < 1e-4 * jnp.abs(steps.mean())
        turn = jnp.abs(k.frequencies - steps.size * jnp.round(k.frequencies / steps.size))
        aliased = uniform & (k.frequencies > steps.size / 2) & (turn < 12)
        refused = refused | jnp.any(aliased & (k.weights > 0))
        kept.append(SpectralMixture(jnp.where(aliased, 0, k.weights), k.frequencies, k.lengths))
    return tuple(kept), refused
