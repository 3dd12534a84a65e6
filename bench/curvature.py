"""Curvature: a step of windowed M-FAC against the bandwidth it needs, traces and spectra beside other packages.

``--gpu`` runs the M-FAC step at m = 512, d = 270,000 in float32 (with ``--quick`` a small one) and its correctness in
both precisions. Without it the step is smaller; then traces at 60 products with the coverage of 95 % intervals, beside
traceax and matfree; products that a standard error costs on a trained network of 99,690 parameters, and spectral
densities, beside PyHessian; the Hessian of a head, exact and by probes.
"""

import itertools
import time

import curvature_peers as peers
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import t as student

from solvers import blockwise_trace, head_hessian, scale_by_mfac, spectral_density, trace
from solvers.core.probes import probes
from solvers.curvature import hessian

SPECTRA = {
    "0.7^i": lambda n: 0.7 ** np.arange(n),
    "1/i^2": lambda n: 1 / np.arange(1, n + 1.0) ** 2,
    "flat 1..3": lambda n: np.linspace(1, 3, n),
}
METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")


def mfac_step(m: int, d: int, repeat: int) -> list[dict]:
    """Time a step with a full window, its state donated, beside reading the window once and a step factored anew."""
    transform = scale_by_mfac(m, 1e-5)
    step = jax.jit(transform.update, donate_argnums=1)
    grads = [jax.random.normal(jax.random.key(k), (d,), jnp.float32) for k in range(4)]
    state = transform.init(grads[0])
    for t in range(m + 4):
        update, state = step(grads[t % 4] + 1e-2 * t, state)
    jax.block_until_ready(update)
    runs = []
    for t in range(repeat):
        begin = time.perf_counter()
        update, state = step(grads[t % 4], state)
        jax.block_until_ready(update)
        runs.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for t in range(repeat):
        update, state = step(grads[t % 4], state)
    jax.block_until_ready(update)
    together = (time.perf_counter() - begin) / repeat
    window, g = state.grads, grads[0]
    read = jax.jit(lambda w, x: jnp.matmul(w, x, precision="highest"))
    once = harness.clock(lambda: read(window, g), repeat=repeat, warm=True).seconds
    gram = state.gram + jnp.eye(m, dtype=jnp.float32) * state.shift
    anew = harness.clock(lambda: jax.jit(jnp.linalg.cholesky)(gram), repeat=repeat, warm=True).seconds
    case, size, seconds = f"m={m} d={d}", 4 * m * d, float(np.median(runs))
    rows = [("step", seconds, 2 * size), ("steps in a row", together, 2 * size), ("read the window once", once, size)]
    found = [
        {"part": "mfac", "case": case, "method": name, "milliseconds": 1e3 * s,
         "gigabytes_per_second": read_bytes / s / 1e9, "over_one_read": s / once}
        for name, s, read_bytes in rows
    ]  # fmt: skip
    return [*found, {"part": "mfac", "case": case, "method": "one Cholesky of m x m", "milliseconds": 1e3 * anew}]


def mfac_error(dtype: str, m: int = 64, d: int = 3000, damping: float = 0.1) -> dict:
    """Compare steps past a full window with a dense solve in NumPy's float64, in the span of the window."""
    rng = np.random.default_rng(5)
    g = rng.standard_normal((m + 40, d))
    transform, worst = scale_by_mfac(m, damping), 0.0
    step, state = jax.jit(transform.update), transform.init(jnp.zeros(d, dtype))
    for t, row in enumerate(g):
        update, state = step(jnp.asarray(row, dtype), state)
        if t >= m and t % 10 == 0:
            window = g[t - m + 1 : t + 1]
            truth = window.T @ np.linalg.solve(damping * np.eye(m) + window @ window.T / m, np.eye(m)[-1])
            worst = max(worst, np.linalg.norm(np.asarray(update, float) - truth) / np.linalg.norm(truth))
    return {"part": "mfac", "case": f"m={m} d={d} {dtype}", "method": "relative error", "error": worst}


