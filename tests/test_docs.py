"""The documents: every block of ours runs, every family has a page, no sentence breaks off, no link leads nowhere."""

import importlib
import operator
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import solvers
from solvers import sns_sinkhorn

from .conftest import X64

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
OURS = re.compile(r'^( *)```python title="solvers"\n(.*?)^\1```', re.MULTILINE | re.DOTALL)
MADE = ("api/", "notebooks/", "benchmarks.md", "contract.md")
"""Pages that are made while the site is built."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[str]:
    """Blocks of Python that show this package, their indentation taken off."""
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in OURS.findall(path.read_text())]


@pytest.mark.skipif(not X64, reason="some blocks choose their precision themselves: one run is enough")
@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p)], ids=named)
@pytest.mark.long
def test_blocks_run(path):
    """All of a page, one after the other; the settings that a block makes are undone."""
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_x64")
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            names: dict = {}
            for code in blocks(path):
                exec(compile(code, named(path), "exec"), names)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.skipif(not X64, reason="one run is enough")
@pytest.mark.long
def test_several_hosts_as_two_processes_on_one(tmp_path):
    """The page's own program, with the page's own command, against the same sum in one process."""
    code = re.search(r'```python title="solve.py"\n(.*?)```', (DOCS / "devices.md").read_text(), re.DOTALL)[1]
    script = tmp_path / "solve.py"
    script.write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0",
           "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}  # fmt: skip
    arguments = [sys.executable, str(script), "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    runs = [
        subprocess.Popen(
            [*arguments, str(k)], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for k in range(2)
    ]
    printed = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    costs = np.random.default_rng(7).random((4, 20, 20)).astype(np.float32)
    alone = sum(float(sns_sinkhorn(c, epsilon=0.2).transport_cost) for c in costs)
    for k, (out, _) in enumerate(printed):
        assert f"process {k} of 2, 2 devices: " in out
        np.testing.assert_allclose(float(out.split()[-1]), alone, atol=2e-4)


def test_the_blocks_are_found():
    assert len(blocks(DOCS / "solutions.md")) == 2
    assert blocks(DOCS / "coming-from" / "transport.md")[0].startswith("import jax")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_documents_do_not_break_off(path):
    last = path.read_text().rstrip().split("\n")[-1]
    ends = (".", "```", "|", "`", ")", "*", ":", ">")
    assert last.endswith(ends) or last.lstrip().startswith(("-", "#", "|")), f"{named(path)} ends with {last!r}"


def heading_of(path: Path) -> str:
    return path.read_text().split("\n")[0]


@pytest.mark.parametrize("path", [p for p in PAGES if p.stem != "SUMMARY"], ids=named)
def test_pages_have_a_heading_and_links_that_lead_somewhere(path):
    assert heading_of(path).startswith("# ")
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if target.startswith("http"):
            continue
        there = (path.parent / target).resolve()
        made = str(there.relative_to(DOCS)).startswith(MADE)
        assert made or there.exists(), f"{named(path)} links to {target}"


def test_seeds_name_what_exists():
    """Each paper's row names public objects, and files that hold its tests or its benchmark."""
    importlib.import_module("solvers.problems.stochastic")
    rows = re.findall(
        r"^\| (?!paper|---)(.*) \| (.*) \| (.*) \| (.*) \|$", (DOCS / "seeds.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 40
    for paper, here, found, shown in rows:
        for name in re.findall(r"`([\w.]+)`", here):
            assert operator.attrgetter(name)(solvers) is not None
        files = re.findall(r"`([\w/]+\.py)`", shown)
        assert files, paper
        assert all((ROOT / file).exists() for file in files), paper
        assert re.match(r"\*\*(Agrees|Better|Did not hold)", found), paper


def test_the_index_names_what_exists_and_every_family():
    """What ``help(solvers)`` begins with, and the names in the tables of the pages on choosing."""
    importlib.import_module("solvers.curvature")
    index = solvers.__doc__ or ""
    tables = [re.findall(r"^\| .* \| (.*) \|$", p.read_text(), re.MULTILINE) for p in (DOCS / "choosing").glob("*.md")]
    told = {"solvers": index} | {f"choosing, {k}": " ".join(rows) for k, rows in enumerate(tables)}
    for where, text in told.items():
        for name in re.findall(r"`(\w+(?:\.\w+)?)`", text):
            known = name[0].isupper() or "_" in name
            assert hasattr(solvers, name.split(".")[0]) or not known, f"{where}: {name}"
    names = set(re.findall(r"`(?:\w+\.)?(\w+)`", index))
    for family, public in solvers.FACES.items():
        assert names & set(public), f"help(solvers) says nothing of {family}"
    assert operator.attrgetter("curvature.hessian")(solvers) is not None


def test_every_choosing_page_is_listed():
    for folder in ("choosing", "coming-from"):
        listed = (DOCS / folder / "SUMMARY.md").read_text() + (DOCS / folder / "index.md").read_text()
        for path in (DOCS / folder).glob("*.md"):
            if path.stem not in ("index", "SUMMARY"):
                assert listed.count(f"({path.name})") == 2, f"name {named(path)} in {folder}/SUMMARY.md and index.md"


@pytest.mark.skipif(not X64, reason="one run is enough")
@pytest.mark.long
def test_the_site_has_every_public_name(tmp_path):
    """What makes the reference writes every name of every family; the strict build then finds its docstring."""
    pytest.importorskip("mkdocs_gen_files", reason='needs pip install -e ".[docs]"')
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    import solvers

    for family, names in solvers.FACES.items():
        page = (tmp_path / "api" / family / "index.html").read_text()
        missing = [name for name in names if f'id="solvers.{family}.{name}"' not in page]
        assert not missing, f"{family}: {missing}"
