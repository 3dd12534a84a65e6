"""Training a small convolutional network on scikit-learn's digits: AdaHessian and M-FAC beside SGD and Adam; pruning.

Every optimiser gets the same number of learning rates, half a decade apart round its published default, and the same
seeds; the rate with the least training loss at the budget is reported, with its accuracy on digits not trained on. A
budget is a number of gradients, a Hessian-vector product counted as two, or wall time, from the milliseconds a step
measured in the same run. Then HESSO beside pruning by magnitude after training, the same groups, sparsity and updates.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import alternate, arguments, chosen, figure, machine, save, save_figure, table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from solvers import Units, adahessian, hesso, mfac, parameter_groups

BATCH, EVERY, WINDOW = 64, 20, 64
RATES = 10.0 ** np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
CONTESTANTS = {  # make(rate), default rate, gradients a step
    "SGD, momentum 0.9": (lambda rate: optax.sgd(rate, momentum=0.9), 0.1, 1),
    "Adam": (optax.adam, 1e-3, 1),
    "AdaHessian": (adahessian, 0.15, 3),
    f"M-FAC, window {WINDOW}": (lambda rate: mfac(rate, WINDOW, 1e-5), 1e-3, 1),
}
FAMILIES = [
    Units([("conv1/w", 3), ("conv1/b", 0)], [("conv2/w", 2)]),
    Units([("conv2/w", 3), ("conv2/b", 0)], [("dense/w", 0, np.arange(256) % 16)]),
    Units([("dense/w", 1), ("dense/b", 0)], [("head/w", 0)]),
]


def digits():
    """Return images in [0, 1] and labels, a quarter held out."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x.reshape(-1, 8, 8, 1).astype(np.float32) / 16, y.astype(np.int32), random_state=5)
    return tuple(jnp.asarray(p) for p in parts)


def start(key):
    """Return 9,802 weights of two convolutions and two dense layers."""
    shapes = {"conv1": (3, 3, 1, 8), "conv2": (3, 3, 8, 16), "dense": (256, 32), "head": (32, 10)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"w": jax.random.normal(k, s) * np.sqrt(2 / np.prod(s[:-1])).astype(np.float32), "b": jnp.zeros(s[-1])}
        for k, (name, s) in zip(keys, shapes.items(), strict=True)
    }


