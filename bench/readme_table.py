"""Renew the README's tables of times from the committed results of ``bench/transport.py``.

python bench/readme_table.py            writes between the markers of README.md
python bench/readme_table.py --check    fails if the README does not show the committed results
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"
OURS, EXACT = "sns_sinkhorn", "POT exact"
TARGET = 1e-9
COLUMNS = (OURS, "OTT JAX", "OTT JAX momentum", "POT sinkhorn log", "RegOT SSNS", "RegOT SPLR", "RegOT Newton", EXACT)


def races(results: dict) -> list[str]:
    """Return a Markdown table: an instance a line, a solver a column, seconds to the tightest target."""
    rows = [r for r in results["rows"] if r.get("measure") == "race" and r.get("dtype") == "float64"]
    solvers = [s for s in COLUMNS if any(r["solver"] == s for r in rows)]
    lines = [
        f"Seconds to a marginal error of {TARGET:.0e} in float64, compilation apart; where that was not reached, the "
        f"error after so many seconds. {EXACT} is the network simplex, which solves the problem without entropy.",
        "",
        "| instance | " + " | ".join(f"`{s}`" if s == OURS else s for s in solvers) + " |",
        "|---|" + "--:|" * len(solvers),
    ]
    for name in dict.fromkeys(r["problem"] for r in rows):
        cells = [entry([r for r in rows if r["problem"] == name and r["solver"] == s]) for s in solvers]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", source(results, "transport.json", "python bench/transport.py")]


def accelerator(results: dict) -> list[str]:
    """Return a Markdown table: an instance a line, our milliseconds to 1e-9 and OTT-JAX's to 1e-6."""
    rows = [r for r in results["rows"] if r.get("dtype") == "float64" and "ms" in r]

    def find(instance: str, solver: str, tol: float) -> str:
        for r in rows:
            if (r["instance"], r["solver"], r["tol"]) == (instance, solver, tol):
                missed = "" if r["error"] <= tol else f" ({r['error']:.0e})"
                each = f", {r['us a problem']:.0f} us each" if "us a problem" in r else ""
                return f"{r['ms']:,.0f}{missed}{each}"
        return "-"

    lines = [
        "Milliseconds on one accelerator in float64, compilation apart, to marginal errors of 1e-6 and 1e-9:",
        "",
        f"| instance | `{OURS}` to 1e-9 | `{OURS}` to 1e-6 | OTT JAX to 1e-6 |",
        "|---|--:|--:|--:|",
    ]
    for name in dict.fromkeys(r["instance"] for r in rows):
        cells = [find(name, OURS, 1e-9), find(name, OURS, 1e-6), find(name, "OTT JAX", 1e-6)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", source(results, "transport_gpu.json", "python bench/transport.py --gpu")]


def source(results: dict, name: str, command: str) -> str:
    """Return the line that names machine, versions, date, file and command."""
    machine = results["machine"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k not in ("python", "jaxlib"))
    where = (
        machine["device"] if "(cpu)" not in machine["device"] else f"{machine['processor']}, {machine['cores']} cores"
    )
    return f"{where}, {machine['date'][:10]}; {packages}. From [{name}](bench/results/{name}), by `{command}`."


def entry(rows: list[dict]) -> str:
    """Seconds at the tightest target of one solver on one instance, or how far it came."""
    if not rows:
        return "-"
    last = min(rows, key=lambda r: r["target"])
    if last["solver"] == EXACT:
        return seconds(last["seconds"])
    if last["reached"] and last["target"] <= TARGET:
        text = seconds(last["seconds"])
        return f"**{text}**" if last["solver"] == OURS else text
    if last["error"] is None or last["seconds"] is None:
        return "failed"
    return f"{last['error']:.0e} at {seconds(last['seconds'])}"


def seconds(x: float) -> str:
    """Two digits."""
    return f"{x:.1f}" if x >= 1 else f"{x:.2f}" if x >= 0.1 else f"{x:.3f}"


def tables() -> str:
    """Return what belongs between the markers."""
    parts = []
    for name, make in (("transport.json", races), ("transport_gpu.json", accelerator)):
        if (RESULTS / name).exists():
            parts.append("\n".join(make(json.loads((RESULTS / name).read_text()))))
    return "\n\n".join(parts or ["Run `python bench/transport.py --quick`: five minutes."]) + "\n"


def main() -> int:
    """Renew or check."""
    path = ROOT / "README.md"
    text = path.read_text()
    head, rest = text.split(BEGIN)
    new = head + BEGIN + tables() + END + rest.split(END, 1)[1]
    if "--check" in sys.argv:
        return int(new != text)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
