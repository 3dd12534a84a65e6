"""Deterministic sampling and its inversion: DDIM, and BDIA, which can be run backwards exactly.

Numbered as in the comments; a' and s' are alpha and sigma at the neighbour, x_0 and e the clean signal and the noise
that the model sees at ``z = alpha x_0 + sigma e``. By Song, Meng, Ermon (ICLR 2021):

(1) ``Delta = (a' - alpha) x_0 + (s' - sigma) e``: DDIM's increment to the neighbour
(2) ``z' = a' x_0 + sqrt(s'^2 - new^2) e + new fresh``, ``new = eta s' sqrt(1 - (alpha s' / (a' sigma))^2)``

By Zhang, Lewis, Kleijn (ECCV 2024), with both increments from z[i]:

(3) ``z[i-1] = z[i+1] - (1 - gamma) (z[i+1] - z[i]) - gamma Delta(i -> i+1) + Delta(i -> i-1)``
(4) ``z[i+1] = z[i] + (z[i-1] - z[i] + gamma Delta(i -> i+1) - Delta(i -> i-1)) / gamma``: the same, solved for it

And DDIM run back to first order, with x_0 and e from the point that is known:

(5) ``z[i+1] = z[i] + (alpha - a') x_0 + (sigma - s') e``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core import checks
from ...core.precision import eps
from ...core.reversible import reversible_scan
from ...core.solution import Solution, Status, StatusCode
from ...core.typing import Array, Float, Scalar
from ..variational.statement import length
from .schedules import NoiseSchedule
from .tweedie_formulas import KINDS, Noised, predict


class InversionStatus(StatusCode):
    """Why an inversion is not to be trusted, beyond `Status`."""

    AMPLIFIED = (
        110,
        "amplified: running back divides by gamma in each step, and gamma^-steps times rounding exceeds the tolerance; "
        "use gamma = 1 or fewer steps",
    )
    INEXACT = (
        111,
        "inexact: sampling from what was found misses the start; use BDIA(1.0), more steps, or a looser rtol",
    )


class Pair(NamedTuple):
    """Two neighbouring points of a trajectory, `noisier` one step further from the clean signal than `cleaner`."""

    noisier: Array
    cleaner: Array


class DDIM(eqx.Module):
    """One step of denoising diffusion implicit models; first order.

    Attributes
    ----------
    eta : scalar
        0: deterministic, the probability-flow equation by a linear multistep of order one. 1: ancestral sampling, which
        needs a key. Traced.

    References
    ----------
    Song, Meng, Ermon, "Denoising diffusion implicit models", ICLR 2021, (12), (16).
    """

    eta: Any = 0.0


class BDIA(eqx.Module):
    """The bidirectional integration approximation: a two-step scheme on DDIM that can be run backwards exactly.

    Equation 3 of this module, with DDIM's increments from z[i]: one call of the model a step, as DDIM; the first step
    is DDIM's.

    Attributes
    ----------
    gamma : scalar
        1: second order, time-symmetric, and reversible to rounding; a leapfrog, so weakly unstable on long dissipative
        stretches. Below 1: first order, and going back divides by gamma in each step, so that errors grow like
        ``gamma^-steps``. 0 is DDIM and cannot be run back. Traced.
    adjoint : str
        "direct": derivatives in both modes, with the memory of all steps. "reversible": reverse mode only, running the
        steps backwards, with the memory of one. Static.

    References
    ----------
    Zhang, Lewis, Kleijn, "Exact diffusion inversion via bidirectional integration approximation", ECCV 2024.
    """

    gamma: Any = 1.0
    adjoint: str = eqx.field(static=True, default="direct")


class Sample(NamedTuple):
    """What `sample` returns: the clean `value`, and the last `pair` of the trajectory, from which BDIA goes back."""

    value: Array
    pair: Pair


class InversionSolution(Solution):
    """The noise that a signal is sampled from.

    Attributes
    ----------
    value : Pair
        What to give to `sample`; ``value.noisier`` is the noise itself.
    amplification : Float[Array, ""]
        ``gamma^-(steps - 1)``, by which rounding grows on the way; 1 for DDIM.
    """

    amplification: Float[Array, "..."]

    statuses: ClassVar[tuple[type[StatusCode], ...]] = (Status, InversionStatus)


class Around(NamedTuple):
    """A grid point with the factors of its two neighbours."""

    noisier: Noised
    here: Noised
    cleaner: Noised


def around(schedule: NoiseSchedule, steps: int, dtype) -> Around:
    """Return the points N, ..., 1 with their neighbours; N is its own noisier one."""
    grid = Noised(*schedule.grid(steps, dtype))
    shift = lambda x: jnp.concatenate([x[:1], x[:-2]])  # noqa: E731
    return Around(Noised(*(shift(x) for x in grid)), Noised(*(x[:-1] for x in grid)), Noised(*(x[1:] for x in grid)))


def increments(model, kind: str, z: Array, a: Around) -> tuple[Array, Array]:
    """Return DDIM's increments from z towards the noisier and the cleaner neighbour, by one call of the model."""
    clean, noise = predict(model, kind, z, a.here)

    def towards(b: Noised):
        return (b.alpha - a.here.alpha) * clean + (b.sigma - a.here.sigma) * noise  # (1)

    return towards(a.noisier), towards(a.cleaner)


