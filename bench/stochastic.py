"""First-order methods: gossip events a second, messages, private regression, surrogates, regret, policies.

python bench/stochastic.py [--quick] [--gpu] [--only events,messages,private,surrogate,regret,policy]

events     dadao on a ring of 32 nodes with 100 unknowns each: events a second, and time to a tolerance
messages   dadao (equal and designed rates) and mudag: messages and gradients to 1e-8, on several graphs
private    DIFF2 against noisy gradient descent over (n, d, budget): the best of a grid of settings for either;
           ``--gpu``: 128,000 and 512,000 examples
surrogate  target_surrogate against the exact surrogate minimiser at equal oracle calls; monotone problems of 100
regret     optimistic mirror descent against rounds, at three noises; ``--gpu``: 10,000 adversaries in one vmap
policy     trajectories to 1e-2 of the optimum of linear-quadratic control (policies.py)
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402
import policies  # noqa: E402

from solvers import (  # noqa: E402
    dadao,
    diff2,
    diff2_noise,
    gossip_rates,
    mudag,
    optimistic_mirror_descent,
    play,
    previous_point,
    regret,
    target_surrogate,
)
from solvers.problems.stochastic import barbell, complete, grid, network, ring, star  # noqa: E402

SEED = 23


def node_gradient(x, node):
    """Return the gradient of one node's quadratic."""
    return node[0] @ x - node[1]


def local_gradient(x, node):
    """Return the gradient of a node's least squares, from its rows."""
    rows, right = node
    return rows.T @ (rows @ x) + 0.1 * x - right


def gossip_for(gradient, n, d, smoothness, dtype, args, most):
    """Run dadao on a ring for that many blocks of events."""
    return dadao(
        gradient, jnp.zeros(d, dtype), args, ring(n), mu=0.1, smoothness=smoothness, key=jax.random.key(SEED), tol=0.0,
        max_steps=most,
    )  # fmt: skip


def event_rows(options) -> list[dict]:
    """Return events a second: quadratics as matrices, and as rows, of which a gradient costs less than an event."""
    rows = []
    for n, d, count in ((32, 100, 100), (32, 100, 10)):
        rng = np.random.default_rng(SEED)
        data = rng.standard_normal((n, count, d)) / count**0.5
        target = rng.standard_normal((n, d))
        smoothness = float(max(np.linalg.norm(A, 2) ** 2 for A in data)) + 0.1
        if count == d:
            args = (jnp.asarray(np.einsum("nij,nik->njk", data, data) + 0.1 * np.eye(d)), jnp.asarray(target))
            gradient, name = node_gradient, "a matrix a node"
        else:
            args, gradient, name = (jnp.asarray(data), jnp.asarray(target)), local_gradient, f"{count} rows a node"
        for dtype in (jnp.float32, jnp.float64):
            cast = jax.tree.map(lambda a, t=dtype: a.astype(t), args)
            few, many = (20, 80) if options.quick else (50, 400)
            steps = {}
            call = functools.partial(gossip_for, gradient, n, d, smoothness, dtype)
            program = harness.compiled(call, cast, jnp.int32(many))
            for most in (few, many):
                steps[most] = harness.clock(lambda p=program, a=cast, k=most: p(a, jnp.int32(k)), repeat=3, warm=True)
            sol, less = steps[many].output, steps[few].output
            events = int(sol.num_gradients + sol.num_messages - less.num_gradients - less.num_messages)
            rows.append({
                "part": "events", "instance": f"ring of {n}, d {d}, {name}", "contestant": "dadao",
                "dtype": jnp.dtype(dtype).name, "events": events,
                "events_per_second": events / (min(steps[many].runs) - min(steps[few].runs)),
            })  # fmt: skip
    return rows


