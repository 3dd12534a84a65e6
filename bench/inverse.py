"""Inverse problems: samplers against exact posteriors, exact inversion, learned proximal maps.

python bench/inverse.py [--quick] [--only posterior,mixture,order,round,memory,preimage,prox] [--out FOLDER]

Posterior: a Gaussian prior of 20 unknowns, spectrum 1 to 1e-3, 8 measurements, 100 steps; mean and trace of the
covariance of what each guidance samples, exactly where the sampler is an affine map, else from 20,000 draws. Mixture:
Tweedie's covariance against the closed form. Order, round trip, memory: BDIA by its gamma. Prox: training on Laplace
samples towards soft thresholding, beside the minimiser of the loss itself, by quadrature. Preimage: gradients that the
regulariser needs, by Newton's method and by Adam as published. `inverse_images.py` has tomography and the operators.
"""

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402

from solvers import inverse  # noqa: E402
from solvers.core.operators import MatrixOperator  # noqa: E402
from solvers.inverse import BDIA, DDS, DPS, STSL, Stage  # noqa: E402
from solvers.problems.inverse import GaussianMixture, gaussian_instance  # noqa: E402

SCHEDULE = inverse.CosineSchedule()


def posterior(options) -> list[dict]:
    """Return how far from the posterior each guidance's samples are."""
    case = gaussian_instance(jax.random.key(11))
    A, d = MatrixOperator(case.matrix), 20
    score = lambda x, t: case.prior.score(x, SCHEDULE.alpha(t), SCHEDULE.sigma(t))  # noqa: E731
    exact_mean, exact_cov = case.posterior.mean, case.posterior.covariance
    guidances = {
        "second order": "second_order", "first order, pigdm": "pigdm",
        "dds, gamma 1, no fresh noise": DDS(eta=0.0), "dds, gamma 1/s^2, no fresh noise":
        DDS(gamma=1 / case.noise**2, eta=0.0, cg_steps=20), "dds, gamma 1, eta 0.85": DDS(),
        "dds, gamma 1/s^2, eta 0.85": DDS(gamma=1 / case.noise**2, cg_steps=20), "dps": DPS(), "stsl": STSL(),
    }  # fmt: skip
    rows = []
    for name, guidance in guidances.items():

        def draw(key, start, guidance=guidance):
            return inverse.posterior_sample(
                score, SCHEDULE, A, case.y, key, noise=case.noise, guidance=guidance, steps=100, start=start
            )

        affine = isinstance(guidance, str) or guidance.eta == 0.0
        count = 500 if options.quick else 20_000
        if affine:
            starts = jnp.concatenate([jnp.zeros((1, d)), jnp.eye(d)])
            keys = jnp.broadcast_to(jax.random.key(5), (d + 1,))
        else:
            starts = SCHEDULE.sigma(1.0) * jax.random.normal(jax.random.key(9), (count, d))
            keys = jax.random.split(jax.random.key(5), count)
        program = harness.compiled(jax.vmap(draw), keys, starts)
        timing = harness.clock(lambda p=program, k=keys, s=starts: p(k, s), repeat=3, budget=10)
        points = timing.output
        if affine:
            turn = (points[1:] - points[:1]) * SCHEDULE.sigma(1.0)
            mean, cov = points[0], turn.T @ turn
        else:
            mean, cov = points.mean(0), jnp.cov(points.T)
        rows.append({
            "part": "posterior", "instance": "d 20, 8 data, 100 steps", "contestant": name,
            "mean_error": float(jnp.linalg.norm(mean - exact_mean)),
            "trace_ratio": float(jnp.trace(cov) / jnp.trace(exact_cov)),
            "cov_error": float(jnp.linalg.norm(cov - exact_cov) / jnp.linalg.norm(exact_cov)),
            "draws": None if affine else count, "seconds_a_sample": timing.seconds / len(starts),
            "compile_seconds": program.first_call_seconds,
        })  # fmt: skip
    return rows


def mixture(options) -> list[dict]:
    """Return errors of Tweedie's mean and covariance of mixtures in five dimensions, over times."""
    rng, d, k = np.random.default_rng(7), 5, 4
    roots = rng.standard_normal((k, d, d))
    prior = GaussianMixture(
        jnp.asarray(rng.standard_normal(k)), jnp.asarray(rng.standard_normal((k, d))),
        jnp.asarray(0.3 * roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(d)),
    )  # fmt: skip
    rows = []
    for t in (0.05, 0.2, 0.5, 0.9):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)

        def errors(x, alpha=alpha, sigma=sigma, t=t):
            score = lambda x, t: prior.score(x, SCHEDULE.alpha(t), SCHEDULE.sigma(t))  # noqa: E731
            found = inverse.tweedie(score, SCHEDULE, x, t, order=2)
            mean, cov = prior.denoised(x, alpha, sigma)
            return jnp.linalg.norm(found.mean - mean), jnp.linalg.norm(found.covariance.matrix() - cov)

        means, covs = jax.jit(jax.vmap(errors))(jnp.asarray(rng.standard_normal((200, d))))
        rows.append({"part": "mixture", "instance": f"d {d}, {k} parts, t {t}", "contestant": "tweedie, order 2",
                     "mean_error": float(means.max()), "cov_error": float(covs.max())})  # fmt: skip
    return rows


