"""The house's order: imports point downwards, every public name is documented, every example runs."""

import ast
import doctest
import enum
import functools
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import jax
import numpy as np
import pytest

import solvers

from .conftest import X64

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "solvers"
MODULES = sorted(PACKAGE.rglob("*.py"))
SHARED = ("core", "problems", "tour")
FAMILIES = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py") if p.parent.name not in SHARED)
HEAVY = (
    "matplotlib",
    "scipy.optimize",
    "scipy.sparse",
    "sklearn",
    "optax",
    "diffrax",
    "lineax",
    "optimistix",
    "PIL",
    "tqdm",
)
LONGEST = 450
SUBFOLDERS = {  # from the ground up: a subfolder may import from those before it
    "inverse": ("forward", "variational", "learned", "diffusion"),
    "transport": ("costs", "systems", "entropic", "losses"),
    "linear": ("systems", "cycles", "learned"),
    "stochastic": ("gossip", "online"),
    "tensor": ("functional",),
    "pde": ("spectral", "gaussian", "exact", "neural", "operators", "variational"),
    "constrained": ("interior",),
    "curvature": ("estimates",),
}
CALLED = {  # entry functions that only check and loop: the file that they call for the steps of their paper
    "sns_sinkhorn": "transport/entropic/newton_step",
    "sketched_newton": "constrained/iteration",
    "interior_point": "constrained/interior/barrier_step",
    "multigrid_cg": "linear/cycles/coarsening",
    "multigrid_gmres": "linear/cycles/coarsening",
    "gp_solve": "pde/gaussian/published",
    "collocate": "pde/neural/projection",
    "kalman_smoother": "core/gaussian/filtering",
    "functional_tucker": "tensor/functional/sweeps",
}
WITHOUT_FORMULA = {"shrink"}  # cuts out what `hesso` made zero
LARGE, MOST_FILES = 1500, 9
MOST_ARGUMENTS = 7


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[tuple[str, ...]]:
    """Absolute dotted names, as tuples, of what a module imports from this package."""
    here = path.relative_to(ROOT).with_suffix("").parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            base = here[: len(here) - node.level] + module if node.level else module
            found += [(*base, alias.name) for alias in node.names]
    return [name for name in found if name[0] == "solvers"]


def layer(name: tuple[str, ...]) -> str:
    """The part of the house that a dotted name belongs to."""
    return name[1] if len(name) > 1 and (PACKAGE / name[1]).is_dir() else "top"


def allowed(path: Path) -> set[str]:
    """The parts that a module may import from."""
    own = layer(path.relative_to(ROOT).with_suffix("").parts)
    if own == "core":
        return {"core"}
    if own == "problems":
        return {"core", "problems"}
    if own in FAMILIES:
        return {"core", own}
    return {"core", "problems", "tour", "top", *FAMILIES}


def test_the_house_has_families():
    assert "transport" in FAMILIES


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_point_downwards(path):
    wrong = [".".join(name) for name in imports(path) if layer(name) not in allowed(path)]
    assert not wrong, f"{named(path)} may import from {sorted(allowed(path))} only, but imports {wrong}"