def traces(keys: int, n: int = 500, products: int = 60, part: str = "trace") -> list[dict]:
    """Median relative error and coverage of the 95 % interval at equal products, ours and, for "trace", others'."""
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((n, n)))[0]
    matrices = jnp.stack([jnp.asarray((q * spectrum(n)) @ q.T) for spectrum in SPECTRA.values()])
    exact = np.array([spectrum(n).sum() for spectrum in SPECTRA.values()])
    several = jax.random.split(jax.random.key(7), keys)

    def over(one):
        return jax.jit(lambda s, k: jax.lax.map(lambda a: jax.lax.map(lambda key: one(a, key), k), s))

    rows = []

    def report(method, value, low, high, errors, used):
        for i, name in enumerate(SPECTRA):
            off = np.asarray(value[i]) - exact[i]
            covered = np.mean((low[i] <= exact[i]) & (exact[i] <= high[i]))
            claimed = np.sqrt(np.mean(np.asarray(errors[i]) ** 2))
            rows.append({
                "part": part, "case": name, "method": method, "products": used, "keys": keys,
                "error": float(np.median(abs(off)) / exact[i]),
                "coverage": float(covered) if np.isfinite(claimed) else None,
                "error_over_claimed": float(np.sqrt(np.mean(off**2)) / claimed),
            })  # fmt: skip

    for method in METHODS:
        one = lambda a, k, method=method: trace(a, k, method=method, rtol=0.0, max_products=products)  # noqa: E731
        found = over(one)(matrices, several)
        report(f"ours {method}", found.value, *found.interval(), found.standard_error, int(found.num_products[0, 0]))
    for name, one in peers.trace_estimators(products, n).items() if part == "trace" else ():
        value, error, degrees = (np.asarray(x) for x in over(one)(matrices, several))
        width = student.ppf(0.975, degrees) * error
        report(name, value, value - width, value + width, error, products)
    return rows


def network(quick: bool):
    """Return a trained tanh network on scikit-learn's digits: its loss, parameters, data; 99,690 parameters."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images[:128] / 16, jnp.float32), jnp.asarray(labels[:128], jnp.int32)
    sizes, rng, params = (64, 280, 280, 10), np.random.default_rng(5), {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        params[f"w{i}"] = jnp.asarray(rng.standard_normal((a, b)) / np.sqrt(a), jnp.float32)
        params[f"b{i}"] = jnp.zeros(b, jnp.float32)

    def loss(p):
        h = x
        for i in range(3):
            h = h @ p[f"w{i}"] + p[f"b{i}"]
            h = jnp.tanh(h) if i < 2 else h
        return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()

    adam = optax.adam(1e-3)

    def step(carry, _):
        p, s = carry
        u, s = adam.update(jax.grad(loss)(p), s, p)
        return (optax.apply_updates(p, u), s), None

    params = jax.jit(lambda p: jax.lax.scan(step, (p, adam.init(p)), None, length=30 if quick else 100)[0][0])(params)
    return loss, params, np.asarray(x), np.asarray(y)


def products_for_an_error(quick: bool) -> list[dict]:
    """Count the Hessian products that a relative standard error of the trace costs, ours and PyHessian's."""
    loss, params, x, y = network(quick)
    operator, case = hessian(loss, params), f"{sum(p.size for p in params.values())} parameters"
    rows = []
    theirs = peers.pyhessian_network(params, x, y)
    if theirs is None:
        rows.append({"part": "products", "case": case, "method": "PyHessian trace", "failure": "not installed"})
    else:
        samples = np.array(theirs.trace(maxIter=30 if quick else 100, tol=0.0))
        spread, mean = samples.std(ddof=1), samples.mean()
    for rtol in (0.03, 0.01):
        if theirs is not None:
            rows.append({
                "part": "products", "case": f"{case}, standard error {rtol:.0%}", "method": "PyHessian trace",
                "value": mean, "products": int(np.ceil((spread / (rtol * mean)) ** 2)),
            })  # fmt: skip
        for name, call in {
            "ours trace hutch++": lambda k, r: trace(operator, k, method="hutch++", rtol=r, rank=32, max_products=1024),
            "ours trace xtrace": lambda k, r: trace(operator, k, method="xtrace", rtol=r, max_products=256),
            "ours blockwise_trace": lambda k, r: blockwise_trace(operator, k, rtol=r, rank=32, max_products=1024),
        }.items():
            run = jax.jit(call)
            found = [run(jax.random.key(7 + i), rtol) for i in range(1 if quick else 3)]
            total = [float(sum(jnp.sum(v) for v in jax.tree.leaves(f.value))) for f in found]
            rows.append({
                "part": "products", "case": f"{case}, standard error {rtol:.0%}", "method": name,
                "value": float(np.mean(total)), "products": int(np.median([int(f.num_products) for f in found])),
                "reached": bool(all(f.converged for f in found)),
            })  # fmt: skip
    return rows


