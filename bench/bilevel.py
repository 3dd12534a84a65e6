"""Bilevel methods: LV-HBA on the toy, quadratics as in benchmark_bilevel, blocks sampled, labels cleaned.

python bench/bilevel.py [--quick] [--gpu] [--only toy,quadratic,blocks,cleaning]

toy        starts in a box of side 10, default settings against the published steps
quadratic  means of rank-one quadratics drawn as benchmark_bilevel draws them (benchopt), its sizes; gap: the squared
           hypergradient in closed form; stochastic methods at their best of fifteen settings, descent of eight
blocks     BSVRB: steps to a tenth of the distance against the number of blocks sampled; ``--gpu``: 1,000 blocks
cleaning   weights of 400 digits with half of the labels wrong, learned through the trained classifier, against the
           number of gradients of single examples
"""

import functools
import itertools
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402

from solvers import CGSolve, PublishedSteps, bsvrb, hypergradient, lv_hba, single_loop  # noqa: E402
from solvers.core.krylov.cg import cg  # noqa: E402
from solvers.problems.bilevel import CoupledToy, block_quadratics  # noqa: E402

SEED = 23


def toy_rows(options) -> list[dict]:
    """Return steps, gradients and errors from random starts."""
    toy, starts = CoupledToy(100), 4 if options.quick else 32
    rng = np.random.default_rng(SEED)
    x, y = (jnp.asarray(rng.uniform(-5, 5, (starts, k))) for k in (100, 200))
    rows = []
    for name, published, most in (("lv_hba", None, 5000), ("lv_hba, published steps", PublishedSteps(), 20_000)):
        solve = lambda x, y, p=published, k=most: lv_hba(  # noqa: E731
            toy.upper, toy.lower, x, y, constraint=toy.constraint, equality=True, project=toy.project, published=p,
            max_steps=k,
        )  # fmt: skip
        begin = time.perf_counter()
        sol = jax.block_until_ready(jax.jit(jax.vmap(solve))(x, y))
        seconds = time.perf_counter() - begin
        far = np.linalg.norm(np.asarray(sol.value[0]) - toy.optimum[0], axis=1) / np.linalg.norm(toy.optimum[0])
        rows.append({
            "part": "toy", "instance": f"n 100, {starts} starts", "contestant": name,
            "converged": int(sol.converged.sum()), "error_median": np.median(far), "error_worst": far.max(),
            "steps_worst": int(sol.num_steps.max()),
            "gradients_worst": int((2 * sol.num_steps + sol.num_inner).max()), "seconds_with_compiling": seconds,
        })  # fmt: skip
    return rows


def draw_quadratic(rng, n: int, inner: int, outer: int, mu: float, cross: float) -> dict:
    """Return vectors whose products are the matrices of n quadratics, with spectra between mu and one."""

    def factor(d, values):
        U = np.linalg.qr(rng.standard_normal((d, d)))[0]
        return rng.standard_normal((n, d)) @ (U * np.sqrt(values)) @ U.T

    least = min(inner, outer)
    U, V = np.linalg.qr(rng.standard_normal((outer, outer)))[0], np.linalg.qr(rng.standard_normal((inner, inner)))[0]
    seed = rng.standard_normal((n, inner))
    values = np.geomspace(mu, cross, least)
    parts = {
        "yy": factor(inner, np.geomspace(mu, 1, inner)), "xx": factor(outer, np.r_[0, np.geomspace(mu, 1, outer - 1)]),
        "left": seed[:, :least] * values @ U[:, :least].T, "right": seed @ V.T,
        "y": rng.standard_normal((n, inner)), "x": rng.standard_normal((n, outer)),
    }  # fmt: skip
    return {k: jnp.asarray(v) for k, v in parts.items()}


def quadratic(x, y, d):
    """Return one term."""
    square = (jnp.vdot(d["yy"], y) ** 2 + jnp.vdot(d["xx"], x) ** 2) / 2
    return square + jnp.vdot(d["left"], x) * jnp.vdot(d["right"], y) + jnp.vdot(d["y"], y) + jnp.vdot(d["x"], x)