def step(model, kind: str, gamma, pair: Pair, a: Around) -> Pair:
    """One step towards the clean signal; with gamma = 0, or from a pair of equals, DDIM's."""
    up, down = increments(model, kind, pair.cleaner, a)
    z, older = pair.cleaner, pair.noisier
    return Pair(z, older - (1 - gamma) * (older - z) - gamma * up + down)  # (3)


def step_back(model, kind: str, gamma, pair: Pair, a: Around) -> Pair:
    """Undo `step`: the same equation solved for the noisier point."""
    z, newer = pair
    up, down = increments(model, kind, z, a)
    return Pair(z + ((newer - z) + (gamma * up - down)) / gamma, z)  # (4)


def checked(name: str, kind: str, stepper, steps) -> Array | float:
    """Return gamma, or raise."""
    checks.choice(name, "kind", kind, KINDS)
    if not isinstance(stepper, DDIM | BDIA):
        checks.fail(name, "stepper", "DDIM(...) or BDIA(...)", type(stepper).__name__, TypeError)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        checks.fail(name, "steps", "a positive Python integer", steps)
    if isinstance(stepper, BDIA):
        checks.choice(name, "stepper.adjoint", stepper.adjoint, ("direct", "reversible"))
        return stepper.gamma
    return 0.0


def sample(
    model: Callable[[Array, Array], Array],
    schedule: NoiseSchedule,
    noise: Array | Pair,
    *,
    steps: int = 50,
    kind: str = "score",
    stepper: DDIM | BDIA | None = None,
    key: Array | None = None,
) -> Sample:
    """Turn noise into a sample by running a diffusion model from time 1 to 0.

    Parameters
    ----------
    model : callable
        ``model(x, t)`` on one array and a scalar; a function or a module. Differentiable.
    schedule : NoiseSchedule
        What the model was trained with.
    noise : Float[Array, "..."] or Pair
        Normal numbers times ``schedule.sigma(1)``; differentiable. A `Pair` from `invert` goes on from its two points.
    steps : int
        Calls of the model; static.
    kind : str
        What the model returns: "score", "denoiser" or "noise". Static.
    stepper : DDIM or BDIA, optional
        ``DDIM()`` by default.
    key : PRNG key, optional
        For ``DDIM(eta > 0)``.

    Returns
    -------
    Sample
        ``value`` and ``pair``. One scan; batches by ``jax.vmap`` over `noise` (and keys).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from solvers.inverse import BDIA, CosineSchedule, sample
    >>> schedule = CosineSchedule()
    >>> score = lambda x, t: -x / (schedule.alpha(t) ** 2 / 4 + schedule.sigma(t) ** 2)  # of N(0, 1/4)
    >>> [round(float(v), 2) for v in sample(score, schedule, jnp.ones(2), steps=200, stepper=BDIA()).value]
    [0.5, 0.5]
    """
    name = "sample"
    stepper = DDIM() if stepper is None else stepper
    gamma = checked(name, kind, stepper, steps)
    resumed = isinstance(noise, Pair)
    pair = noise if resumed else Pair(noise, noise)
    dtype = checks.float_array(name, "noise", pair.cleaner).dtype
    points = around(schedule, steps, dtype)
    if resumed:
        points = jax.tree.map(lambda x: x[1:], points)
    if isinstance(stepper, DDIM) and not (isinstance(stepper.eta, int | float) and stepper.eta == 0):
        if key is None or resumed:
            checks.fail(name, "key", "given, and `noise` one array, where DDIM's eta is not zero", key)
        end = _ancestral(model, kind, stepper.eta, pair, points, key)
    elif isinstance(stepper, BDIA) and stepper.adjoint == "reversible":
        end = _reversible(model, kind, gamma, pair, points)
    else:
        end = lax.scan(lambda c, a: (step(model, kind, gamma, c, a), None), pair, points)[0]
    return Sample(end.cleaner, end)


def _ancestral(model, kind, eta, pair: Pair, points: Around, key) -> Pair:
    keys = jax.random.split(key, points.here.t.shape[0])

    def body(c: Pair, x):
        a, k = x
        clean, noise = predict(model, kind, c.cleaner, a.here)
        fresh = jax.random.normal(k, c.cleaner.shape, c.cleaner.dtype)
        return Pair(c.cleaner, renoise(clean, noise, fresh, eta, a)), None

    return lax.scan(body, pair, (points, keys))[0]


def renoise(clean: Array, noise: Array, fresh: Array, eta: Scalar, a: Around) -> Array:
    """Return the next point: the clean signal with some of the old noise and some fresh."""
    # sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2) is the deviation of x_t' given x_t and x_0.
    ratio = (a.here.alpha * a.cleaner.sigma) / (a.cleaner.alpha * a.here.sigma)
    new = eta * a.cleaner.sigma * jnp.sqrt(jnp.maximum(1 - ratio**2, 0))  # (2)
    old = jnp.sqrt(jnp.maximum(a.cleaner.sigma**2 - new**2, 0))
    return a.cleaner.alpha * clean + old * noise + new * fresh  # (2)