def message_rows(options) -> list[dict]:
    """Return messages and gradients to 1e-8 (the ring of 8 to 1e-12), and the errors on the way."""
    graphs = {"ring of 8": (ring(8), 8), "grid 4 x 4": (grid(4, 4), 16), "star of 16": (star(16), 16),
              "barbell 2 x 8": (barbell(8), 16), "complete 16": (complete(16), 16)}  # fmt: skip
    rows = []
    for name, (edges, n) in list(graphs.items())[: 1 if options.quick else None]:
        net = network(np.random.default_rng(SEED), n, 5)
        args = (jnp.asarray(net.A), jnp.asarray(net.b))
        tol = 1e-12 if name == "ring of 8" else 1e-8
        common = {"mu": net.mu, "smoothness": net.smoothness, "tol": tol, "max_steps": 4000, "history": 4000}
        designed = gossip_rates(edges, n).value
        for contestant, call in (
            ("dadao, equal rates", lambda **k: dadao(node_gradient, key=jax.random.key(SEED), **k)),
            ("dadao, designed rates",
             lambda r=designed, **k: dadao(node_gradient, key=jax.random.key(SEED), rates=r, **k)),
            ("mudag", lambda **k: mudag(node_gradient, **k)),
        ):  # fmt: skip
            sol = call(x0=jnp.zeros(5), args=args, edges=edges, **common)
            errors = np.asarray(sol.history)[: int(sol.num_steps) + 1]
            keep = np.unique(np.linspace(0, len(errors) - 1, 60).astype(int))
            distance = np.linalg.norm(np.asarray(sol.nodes) - net.optimum, axis=1).max() / np.linalg.norm(net.optimum)
            rows.append({
                "part": "messages", "instance": name, "contestant": contestant, "converged": bool(sol.converged),
                "error": float(sol.error), "distance": distance, "messages": int(sol.num_messages),
                "gradients": int(sol.num_gradients),
                "path": [[int(sol.num_messages) * k / max(len(errors) - 1, 1), errors[k]] for k in keep],
            })  # fmt: skip
    return rows


def private_run(examples, loss, d, steps, setting, rate, key):
    """Return the loss after that many private steps from zero; gradients would vanish far away too."""
    restart, change, clip, noise, noise_difference = setting
    made = diff2(
        rate,
        clip=clip,
        clip_difference=change,
        noise=noise,
        noise_difference=noise_difference,
        restart=restart,
        key=key,
    )

    def step(carry, _):
        x, state = carry
        updates, state = made.update(examples(x), state, x, before=examples(previous_point(state)))
        return (x + updates, state), None

    x = jnp.zeros(d, jnp.float32)
    (x, _), _ = jax.lax.scan(step, (x, made.init(x)), None, length=steps)
    return loss(x)


SIZES = (500, 2_000, 8_000, 32_000, 128_000, 512_000)


def private_rows(n: int, options) -> list[dict]:
    """Return the loss beyond the least that either method ends with: best of a grid, mean of seeds.

    An example's loss is ``r^2 / (1 + r^2)``: gradients of length 0.65 at most, 2 apart per unit of distance.
    """
    rows, seeds, steps = [], (2 if options.quick else 4), 60
    budgets, plain = (0.005, 0.05, 0.5), [(1, 1.0, clip) for clip in (0.1, 0.3, 0.7)]
    own = [(restart, change, clip) for restart in (6, 60) for change in (0.2, 0.5, 2.0) for clip in (0.3, 0.7)]
    choices = [(rho, *c) for rho in budgets for c in plain + own]
    settings = [(*c, *diff2_noise(rho, steps, c[0])) for rho, *c in choices]
    columns = [np.asarray(c, np.int32 if k == 0 else np.float32) for k, c in enumerate(zip(*settings, strict=True))]
    rates = np.asarray([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], np.float32)
    for d in (30,) if options.quick else (5, 30):
        rng = np.random.default_rng(SEED)
        X = rng.standard_normal((n, d))
        X /= np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1)
        truth = rng.standard_normal(d)
        y = X @ truth + 0.3 * rng.standard_normal(n)
        X, y = jnp.asarray(X, jnp.float32), jnp.asarray(y, jnp.float32)

        def examples(x, X=X, y=y):
            r = X @ x - y
            return (r / (1 + r**2) ** 2)[:, None] * X * 2

        def loss(x, X=X, y=y):
            r = X @ x - y
            return jnp.mean(r**2 / (1 + r**2))

        descend = lambda _, x, f=examples: x - 2 * jnp.mean(f(x), axis=0)  # noqa: E731
        least = float(jax.jit(lambda x, f=loss, g=descend: f(jax.lax.fori_loop(0, 500, g, x)))(
            jnp.asarray(truth, jnp.float32)))  # fmt: skip
        one = functools.partial(private_run, examples, loss, d, steps)
        over_seeds = jax.vmap(one, (None, None, 0))
        keys = jax.random.split(jax.random.key(SEED), seeds)
        over_rates = lambda s, f=over_seeds, k=keys: jax.lax.map(lambda r: jnp.mean(f(s, r, k)), rates)  # noqa: E731
        ends = np.asarray(jax.jit(lambda c, f=over_rates: jax.lax.map(f, c))(tuple(columns)))
        for rho in budgets:
            best = {}
            for (spent, restart, change, clip), values in zip(choices, ends, strict=True):
                if spent != rho:
                    continue
                kind = "noisy gradients" if restart == 1 else "diff2"
                values = np.where(np.isfinite(values), values, np.inf)
                k = int(np.argmin(values))
                if kind not in best or values[k] - least < best[kind][0]:
                    best[kind] = (
                        float(values[k]) - least,
                        f"restart {restart}, step {rates[k]:g}, change {change:g}, clip {clip:g}",
                    )
            for kind, (value, setting) in best.items():
                rows.append({
                    "part": "private", "instance": f"n {n}, d {d}, rho {rho:g}", "contestant": kind, "n": n, "d": d,
                    "rho": rho, "excess_loss": value, "setting": setting, "seeds": seeds,
                    "over_noisy_gradients": max(value, 1e-6) / max(best["noisy gradients"][0], 1e-6),
                })  # fmt: skip
    return rows


