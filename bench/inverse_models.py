"""The learned priors that `inverse` is measured with: score models of digits and of phantoms, a proximal network.

python bench/inverse_models.py [--only digits,phantoms,prox] [--seconds 60] [--out FOLDER]

Trains and writes digits.npz, phantoms.npz and prox.npz, in half precision, each under a megabyte. Digits: the 1,797
images of scikit-learn, 8 x 8, a fully connected network, a minute on two cores. Phantoms: random ellipses of 256 x 256,
a small U-net. Prox: `LearnedProx`, convolutional, by proximal matching on pieces of phantoms. The second is
meant for an accelerator; `--seconds` bounds it and the first.
"""

import functools
import sys
import time
from collections.abc import Callable

import equinox as eqx
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from solvers.inverse import (
    LearnedProx,
    Stage,
    VarianceExploding,
    absolute_loss,
    convex_network,
    fit_prox,
    proximal_matching_loss,
)
from solvers.problems.inverse import random_ellipses

DIGITS = VarianceExploding(0.02, 5.0)
PHANTOMS = VarianceExploding(0.01, 3.0)
NOISE = 0.1
"""Deviation at which the proximal network is trained."""
SPREAD = 0.3
"""Deviation of the images, all of them between 0 and 1."""


class Dense(eqx.Module):
    """Three hidden layers on an image of fixed size and the logarithm of the noise."""

    layers: list
    size: int = eqx.field(static=True)

    def __init__(self, key, size: int = 8, width: int = 256):
        shapes = [(size * size + 8, width), (width, width), (width, width), (width, size * size)]
        keys = jax.random.split(key, len(shapes))
        self.layers = [(jax.random.normal(k, s) * (2 / s[0]) ** 0.5, jnp.zeros(s[1]))
                       for k, s in zip(keys, shapes, strict=True)]  # fmt: skip
        self.size = size

    def __call__(self, x, level):
        """Return an image."""
        waves = level * 2.0 ** jnp.arange(4, dtype=x.dtype)
        h = jnp.concatenate([x.ravel(), jnp.sin(waves), jnp.cos(waves)])
        for k, (weight, bias) in enumerate(self.layers):
            out = jnp.matmul(h, weight, precision="highest") + bias
            h = out if k == len(self.layers) - 1 else jax.nn.silu(out) + (h if k > 0 else 0)
        return h.reshape(self.size, self.size)