class Dense:
    """The mean quadratics as matrices, and the hypergradient in closed form: what judges everybody."""

    def __init__(self, lower, upper):
        mean = lambda d, a, b: np.asarray(d[a]).T @ np.asarray(d[b]) / len(d[a])  # noqa: E731
        self.low = {k: mean(lower, *k) for k in (("yy", "yy"), ("left", "right"))}
        self.up = {k: mean(upper, *k) for k in (("yy", "yy"), ("xx", "xx"), ("left", "right"))}
        self.low_y = np.asarray(lower["y"]).mean(0)
        self.up_y, self.up_x = np.asarray(upper["y"]).mean(0), np.asarray(upper["x"]).mean(0)

    def gradient(self, x):
        """Return it at one x."""
        H, C = self.low["yy", "yy"], self.low["left", "right"]
        y = -np.linalg.solve(H, self.low_y + C.T @ x)
        K = self.up["left", "right"]
        v = np.linalg.solve(H, self.up["yy", "yy"] @ y + K.T @ x + self.up_y)
        return self.up["xx", "xx"] @ x + K @ y + self.up_x - C @ v

    def curvature(self):
        """Return the least curvature of the outer problem."""
        p = len(self.up_x)
        zero = self.gradient(np.zeros(p))
        H = np.stack([self.gradient(e) - zero for e in np.eye(p)])
        return np.linalg.eigvalsh((H + H.T) / 2)[0]


def secant_descent(lower, upper, x, steps):
    """Descend along hypergradients by steps of Barzilai and Borwein.

    The lower problem and the linear system by conjugate gradients, to a hundredth of the last hypergradient.
    """
    mean = lambda d: lambda x, y, _: jnp.mean(jax.vmap(lambda e: quadratic(x, y, e))(d))  # noqa: E731
    up, low = mean(upper), mean(lower)
    zero = jnp.zeros(lower["y"].shape[1])

    def slope(x, y, size):
        b, product = jax.linearize(lambda y: jax.grad(low, argnums=1)(x, y, None), zero)
        y = cg(product, -b, y, tol=0.01 * size, max_steps=200).x
        relative = 0.01 * size / jnp.linalg.norm(jax.grad(up, argnums=1)(x, y, None))
        return y, hypergradient(up, low, x, y, solver=CGSolve(tol=relative)).value

    def step(c, _):
        x, y, g, length = c
        after = x - length * g
        y, new = slope(after, y, jnp.maximum(jnp.linalg.norm(g), 1e-11))
        moved, change = after - x, new - g
        bent = jnp.vdot(moved, change)
        length = jnp.where(bent > 0, bent / jnp.maximum(jnp.vdot(change, change), 1e-300), length)
        return (after, y, new, length), after

    y, g = slope(x, zero, jnp.asarray(0.1))
    return jax.lax.scan(step, (x, y, g, jnp.asarray(0.1)), None, length=steps)[1]


def plain_descent(lower, upper, x, rates, steps):
    """Descend by fixed steps on all examples; ten steps of y and of the linear system each (AmIGO, full batch)."""
    mean = lambda d: lambda x, y: jnp.mean(jax.vmap(lambda e: quadratic(x, y, e))(d))  # noqa: E731
    up, low = mean(upper), mean(lower)
    slope = jax.grad(low, argnums=1)

    def step(c, _):
        x, y, v = c
        y = jax.lax.fori_loop(0, 10, lambda _, y: y - rates[1] * slope(x, y), y)
        by_x, by_y = jax.grad(up, argnums=(0, 1))(x, y)
        product = jax.linearize(lambda y: slope(x, y), y)[1]
        v = jax.lax.fori_loop(0, 10, lambda _, v: v - rates[1] * (product(v) - by_y), v)
        x = x - rates[0] * (by_x - jax.grad(lambda x: jnp.vdot(slope(x, y), v))(x))
        return (x, y, v), x

    zero = jnp.zeros(lower["y"].shape[1])
    return jax.lax.scan(step, (x, zero, zero), None, length=steps)[1]