def surrogate_rows(options) -> list[dict]:
    """Return objectives after 200 oracle calls on an ill-conditioned logistic regression, and how many are monotone."""

    def instance(rng, n, k):
        X = rng.standard_normal((n, k)) * np.geomspace(1, 0.03, k)
        w = rng.standard_normal(k) * np.geomspace(1, 30, k)
        return {"X": jnp.asarray(X), "y": jnp.asarray(np.sign(X @ w + 0.1 * rng.standard_normal(n)))}

    model = lambda w, a: a["X"] @ w  # noqa: E731
    loss = lambda z, a: jnp.mean(jnp.logaddexp(0, -a["y"] * z))  # noqa: E731
    args = instance(np.random.default_rng(SEED), 500, 30)
    eta, rows, ends = 4.0 * 500, [], {}
    # The surrogate's curvature is at most |X|^2 / eta: what plain inner steps may use.
    plain = optax.sgd(eta / float(np.linalg.norm(args["X"], 2)) ** 2)
    for name, extra in (("1 gradient step inside", {"inner": plain, "inner_steps": 1}),
                        ("10 gradient steps inside", {"inner": plain, "inner_steps": 10}),
                        ("100 gradient steps inside", {"inner": plain, "inner_steps": 100}),
                        ("default", {}), ("40 conjugate gradients inside", {"inner_steps": 40})):  # fmt: skip
        row = {"part": "surrogate", "instance": "logistic, 500 x 30, 200 calls", "contestant": name}
        try:
            sol = target_surrogate(model, loss, jnp.zeros(30), args, eta=eta, tol=0.0, max_steps=200, **extra)
            ends[name] = float(loss(model(sol.value, args), args))
            rows.append({**row, "objective": ends[name]})
        except Exception as cause:
            rows.append({**row, "failed": f"{type(cause).__name__}: {str(cause)[:100]}"})
    # The exact minimiser of a quadratic surrogate of a linear model is a least-squares step.
    X = np.asarray(args["X"])
    w, pull = np.zeros(30), np.linalg.pinv(X)
    for _ in range(200):
        w = w - eta * pull @ np.asarray(jax.grad(loss)(jnp.asarray(X @ w), args))
    exact = float(loss(jnp.asarray(X @ w), args))
    rows.append({"part": "surrogate", "instance": "logistic, 500 x 30, 200 calls", "contestant": "least squares",
                 "objective": exact})  # fmt: skip
    for row in rows:
        if "objective" in row:
            row["over_exact"] = row["objective"] / exact
    count = 10 if options.quick else 100
    lanes = [instance(np.random.default_rng(SEED + i), 40, 6) for i in range(count)]
    batch = jax.tree.map(lambda *a: jnp.stack(a), *lanes)

    @jax.jit
    @jax.vmap
    def values(a):
        def at(k):
            sol = target_surrogate(model, loss, jnp.zeros(6), a, eta=4.0 * 40, tol=0.0, max_steps=k)
            return loss(model(sol.value, a), a)

        return jax.lax.map(at, jnp.arange(12))

    falls = np.diff(np.asarray(values(batch)), axis=1)
    rows.append({"part": "surrogate", "instance": f"{count} random problems", "contestant": "default",
                 "monotone": int((falls <= 1e-12).all(axis=1).sum())})  # fmt: skip
    return rows


