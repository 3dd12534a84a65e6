"""Pages that are made from the package and its results, never typed: the reference, the benchmarks, the examples.

Run by mkdocs while it builds the site.
"""

import ast
import json
import re
import sys
from pathlib import Path

import mkdocs_gen_files

import solvers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TITLES = {
    "core": "What all families share",
    "constrained": "Constrained optimisation",
    "linear": "Linear systems",
    "pde": "Differential equations",
    "curvature": "Curvature of a loss",
    "lowrank": "Low-rank recovery",
    "convexnets": "Convex networks",
    "statespace": "State-space models",
    "tensor": "Structured tensors",
    "inverse": "Inverse problems",
    "stochastic": "First-order and online methods",
    "bilevel": "Bilevel optimisation",
    "ode": "Learned parts of ODE solvers",
    "sde": "Value functions of SDEs",
}


def write(path: str, text: str) -> None:
    """Write a page of the site."""
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


def title(family: str) -> str:
    """Return a family's name as a heading."""
    return TITLES.get(family, family.capitalize())


def reference() -> None:
    """Write a page a family, with every public name on it."""
    lines = ["* [All names](index.md)"]
    index = [
        "# Reference",
        "",
        "Everything here is importable from `solvers`, and from the namespace of its family.",
        "",
    ]
    for family, names in sorted(solvers.FACES.items(), key=lambda item: item[0] != "core"):
        module = f"solvers.{family}"
        page = [f"# {title(family)}", "", f"`{module}`", ""]
        index += [f"## [{title(family)}]({family}.md)", ""]
        for name in names:
            page += [f"::: {module}.{name}", ""]
            first = (getattr(solvers, name).__doc__ or "").strip().split("\n")[0]
            index.append(f"- [`{name}`]({family}.md#{module}.{name}): {first}")
        index.append("")
        write(f"api/{family}.md", "\n".join(page))
        lines.append(f"* [{title(family)}]({family}.md)")
    write("api/index.md", "\n".join(index))
    write("api/SUMMARY.md", "\n".join(lines) + "\n")


def examples() -> None:
    """Copy the notebooks, with a list of what each shows: its first line of text."""
    lines = ["* [What each shows](index.md)"]
    index = ["# Examples", "", "Notebooks, one idea each, as they ran from a clean kernel.", ""]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        text = "".join(first["source"])
        heading = text.split("\n")[0].lstrip("# ").strip()
        body = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", " ".join(text.split("\n\n")[1:2]).replace("\n", " "))
        index += [f"- [{heading}]({path.name}): {body}" if body else f"- [{heading}]({path.name})"]
        lines.append(f"* [{heading}]({path.name})")
        with mkdocs_gen_files.open(f"notebooks/{path.name}", "w") as file:
            json.dump(unlinked(notebook), file)
    write("notebooks/index.md", "\n".join(index) + "\n")
    write("notebooks/SUMMARY.md", "\n".join(lines) + "\n")


def unlinked(notebook: dict) -> dict:
    """Return a notebook with links to other pages only; what leads elsewhere in the repository becomes plain text."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            cell["source"] = re.sub(r"\[([^\]]+)\]\((?!https?:|[\w-]+\.ipynb|#)[^)]+\)", r"\1", text)
    return notebook


def cell(x) -> str:
    """Return a number in three digits, or short text."""
    if x is None:
        return "-"
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, int):
        return f"{x:,}"
    if isinstance(x, float):
        return f"{x:.3g}" if x == 0 or 1e-3 <= abs(x) < 1e4 else f"{x:.1e}"
    if isinstance(x, dict | list):
        x = json.dumps(x)
    text = str(x).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 60 else text[:57] + "..."


def table(rows: list[dict]) -> list[str]:
    """Return rows with the same entries as Markdown."""
    columns = [key for key in dict.fromkeys(k for row in rows for k in row) if key not in ("date", "load")]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]


def benchmarks() -> None:
    """Write all committed results as tables with their machine, their command and their picture."""
    page = [
        "# Benchmarks",
        "",
        "Accuracy against time: contestants solve the same instance in the same dtype, one formula in float64 judges "
        "their answers, and failures stay in the tables. Every number on this page is read from the committed results "
        "in `bench/results/` when the site is built.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text())
        if not isinstance(results, dict) or not results.get("rows"):
            continue
        machine = results["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        page += [f"## {path.stem}", "", *about(path.stem), ""]
        page += [f"*{machine['processor']}, {machine['cores']} cores; {machine['device']}; {versions}; "
                 f"{machine['date'][:10]}*", ""]  # fmt: skip
        for picture in sorted(RESULTS.glob(f"{path.stem}*.png")):
            if (RESULTS / f"{picture.stem}.json").exists() and picture.stem != path.stem:
                continue
            with mkdocs_gen_files.open(f"images/{picture.name}", "wb") as file:
                file.write(picture.read_bytes())
            page += [f"![{picture.stem}](images/{picture.name})", ""]
        groups: dict[tuple, list[dict]] = {}
        for row in results["rows"]:
            groups.setdefault((row.get("measure"), row.get("dtype")), []).append(row)
        for (measure, dtype), rows in groups.items():
            what = ", ".join(str(x) for x in (measure, dtype) if x) or "rows"
            page += [f'??? note "{what} ({len(rows)})"', ""]
            page += [f"    {line}" for line in table(rows)]
            page.append("")
    write("benchmarks.md", "\n".join(page))


def about(stem: str) -> list[str]:
    """Return the first sentence of the script that wrote these results, and its command."""
    scripts = sorted(ROOT.glob("bench/*.py"), key=lambda p: -len(p.stem))
    script = next((p for p in scripts if stem.startswith(p.stem) and p.stem != "peers"), None)
    if script is None:
        return [f"`bench/results/{stem}.json`"]
    sentence = (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    flag = " --gpu" if "gpu" in stem and "gpu" not in script.stem else ""
    return [sentence, "", f"`python bench/{script.name}{flag}` writes `bench/results/{stem}.json`."]


def contract() -> None:
    """Write which public calls pass which checks, read from the tests; calls without an entry with the reason."""
    sys.path.insert(0, str(ROOT))
    from tests.cases import WITHOUT_ENTRY, collect

    page = [
        "# Contract",
        "",
        "Every public call that iterates passes all checks of its kind, or stands below with the reason why not. This "
        "page is made from the tests themselves.",
        "",
    ]
    for path in sorted((ROOT / "tests").glob("test_contract*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        kind = re.search(r'collect\("(\w+)"\)', text)
        names = sorted({entry.name for entry in collect(kind[1] if kind else "CASES")})
        checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        page += [f"## {(ast.get_docstring(tree) or path.stem).split('.')[0].split(' (see')[0]}", ""]
        page += [", ".join(f"`{name}`" for name in names), ""]
        page += [f"- {check.name.removeprefix('test_').replace('_', ' ')}" for check in checks]
        page += ["", f"`tests/{path.name}`", ""]
    page += ["## Without an entry", "", "| call | why, and where it is tested |", "|---|---|"]
    page += [f"| `{name}` | {reason} |" for name, reason in sorted(WITHOUT_ENTRY.items())]
    write("contract.md", "\n".join(page) + "\n")


reference()
examples()
benchmarks()
contract()