def test_the_import_check_sees_relative_and_absolute_imports():
    assert ("solvers", "core", "loop", "iterate") in imports(PACKAGE / "transport" / "entropic" / "newton_step.py")
    assert layer(("solvers", "transport", "entropic", "newton")) == "transport"
    assert layer(("solvers", "plot")) == "top"
    assert allowed(PACKAGE / "problems" / "transport.py") == {"core", "problems"}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def arguments_of(path: Path) -> dict[str, int]:
    """How many arguments each function takes, the object itself apart."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            found[node.name] = len(names) - (names[:1] in (["self"], ["cls"]))
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if layer(p.relative_to(ROOT).parts) in FAMILIES], ids=named)
def test_functions_behind_the_public_ones_take_few_arguments(path):
    """Settings travel as one module, limits as `Limits`; public calls and classes may have more, by keyword."""
    face = set(dir(importlib.import_module(f"solvers.{path.relative_to(PACKAGE).parts[0]}")))
    crowded = {name: n for name, n in arguments_of(path).items() if n > MOST_ARGUMENTS and name not in face}
    assert not {name: n for name, n in crowded.items() if name != "__init__"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_constant_means_one_thing_in_a_family(family):
    """A module constant that repeats a sibling's name has its value."""
    values: dict[str, dict[str, str]] = {}
    for path in sorted((PACKAGE / family).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
                values.setdefault(node.targets[0].id, {})[named(path)] = ast.unparse(node.value)
    wrong = {name: places for name, places in values.items() if len(set(places.values())) > 1}
    assert not wrong


def numbered(text: str) -> tuple[list[int], set[int]]:
    """The numbers of a file's equations, in its docstrings, and those that its comments begin with."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    equations = [int(a or b) for d in docstrings for a, b in re.findall(r"(?m)^\s*\((\d+)\) |`` \((\d+)\)", d)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [t.string for t in tokens if t.type == tokenize.COMMENT]
    leading = [m[0] for c in comments if (m := re.match(r"# ?\(\d+\)(, \(\d+\))*", c))]
    return equations, {int(n) for c in leading for n in re.findall(r"\d+", c)}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_comments_number_the_equations_of_the_docstrings(path):
    """Each number in a comment is an equation of the file, and each equation is carried out under its number."""
    equations, comments = numbered(path.read_text())
    assert len(set(equations)) == len(equations), "two equations of a file have one number"
    assert set(equations) == comments


def test_the_equation_check_sees_both_sides():
    assert numbered(
        '"""A.\n\n(1) ``x = 1``\n\nHence ``y = 2`` (2), see (4).\n"""\nx = 1  # (1), (3): why\n# see (2)\n'
    ) == (
        [1, 2],
        {1, 3},
    )


def from_papers() -> list[str]:
    """The public names that docs/seeds.md traces to papers."""
    rows = [line.split(" | ") for line in (ROOT / "docs" / "seeds.md").read_text().splitlines()]
    cells = [cells[1] for cells in rows if len(cells) == 4]
    return sorted({name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)} - WITHOUT_FORMULA)


@pytest.mark.parametrize("name", from_papers())
def test_methods_from_papers_number_their_equations(name):
    """The file that a method of docs/seeds.md is defined in, or the one that it calls, has numbered equations."""
    importlib.import_module("solvers.problems.stochastic")
    method = functools.reduce(getattr, name.split("."), solvers)
    path = ROOT.joinpath(*inspect.unwrap(method).__module__.split(".")).with_suffix(".py")
    if name in CALLED:
        called = PACKAGE / CALLED[name]
        parts = called.relative_to(ROOT).parts
        assert any(found[: len(parts)] == parts for found in imports(path)), "does not call the file"
        assert not numbered(path.read_text())[0], "needs no exception"
        path = called.with_suffix(".py")
    assert numbered(path.read_text())[0]


def test_the_exceptions_are_methods_from_papers():
    assert len(from_papers()) > 90
    assert set(CALLED) <= set(from_papers())


def test_no_utils():
    assert not [named(p) for p in MODULES if p.stem in ("utils", "util", "helpers", "misc", "common")]


def public() -> dict[str, object]:
    return {name: getattr(solvers, name) for name in solvers.__all__}


def room(name: tuple[str, ...]) -> str | None:
    """The subfolder or top-level file of a family that a dotted name stands in."""
    return name[2] if len(name) > 2 and name[1] in FAMILIES else None


def corridors(family: str) -> dict[str, set[str]]:
    """Which rooms of a family import which others, a subfolder counted as one room."""
    found: dict[str, set[str]] = {}
    for path in sorted((PACKAGE / family).rglob("*.py")):
        own = room(path.relative_to(ROOT).with_suffix("").parts)
        if own != "__init__":
            there = {room(name) for name in imports(path) if layer(name) == family}
            found.setdefault(own, set()).update(there - {own, None})
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Rooms that cannot be put in an order in which each imports earlier ones only."""
    left = dict(graph)
    while ready := [r for r in left if not left[r] & set(left)]:
        for r in ready:
            del left[r]
    return sorted(left)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rooms_of_a_family_form_no_circle(family):
    assert not circle(corridors(family)), f"{family}: these import each other"


@pytest.mark.parametrize("family", FAMILIES)
def test_subfolders_import_sideways_one_way(family):
    order = SUBFOLDERS.get(family, ())
    folders = {p.parent.name for p in (PACKAGE / family).glob("*/__init__.py")}
    assert folders == set(order), "name every subfolder in SUBFOLDERS"
    graph = corridors(family)
    wrong = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if b in graph[a]]
    assert not wrong, f"{family}: {wrong} import upwards"