def regret_rows(options) -> list[dict]:
    """Return regret after T rounds against one quadratic whose minimum is seen with noise."""
    D = 5
    curves = jnp.asarray(np.geomspace(0.2, 1, D))
    loss = lambda x, target: jnp.sum(curves * (x - target) ** 2) / 2  # noqa: E731
    centre = np.random.default_rng(SEED).standard_normal(D)
    centre *= 0.5 / np.linalg.norm(centre)
    lanes = 10_000 if options.gpu else (4 if options.quick else 64)
    rows = []
    for noise in (0.0, 0.1, 1.0):
        method = optimistic_mirror_descent(bound=2.0 + 2 * noise)
        for T in (100, 1000) if options.quick or options.gpu else (100, 1000, 10_000):

            def adversary(key, T=T, noise=noise, method=method):
                rounds = jnp.asarray(centre) + noise * jax.random.normal(key, (T, D))
                result = play(method, loss, jnp.zeros(D), rounds)
                return regret(loss, result.answers, rounds, jnp.mean(rounds, axis=0))[-1]

            keys = jax.random.split(jax.random.key(SEED), 1 if noise == 0 and not options.gpu else lanes)
            program = harness.compiled(jax.vmap(adversary), keys)
            timing = harness.clock(lambda p=program, k=keys: p(k), repeat=3, budget=10)
            rows.append({
                "part": "regret", "instance": f"noise {noise:g}, T {T}", "contestant": "optimistic_mirror_descent",
                "noise": noise, "rounds": T, "regret_mean": float(np.mean(timing.output)), "adversaries": len(keys),
                "seconds": timing.seconds,
            })  # fmt: skip
    return rows


def draw(rows: list[dict], record: dict, path) -> None:
    """Draw the error against messages, and DIFF2's map."""
    paths = [r for r in rows if r["part"] == "messages"]
    names = list(dict.fromkeys(r["instance"] for r in paths))[:4]
    fig, axes = harness.figure(1, len(names) + 1)
    for ax, name in zip(axes, names, strict=False):
        for k, row in enumerate(r for r in paths if r["instance"] == name):
            messages, errors = np.asarray(row["path"], float).T
            look = {"dadao, equal rates": ("#56B4E9", "-", 2.4), "dadao, designed rates": ("#0072B2", "--", 1.4)}
            colour, style, width = look.get(row["contestant"], (harness.RIVALS[k], "-", 1.4))
            ax.semilogy(messages, errors, style, label=row["contestant"], color=colour, linewidth=width)
        ax.set(title=name, xlabel="messages", ylabel="bound on the relative distance")
        ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
    axes[0].legend(frameon=False, fontsize=7)
    private = [r for r in rows if r["part"] == "private" and r["contestant"] == "diff2"]
    for k, (d, rho) in enumerate(sorted({(r["d"], r["rho"]) for r in private})):
        own = sorted((r["n"], r["over_noisy_gradients"]) for r in private if (r["d"], r["rho"]) == (d, rho))
        axes[-1].loglog(
            *zip(*own, strict=True), "o-", label=f"d {d}, rho {rho:g}", color=harness.PALETTE[k], markersize=3
        )
    axes[-1].axhline(1, color="#555555", linewidth=0.8)
    axes[-1].set(title="private learning: DIFF2 over noisy gradients")
    axes[-1].set(xlabel="examples", ylabel="ratio of excess losses")
    harness.plain_ticks(axes[-1].yaxis)
    if private:
        axes[-1].legend(frameon=False, fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), title="1: as good")
    fig.tight_layout()
    harness.save_figure(fig, path, record)


PARTS = {"events": event_rows, "messages": message_rows, "surrogate": surrogate_rows,
         "regret": regret_rows, **{f"private-{n}": functools.partial(private_rows, n) for n in SIZES},
         **policies.PARTS}  # fmt: skip


def main() -> int:
    """Run, print, save, draw."""
    options = harness.arguments(__doc__)
    large = [f"private-{n}" for n in SIZES[-2:]]
    parts = {k: v for k, v in PARTS.items() if (k in ("regret", *large) if options.gpu else k not in large)}
    if options.quick and not options.only:  # the smaller sizes, and one start of the policies
        late = [f"private-{n}" for n in SIZES[2:]] + [f"policy-{start:g}-" for start in policies.STARTS[1:]]
        parts = {k: v for k, v in parts.items() if not k.startswith(tuple(late))}
    stem = None if options.quick else "stochastic_gpu" if options.gpu else "stochastic"
    key, record = ("part", "instance", "contestant", "dtype"), harness.machine("equinox", "optax")
    result = harness.run_parts(options, stem, parts, key=key, record=record, hidden=("path",))
    if result:
        policies.compare(result["rows"])
        result = harness.save(options.out / f"{stem}.json", result["rows"], key=key, record=record)
    if result and not options.gpu:
        draw(result["rows"], result["machine"], options.out / "stochastic.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
