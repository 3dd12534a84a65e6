"""The price of a call at all times and prices, learned from simulated paths by one linear solve."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..problems.sde import BlackScholes
from ..sde import Paths, lstd, orthogonality, simulate
from .record import Record, timed

PATHS, STEPS = 20_000, 50


def base(t, x, call=BlackScholes()):  # noqa: B008
    """Return what the call is worth without volatility."""
    return jnp.maximum(jnp.exp(x[0]) - call.strike * jnp.exp(-call.rate * (call.horizon - t)), 0)


def features(t, x, call=BlackScholes()):  # noqa: B008
    """Return bumps around the strike that vanish at the end, in the variable in which the value spreads."""
    left = jnp.maximum(call.horizon - t, 1e-6)
    spread = call.volatility * jnp.sqrt(left)
    z = (x[0] - jnp.log(call.strike) + call.rate * left) / spread
    bump = jnp.exp(-z * z / 2) * spread
    tail = jnp.exp(-jnp.abs(z)) * spread
    return jnp.stack([bump, bump * z, bump * z**2, bump * spread, tail, tail * jnp.abs(z)])


def run(plots: Path, say) -> list[Record]:
    """Fit, compare with the formula, draw."""
    call = BlackScholes()
    title = f"a call priced at all times and prices from {PATHS:,} paths, against the formula of Black and Scholes"
    say(title)
    times = jnp.linspace(0, call.horizon, STEPS + 1)

    def fit(key):
        one, two = jax.random.split(key)
        x0 = 0.4 * jax.random.normal(one, (PATHS, 1))
        states = simulate(call.drift, call.diffusion, x0, times, two)
        paths = Paths(times, states, call.payoff(states[:, -1]), None, call.rate)
        made = lstd(features, paths, base=base)
        test = lambda c, t, x: jnp.stack([jnp.sin(x[0]), x[0] * t])  # noqa: E731
        return made.coefficients, made.condition, orthogonality(lambda c, t, x: made(t, x), None, paths, test=test)

    made = timed(fit, jax.random.key(7))
    c, condition, moments = made.output
    t, x = jnp.meshgrid(jnp.linspace(0, 0.9, 19), jnp.linspace(-0.6, 0.6, 41), indexing="ij")
    value = jax.vmap(jax.vmap(lambda t, x: base(t, x[None]) + jnp.sum(c * features(t, x[None]))))(t, x)
    exact = call.value(t, x[..., None])
    error, tol = float(jnp.max(jnp.abs(value - exact))), 0.01
    picture = plots / "sde.png"
    draw(np.asarray(x[0]), np.asarray(value), np.asarray(exact), np.asarray(t[:, 0]), picture)
    record = Record(
        "sde", title, "lstd", "within a cent" if error <= tol else "off", error <= tol, error, tol, 1,
        made.compile_seconds, made.run_seconds, pictures=[str(picture)],
        facts={"condition": float(condition), "paths": PATHS,
               "orthogonality_in_errors": float(jnp.max(jnp.abs(moments.value / moments.standard_error)))},
    )  # fmt: skip
    for line in record.lines():
        say(line)
    return [record]


def draw(x, value, exact, times, path: Path) -> None:
    """Draw the learned value at some times over the formula's."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for k, colour in ((0, "#0072B2"), (10, "#009E73"), (18, "#D55E00")):
        axes[0].plot(np.exp(x), value[k], color=colour, label=f"t = {times[k]:.2f}")
        axes[0].plot(np.exp(x), exact[k], "k:", linewidth=1)
        axes[1].plot(np.exp(x), value[k] - exact[k], color=colour)
    axes[0].set(xlabel="price", ylabel="value of the call", title="from paths; dotted: the formula")
    axes[0].legend(frameon=False)
    axes[1].set(xlabel="price", ylabel="value less formula", title="the error")
    fig.tight_layout()
    fig.savefig(path, dpi=130)
    plt.close(fig)