def order(options) -> list[dict]:
    """Return errors and orders of BDIA against the exact flow of a Gaussian."""
    variances, schedule = jnp.asarray([1.0, 0.3, 0.05]), inverse.CosineSchedule(0.05)
    model = lambda x, t: -x / (schedule.alpha(t) ** 2 * variances + schedule.sigma(t) ** 2)  # noqa: E731
    x = jnp.asarray([1.0, -0.5, 0.8])
    exact = x * jnp.sqrt(variances / (0.05**2 * variances + 1 - 0.05**2))
    rows = []
    for gamma in (1.0, 0.96, 0.5, 0.0):
        before = None
        for steps in (20, 40, 80, 160, 320):
            run = jax.jit(lambda x, n=steps, g=gamma: inverse.sample(model, schedule, x, steps=n, stepper=BDIA(g)))
            error = float(jnp.linalg.norm(run(x).value - exact))
            rows.append({"part": "order", "instance": f"{steps} steps", "contestant": f"BDIA, gamma {gamma}",
                         "error": error, "order": before and float(np.log2(before / error))})  # fmt: skip
            before = error
    return rows


def rotating(x, t):
    """Return a prediction of the noise that turns: the flow oscillates."""
    return jnp.stack([-x[1], x[0]])


def round_trip(options) -> list[dict]:
    """Return how exactly a trajectory is run back, by gamma and steps."""
    rows, x = [], jnp.asarray([0.7, -0.4])
    for gamma in (1.0, 0.96, 0.5):
        for steps in (10, 20, 40, 80, 1000):
            run = jax.jit(lambda x, n=steps, g=gamma: inverse.invert(
                rotating, SCHEDULE, x, steps=n, kind="noise", stepper=BDIA(g), rtol=1e-12))  # fmt: skip
            found = run(x)
            rows.append({
                "part": "round trip", "instance": f"{steps} steps", "contestant": f"BDIA, gamma {gamma}",
                "error": float(found.error), "amplification": float(found.amplification),
                "status": found.message.split(":")[0],
            })  # fmt: skip
    return rows


def memory(options) -> list[dict]:
    """Return bytes that the gradient of a sample in a network's 128 x 128 weights needs beyond its arguments."""
    rng = np.random.default_rng(5)
    weights, x = jnp.asarray(0.03 * rng.standard_normal((128, 128))), jnp.asarray(rng.standard_normal((64, 128)))
    rows = []
    for adjoint in ("reversible", "direct"):
        for steps in (40, 400, 4000):

            def loss(weights, x, steps=steps, adjoint=adjoint):
                model = lambda x, t: -jnp.tanh(x @ weights) * (1 + t)  # noqa: E731
                how = {"steps": steps, "kind": "noise", "stepper": BDIA(adjoint=adjoint)}
                return jnp.sum(inverse.sample(model, inverse.CosineSchedule(0.1), x, **how).value ** 2)

            program = harness.compiled(jax.grad(loss), weights, x)
            timing = harness.clock(lambda p=program: p(weights, x), repeat=3, budget=5)
            rows.append({"part": "memory", "instance": f"{steps} steps", "contestant": f"adjoint {adjoint}",
                         "megabytes": program.temporary_bytes / 1e6, "seconds": timing.seconds})  # fmt: skip
    return rows


def smoothed_mode(gamma: float, y: np.ndarray) -> np.ndarray:
    """Return the minimiser of the expected matching loss for a Laplace prior and unit noise, by quadrature."""
    truth, at = np.linspace(-8, 8, 32_001), np.linspace(-4, 4, 8001)
    best = []
    for one in y:
        density = np.exp(-np.abs(truth) - (one - truth) ** 2 / 2)
        width = np.exp(-((np.arange(-800, 801) * (truth[1] - truth[0])) ** 2) / gamma**2)
        match = np.convolve(density, width, "same")
        best.append(at[np.argmax(np.interp(at, truth, match))])
    return np.asarray(best)


