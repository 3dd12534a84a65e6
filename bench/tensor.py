"""Products of functions on the sphere: all routes, and e3nn-jax's full tensor product and its grid.

python bench/tensor.py [--quick] [--gpu]

Every contestant multiplies a batch of pairs of features of degree L, one channel after the other, and returns degrees
up to L. Errors are against the contraction of all coefficients in double precision; e3nn-jax's full product computes
more (each path of its own) and has no such error. ``--gpu``: degree 10, 128 channels.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import harness  # noqa: E402

from solvers import gaunt_product  # noqa: E402
from solvers.tensor.harmonics import gaunt_table  # noqa: E402

PEERS = ("e3nn-jax",)


def e3nn_grid(L: int):
    """Return e3nn-jax's way by grids of the same exactness."""
    import e3nn_jax as e3nn

    irreps = e3nn.s2_irreps(L)
    nodes, points = 3 * L // 2 + 1, 3 * L + 1 + L % 2

    def call(x, y):
        grids = [
            e3nn.to_s2grid(
                e3nn.IrrepsArray(irreps, v), nodes + nodes % 2, points, quadrature="gausslegendre",
                normalization="integral", p_val=1, p_arg=-1,
            )
            for v in (x, y)
        ]  # fmt: skip
        product = grids[0].replace_values(grids[0].grid_values * grids[1].grid_values)
        return e3nn.from_s2grid(product, irreps, normalization="integral").array

    return call


def e3nn_full(L: int):
    """Return e3nn-jax's full tensor product, filtered to degree L."""
    import e3nn_jax as e3nn

    irreps = e3nn.s2_irreps(L)

    def call(x, y):
        product = e3nn.tensor_product(e3nn.IrrepsArray(irreps, x), e3nn.IrrepsArray(irreps, y), filter_ir_out=irreps)
        return product.array

    return call


def rows_of(options) -> list[dict]:
    """Return seconds, compilation and error of all contestants."""
    rows = []
    instances = [(6, 256, np.float32), (10, 16 * 128, np.float32), (10, 16 * 128, np.float64)] if options.gpu else [
        (L, 256, d) for L in ((2, 6) if options.quick else (2, 4, 6, 10)) for d in (np.float32, np.float64)
    ]  # fmt: skip
    for L, batch, dtype in instances:
        rng = np.random.default_rng(5)
        x, y = (jnp.asarray(rng.standard_normal((batch, (L + 1) ** 2)), dtype) for _ in range(2))
        table = gaunt_table(L, L, L)
        few = slice(0, 64)
        truth = np.einsum("abc,na,nb->nc", table, np.asarray(x[few], float), np.asarray(y[few], float), optimize=True)
        contestants = {f"solvers, {r}": functools.partial(gaunt_product, route=r) for r in ("grid", "fourier", "dense")}
        if L > 6:
            contestants.pop("solvers, dense")
        try:
            contestants["e3nn-jax, grid"] = e3nn_grid(L)
            if (4 if options.quick else 6) >= L and dtype == np.float32:
                contestants["e3nn-jax, full product"] = e3nn_full(L)
        except ImportError:
            print("e3nn-jax is not installed", file=sys.stderr)
        for name, call in contestants.items():
            row = {"instance": f"L {L}, batch {batch}", "contestant": name, "dtype": np.dtype(dtype).name}
            try:
                program = harness.compiled(call, x, y)
                timing = harness.clock(lambda p=program, v=(x, y): p(*v), repeat=15, budget=3, warm=True)
                row |= {
                    "seconds": timing.seconds, "best_seconds": min(timing.runs),
                    "compile_seconds": program.first_call_seconds,
                }  # fmt: skip
                if timing.output.shape == x.shape:
                    found = np.asarray(timing.output[few], float)
                    row["error"] = float(np.max(np.abs(found - truth)) / np.max(np.abs(truth)))
            except Exception as cause:
                row["failed"] = f"{type(cause).__name__}: {str(cause)[:80]}"
            rows.append(row)
    return rows


def draw(result: dict, path) -> None:
    """Draw seconds of running and of compiling against the degree, or as bars for one degree."""
    fig, axes = harness.figure(1, 2)
    rows = [r for r in result["rows"] if r["dtype"] == "float32" and r.get("seconds")]
    for k, name in enumerate(dict.fromkeys(r["contestant"] for r in rows)):
        own = [r for r in rows if r["contestant"] == name]
        degrees = [int(r["instance"].split()[1].rstrip(",")) for r in own]
        for ax, what in zip(axes, ("best_seconds", "compile_seconds"), strict=True):
            ax.semilogy(degrees, [r[what] for r in own], "o-", label=name, color=harness.PALETTE[k], markersize=4)
    for ax, label in zip(axes, ("seconds a batch", "seconds of the first call"), strict=True):
        ax.set(xlabel="degree L", ylabel=label)
    axes[0].legend(frameon=False, fontsize=7)
    fig.tight_layout()
    harness.save_figure(fig, path, result["machine"])


def main() -> int:
    """Run, print, save, draw."""
    options = harness.arguments(__doc__)
    rows = rows_of(options)
    harness.table(rows)
    name = "tensor_gpu" if options.gpu else "tensor"
    key = ("instance", "contestant", "dtype")
    result = harness.save(options.out / f"{name}.json", rows, key=key, record=harness.machine(*PEERS))
    draw(result, options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