@pytest.mark.parametrize("family", FAMILIES)
def test_large_families_have_subfolders_of_few_files(family):
    files = list((PACKAGE / family).rglob("*.py"))
    if sum(len(p.read_text().splitlines()) for p in files) > LARGE:
        folders: dict[Path, int] = {}
        for p in files:
            folders[p.parent] = folders.get(p.parent, 0) + (p.stem != "__init__")
        crowded = {named(folder): count for folder, count in folders.items() if count > MOST_FILES}
        assert not crowded


def test_the_circle_check_sees_one():
    assert circle({"a": {"b"}, "b": {"a"}, "c": set()}) == ["a", "b"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_public_names_are_spelled_out():
    """The stub that type checkers read names what `FACES` names, family by family."""
    stub: dict[str, set[str]] = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)
            stub.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
    assert stub.pop("") == set(solvers.FACES)
    assert stub == {family: set(names) for family, names in solvers.FACES.items()}
    assert len(set(solvers.__all__)) == len(solvers.__all__)
    assert set(solvers.FACES) == {"core", *FAMILIES}
    assert "sns_sinkhorn" in solvers.__all__


def test_families_are_namespaces():
    """`from solvers.transport import X` and `from solvers import X` are the same thing."""
    for family, names in solvers.FACES.items():
        face = getattr(solvers, family)
        assert all(getattr(face, name) is getattr(solvers, name) for name in names)
    with pytest.raises(AttributeError, match="sinkhorm"):
        _ = solvers.sinkhorm


def test_no_module_shares_the_name_of_a_public_function():
    stems = {p.stem if p.stem != "__init__" else p.parent.name for p in MODULES}
    functions = {name for name, thing in public().items() if inspect.isfunction(thing) or inspect.isclass(thing)}
    assert not stems & functions


def sections(docstring: str) -> set[str]:
    return set(re.findall(r"^\s*([A-Z][A-Za-z]+)\n\s*-{3,}\s*$", docstring, re.MULTILINE))


def solver_functions() -> dict[str, object]:
    """Public functions that iterate: they take a tolerance."""
    return {
        name: thing
        for name, thing in public().items()
        if inspect.isroutine(inspect.unwrap(thing)) and "tol" in inspect.signature(thing).parameters
    }


@pytest.mark.parametrize("name", solvers.__all__)
def test_public_names_are_documented(name):
    thing = public()[name]
    docstring = inspect.getdoc(thing) or ""
    first = docstring.split("\n")[0]
    assert first.endswith((".", "``.", "``")), f"{name}: the first line is one sentence, got {first!r}"
    inherited = next((inspect.getdoc(base) for base in getattr(thing, "__mro__", ())[1:]), None)
    assert docstring != inherited, f"{name} inherits its docstring"
    if inspect.isclass(thing) or "Parameters" in sections(docstring):
        return
    assert not inspect.signature(thing).parameters, f"{name} has parameters but no Parameters section"