class UNet(eqx.Module):
    """Convolutions on four scales, the coarse ones brought back beside the fine; the noise is a further channel."""

    down: list
    up: list
    last: jax.Array

    def __init__(self, key, widths=(16, 32, 48, 64)):
        keys = iter(jax.random.split(key, 4 * len(widths)))
        make = lambda i, o: jax.random.normal(next(keys), (o, i, 3, 3)) * (2 / (9 * i)) ** 0.5  # noqa: E731
        inputs = (2, *widths[:-1])
        self.down = [(make(i, o), make(o, o)) for i, o in zip(inputs, widths, strict=True)]
        self.up = [(make(a + b, a), make(a, a)) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)]
        self.last = 0.1 * make(widths[0], 1)

    def __call__(self, x, level):
        """Return an image; its sides are multiples of eight."""

        def convolve(h, weights):
            return jax.lax.conv_general_dilated(h[None], weights, (1, 1), "SAME")[0]

        def block(h, pair):
            h = jax.nn.silu(convolve(h, pair[0]))
            return jax.nn.silu(h + convolve(h, pair[1]))

        h, kept = jnp.stack([x, jnp.broadcast_to(level, x.shape)]), []
        for k, pair in enumerate(self.down):
            if k:
                kept.append(h)
                h = h.reshape(h.shape[0], h.shape[1] // 2, 2, h.shape[2] // 2, 2).mean((2, 4))
            h = block(h, pair)
        for pair in self.up:
            h = jnp.repeat(jnp.repeat(h, 2, 1), 2, 2)
            h = block(jnp.concatenate([kept.pop(), h]), pair)
        return convolve(h, self.last)[0]


class Denoiser(eqx.Module):
    """``E[x_0 | x_0 + sigma noise]``: a network between a share of the input and a scale (Karras et al. 2022, (7))."""

    network: eqx.Module

    def at(self, x, sigma):
        """Return the denoised image."""
        whole = jnp.sqrt(sigma**2 + SPREAD**2)
        out = self.network((x - 0.3) / whole, jnp.log(sigma) / 4)
        return 0.3 + SPREAD**2 / whole**2 * (x - 0.3) + sigma * SPREAD / whole * out

    def model(self, schedule):
        """Return what the samplers take, of kind "denoiser"."""
        return lambda x, t: self.at(x, schedule.sigma(t).astype(x.dtype))


def train(network, draw, key, *, low, high, rate, most, seconds) -> tuple[Denoiser, list]:
    """Train until so many steps or seconds are over, by Adam, noise uniform in its logarithm."""
    model, optimiser = Denoiser(network), optax.adam(optax.cosine_decay_schedule(rate, most, 0.02))

    @eqx.filter_jit
    def some(model, state, average, keys):
        moving, fixed = eqx.partition(model, eqx.is_inexact_array)

        def one(carry, key):
            moving, state, average = carry
            for_image, for_noise, for_level = jax.random.split(key, 3)
            x = draw(for_image)
            sigma = jnp.exp(jax.random.uniform(for_level, x.shape[:1], x.dtype, np.log(low), np.log(high)))
            noisy = x + sigma[:, None, None] * jax.random.normal(for_noise, x.shape, x.dtype)

            def loss(moving):
                rest = jax.vmap(eqx.combine(moving, fixed).at)(noisy, sigma) - x
                weight = (sigma**2 + SPREAD**2) / (sigma * SPREAD) ** 2
                return jnp.mean(weight[:, None, None] * rest**2)

            value, slope = jax.value_and_grad(loss)(moving)
            change, state = optimiser.update(slope, state)
            moving = optax.apply_updates(moving, change)
            average = jax.tree.map(lambda a, m: 0.99 * a + 0.01 * m, average, moving)
            return (moving, state, average), value

        (moving, state, average), values = jax.lax.scan(one, (moving, state, average), keys)
        return eqx.combine(moving, fixed), state, average, jnp.mean(values)

    arrays, fixed = eqx.partition(model, eqx.is_inexact_array)
    state, average, losses, chunk = optimiser.init(arrays), arrays, [], 50
    begin = time.perf_counter()
    for done in range(0, most, chunk):
        keys = jax.random.split(jax.random.fold_in(key, done), chunk)
        model, state, average, value = some(model, state, average, keys)
        losses.append(float(value))
        if done % 500 == 0:
            print(f"{done + chunk:>6} steps, {time.perf_counter() - begin:5.0f} s, loss {losses[-1]:.4f}", flush=True)
        if time.perf_counter() - begin > seconds:
            break
    return eqx.combine(average, fixed), losses


def digits() -> np.ndarray:
    """Return scikit-learn's digits, 1,797 images of 8 x 8 between 0 and 1."""
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().images / 16, np.float32)


def train_digits(seconds: float, quick: bool, keep: Callable):
    """Return a model of all digits but the last hundred."""
    del keep
    images = jnp.asarray(digits()[:-100])
    draw = lambda key: images[jax.random.randint(key, (256,), 0, len(images))]  # noqa: E731
    return train(Dense(jax.random.key(3)), draw, jax.random.key(5), low=0.01, high=6.0, rate=2e-3,
                 most=100 if quick else 8000, seconds=seconds)  # fmt: skip


def train_phantoms(seconds: float, quick: bool, keep: Callable):
    """Return a model of random ellipses."""
    del keep
    size, batch = (32, 2) if quick else (256, 12)
    draw = lambda key: jax.vmap(lambda k: random_ellipses(k, size, dtype=jnp.float32))(jax.random.split(key, batch))  # noqa: E731
    return train(UNet(jax.random.key(3)), draw, jax.random.key(5), low=0.005, high=4.0, rate=2e-3,
                 most=50 if quick else 4000, seconds=seconds)  # fmt: skip