def _reversible(model, kind: str, gamma, pair: Pair, points: Around) -> Pair:
    """Run BDIA so that its derivative runs it backwards."""
    moving, fixed = eqx.partition(model, eqx.is_inexact_array)
    first = jax.tree.map(lambda x: x[0], points)

    def call(moving, z, t):
        return eqx.combine(moving, fixed)(z, t)

    # A plain function may close over arrays that are differentiated; they become arguments here.
    pure, hoisted = jax.closure_convert(call, moving, pair.cleaner, first.here.t)
    parameters = (moving, tuple(hoisted), jnp.asarray(gamma, pair.cleaner.dtype))

    def bound(parameters):
        moving, hoisted, gamma = parameters
        return (lambda z, t: pure(moving, z, t, *hoisted)), gamma

    def forward(parameters, c, a):
        model, gamma = bound(parameters)
        return step(model, kind, gamma, c, a)

    def back(parameters, c, a):
        model, gamma = bound(parameters)
        return step_back(model, kind, gamma, c, a)

    return reversible_scan(forward, back, parameters, pair, points)


def invert(
    model: Callable[[Array, Array], Array],
    schedule: NoiseSchedule,
    x: Array | Pair,
    *,
    steps: int = 50,
    kind: str = "score",
    stepper: DDIM | BDIA | None = None,
    rtol: Scalar | None = None,
) -> InversionSolution:
    """Find the noise that a signal is sampled from, and check that it is.

    Parameters
    ----------
    model : callable
        ``model(x, t)``, as of `sample`.
    schedule : NoiseSchedule
    x : Float[Array, "..."] or Pair
        The signal, or the `pair` that a sample ended with.
    steps : int
        As for the sampling; static.
    kind : str
        "score", "denoiser" or "noise"; static.
    stepper : DDIM or BDIA, optional
        ``BDIA(1.0)`` by default, which is exact to rounding. DDIM is inverted to first order only.
    rtol : scalar, optional
        What the round trip may miss; ``1e-9`` in float64, ``1e-3`` in float32. Traced.

    Returns
    -------
    InversionSolution
        ``value``, a `Pair` for `sample`; ``error = |sample(value) - x| / |x|``, measured: sampling is run again, so an
        inversion costs twice the calls of the model. Where ``gamma^-(steps-1) eps > rtol`` the status is
        `InversionStatus.AMPLIFIED` whatever the error.

    Notes
    -----
    A BDIA trajectory is known from two neighbouring points. From one signal the second is made by one step of DDIM with
    the model at the signal itself; whatever it is, sampling from the answer passes through both.
    """
    name = "invert"
    stepper = BDIA() if stepper is None else stepper
    gamma = checked(name, kind, stepper, steps)
    dtype = checks.float_array(name, "x", x.cleaner if isinstance(x, Pair) else x).dtype
    rtol = checks.number(name, "rtol", (1e-9 if dtype == jnp.float64 else 1e-3) if rtol is None else rtol, dtype=dtype)
    points = around(schedule, steps, dtype)
    last = jax.tree.map(lambda p: p[-1], points)
    if isinstance(x, Pair):
        pair, target = x, x.cleaner
    else:
        clean, noise = predict(model, kind, x, last.here)
        pair, target = Pair(x + (last.here.alpha - 1) * clean + last.here.sigma * noise, x), x
    if isinstance(stepper, BDIA):
        rest = jax.tree.map(lambda p: p[1:], points)
        start = lax.scan(lambda c, a: (step_back(model, kind, gamma, c, a), None), pair, rest, reverse=True)[0]
        growth = jnp.asarray(gamma, dtype) ** -(steps - 1)
    else:
        rest = jax.tree.map(lambda p: p[:-1], points)

        def naive(z, a: Around):
            # The model is asked at the point that is known, with the time of the one that is sought.
            clean, noise = predict(model, kind, z, a.here)
            return z + (a.here.alpha - a.cleaner.alpha) * clean + (a.here.sigma - a.cleaner.sigma) * noise, None  # (5)

        z = lax.scan(naive, pair.noisier, rest, reverse=True)[0]
        start, growth = Pair(z, z), jnp.ones((), dtype)
    begin = start if isinstance(stepper, BDIA) else start.noisier
    again = sample(model, schedule, begin, steps=steps, kind=kind, stepper=stepper).value
    size = length(target)
    error = length(again - target) / jnp.where(size > 0, size, 1)
    status = jnp.where(error <= rtol, Status.CONVERGED, InversionStatus.INEXACT)
    status = jnp.where(jnp.isfinite(error), status, Status.NONFINITE)
    status = jnp.where(growth * eps(dtype) > rtol, InversionStatus.AMPLIFIED, status).astype(jnp.int32)
    return InversionSolution(start, status, jnp.asarray(2 * steps, jnp.int32), error, rtol, None, growth)