def test_classes_describe_what_they_are_made_of():
    """Themselves or in ``__init__``; what all solutions share, and the members of an enumeration, go without saying."""
    lost = {}
    for name, thing in public().items():
        if not inspect.isclass(thing) or issubclass(thing, enum.IntEnum | solvers.Solution | Exception):
            continue
        described = f"{inspect.getdoc(thing)} {inspect.getdoc(thing.__init__)}"
        parts = [part for part in inspect.signature(thing).parameters if not part.startswith("_")]
        lost[name] = [part for part in parts if not re.search(rf"\b{part}\b", described)]
    assert not {name: parts for name, parts in lost.items() if parts}


@pytest.mark.parametrize("name", sorted(n for n, thing in public().items() if callable(thing)))
def test_help_prints_types_as_they_are_written(name):
    try:
        signature = str(inspect.signature(public()[name]))
    except ValueError:  # an enumeration's members are made by Python
        pytest.skip("no signature")
    assert not re.search(r"jaxlib|jaxtyping|<class|solvers\.", signature), signature


def test_names_in_docstrings_can_be_imported():
    """A class that a public docstring names is in the library or in one of its families."""
    rooms = [solvers, *(getattr(solvers, family) for family in FAMILIES)]
    lost = {}
    for name, thing in public().items():
        own = {*dir(thing), *getattr(thing, "__annotations__", {})}
        for mentioned in re.findall(r"(?<!`)`([A-Z]\w*[a-z]\w*)`(?!`)", inspect.getdoc(thing) or ""):
            if mentioned not in own and not any(hasattr(room, mentioned) for room in rooms):
                lost.setdefault(name, []).append(mentioned)
    assert not lost


@pytest.mark.parametrize("name", sorted(solver_functions()))
def test_solvers_have_every_section(name):
    docstring = inspect.getdoc(solver_functions()[name]) or ""
    missing = {"Parameters", "Returns", "Raises", "Notes", "References", "Examples"} - sections(docstring)
    assert not missing, f"{name} lacks {sorted(missing)}"
    described = docstring.split("Parameters\n", 1)[1].split("Returns\n", 1)[0]
    documented = set(re.findall(r"(\w+)(?:, | ?:|$)", "\n".join(re.findall(r"^\*{0,2}\w[\w, *]* :", described, re.M))))
    expected = set(inspect.signature(solver_functions()[name]).parameters)
    assert expected <= documented, f"{name} does not describe {sorted(expected - documented)}"
    assert "error" in docstring.split("Returns\n", 1)[1], f"{name} does not say what `error` measures"


@pytest.mark.parametrize("name", sorted(solver_functions()))
def test_solvers_share_their_settings(name):
    """`tol`, `max_steps`, `history`, `progress` mean the same everywhere, and options are keyword-only."""
    parameters = inspect.signature(solver_functions()[name]).parameters
    assert {"tol", "max_steps", "history", "progress"} <= set(parameters)
    assert parameters["history"].default is False
    assert parameters["progress"].default is None
    assert parameters["tol"].default is None
    for option in ("tol", "max_steps", "history", "progress"):
        assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY


def test_every_solver_has_a_contract_entry_or_a_reason():
    """No silent gap: what is public and iterates passes the contract, or says where it is tested instead."""
    from .cases import CASES, WITHOUT_ENTRY

    entries = {case.name for case in CASES}
    assert not entries & set(WITHOUT_ENTRY)
    assert set(solver_functions()) == (entries | set(WITHOUT_ENTRY)) & set(solver_functions())
    assert set(WITHOUT_ENTRY) <= set(solvers.__all__)
    for name, reason in WITHOUT_ENTRY.items():
        assert (ROOT / reason.split(": ")[-1]).exists(), name


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for name, thing in public().items():
        for test in finder.find(inspect.unwrap(thing), name, globs={}):
            if test.examples:
                found[test.name] = test
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", sorted(solver_functions()))
def test_solvers_have_an_example(name):
    assert name in EXAMPLES


