"""Learning to Relax reproduced: fixed settings and learners on the recorded cost tables, over 40 seeds, and a figure.

    python bench/linear_fidelity.py

Reads bench/results/linear_tables.npz (see linear_tables.py), writes linear_fidelity.json and .png. The paper's learners
see what they see there (diffusivity, or the shift); ours sees the default context of `solve_sequence`.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")

import harness
import jax
import jax.numpy as jnp
import numpy as np
from linear_tables import GRID

from solvers import ChebCB, ContextBins, TsallisINF, replay, young_prior

TRIALS = 40
FIXED = (1.0, 1.2, 1.4, 1.5, 1.6, 1.8)


def pair(names, values):
    """Return a dictionary of as many names as values."""
    return dict(zip(names, values, strict=True))


LEARNERS = ("Tsallis-INF", "Tsallis-INF RV", "Tsallis-INF binned", "ChebCB")
OURS = "Young prior (ours)"
HEAT = ("cg", "omega = 1", "omega = 1.5", "best fixed", "instance-optimal", *LEARNERS, "red_black")
SWEEPS = ("omega = 1", "omega = 1.5", "best fixed", "instance-optimal", "young", "young_red_black", *LEARNERS[::3])
IID = (*(f"omega = {w:g}" for w in (1, 1.2, 1.4, 1.6, 1.8)), "best fixed", *LEARNERS, *SWEEPS[3:6])
REFERENCE = {
    "iid_high": pair(IID, (615.1, 408.0, 258.4, 152.1, 103.6, 103.6, 121.3, 119.4, 103.7, 66.2, 58.7, 56.4, 57.5)),
    "iid_low": pair(IID, (268.8, 176.7, 109.1, 62.5, 85.9, 58.7, 66.3, 65.1, 63.5, 45.9, 43.1, 41.6, 41.2)),
    "ssor_cg_25": pair(HEAT, (17.08, 6.56, 6.46, 5.88, 4.84, 6.29, 6.20, 6.05, 5.02, 8.92)),
    "ssor_cg_50": pair(HEAT, (32.86, 12.12, 8.77, 8.55, 6.92, 9.24, 9.07, 8.82, 7.14, 16.8)),
    "ssor_cg_100": pair(HEAT, (64.74, 23.40, 15.44, 12.64, 9.84, 13.72, 13.66, 13.39, 10.54, 32.9)),
    "sor_25": pair(SWEEPS, (36.5, 30.7, 25.5, 17.1, 17.5, 11.7, 31.9, 21.0)),
    "sor_50": pair(SWEEPS, (127.1, 54.7, 50.9, 32.9, 33.5, 22.7, 72.3, 47.1)),
    "sor_100": pair(SWEEPS, (483.8, 173.0, 104.2, 64.6, 64.8, 45.1, 203.8, 164.3)),
}
"""Mean steps a system by an independent code (numba sweeps, NumPy learners of 8 seeds) of the same experiments."""


def play(learner, costs, contexts, trials=TRIALS):
    """Return the costs (trials, T) that the learner paid."""
    run = jax.jit(jax.vmap(lambda k: replay(learner, costs, key=k, contexts=contexts, arms=jnp.asarray(GRID)).costs))
    return np.asarray(run(jax.random.split(jax.random.key(9), trials)))


def policies(name, table):
    """Return rows of one table and the running means of the learners."""
    steps, context, every = table["steps"].astype(float), table["context"], int(table["every"])
    iid, reference = name.startswith("iid"), REFERENCE[name]
    fixed, optimal = steps.mean(0), steps.min(1)
    best = int(fixed.argmin())
    values = {f"omega = {w:g}": fixed[np.abs(GRID - w).argmin()] for w in FIXED}
    values |= {"best fixed": fixed[best], "instance-optimal": optimal.mean()}
    values |= {k: table[k].mean() for k in ("cg", "red_black", "young", "young_red_black") if k in table}
    rows = [
        {"table": name, "policy": p, "systems": len(steps), "mean steps": v, "excess %": 100 * (v / optimal.mean() - 1)}
        for p, v in values.items()
    ]
    low, high, bins = (-0.15, 0.65, 5) if iid else (0.0, 10.0, 6)
    bound = 4 / (4 + context) if iid else 4 * table["s"] / (1 + 4 * table["s"])
    plain = TsallisINF("importance")
    theirs = (plain, TsallisINF(), ContextBins(plain, low, high, bins), ChebCB(low, high))
    learners = pair(LEARNERS, theirs) | {OURS: young_prior()}
    curves = {}
    for policy, learner in learners.items():
        # The reference replays the paper's learners on each sampled step of SSOR-CG as often as the run has steps.
        repeat = every if policy != OURS and name.startswith("ssor_cg") else 1
        costs, seen = np.repeat(steps, repeat, 0), np.repeat(bound if policy == OURS else context, repeat)
        paid, o = play(learner, jnp.asarray(costs), jnp.asarray(seen)), np.repeat(optimal, repeat)
        mean, window = paid.mean(0), 20
        recent, ideal = (np.convolve(x, np.ones(window), "valid") for x in (mean, o))
        near = np.flatnonzero(recent <= 1.05 * ideal)
        rows.append({
            "table": name, "policy": policy, "systems": len(costs), "mean steps": paid.mean(),
            "standard error": paid.mean(1).std() / np.sqrt(TRIALS), "excess %": 100 * (paid.mean() / o.mean() - 1),
            "first 50 over best fixed": paid[:, :50].sum(1).max() / costs[:50, best].sum(),
            "last fifth": paid[:, -len(costs) // 5 :].mean(),
            "systems until 20 in a row within 5 %": int(near[0]) if near.size else None,
        })  # fmt: skip
        curves[policy] = np.cumsum(mean) / np.arange(1, len(mean) + 1), np.cumsum(mean) / np.cumsum(o) - 1
    for row in rows:
        row["reference"] = reference.get(row["policy"])
        row["over reference"] = row["mean steps"] / row["reference"] if row["reference"] else None
    return rows, curves


def draw(rows, curves, record, path):
    """Draw the paper's two figures and the excess over the best of each system."""
    fig, axes = harness.figure(1, 3, width=4.6, height=4.2)
    learners = [p for p in LEARNERS if "RV" not in p]
    names = (OURS, "cg", "omega = 1", "omega = 1.5", "best fixed", *learners, "instance-optimal")
    mean = {(r["table"], r["policy"]): r["mean steps"] for r in rows}
    count = {r["policy"]: r["systems"] for r in rows if r["table"] == "ssor_cg_100"}
    colours = dict(zip(names, harness.PALETTE, strict=False)) | {"instance-optimal": "k"}
    look = {policy: {"color": colours[policy], "linewidth": 2.4 if policy == OURS else 1.3} for policy in names}
    sizes = (25, 50, 100)
    for policy in names:
        each = [mean[f"ssor_cg_{n}", policy] for n in sizes]
        style = "--" if policy == "instance-optimal" else "-o"
        n = [(k - 1) ** 2 for k in sizes]
        axes[0].plot(n, each, style, markersize=3, label=policy.replace("cg", "CG"), **look[policy])
    axes[0].set(xscale="log", yscale="log", xlabel="unknowns", ylabel="iterations a system, mean")
    axes[0].set_title("heat run, SSOR-CG from the last step")
    axes[0].legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=3)
    for policy, (running, _) in curves["iid_high"].items():
        if policy in names:
            axes[1].plot(np.arange(1, len(running) + 1), running, label=policy, **look[policy])
    for w in (1.4, 1.6, 1.8):
        axes[1].axhline(mean["iid_high", f"omega = {w}"], color="0.7", linewidth=0.8)
        height = 1.02 * mean["iid_high", f"omega = {w}"]
        axes[1].text(5100, 1.01 * height, f"omega = {w}", fontsize=6.5, color="0.4", ha="right")
    axes[1].axhline(
        mean["iid_high", "instance-optimal"], color="k", linestyle="--", linewidth=0.8, label="instance-optimal"
    )
    axes[1].set(xscale="log", yscale="log", xlabel="systems", ylabel="mean sweeps so far")
    axes[1].set_title("shifted Laplacians, high variance")
    axes[1].legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
    for policy, (_, excess) in curves["ssor_cg_100"].items():
        if policy in names:
            shown = np.where(excess > 0, 100 * excess, np.nan)  # where it is not, a logarithm has no place for it
            label = f"{policy}, {count[policy]:,} systems"
            axes[2].plot(np.arange(1, len(excess) + 1), shown, label=label, **look[policy])
    axes[2].set(xscale="log", yscale="log", xlabel="systems solved", ylabel="excess over instance-optimal (%)")
    axes[2].set_title("heat run, SSOR-CG, nx = 100")
    axes[2].legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22))
    fig.tight_layout(rect=(0, 0.04, 1, 1))
    harness.save_figure(fig, path, record)


def main():
    options = harness.arguments(__doc__.splitlines()[0])
    record = harness.machine()
    data = np.load(harness.RESULTS / "linear_tables.npz")
    rows, curves = [], {}
    for name in REFERENCE:
        table = {k.split(".")[1]: data[k] for k in data.files if k.split(".")[0] == name}
        new, curves[name] = policies(name, table)
        rows += new
        columns = [c for r in new for c in r if c not in ("table",)]
        harness.table(new, list(dict.fromkeys(columns)), title=name)
    harness.save(options.out / "linear_fidelity.json", rows, key=("table", "policy"), record=record)
    draw(rows, curves, record, options.out / "linear_fidelity.png")


if __name__ == "__main__":
    main()