TRIALS = {
    "published": ((0.5, 0.4, 0.3, 0.2, 0.1), 2000, 10.0, 600, 1e-3),
    "to 0.02, rate 2e-3": ((0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02), 4000, 40.0, 300, 2e-3),
    "to 0.02, rate 3e-4": ((0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02), 4000, 40.0, 400, 3e-4),
    "to 0.05, rate 3e-4": ((0.5, 0.3, 0.2, 0.1, 0.05), 4000, 40.0, 500, 3e-4),
    "to 0.03, rate 1e-3, large batch": ((0.4, 0.2, 0.1, 0.05, 0.03), 16_000, 30.0, 300, 1e-3),
}
"""Gammas, batch, steepness, steps a stage, rate."""


def prox(options, name: str) -> list[dict]:
    """Return distances from soft thresholding on [-4, 4] after training to smaller and smaller gammas."""
    gammas, batch, beta, steps, rate = TRIALS[name]
    steps = 30 if options.quick else steps
    network = inverse.convex_network(jax.random.key(3), 1, width=32, depth=2, beta=beta, dtype=jnp.float32)
    stages = [Stage(inverse.absolute_loss, 2 * steps, 1e-2)]
    stages += [Stage(inverse.proximal_matching_loss(g), steps, rate) for g in gammas]
    draw = lambda key: jax.random.laplace(key, (batch, 1), jnp.float32)  # noqa: E731
    return judged(network, draw, stages, None, {"instance": f"gamma {gammas[-1]}, batch {batch}", "contestant": name},
                  gammas[-1])  # fmt: skip


def judged(network, draw, stages, at, named: dict, gamma: float) -> list[dict]:
    """Train, and return how far the map is from soft thresholding on [-4, 4], and from the minimiser of its loss."""
    y = np.linspace(-4, 4, 401)
    soft = np.sign(y) * np.maximum(np.abs(y) - 1, 0)
    begin = time.perf_counter()
    fitted = inverse.fit_prox(
        inverse.LearnedProx(network), draw, jax.random.key(5), noise=1.0, stages=stages, at=at,
    )  # fmt: skip
    jax.block_until_ready(fitted.losses)
    seconds = time.perf_counter() - begin
    found = np.asarray(jax.vmap(fitted.model.prox)(jnp.asarray(y, jnp.float32)[:, None])[:, 0], float)
    limit = smoothed_mode(gamma, y)
    return [{
        "part": "prox", **named, "seconds": seconds, "steps": sum(stage.steps for stage in stages),
        "error": float(np.max(np.abs(found - soft))),
        "at": float(y[np.argmax(np.abs(found - soft))]), "mean_error": float(np.mean(np.abs(found - soft))),
        "limit_of_the_loss": float(np.max(np.abs(limit - soft))),
        "from_the_limit": float(np.max(np.abs(found - limit))),
    }]  # fmt: skip


STRATA = {
    "48 points, 16,384 examples in strata": (16_384, 48, ((0.3, 300, 1e-2), (0.1, 300, 1e-2), (0.03, 300, 1e-2),
                                                          (0.02, 2500, 1e-2), (0.02, 1500, 1e-3))),
}  # fmt: skip
"""Examples, points, and stages of matching: gamma, steps, rate."""


def in_strata(options, name: str) -> list[dict]:
    """Return the same after training at points spread evenly over [-5, 5], each beside all examples of the batch."""
    count, points, plan = STRATA[name]
    plan = [(gamma, 10 if options.quick else steps, rate) for gamma, steps, rate in plan]
    float32 = jnp.float32  # in which 2^14 strata are exact
    spread = lambda key, n: (jnp.arange(n, dtype=float32) + jax.random.uniform(key, (n,), float32)) / n  # noqa: E731

    def draw(key):
        chance = jnp.clip(2 * spread(key, count) - 1, -1 + 1e-6, 1 - 1e-6)
        return (-jnp.sign(chance) * jnp.log1p(-jnp.abs(chance)))[:, None]

    at = lambda key: (10 * spread(key, points) - 5)[:, None]  # noqa: E731
    network = inverse.convex_network(jax.random.key(3), 1, width=32, depth=2, beta=20.0, dtype=jnp.float32)
    stages = [Stage(inverse.absolute_loss, 10 if options.quick else 400, 1e-2)]
    stages += [Stage(inverse.proximal_matching_loss(gamma), steps, rate) for gamma, steps, rate in plan]
    return judged(network, draw, stages, at, {"instance": f"gamma {plan[-1][0]}, evenly spread", "contestant": name},
                  plan[-1][0])  # fmt: skip


