"""The benchmark's judge and clock: a benchmark that flatters must fail here."""

import importlib
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from solvers.problems import transport

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("harness")


@pytest.fixture
def peers(harness):
    return importlib.import_module("peers")


@pytest.fixture
def race(peers):
    return importlib.import_module("transport").race


def test_compilations_are_counted(harness):
    double = jax.jit(lambda x: 2 * x)
    counts = []
    for x in (np.ones(7, np.float32), np.full(7, 3, np.float32), np.ones(8, np.float32), np.ones(8, np.float32)):
        with harness.count_compilations() as compilations:
            double(x)
        counts.append(compilations.count)
    assert counts == [1, 0, 1, 0]


def test_compiled_reports_bytes_and_runs(harness):
    program = harness.compiled(lambda x, y: x @ y, np.ones((9, 9), np.float32), np.ones(9, np.float32))
    np.testing.assert_array_equal(program(np.ones((9, 9), np.float32), np.ones(9, np.float32)), 9.0)
    assert program.argument_bytes == 4 * 90
    assert program.output_bytes == 4 * 9
    assert program.compile_seconds > 0


def test_clock_keeps_its_budget_and_returns_the_output(harness):
    calls = []
    timing = harness.clock(lambda: calls.append(0) or len(calls), repeat=4, budget=10.0)
    assert len(timing.runs) == len(calls) == 4
    assert timing.output == 4
    assert len(harness.clock(lambda: None, repeat=4, budget=0.0).runs) == 1


def test_save_keeps_other_rows_of_the_same_machine_only(harness, tmp_path):
    path, record = tmp_path / "x.json", harness.machine()
    harness.save(path, [{"problem": "p", "s": 1.0}, {"problem": "q", "s": 2.0}], key=("problem",), record=record)
    harness.save(path, [{"problem": "q", "s": np.float32(3)}], key=("problem",), record=record)
    assert [(r["problem"], r["s"]) for r in json.loads(path.read_text())["rows"]] == [("p", 1.0), ("q", 3.0)]
    harness.save(path, [{"problem": "q", "s": np.inf}], key=("problem",), record=record | {"processor": "another"})
    assert [(r["problem"], r["s"]) for r in json.loads(path.read_text())["rows"]] == [("q", None)]


def test_table_shows_what_is_missing(harness, capsys):
    text = harness.table([{"solver": "a", "s": 0.12345}, {"solver": "b"}])
    assert text.splitlines()[2:] == ["a       0.123", "b           -"]
    assert capsys.readouterr().out.startswith("solver")


def test_a_contestant_is_judged_by_its_plan_not_by_its_word(peers, race):
    problem = transport.clouds(30, 21, relative=0.3, seed=7)

    def liar(problem, dtype):
        plan = np.outer(problem.a, problem.b) * 1.01
        return lambda limit: peers.Ready(lambda tol: peers.Answer(plan=plan, iterations=3, stopped=True))

    (row,) = race(liar, problem, "float64", (1e-2, 1e-6), 0.05)
    assert not row["reached"]
    assert row["gave_up"]
    assert row["error"] == pytest.approx(0.02)


def test_a_contestant_gets_its_whole_time_and_a_second_try(peers, race):
    """A Sinkhorn in NumPy that measures a hundredth of the error and must therefore be asked twice."""
    problem = transport.clouds(30, 21, relative=0.3, seed=7)
    kernel = np.exp(-problem.cost / problem.epsilon)

    def sinkhorn(problem, dtype):
        def solve(tol, limit):
            u, v, steps = problem.a, problem.b, 0
            while steps < limit:
                u = problem.a / (kernel @ v)
                v = problem.b / (u @ kernel)
                steps += 1
                plan = u[:, None] * kernel * v
                if 0.2 * np.abs(plan.sum(1) - problem.a).sum() <= tol:
                    return peers.Answer(plan=plan, iterations=steps, stopped=True)
            return peers.Answer(plan=plan, iterations=steps, stopped=False)

        return lambda limit: peers.Ready(lambda tol: solve(tol, limit))

    rows = race(sinkhorn, problem, "float64", (1e-2, 1e-6, 1e-9), 1.0)
    assert [row["target"] for row in rows] == [1e-2, 1e-6, 1e-9]
    assert all(row["reached"] and row["error"] <= row["target"] for row in rows)