def prox_network() -> LearnedProx:
    """Return the untrained proximal network."""
    return LearnedProx(convex_network(jax.random.key(3), None, width=24, depth=4, beta=20.0, strong=0.01, kernel=3,
                                      dtype=jnp.float32))  # fmt: skip


def train_prox(seconds: float, quick: bool, keep: Callable):
    """Return a proximal network for phantoms with noise, trained on pieces of them; longer on an accelerator.

    It is kept after each stage; none begins after so many seconds.
    """
    fast = jax.default_backend() != "cpu"
    batch, steps, side = (2, 4, 24) if quick else (16, 1500, 48) if fast else (4, 120, 24)

    def draw(key):
        def one(key):
            first, second = jax.random.split(key)
            place = jax.random.randint(second, (2,), 0, 257 - side)
            return jax.lax.dynamic_slice(random_ellipses(first, 256, dtype=jnp.float32), place, (side, side))

        return jax.vmap(one)(jax.random.split(key, batch))

    # gamma falls to 0.08 sqrt(entries) noise / 0.1, as published
    stages = [Stage(absolute_loss, steps, 3e-3), Stage(absolute_loss, steps, 1e-3)]
    stages += [Stage(proximal_matching_loss(g * side * NOISE), 2 * steps // 3, 1e-3) for g in (1.6, 0.8)]
    begin = time.perf_counter()

    def tell(step, loss):
        if step % 60 == 0 or (fast and step % 600 < 30):
            print(f"{step:>6} steps, {time.perf_counter() - begin:5.0f} s, loss {loss:.4f}", flush=True)

    model, losses = prox_network(), []
    for i, stage in enumerate(stages):
        key = jax.random.fold_in(jax.random.key(7), i)
        fitted = fit_prox(model, draw, key, noise=NOISE, stages=[stage], progress=tell)
        model, losses = fitted.model, losses + [float(x) for x in fitted.losses[::50]]
        x = draw(jax.random.key(11))
        noisy = x + NOISE * jax.random.normal(jax.random.key(13), x.shape)
        left = jnp.sqrt(jnp.mean((jax.vmap(model.prox)(noisy) - x) ** 2))
        print(f"stage {i}: deviation {NOISE} becomes {float(left):.4f}", flush=True)
        keep(model, losses)
        if time.perf_counter() - begin > seconds:
            break
    return model, losses


def save(path, model, losses) -> None:
    """Write the arrays of a model in half precision, and its losses."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    arrays = {f"a{k:02d}": np.asarray(x, np.float16) for k, x in enumerate(leaves)}
    np.savez_compressed(path, losses=np.asarray(losses, np.float32), **arrays)
    print(f"wrote {path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def load(name: str, folder=harness.RESULTS):
    """Return a trained model: "digits", "phantoms" or "prox"."""
    model = {
        "digits": lambda: Denoiser(Dense(jax.random.key(3))),
        "phantoms": lambda: Denoiser(UNet(jax.random.key(3))),
        "prox": prox_network,
    }[name]()
    moving, fixed = eqx.partition(model, eqx.is_inexact_array)
    with np.load(folder / f"{name}.npz") as file:
        leaves = [jnp.asarray(file[f"a{k:02d}"], jnp.float32) for k in range(len(jax.tree.leaves(moving)))]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(moving), leaves), fixed)


TRAININGS = {"digits": train_digits, "phantoms": train_phantoms, "prox": train_prox}


def main() -> int:
    """Train what was asked for."""
    parser = harness.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training, without compilation of the last")
    options = harness.finished(parser.parse_args())
    for name, training in TRAININGS.items():
        if harness.chosen(name, options.only):
            keep = functools.partial(save, options.out / f"{name}.npz")
            keep(*training(options.seconds, options.quick, keep))
    return 0


if __name__ == "__main__":
    sys.exit(main())