def convolve(x, layer, stride):
    """Convolve 3 x 3 with zeros round the image, as nine products: faster than a convolution here."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [(i, j, padded[:, i : i + height : stride, j : j + width : stride]) for i in range(3) for j in range(3)]
    return jax.nn.relu(sum(window @ layer["w"][i, j] for i, j, window in windows) + layer["b"])


def apply(p, x):
    """Return the logits."""
    x = convolve(convolve(x, p["conv1"], 1), p["conv2"], 2).reshape(len(x), -1)
    return jax.nn.relu(x @ p["dense"]["w"] + p["dense"]["b"]) @ p["head"]["w"] + p["head"]["b"]


def loss(p, x, y):
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(apply(p, x), y).mean()


def stepper(optimiser, x, y):
    """Return a step on a random batch."""
    optimiser = optax.with_extra_args_support(optimiser)

    def step(carry, key):
        params, state = carry
        rows = jax.random.choice(key, len(x), (BATCH,), replace=False)
        objective = lambda p: loss(p, x[rows], y[rows])  # noqa: E731
        updates, state = optimiser.update(jax.grad(objective)(params), state, params, obj_fn=objective)
        return optax.apply_updates(params, updates), state

    return step


def curves(make, data, rates, seeds, steps):
    """Return training loss and held-out accuracy after every 20 steps, by rate and seed."""
    x, held_x, y, held_y = data

    def one(rate, seed):
        optimiser = make(rate)
        step = stepper(optimiser, x, y)
        params = start(jax.random.key(seed))

        def chunk(carry, keys):
            carry = jax.lax.scan(lambda c, k: (step(c, k), None), carry, keys)[0]
            right = jnp.mean(jnp.argmax(apply(carry[0], held_x), axis=1) == held_y)
            return carry, (loss(carry[0], x, y), right)

        keys = jax.random.split(jax.random.fold_in(jax.random.key(17), seed), steps).reshape(-1, EVERY)
        return jax.lax.scan(chunk, (params, optimiser.init(params)), keys)[1]

    grid = jnp.asarray([(r, s) for r in rates for s in seeds])
    run = jax.jit(lambda g: jax.lax.map(lambda rs: one(rs[0], rs[1].astype(jnp.int32)), g))
    losses, right = run(grid)
    shape = (len(rates), len(seeds), -1)
    return np.asarray(losses).reshape(shape), np.asarray(right).reshape(shape)


def milliseconds(data, repeat):
    """Return the time of a step of every contestant, in turns."""
    x, _, y, _ = data
    calls = {}
    for name, (make, rate, _) in CONTESTANTS.items():
        optimiser, params = make(rate), start(jax.random.key(3))
        step = stepper(optimiser, x, y)
        run = jax.jit(lambda c, k, step=step: jax.lax.scan(lambda c, k: (step(c, k), None), c, k)[0])
        carry, keys = (params, optimiser.init(params)), jax.random.split(jax.random.key(4), WINDOW + 20)
        carry = jax.block_until_ready(run(carry, keys))
        calls[name] = lambda run=run, carry=carry, keys=keys[:20]: run(carry, keys)
        jax.block_until_ready(calls[name]())
    return {name: 1e3 * timing.seconds / 20 for name, timing in alternate(calls, repeat=repeat).items()}


def training(data, seeds, steps, out, record):
    """Race, read off both budgets, draw."""
    cost_ms = milliseconds(data, repeat=5)
    found = {name: curves(make, data, RATES * rate, seeds, steps) for name, (make, rate, _) in CONTESTANTS.items()}
    rows, best = [], {}
    half = steps // 2 * cost_ms["Adam"]
    for budget, allowed in (
        (f"{steps} gradients", {n: steps / c[2] for n, c in CONTESTANTS.items()}),
        (f"time of {steps // 2} steps of Adam", {n: half / cost_ms[n] for n in CONTESTANTS}),
    ):
        for name, (losses, right) in found.items():
            last = int(min(max(allowed[name] // EVERY, 1), losses.shape[2])) - 1
            mean = np.where(np.isfinite(losses), losses, np.inf)[:, :, last].mean(1)
            i = int(np.argmin(mean))
            best[budget, name] = i
            rows.append({
                "part": "training", "case": budget, "method": name, "steps": (last + 1) * EVERY,
                "rate": float(RATES[i] * CONTESTANTS[name][1]), "end of the rates": i in (0, len(RATES) - 1),
                "training_loss": float(mean[i]), "held_out_accuracy": float(right[i, :, last].mean()),
                "milliseconds_a_step": cost_ms[name], "rates_and_seeds": f"{len(RATES)} x {len(seeds)}",
                "losses_by_rate": mean,
            })  # fmt: skip
    fig, axes = figure(1, 2, width=4.2, height=3.2)
    first = next(iter(best))[0]
    for name, (losses, _) in found.items():
        curve = losses[best[first, name]].mean(0)
        count = EVERY * np.arange(1, len(curve) + 1)
        axes[0].semilogy(CONTESTANTS[name][2] * count, curve, label=name)
        axes[1].semilogy(cost_ms[name] * count / 1e3, curve)
    axes[0].set(xlabel="gradients (a Hessian product is two)", ylabel="training loss", xlim=(0, steps))
    axes[1].set(xlabel="seconds of training", xlim=(0, 2 * half / 1e3))
    axes[0].legend(frameon=False, fontsize=7)
    fig.tight_layout()
    save_figure(fig, out / "curvature_training.png", record)
    return rows


def pruning(data, seeds, sparsities, steps):
    """Return held-out accuracy with half of the units or more gone, of HESSO and of magnitude pruning at one moment."""
    x, held_x, y, held_y = data
    groups = parameter_groups(start(jax.random.key(3)), FAMILIES)
    prune_at, spread, rate = steps // 2, steps // 5, 3e-3

    def train(optimiser, params, keys):
        step = stepper(optimiser, x, y)
        return jax.lax.scan(lambda c, k: (step(c, k), None), (params, optimiser.init(params)), keys)[0][0]

    def accuracy(p):
        return jnp.mean(jnp.argmax(apply(p, held_x), axis=1) == held_y)

    def hesso_run(seed, sparsity):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(19), seed), steps)
        optimiser = hesso(optax.adam(rate), groups, target_sparsity=sparsity, start=prune_at, steps=spread)
        return train(optimiser, start(jax.random.key(seed)), keys)

    def magnitude_run(seed, sparsity):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(19), seed), steps)
        params = train(optax.adam(rate), start(jax.random.key(seed)), keys[:prune_at])
        optimiser = hesso(optax.adam(rate), groups, target_sparsity=sparsity, steps=1, scores={"magnitude": 1.0})
        return train(optimiser, params, keys[prune_at:])

    rows = []
    for sparsity in sparsities:
        for name, run in (("HESSO", hesso_run), ("magnitude, then training on", magnitude_run)):

            def both(seed, run=run, sparsity=sparsity):
                p = run(seed, sparsity)
                return accuracy(p), jnp.sum(groups.zero(p))

            right, gone = jax.jit(lambda s, both=both: jax.lax.map(both, s))(jnp.asarray(seeds))
            rows.append({
                "part": "pruning", "case": f"{sparsity:.0%} of {groups.count} units", "method": name,
                "zero_units": int(gone.min()), "held_out_accuracy": float(right.mean()),
                "worst_seed": float(right.min()), "seeds": len(seeds), "updates": steps,
            })  # fmt: skip
    return rows


def main() -> None:
    """Run what was chosen and save."""
    options = arguments(__doc__)
    record, rows, data = machine("optax", "scikit-learn"), [], digits()
    seeds = [5, 6]
    if chosen("training", options.only):
        rows += training(
            data, seeds[:1] if options.quick else seeds, 120 if options.quick else 240, options.out, record
        )
    if chosen("pruning", options.only):
        rows += pruning(data, seeds, [0.5] if options.quick else [0.5, 0.8], 200 if options.quick else 400)
    shown = [{k: v for k, v in row.items() if k != "losses_by_rate"} for row in rows]
    for part in dict.fromkeys(row["part"] for row in rows):
        table([row for row in shown if row["part"] == part], title=part)
    save(options.out / "curvature_training.json", rows, key=("part", "case", "method"), record=record)


if __name__ == "__main__":
    main()