def run_example(name):
    """Users have neither strict types nor rank checks, and examples must print the same in both precisions."""
    five = np.printoptions(precision=5)  # whether a rounded float32 prints as 3. or 3.0000002 depends on JAX's version
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), five:
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        report: list[str] = []
        result = runner.run(EXAMPLES[name], out=report.append, clear_globs=False)
    assert result.attempted > 0
    assert not result.failed, "".join(report)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_run(name):
    run_example(name)


def test_importing_is_light():
    """`import solvers` costs jax and equinox: nothing that draws, learns or downloads, and no family."""
    code = f"import sys, solvers; print([m for m in {(*HEAVY, 'solvers.transport')!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(ast.literal_eval(run.stdout))
    base = subprocess.run(
        [sys.executable, "-c", code.replace(", solvers", ", jax, equinox")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert imported <= set(ast.literal_eval(base.stdout))


def test_readme_has_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert 'pip install -e ".[demo]" && python -m solvers' in lines
    assert 'pip install -e ".[test]" && pytest' in lines


@pytest.mark.skipif(not X64, reason="the example chooses its precision itself: one run is enough")
@pytest.mark.long
def test_readme_example_prints_what_it_says():
    """Run the block of Python in README and compare with the block of text after it: what rounding decides is apart.

    The last of the steps is one of them: at 4e-10 of a tolerance of 1e-9 another processor's sums end a step sooner.
    """
    code, printed = re.search(
        r"```python\n(.*?)```\n.*?```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    ).groups()
    user = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=user, capture_output=True, text=True, check=True)

    def without_rounding(text):
        return re.sub(r"in \d+ steps, error \d\.\de-\d+", "in some steps, some error", text)

    def steps(text):
        return int(re.search(r"in (\d+) steps", text)[1])

    assert without_rounding(run.stdout) == without_rounding(printed)
    assert abs(steps(run.stdout) - steps(printed)) <= 1
    assert float(re.search(r"error (\S+)", run.stdout)[1]) <= 1e-9


def test_readme_shows_the_committed_results():
    run = subprocess.run([sys.executable, "bench/readme_table.py", "--check"], cwd=ROOT, check=False)
    assert run.returncode == 0, "run python bench/readme_table.py"


def test_tour_lists_every_family():
    from solvers.tour import FAMILIES as TOUR

    assert set(TOUR) == set(FAMILIES)
    for name in TOUR:
        assert (PACKAGE / "tour" / f"{name}.py").exists()


@pytest.mark.parametrize("argument", ["--list", "--help", "--version"])
def test_tour_answers_at_once(argument):
    run = subprocess.run(
        [sys.executable, "-m", "solvers", argument], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert "solvers" in run.stdout or "transport" in run.stdout


@pytest.mark.skipif(not X64, reason="the tour chooses its precision itself: one run is enough")
@pytest.mark.long
def test_tour_solves_compares_and_draws(tmp_path):
    """The transport part with a small palette and no peers, as JSON on a clean standard output."""
    code = f"""
import sys
import solvers.tour.transport as part
from solvers.__main__ import main
part.COLOURS, part.installed = 64, lambda module: False
sys.exit(main(["--only", "transport", "--json", "--plots", {str(tmp_path)!r}]))
"""
    user = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=user, capture_output=True, text=True, check=True)
    (record,) = json.loads(run.stdout)
    assert record["family"] == "transport"
    assert record["converged"]
    assert 0 < record["error"] <= record["tol"] == 1e-9
    assert 0 < record["facts"]["duality_gap"] < 1e-6
    assert [peer["solver"] for peer in record["peers"]] == ["sinkhorn"]
    assert (tmp_path / "transport.png").stat().st_size > 100_000
    assert "pip install" in run.stderr


@pytest.mark.long
def test_tour_refuses_an_unknown_family(capsys):
    from solvers.__main__ import main

    with pytest.raises(SystemExit) as stop:
        main(["--only", "transport,alchemy"])
    assert stop.value.code == 2
    assert "alchemy" in capsys.readouterr().err
