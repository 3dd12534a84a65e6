"""Renew the README's table of measurements from the committed results: every number there is computed here.

python bench/readme_table.py            writes between the markers of README.md
python bench/readme_table.py --check    fails if the README does not show the committed results
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"
TARGET = 1e-9
ENTROPIC = ("OTT JAX", "OTT JAX momentum", "POT sinkhorn log", "RegOT SSNS", "RegOT SPLR", "RegOT Newton")

Row = tuple[str, str, str]


def rows_of(name: str) -> list[dict]:
    """Return the rows of a results file, none if it is not there."""
    path = RESULTS / name
    return json.loads(path.read_text())["rows"] if path.exists() else []


def number(x: float) -> str:
    """Two significant digits."""
    if x >= 100:
        return f"{x:,.0f}"
    return f"{x:.0f}" if x >= 10 else f"{x:.2g}"


def span(values: Iterable[float], unit: str) -> str:
    """Return the smallest to the largest."""
    values = sorted(values)
    return f"{number(values[0])} to {number(values[-1])} {unit}"


def transport() -> list[Row]:
    """Eight problems to 1e-9, and the best other entropic solver on each."""
    rows = [r for r in rows_of("transport.json") if r.get("measure") == "race" and r.get("dtype") == "float64"]
    reached: dict[str, dict[str, float]] = {}
    last: dict[str, float] = {}
    for r in rows:
        if r["seconds"] is not None:
            last[r["problem"]] = max(last.get(r["problem"], 0.0), r["seconds"])
        if r["target"] == TARGET and r["reached"]:
            reached.setdefault(r["problem"], {})[r["solver"]] = r["seconds"]
    ours = {p: s["sns_sinkhorn"] for p, s in reached.items()}
    others = {p: min((s[o] for o in ENTROPIC if o in s), default=None) for p, s in reached.items()}
    ratios = [others[p] / ours[p] for p in ours if others[p] is not None]
    faster = sum(s.get("POT exact", float("inf")) < s["sns_sinkhorn"] for s in reached.values())
    missed = sum(o is None for o in others.values())
    peers = f"{span(ratios, 'times as long')}, not reached on {missed}" if missed else span(ratios, "times as long")
    exact = f"; the network simplex without entropy is faster on {faster}" if faster else ""
    work = f"{len(ours)} entropic problems to a marginal error of 1e-9"
    found = [
        (work, span((1e3 * t for t in ours.values()), "ms"), f"best of OTT-JAX, POT, RegOT on each: {peers}{exact}")
    ]
    for r in rows_of("transport_gpu.json"):
        if (r["instance"], r["solver"], r["tol"], r.get("dtype")) == (
            "clouds 10000, 1e-03",
            "sns_sinkhorn",
            1e-6,
            "float64",
        ):
            other = next(
                q for q in rows_of("transport_gpu.json") if (q["instance"], q["solver"]) == (r["instance"], "OTT JAX")
            )
            found.append(("10,000 points, epsilon 1e-3, to 1e-6, one H100", f"{number(r['ms'])} ms",
                          f"OTT-JAX {number(other['ms'])} ms"))  # fmt: skip
    return found


def constrained() -> list[Row]:
    """Both sets of CUTEst problems: how many to a KKT residual of 1e-8, and the median time."""
    rows = rows_of("constrained.json")
    found = []
    for name in dict.fromkeys(r["set"] for r in rows):
        cells = {}
        for solver in ("sketched_newton", "IPOPT"):
            runs = [r for r in rows if r["set"] == name and r["solver"] == solver]
            good = [r for r in runs if r["kkt"] is not None and r["kkt"] <= 1e-8]
            if good:
                cells[solver] = f"{len(good)} of {len(runs)}, median {number(median(r['ms'] for r in good))} ms"
        if len(cells) == 2:
            found.append(
                (f"equality constraints, {name}, to KKT 1e-8", cells["sketched_newton"], f"IPOPT {cells['IPOPT']}")
            )
    return found


def inequalities() -> list[Row]:
    """Count the CUTEst problems with inequalities or bounds that are solved to 1e-8, with the median time."""
    rows = rows_of("interior.json")
    names = ("interior_point", "IPOPT", "IPOPT exact bounds")
    good = {
        name: [r["ms"] for r in rows if r["solver"] == name
               and None not in (r["violation"], r["kkt"]) and max(r["violation"], r["kkt"]) <= 1e-8]
        for name in names
    }  # fmt: skip
    if not all(good.values()):
        return []
    total = len({r["problem"] for r in rows})
    ours, ipopt, exact = (f"{len(good[n])} of {total}, median {number(median(good[n]))} ms" for n in names)
    work = "inequalities and bounds, at most 30 variables, to KKT 1e-8, one core of a Xeon"
    return [(work, ours, f"IPOPT with exact bounds {exact}; at its defaults {ipopt}")]


def linear() -> list[Row]:
    """One step of the heat equation, set-up included."""
    rows = rows_of("linear_single.json")
    found = []
    for system in dict.fromkeys(r["system"] for r in rows):
        ms = {r["solver"]: r["ms"] for r in rows if r["system"] == system}
        peers = [(n, s) for n, s in (("PyAMG", "PyAMG Ruge-Stuben + CG"), ("CHOLMOD", "sparsax (CHOLMOD)"),
                                     ("jax.scipy cg", "jax.scipy cg")) if s in ms]  # fmt: skip
        if "multigrid_cg" in ms and peers:
            others = ", ".join(f"{n} {number(ms[s])}" for n, s in peers)
            found.append(
                (
                    f"heat equation, {system}, to 1e-8, set-up included",
                    f"{number(ms['multigrid_cg'])} ms",
                    f"{others} ms",
                )
            )
    return found


def pde() -> list[Row]:
    """Solve the eleven problems of GP-HM on defaults."""
    rows = rows_of("pde.json")
    ours = {r["problem"]: r for r in rows if r["method"] == "gp_solve" and "gp_hm_error" in r and r["gp_hm_error"]}
    given = {r["problem"]: r for r in rows if r["method"].startswith("Chebyshev")}
    if not ours:
        return []
    ratios = [r["seconds"] / given[p]["seconds"] for p, r in ours.items() if p in given]
    errors = sorted(r["error"] for r in ours.values())
    published = sorted(r["gp_hm_error"] for r in ours.values())
    return [(
        f"{len(ours)} differential equations of GP-HM, grid chosen for you",
        f"{span((1e3 * r['seconds'] for r in ours.values()), 'ms')}, errors {errors[0]:.0e} to {errors[-1]:.0e}",
        f"published errors {published[0]:.0e} to {published[-1]:.0e}; Chebyshev collocation on a given grid "
        f"{span(ratios, 'times faster')}",
    )]  # fmt: skip


def statespace() -> list[Row]:
    """Smooth ten thousand steps, beside others."""
    rows, found = rows_of("statespace.json"), []
    ms = {r["contestant"]: 1e3 * r["seconds"] for r in rows
          if r["part"] == "smoother" and r["dtype"] == "float64" and r.get("seconds")}  # fmt: skip
    ours = [t for name, t in ms.items() if name.startswith("solvers")]
    peers = ", ".join(f"{name} {number(t)}" for name, t in ms.items() if not name.startswith("solvers"))
    if ours and peers:
        found.append(
            ("Kalman smoother, 10,000 irregular times, 40 % missing", f"{number(min(ours))} ms", f"{peers} ms")
        )
    return found


def tensor() -> list[Row]:
    """Bring functional tensors to one posterior, beside loops; multiply functions on the sphere, beside e3nn-jax."""
    rows, found = rows_of("tensor.json"), []
    ours, loops = (
        {r["instance"]: r["seconds"] for r in rows if r["part"] == "functional" and r["contestant"] == name}
        for name in ("solvers, published equations, accelerated", "loops over coordinates, PyTorch")
    )
    both = [k for k in ours if k in loops and "noise 0.3" in k]
    if both:
        found.append(("functional tensor, 2000 entries, two kernels, to one posterior (1e-6)",
                      f"{number(1e3 * min(ours[k] for k in both))} to {number(1e3 * max(ours[k] for k in both))} ms",
                      f"loops over coordinates, PyTorch {number(min(loops[k] for k in both))} to "
                      f"{number(max(loops[k] for k in both))} s"))  # fmt: skip
    ms = {r["contestant"]: 1e3 * r["seconds"] for r in rows if r["part"] == "gaunt" and r["dtype"] == "float32"
          and r["instance"] == "L 6, batch 256"}  # fmt: skip
    if {"solvers, grid", "e3nn-jax, grid", "e3nn-jax, full product"} <= set(ms):
        found.append(("products on the sphere, degree 6, batch of 256, float32", f"{number(ms['solvers, grid'])} ms",
                      f"e3nn-jax, grid {number(ms['e3nn-jax, grid'])}, full product "
                      f"{number(ms['e3nn-jax, full product'])} ms"))  # fmt: skip
    return found


def table() -> str:
    """Return what belongs between the markers."""
    machine = json.loads((RESULTS / "transport.json").read_text())["machine"]
    lines = ["| work, float64, compilation apart | here | others |", "|---|---|---|"]
    for work, ours, others in (
        *transport(),
        *constrained(),
        *inequalities(),
        *linear(),
        *pde(),
        *statespace(),
        *tensor(),
    ):
        lines.append(f"| {work} | **{ours}** | {others} |")
    other = json.loads((RESULTS / "tensor.json").read_text())["machine"]["processor"]
    lines += ["", f"Two cores of an {machine['processor']} unless it says H100 (the last two rows: {other}). "
              "Computed from `bench/results/` by `python bench/readme_table.py`."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Renew or check."""
    path = ROOT / "README.md"
    text = path.read_text()
    head, rest = text.split(BEGIN)
    new = head + BEGIN + table() + END + rest.split(END, 1)[1]
    if "--check" in sys.argv:
        return int(new != text)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
