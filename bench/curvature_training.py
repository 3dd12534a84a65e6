"""Training a small convolutional network on digits: AdaHessian and M-FAC beside SGD and Adam; pruning.

Every optimiser gets the same number of learning rates, half a decade apart round its published default, and the same
seeds; the rate with the least training loss at the budget is reported, with its accuracy on digits not trained on. A
budget is a number of gradients, a Hessian-vector product counted as two, or wall time, from the milliseconds a step
measured in the same run. Then HESSO beside pruning by magnitude after training, the same groups, sparsity and updates.
"""

import json

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from solvers import Units, adahessian, hesso, mfac, parameter_groups

BATCH, EVERY, WINDOW = 64, 20, 64
RATES = 10.0 ** np.arange(-1.0, 1.6, 0.5)
CONTESTANTS = {  # make(rate), default rate, gradients a step
    "SGD, momentum 0.9": (lambda rate: optax.sgd(rate, momentum=0.9), 0.1, 1),
    "Adam": (optax.adam, 1e-3, 1),
    "AdaHessian": (adahessian, 0.15, 3),
    f"M-FAC, window {WINDOW}": (lambda rate: mfac(rate, WINDOW, 1e-5, momentum=0.9), 1e-2, 1),
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
    return {name: 1e3 * timing.seconds / 20 for name, timing in harness.alternate(calls, repeat=repeat).items()}


def raced(options, name: str) -> list[dict]:
    """Train with all learning rates and seeds; losses and accuracies are means over seeds, by rate and time."""
    steps, seeds = (120, [5]) if options.quick else (800, [5, 6])
    make, rate, gradients = CONTESTANTS[name]
    rates = rate * (RATES[1:4] if options.quick else RATES)
    losses, right = curves(make, digits(), rates, seeds, steps)
    return [{
        "part": "curves", "case": f"{steps} steps of {BATCH} digits", "method": name, "rates": rates,
        "seeds": len(seeds), "gradients_a_step": gradients, "losses": losses.mean(1), "accuracies": right.mean(1),
    }]  # fmt: skip


def times(options) -> list[dict]:
    """Measure the milliseconds of a step, all contestants in turns."""
    found = milliseconds(digits(), repeat=3 if options.quick else 9)
    return [{"part": "times", "case": "a step", "method": name, "milliseconds": ms} for name, ms in found.items()]


def budgets(rows: list[dict]) -> list[dict]:
    """Read off each contestant's best rate at equal gradients and at equal time, from saved curves and times."""
    cost = {row["method"]: row["milliseconds"] for row in rows if row["part"] == "times"}
    raced = [row for row in rows if row["part"] == "curves"]
    if set(cost) < set(CONTESTANTS) or {row["method"] for row in raced} < set(CONTESTANTS):
        return []
    steps, found = EVERY * min(len(row["losses"][0]) for row in raced), []
    for i, budget in enumerate((f"{steps} gradients", f"time of {steps // 2} steps of Adam")):
        for row in raced:
            name, losses = row["method"], np.array(row["losses"], float)
            allowed = (steps / row["gradients_a_step"], steps / 2 * cost["Adam"] / cost[name])[i]
            last = int(min(max(allowed // EVERY, 1), losses.shape[1])) - 1
            mean = np.where(np.isfinite(losses[:, last]), losses[:, last], np.inf)
            best = int(np.argmin(mean))
            found.append({
                "part": "training", "case": budget, "method": name, "steps": (last + 1) * EVERY,
                "rate": row["rates"][best], "end_of_the_rates": best in (0, len(mean) - 1),
                "training_loss": float(mean[best]), "held_out_accuracy": row["accuracies"][best][last],
                "milliseconds_a_step": cost[name], "gradients_a_step": row["gradients_a_step"],
                "rates_and_seeds": f"{len(mean)} x {row['seeds']}", "curve": losses[best, : last + 1],
                "accuracy": row["accuracies"][best][: last + 1],
            })  # fmt: skip
    return found


def draw(rows: list[dict], record: dict, path) -> None:
    """Draw the curves of both budgets."""
    rows = [row for row in rows if row["part"] == "training"]
    budgets = list(dict.fromkeys(row["case"] for row in rows))
    fig, axes = harness.figure(2, 2, width=4.2, height=2.8)
    for i, budget in enumerate(budgets[:2]):
        mine = [row for row in rows if row["case"] == budget]
        methods = [row["method"] for row in mine]
        colours = harness.colours(methods, lambda name: name.startswith(("AdaHessian", "M-FAC")))
        for row in mine:
            color = colours[row["method"]]
            x = EVERY * np.arange(1, len(row["curve"]) + 1)
            x = x * (row["gradients_a_step"] if i == 0 else row["milliseconds_a_step"] / 1e3)
            axes[i].semilogy(x, row["curve"], color=color, label=row["method"])
            axes[2 + i].plot(x, 100 * np.array(row["accuracy"]), color=color)
        axes[i].set_title(f"each at its best rate, {budget}")
        axes[2 + i].set(xlabel=("gradients (a Hessian product is two)", "seconds of training")[i], ylim=(85, 100))
    axes[0].set_ylabel("training loss")
    axes[2].set_ylabel("held-out accuracy in %")
    axes[0].legend(frameon=False, fontsize=7, title="blue: of this package", title_fontsize=7, alignment="left")
    fig.tight_layout()
    harness.save_figure(fig, path, record)


def pruning(options, sparsity: float) -> list[dict]:
    """Return held-out accuracy with a share of the units gone, by HESSO and by magnitude, all zeros at one update."""
    x, held_x, y, held_y = digits()
    seeds, steps = ([5, 6], 200) if options.quick else (list(range(5, 15)), 600)
    groups = parameter_groups(start(jax.random.key(3)), FAMILIES)
    prune_at, spread, rate = steps // 2, steps // 5, 3e-3

    def train(optimiser, params, keys):
        step = stepper(optimiser, x, y)
        return jax.lax.scan(lambda c, k: (step(c, k), None), (params, optimiser.init(params)), keys)[0][0]

    def accuracy(p):
        return jnp.mean(jnp.argmax(apply(p, held_x), axis=1) == held_y)

    def hesso_run(seed, sparsity):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(19), seed), steps)
        optimiser = hesso(optax.adam(rate), groups, target_sparsity=sparsity, start=prune_at - spread, steps=spread)
        return train(optimiser, start(jax.random.key(seed)), keys)

    def magnitude_run(seed, sparsity):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(19), seed), steps)
        params = train(optax.adam(rate), start(jax.random.key(seed)), keys[:prune_at])
        optimiser = hesso(optax.adam(rate), groups, target_sparsity=sparsity, steps=1, scores={"magnitude": 1.0})
        return train(optimiser, params, keys[prune_at:])

    rows = []
    for name, run in (("HESSO", hesso_run), ("magnitude, then training on", magnitude_run)):

        def both(seed, run=run):
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
    """Run what was chosen, save, read off the budgets, and draw."""
    options = harness.arguments(__doc__)
    record, key = harness.machine("optax", "scikit-learn"), ("part", "case", "method")
    parts = {f"curves {name}": lambda options, name=name: raced(options, name) for name in CONTESTANTS}
    parts["times"] = times
    for share in (0.5,) if options.quick else (0.5, 0.7, 0.8):
        parts[f"pruning {share:.0%}"] = lambda options, share=share: pruning(options, share)
    hidden, stem = ("losses", "accuracies", "rates", "curve", "accuracy"), "curvature_training"
    harness.run_parts(options, stem, parts, key=key, record=record, hidden=hidden)
    path = options.out / f"{stem}.json"
    saved = json.loads(path.read_text())
    if rows := budgets(saved["rows"]):
        harness.table([{k: v for k, v in row.items() if k not in hidden} for row in rows], title="training")
        draw(rows, saved["machine"], path.with_suffix(".png"))
        kept = [row for row in saved["rows"] if row["part"] != "training"]
        harness.save(path, kept + rows, key=key, record=saved["machine"])


if __name__ == "__main__":
    main()