def preimage(options) -> list[dict]:
    """Return gradients of the potential spent on ``prox(y) = x`` for 64 points, by Newton's method and by Adam."""
    network = inverse.LearnedProx(inverse.convex_network(jax.random.key(3), 64, width=64, depth=4, strong=0.05))
    x = jax.vmap(network.prox)(jax.random.normal(jax.random.key(7), (64, 64)))
    found = jax.jit(jax.vmap(lambda x: network.invert(x, start=x, tol=1e-8)))(x)
    each = np.asarray(found.num_evaluations + found.linear_steps)
    jacobian = jax.jit(jax.jacfwd(network.prox))(x[0])
    rows = [{
        "part": "preimage", "instance": "64 unknowns, 64 points", "contestant": "solvers, Newton-CG",
        "gradients": float(np.median(each)), "most_gradients": int(each.max()), "residual": float(found.error.max()),
        "solved": bool(found.converged.all()), "asymmetry": float(jnp.abs(jacobian - jacobian.T).max()),
        "least_eigenvalue": float(jnp.linalg.eigvalsh((jacobian + jacobian.T) / 2)[0]),
    }]  # fmt: skip
    for rate in (0.1, 0.01):
        optimiser = optax.adam(rate)

        def descend(x, optimiser=optimiser):
            def one(carry, _):
                y, state = carry
                change, state = optimiser.update(network.prox(y) - x, state)
                return (y + change, state), None

            y = jax.lax.scan(one, (x, optimiser.init(x)), length=1000)[0][0]
            return jnp.linalg.norm(network.prox(y) - x) / jnp.maximum(jnp.linalg.norm(x), 1)

        rows.append({"part": "preimage", "instance": "64 unknowns, 64 points", "contestant": f"Adam, rate {rate}",
                     "gradients": 1000, "residual": float(jax.jit(jax.vmap(descend))(x).max())})  # fmt: skip
    return rows


PARTS = {"posterior": posterior, "mixture": mixture, "order": order, "round trip": round_trip, "memory": memory,
         "preimage": preimage, **{f"prox {name}": functools.partial(prox, name=name) for name in TRIALS},
         **{f"prox {name}": functools.partial(in_strata, name=name) for name in STRATA}}  # fmt: skip


def draw(found: list[dict], record: dict, path) -> None:
    """Draw bias and spread of the samplers, orders of BDIA, and what a round trip loses."""
    fig, axes = harness.figure(1, 3, width=4.2, height=3.0)
    rows = [r for r in found if r["part"] == "posterior"]
    colours = harness.colours([row["contestant"] for row in rows], lambda name: name == "second order")
    for k, row in enumerate(rows):
        name = row["contestant"]
        axes[0].plot(row["mean_error"], row["trace_ratio"], "os^vDPX*"[k % 8], color=colours[name], label=name)
    axes[0].axhline(1, color="grey", linewidth=0.7)
    axes[0].set(xscale="log", xlabel="error of the mean, relative", ylabel="trace of covariance / exact")
    most = max((r["trace_ratio"] for r in rows), default=1)
    axes[0].set(title="samples of a Gaussian posterior", ylim=(0, 1.1 * most))
    axes[0].legend(frameon=False, fontsize=6, loc="lower left")
    titles = {"order": "BDIA against the exact flow", "round trip": "there and back; rounding alone is 1e-15"}
    for ax, part, ylabel in ((axes[1], "order", "error"), (axes[2], "round trip", "round trip misses")):
        rows = [r for r in found if r["part"] == part]
        for k, name in enumerate(dict.fromkeys(r["contestant"] for r in rows)):
            own = [(int(r["instance"].split()[0]), 1e30 if r["error"] is None else max(r["error"], 1e-17)) for r in rows
                   if r["contestant"] == name]  # fmt: skip
            colour = (harness.BLUES[0], *harness.RIVALS)[k]
            ax.loglog(*zip(*own, strict=True), "o-", color=colour, label=name, markersize=4)
        harness.plain_ticks(ax.xaxis)
        ax.set(xlabel="steps", ylabel=ylabel, title=titles[part])
        ax.legend(frameon=False, fontsize=7)
    axes[2].set(ylim=(1e-17, 1e3))
    axes[2].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0.4, 1.02))
    fig.tight_layout()
    harness.save_figure(fig, path, record)


def main() -> int:
    """Run the chosen parts, print, save, draw."""
    options = harness.arguments(__doc__)
    record = harness.machine("optax", "equinox")
    result = harness.run_parts(options, "inverse", PARTS, key=("part", "instance", "contestant"), record=record)
    if result:
        draw(result["rows"], result["machine"], options.out / "inverse.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