def density(quick: bool) -> list[dict]:
    """Time a spectral density by 8 probes of 20 Lanczos steps on the same network; moments on a dense matrix."""
    loss, params, x, y = network(quick)
    rows, case, steps, count = [], "8 probes x 20 steps, 99690 parameters", 20, 2 if quick else 8
    ours = jax.jit(lambda p, k: spectral_density(hessian(loss, p), k, num_steps=steps, num_probes=count))
    key, repeat = jax.random.key(7), 1 if quick else 3
    together = harness.clock(lambda: ours(params, key), repeat=repeat, budget=60, warm=True)
    single = jax.jit(lambda p, k: spectral_density(hessian(loss, p), k, num_steps=steps, num_probes=1))
    several = jax.random.split(key, count)
    loop = harness.clock(lambda: [single(params, k) for k in several], repeat=repeat, budget=60, warm=True)
    rows.append({"part": "density", "case": case, "method": "ours", "seconds": together.seconds})
    rows.append({"part": "density", "case": case, "method": "ours, a probe at a time", "seconds": loop.seconds})
    theirs = peers.pyhessian_network(params, x, y)
    row = {"part": "density", "case": case, "method": "PyHessian density"}
    if theirs is None:
        rows.append({**row, "failure": "not installed"})
    else:
        begin = time.perf_counter()
        try:
            theirs.density(iter=steps, n_v=1)
            rows.append({**row, "seconds": count * (time.perf_counter() - begin)})
        except Exception as failure:
            seconds = count * (time.perf_counter() - begin)  # its Lanczos steps are done, the eigenvalues fail
            rows.append({**row, "seconds": seconds, "failure": f"{type(failure).__name__}: {str(failure)[:80]}"})
    n, q = 200, np.linalg.qr(np.random.default_rng(5).standard_normal((200, 200)))[0]
    values = np.linspace(-1, 2, n)
    found = spectral_density(jnp.asarray((q * values) @ q.T), key, num_steps=10, num_probes=4)
    z = np.asarray(probes("sphere", key, 4, jax.ShapeDtypeStruct((n,), jnp.float64)))
    worst = max(
        abs(float(found.moment(p).value) - np.mean(np.sum((z @ q) ** 2 * values**p, 1))) / np.sum(abs(values) ** p)
        for p in range(11)
    )
    rows.append({"part": "density", "case": "moments 0-10, n=200", "method": "ours", "error": worst})
    return rows


def head() -> list[dict]:
    """Compare the diagonal of a head's Hessian with 300 probes of it: error and floating-point operations."""
    rng = np.random.default_rng(5)
    x, w = jnp.asarray(rng.standard_normal((256, 32))), jnp.asarray(rng.standard_normal((7, 32)) / 6)
    labels = jnp.asarray(rng.integers(0, 7, 256))
    loss = lambda w: optax.softmax_cross_entropy_with_integer_labels(x @ w.T, labels).mean()  # noqa: E731
    dense = np.diag(np.asarray(jax.hessian(loss)(w)).reshape(224, 224))

    def sampled(w):
        z = probes("rademacher", jax.random.key(7), 300, w)
        product = lambda v: v * jax.jvp(jax.grad(loss), (w,), (v,))[1]  # noqa: E731
        return jnp.mean(jax.vmap(product)(z), axis=0)

    rows = []
    exact = lambda w: head_hessian(x, w).diagonal()  # noqa: E731
    for name, call in (("exact", exact), ("300 probes", sampled)):
        compiled = jax.jit(call).lower(w).compile()
        cost = compiled.cost_analysis() or {}
        error = np.linalg.norm(np.asarray(compiled(w)).ravel() - dense) / np.linalg.norm(dense)
        flops = float(cost.get("flops", np.nan))
        rows.append({"part": "head", "case": "C=7 d=32 n=256", "method": name, "error": error, "flops": flops})
    return rows


def main() -> None:
    options = harness.arguments(__doc__)
    jax.config.update("jax_enable_x64", True)
    record = harness.machine("optax", "equinox", "traceax", "matfree", "pyhessian", "torch")
    quick, rows = options.quick, []
    if harness.chosen("mfac", options.only):
        m, d = (512, 270_000) if options.gpu and not quick else (128, 20_000)
        rows += mfac_step(m, d, repeat=50 if options.gpu else 10)
        rows += [mfac_error("float64"), mfac_error("float32")]
    if not options.gpu:
        parts = {"trace": lambda: traces(20 if quick else 200),
                 "coverage": lambda: traces(50 if quick else 1000, 200, part="coverage"),
                 "products": lambda: products_for_an_error(quick),
                 "density": lambda: density(quick), "head": head}  # fmt: skip
        for name, part in parts.items():
            if harness.chosen(name, options.only):
                rows += part()
    for part in dict.fromkeys(row["part"] for row in rows):
        harness.table([row for row in rows if row["part"] == part], title=part)
    name = "curvature_gpu" if options.gpu else "curvature"
    harness.save(options.out / f"{name}.json", rows, key=("part", "case", "method"), record=record)


if __name__ == "__main__":
    main()