def test_every_benchmark_of_a_family_is_run(harness):
    """A script that writes results of its own name is called by ``bench/run.py``, or by one that is."""
    run = importlib.import_module("run")
    apart = {"linear_fidelity", "transport_devices", "transport_gpu", "counts", "compile_time", "pde_size", "pde_hard"}
    for path in BENCH.glob("*.py"):
        if f'"{path.stem}.json"' in path.read_text() and path.stem not in apart:
            assert path.stem in run.FAMILIES, path.stem
    assert all((BENCH / f"{name}.py").exists() for name in run.FAMILIES)


def test_parts_are_chosen_saved_at_once_and_left_unsaved_without_a_stem(harness, tmp_path, capsys):
    def fails(options):
        raise RuntimeError("second part")

    parts = {"first": lambda options: [{"part": "first", "s": 1.0, "path": "long"}], "second": fails}
    options = harness.arguments("", ["--only", "first", "--out", str(tmp_path)])
    how = {"key": ("part",), "record": harness.machine(), "hidden": ("path",)}
    assert harness.run_parts(options, None, parts, **how) is None
    assert not list(tmp_path.iterdir())
    assert "path" not in capsys.readouterr().out
    result = harness.run_parts(options, "some", parts, **how)
    assert [row["path"] for row in result["rows"]] == ["long"]
    options.only = ()
    with pytest.raises(RuntimeError, match="second part"):
        harness.run_parts(options, "all", parts, **how)
    assert (tmp_path / "all.json").exists()


def test_single_rows_of_another_machine_go_to_a_file_of_its_own(harness, tmp_path):
    path, key = tmp_path / "some.json", ("part",)
    here = {**harness.machine(), "processor": "Some (R) Chip 7"}
    there = {**here, "processor": "another"}
    assert harness.apart(path, here) == path
    harness.save(path, [{"part": "first"}], key=key, record=there)
    assert harness.apart(path, there) == path
    own = harness.apart(path, here)
    assert own.name == "some_some_r_chip_7.json"
    for part in ("second", "third"):
        harness.save(harness.apart(path, here), [{"part": part}], key=key, record=here)
    assert [row["part"] for row in json.loads(own.read_text())["rows"]] == ["second", "third"]
    assert [row["part"] for row in json.loads(path.read_text())["rows"]] == ["first"]


def test_quick_results_do_not_replace_the_committed_ones(harness, tmp_path):
    quick, whole = harness.arguments("x", ["--quick"]), harness.arguments("x", [])
    assert whole.out == harness.RESULTS
    assert not quick.out.is_relative_to(harness.RESULTS.parents[1])
    assert list(quick.out.iterdir()) == []
    quick.out.rmdir()
    assert harness.arguments("x", ["--quick", "--out", str(tmp_path)]).out == tmp_path


def test_the_run_goes_on_after_a_script_that_fails_or_is_too_slow(harness, tmp_path, monkeypatch, capfd):
    run = importlib.import_module("run")
    log = tmp_path / "log"
    part = f"import time\nfor _ in range(990): print(file=open({str(log)!r}, 'a')); time.sleep(0.1)"
    slow = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {part!r}])"
    scripts = {"slow": slow, "bad": "raise SystemExit(3)", "good": "print('ran')"}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "FAMILIES", tuple(scripts))
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path), "--family", "slow,bad,good", "--limit", "3"])
    assert run.main() == 1
    said = capfd.readouterr().out
    for words in ("ended by --limit", "failed with exit status 3", "ran", "done in"):
        assert words in said
    length = log.stat().st_size if log.exists() else 0
    time.sleep(0.5)
    assert length == (log.stat().st_size if log.exists() else 0), "a process of the script that was ended goes on"
