"""Curvature of a trained network of 99,690 parameters: products a standard error costs, seconds a spectrum costs.

The network (64-280-280-10, tanh) fits 128 of scikit-learn's digits in float32. `products`: Hessian products until the
standard error of the trace is 3 % and 1 %, beside PyHessian's estimator, whose standard error is taken from the
spread of its own samples. `density`: a spectral density, all probes in one program, beside PyHessian, beside a Python
loop over one compiled product, and beside our own call a probe at a time. ``--gpu``: all of them on one accelerator.
"""

import itertools

import curvature_peers as peers
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from solvers import blockwise_trace, spectral_density, trace
from solvers.core.probes import probes
from solvers.curvature import hessian

SIZES = (64, 280, 280, 10)


def network(quick: bool):
    """Return loss, trained parameters and data."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images[:128] / 16, jnp.float32), jnp.asarray(labels[:128], jnp.int32)
    rng, params = np.random.default_rng(5), {}
    for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
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

    length = 30 if quick else 100
    return loss, jax.jit(lambda p: jax.lax.scan(step, (p, adam.init(p)), None, length=length)[0][0])(params), x, y


def count(params) -> str:
    """Name the instance."""
    return f"{sum(p.size for p in params.values())} parameters"


def products(options) -> list[dict]:
    """Count the Hessian products that a relative standard error of the trace costs, ours and PyHessian's."""
    loss, params, x, y = network(options.quick)
    operator, case, rows = hessian(loss, params), count(params), []
    theirs, most = peers.pyhessian_network(params, x, y, options.gpu), 1024
    contestants = {
        "ours trace hutchinson": lambda k, r: trace(operator, k, method="hutchinson", rtol=r, max_products=8 * most),
        "ours trace hutch++": lambda k, r: trace(operator, k, method="hutch++", rtol=r, rank=32, max_products=most),
        "ours trace xtrace": lambda k, r: trace(operator, k, method="xtrace", rtol=r, max_products=most // 4),
        "ours blockwise_trace": lambda k, r: blockwise_trace(operator, k, rtol=r, rank=32, max_products=8 * most),
    }
    programs = {name: jax.jit(call) for name, call in contestants.items()}
    keys = [jax.random.key(7 + i) for i in range(2 if options.quick else 9)]
    samples = None if theirs is None else np.array(theirs.trace(maxIter=50 if options.quick else 1000, tol=0.0))
    for rtol in (0.03, 0.01):
        row = {"part": "products", "case": f"{case}, standard error {rtol:.0%}"}
        if samples is None:
            rows.append({**row, "method": "PyHessian trace", "failure": "not installed"})
        else:
            needed = (samples.std(ddof=1) / (rtol * samples.mean())) ** 2
            rows.append({**row, "method": "PyHessian trace", "value": samples.mean(), "products": int(np.ceil(needed)),
                         "claimed_error": rtol})  # fmt: skip
        for name, run in programs.items():
            found = [run(key, rtol) for key in keys]
            total = np.array([float(sum(jnp.sum(v) for v in jax.tree.leaves(f.value))) for f in found])
            rows.append({
                **row, "method": name, "value": total.mean(), "claimed_error": rtol,
                "products": int(np.median([f.num_products for f in found])),
                "spread_over_keys": total.std(ddof=1) / total.mean(), "keys": len(keys),
                "reached": bool(all(f.converged for f in found)),
            })  # fmt: skip
    return rows


def python_loop(product, start, steps: int):
    """Run Lanczos with full orthogonalisation as one writes it in NumPy style, one compiled product a step."""
    basis, alphas, betas = [start / jnp.linalg.norm(start)], [], []
    for _ in range(steps):
        w = product(basis[-1])
        alphas.append(float(jnp.vdot(w, basis[-1])))
        for q in basis + basis:
            w = w - jnp.vdot(q, w) * q
        betas.append(float(jnp.linalg.norm(w)))
        basis.append(w / betas[-1])
    values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return values, vectors[0] ** 2


def density(options) -> list[dict]:
    """Time a spectral density on the network, and compare its moments with PyHessian's."""
    loss, params, x, y = network(options.quick)
    steps, several, repeat = 20, 2 if options.quick else 8, 1 if options.quick else 5
    key, case = jax.random.key(7), f"{several} probes x {steps} steps, {count(params)}"
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    together = jax.jit(lambda p, k: spectral_density(hessian(loss, p), k, num_steps=steps, num_probes=several))
    single = jax.jit(lambda p, k: spectral_density(hessian(loss, p), k, num_steps=steps, num_probes=1))
    product = jax.jit(lambda p, v: jax.jvp(jax.grad(lambda q: loss(unravel(q))), (p,), (v,))[1])
    theirs = peers.pyhessian_network(params, x, y, options.gpu)
    calls = {
        "ours": lambda: together(params, key),
    }
    if not options.gpu:  # where each of the small programs takes long to compile
        keys = jax.random.split(key, several)
        starts = probes("sphere", key, several, jax.ShapeDtypeStruct(flat.shape, flat.dtype))
        calls |= {
            "ours, a probe at a time": lambda: [single(params, k) for k in keys],
            "Python loop, compiled products": lambda: [
                python_loop(lambda v: product(flat, v), s, steps) for s in starts
            ],
        }
    if theirs is not None:
        calls["PyHessian density"] = lambda: peers.pyhessian_density(theirs, steps, several)
    for call in calls.values():
        jax.block_until_ready(call())
    timed = harness.alternate(calls, repeat=repeat)
    rows, ours = [], timed["ours"]
    for name, timing in timed.items():
        row = {"part": "density", "case": case, "method": name, "seconds": timing.seconds,
               "over_ours": timing.seconds / ours.seconds}  # fmt: skip
        out = timing.output
        if isinstance(out, list):
            pairs = [(d.nodes[0], d.weights[0]) if hasattr(d, "nodes") else d for d in out]
        else:
            pairs = list(zip(out.nodes, out.weights, strict=True))
        for power in (1, 2):
            moments = [float(np.sum(np.asarray(w) * np.asarray(v) ** power)) for v, w in pairs]
            row[f"moment_{power}"] = float(np.mean(moments))
        row["largest"] = float(max(np.max(v) for v, _ in pairs))
        rows.append(row)
    if theirs is None:
        rows.append({"part": "density", "case": case, "method": "PyHessian density", "failure": "not installed"})
    return rows


def main() -> None:
    """Run what was chosen and save."""
    options = harness.arguments(__doc__)
    jax.config.update("jax_default_matmul_precision", "highest")  # as torch's, on a GPU too
    record = harness.machine("optax", "equinox", "pyhessian", "torch", "scikit-learn")
    stem = "curvature_network_gpu" if options.gpu else "curvature_network"
    parts = {"products": products, "density": density}
    harness.run_parts(options, stem, parts, key=("part", "case", "method"), record=record)


if __name__ == "__main__":
    main()