def looped(made, start, key, steps):
    """Run 20 blocks of steps and return x after each."""

    def block(s, key):
        s, _ = made.run(s, key, steps)
        return s, s.x

    return jax.lax.scan(block, start, jax.random.split(key, 20))[1]


SIZES = {
    "default": (1024, 1024, 100, 100), "best_params": (32768, 1024, 100, 10), "config": (100_000, 25_000, 10, 10),
}  # fmt: skip


def quadratic_rows(label: str, options) -> list[dict]:
    """Return seconds to the least gap that any peer reaches, and the smallest gaps."""
    n, m, inner, outer = SIZES[label]
    rng = np.random.default_rng(SEED)
    for _ in range(20):
        lower, upper = (draw_quadratic(rng, k, inner, outer, 0.1, 0.1) for k in (n, m))
        dense = Dense(lower, upper)
        if dense.curvature() > 1e-12:
            break
    x0, found, rows = jnp.zeros(outer), {}, []

    def gap(x):
        return float(np.sum(dense.gradient(np.asarray(x)) ** 2)) if np.all(np.abs(x) < 1e100) else np.inf

    program = harness.compiled(lambda lo, up, x: secant_descent(lo, up, x, 80), lower, upper, x0)
    timing = harness.clock(lambda: program(lower, upper, x0), repeat=3, budget=5, warm=True)
    gaps = np.array([gap(x) for x in timing.output])
    found["hypergradient, cg"] = (timing.seconds / 80 * (1 + np.arange(80)), gaps, "80 steps")
    count = 50 if options.quick else 300 if n < 10_000 else 40
    once = harness.compiled(
        lambda lo, up, x, rates: plain_descent(lo, up, x, rates, count), lower, upper, x0, (0.1, 1.0)
    )
    for rates in itertools.product((0.03, 0.1, 0.3, 1.0), (0.5, 1.0)):
        timing = harness.clock(lambda r=rates: once(lower, upper, x0, r), repeat=1)
        gaps = np.array([gap(x) for x in np.asarray(timing.output)])
        if "gradient descent" not in found or gaps.min() < found["gradient descent"][1].min():
            times = timing.seconds / count * (1 + np.arange(count))
            found["gradient descent"] = (times, gaps, f"y step {rates[1]}, x step {rates[0]}, {count} steps")
    # One upper example a lower one: the smaller set is repeated.
    data = {"low": lower, "up": jax.tree.map(lambda a: jnp.tile(a, (n // m, 1)), upper)}
    key = jax.random.key(SEED)
    for method in ("soba", "saba", "f2sa"):
        best = once = None
        steps = 2_000 if options.quick else 10_000
        if method == "saba" and n > 10_000:
            steps = 300  # each copies the table of past directions
        for y_step, ratio in itertools.product((0.003, 0.01, 0.03, 0.1, 0.3), (0.1, 1.0, 10.0)):
            made = single_loop(
                lambda x, y, d: quadratic(x, y, d["up"]), lambda x, y, d: quadratic(x, y, d["low"]), data,
                method=method, x_step=y_step * ratio, y_step=y_step, batch=64,
            )  # fmt: skip
            numbers = (made.data, made.x_step, made.y_step, made.penalty)
            if once is None:

                def run(numbers, key, made=made, steps=steps):
                    own = eqx.tree_at(lambda m: (m.data, m.x_step, m.y_step, m.penalty), made, numbers)
                    return looped(own, own.init(x0, jnp.zeros(inner)), key, steps // 20)

                once = harness.compiled(run, numbers, key)
            timing = harness.clock(lambda p=once, a=numbers: p(a, key), repeat=1)
            gaps = np.array([gap(x) for x in np.asarray(timing.output)])
            if best is None or gaps[-1] < best[1][-1]:
                times = timing.seconds / 20 * (1 + np.arange(20))
                best = (times, gaps, f"y step {y_step}, x step {y_step * ratio:g}, {steps} steps")
        found[method] = best
    target = min(np.min(own[1]) for name, own in found.items() if name != "hypergradient, cg")
    target = max(target, 1e-20)
    for name, (times, gaps, setting) in found.items():
        reached = np.flatnonzero(gaps <= target)
        rows.append({
            "part": "quadratic", "instance": f"{label}: n {n}, {m}; d {inner}, {outer}", "contestant": name,
            "setting": setting, "least_gap": np.min(gaps), "target": target,
            "seconds_to_target": times[reached[0]] if len(reached) else None, "seconds": times[-1],
        })  # fmt: skip
    return rows


def block_rows(options) -> list[dict]:
    """Return steps to a tenth of the first distance, medians of seeds, for 1, 2, 4, ... blocks a step."""
    m = 1000 if options.gpu else 64
    sampled = (64, 128, 256, 512) if options.gpu else (2, 4, 8, 16, 32)
    lanes, most = (2, 200) if options.quick else (8, 10_000)
    problem = block_quadratics(np.random.default_rng(SEED), blocks=m, p=3, d=4)
    rows = []
    for I in sampled:  # noqa: E741

        def sample(i, key):
            block = jax.tree.map(lambda a: a[i], problem.data)
            return block._replace(c=block.c + 0.02 * jax.random.normal(key, block.c.shape))

        made = bsvrb(
            problem.upper, problem.lower, sample, blocks=m, sampled=I, x_step=0.1, y_step=0.1, momentum=0.02
        )  # fmt: skip

        def distances(key, made=made):
            state = made.init(jnp.zeros(3), jnp.zeros((m, 4)))
            return made.run(state, key, most, lambda s: jnp.linalg.norm(s.x - problem.optimum))[1]

        keys = jax.random.split(jax.random.key(SEED), lanes)
        program = harness.compiled(jax.vmap(distances), keys)
        timing = harness.clock(lambda p=program, k=keys: p(k), repeat=2, budget=60)
        reached = np.asarray(timing.output) < 0.1 * float(jnp.linalg.norm(problem.optimum))
        first = np.where(reached.any(axis=1), reached.argmax(axis=1), most)
        rows.append({
            "part": "blocks", "instance": f"m {m}", "contestant": f"bsvrb, {I} blocks a step", "sampled": I,
            "steps_median": float(np.median(first)), "reached": int(reached.any(axis=1).sum()), "lanes": lanes,
            "seconds_a_step_and_lane": min(timing.runs) / most / lanes,
        })  # fmt: skip
    for before, after in itertools.pairwise(rows):
        after["ratio"] = after["steps_median"] / before["steps_median"]
    return rows


def digits(n: int):
    """Return training digits with half of the labels wrong, a clean validation set, test digits, and what is wrong."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(y))
    X, y = np.c_[X[order] / 16, np.ones(len(y))], y[order]
    noisy = y[:n].copy()
    wrong = rng.random(n) < 0.5
    noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    parts = (X[:n], noisy, X[n : 2 * n], y[n : 2 * n])
    return [jnp.asarray(p) for p in parts], (X[2 * n :], y[2 * n :]), wrong


def cleaning_rows(options) -> list[dict]:
    """Return validation loss, accuracy, and how well the weights tell wrong labels, at several budgets of gradients."""
    n = 100 if options.quick else 400
    (X, y, V, t), (T, s), wrong = digits(n)

    def entropy(w, a, label):
        return -jax.nn.log_softmax(a @ w.reshape(65, 10))[label]

    def lower(x, w, i):
        return jax.nn.sigmoid(x[i]) * entropy(w, X[i], y[i]) + 5e-3 * jnp.sum(w**2)

    def upper(x, w, i):
        return entropy(w, V[i], t[i])

    every = jnp.arange(n)
    full = lambda f: lambda x, w, _: jnp.mean(jax.vmap(lambda i: f(x, w, i))(every))  # noqa: E731
    F, f = full(upper), full(lower)

    @jax.jit
    def train(x):
        def step(w, _):
            g = jax.grad(f, argnums=1)(x, w, None)
            H = lambda v: jax.jvp(lambda w: jax.grad(f, argnums=1)(x, w, None), (w,), (v,))[1]  # noqa: E731
            return w - cg(H, g, tol=1e-10, max_steps=200).x, None

        return jax.lax.scan(step, jnp.zeros(650), None, length=12)[0]

    def judge(x, name, gradients, seconds):
        w = train(x)
        order = np.argsort(np.asarray(x))
        rank = np.empty(n)
        rank[order] = np.arange(n)
        good = ~wrong
        area = (rank[good].sum() - good.sum() * (good.sum() - 1) / 2) / (good.sum() * wrong.sum())
        hits = np.mean(np.argmax(T @ np.asarray(w).reshape(65, 10), axis=1) == s)
        return {
            "part": "cleaning", "instance": f"{n} digits, half wrong", "contestant": name, "gradients": gradients,
            "validation_loss": float(F(x, w, None)), "test_accuracy": hits, "told_apart": area, "seconds": seconds,
        }  # fmt: skip

    x0, w0 = jnp.zeros(n), jnp.zeros(650)
    rows = [judge(x0, "no weights", 0, 0.0), judge(jnp.where(jnp.asarray(wrong), -30.0, 30.0), "told which", 0, 0.0)]
    budget = 200_000 if options.quick else 4_000_000
    key = jax.random.key(SEED)
    # Gradients a step and example: SOBA two and a Hessian and a mixed product, each counted as two; F2SA four.
    for method, each in (("soba", 6), ("f2sa", 4)):
        best = None
        for x_step in (30.0, 100.0, 300.0):
            made = single_loop(upper, lower, every, method=method, x_step=x_step, y_step=0.3, batch=32, penalty=10.0)
            steps = budget // (each * 32)
            begin = time.perf_counter()
            state, _ = jax.jit(lambda k, m=made, c=steps: m.run(m.init(x0, w0), k, c))(key)
            jax.block_until_ready(state)
            seconds = time.perf_counter() - begin
            if not bool(jnp.all(jnp.isfinite(state.x))):
                continue
            row = judge(state.x, method, budget, seconds)
            row["setting"] = f"x step {x_step:g}, y step 0.3, batch 32"
            if best is None or row["validation_loss"] < best["validation_loss"]:
                best = row
        rows.append(best or {"part": "cleaning", "instance": f"{n} digits, half wrong", "contestant": method,
                             "failed": "not finite at any setting"})  # fmt: skip
    most = 50 if options.quick else 800
    begin = time.perf_counter()
    box = lambda x, w, _: (jnp.clip(x, -6.0, 6.0), w)  # noqa: E731
    sol = jax.block_until_ready(lv_hba(F, f, x0, w0, project=box, max_steps=most, inner_steps=20))
    row = judge(sol.value[0], "lv_hba", n * (4 * int(sol.num_steps) + int(sol.num_inner)), time.perf_counter() - begin)
    rows.append({**row, "setting": f"default, {int(sol.num_steps)} steps, error {float(sol.error):.1e}"})
    return rows


PARTS = {
    "toy": toy_rows, **{f"quadratic-{k}": functools.partial(quadratic_rows, k) for k in SIZES}, "blocks": block_rows,
    "cleaning": cleaning_rows,
}  # fmt: skip


def main() -> int:
    """Run, print, save."""
    options = harness.arguments(__doc__)
    parts = {"blocks": PARTS["blocks"]} if options.gpu else PARTS
    if options.quick:
        parts = {k: v for k, v in parts.items() if k not in ("quadratic-best_params", "quadratic-config")}
    stem = None if options.quick else "bilevel_gpu" if options.gpu else "bilevel"
    key, record = ("part", "instance", "contestant"), harness.machine("equinox")
    harness.run_parts(options, stem, parts, key=key, record=record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
