"""The GPU suite without a GPU: time limits, verdicts, hidden speeds, and saved results after failures."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import headline, stages
from bench.cases import CASES
from bench.machine import commit, machine
from bench.machine import tree as machine_tree
from bench.stages import (
    GREEN,
    CannotRunError,
    Content,
    Finished,
    Item,
    Record,
    in_background,
    read_lines,
    run_command,
    run_commands,
    walk,
    write_json,
)
from bench.step import PUBLISHED
from bench.verdicts import as_result, count_tests, may_show
from tests.bench.bare import bare_machine
from tests.gpu import small_shapes
from tests.gpu import suite as gpu
from tests.proofs import GPU_BACKENDS, OPS

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
NO_RACE = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
FOUND = "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n=========     at mix_kernel\n"
FOUND += "========= ERROR SUMMARY: 3 errors\n"


def script(code: str) -> list[str]:
    return [PYTHON, "-c", code]


# Commands


def test_a_command_tells_its_code_and_output() -> None:
    done = run_command(script("import os, sys; print(os.environ['WORD']); sys.exit(3)"), 300, {"WORD": "here"})
    assert (done.code, done.output, done.last_line) == (3, "here\n", "here")
    assert run_command(script("pass"), 300).last_line == "no output"


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def ends_with(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """The limit of commands is reached once one of them has written a file, and not before, however slow the machine is."""
    monkeypatch.setattr(stages.time, "monotonic", lambda: 1e9 if file.exists() and file.read_text() else 0.0)


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"
    child = f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(3600)"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    ends_with(monkeypatch, pids)
    done = run_command(script(parent), 3)
    assert (done.code, done.output) == (None, "begun\n")
    (pid,) = pids.read_text().split()
    for _ in range(6000):
        if not is_running(int(pid)):
            break
        time.sleep(0.05)
    assert not is_running(int(pid))


def test_commands_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "hanging"
    hangs = f"import pathlib, time; pathlib.Path({str(hanging)!r}).write_text('x'); time.sleep(3600)"
    commands = {"quick": script("print(1)"), "hangs": script(hangs), "never begun": script("print(2)")}
    ends_with(monkeypatch, hanging)
    finished = run_commands(commands, 4, workers=1)
    assert [finished[name].code for name in commands] == [0, None, None]
    assert finished["never begun"].seconds == 0


def test_commands_run_beside_each_other(tmp_path: Path) -> None:
    """Each command waits for the other's file."""
    wait = "import pathlib, sys, time\nown, other = map(pathlib.Path, sys.argv[1:])\nown.touch()\n"
    wait += "while not other.exists(): time.sleep(0.01)"
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    finished = run_commands({"a": [*script(wait), one, other], "b": [*script(wait), other, one]}, 300, workers=2)
    assert list(finished) == ["a", "b"]
    assert [done.code for done in finished.values()] == [0, 0]


def test_commands_end_with_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    class Watched(stages.Background):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            begun.append(self)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "Background", Watched)
    monkeypatch.setattr(stages.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_command(script("import time; time.sleep(60)"), 30)
    assert not is_running(begun[0].process.pid)
    assert not begun[0].log.exists()


# Items and files


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "new" / "out.json", "python -m tests.gpu", {"clips": 2})


def raises(left: float) -> Content:
    raise RuntimeError("boom")


def on_disk(record: Record) -> dict[str, Content]:
    (run,) = json.loads(record.path.read_text())["runs"]
    return dict(run["items"])


def test_items_go_on_after_a_failure_and_are_on_disk(record: Record) -> None:
    marks: list[int] = []

    def looks(left: float) -> Content:
        assert on_disk(record)["raises"]["error"] == "RuntimeError: boom"
        return {"found": 1}

    def cannot(left: float) -> Content:
        raise CannotRunError("no tool")

    kept = [Item("raises", 1, raises), Item("looks", 1, looks), Item("cannot", 1, cannot)]
    walk(kept, record, time.monotonic() + 100, after=lambda: marks.append(len(record.items)))
    found = on_disk(record)
    assert found["looks"]["found"] == 1
    assert found["cannot"]["not run"] == "no tool"
    assert [record.has(name) for name in ("raises", "looks", "cannot", "another")] == [False, True, False, False]
    assert marks == [1, 2, 3]


def test_nothing_begins_that_does_not_fit(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    now, given = [0.0], []
    monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])

    def spends(left: float) -> Content:
        given.append(left)
        now[0] += 45
        return {}

    walk([Item("a", 60, spends), Item("b", 60, spends), Item("c", 50, spends)], record, 100)
    assert given == [100, 55]
    assert record.items["b"]["not run"] == "it takes about 60 s, and 55 s are left"


def test_what_a_file_has_is_not_measured_again(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def item(name: str) -> Item:
        return Item(name, 1, lambda left: runs.append(name) or {})  # type: ignore[func-returns-value]

    walk([item("a"), Item("b", 1, raises)], record, time.monotonic() + 100)
    again = Record(record.path, "another", {"clips": 2})
    walk([item("a"), item("b"), item("c")], again, time.monotonic() + 100)
    assert runs == ["a", "b", "c"]

    other = Record(record.path, "python -m tests.gpu", {"clips": 3})
    assert other.items == {}
    monkeypatch.setattr(stages, "machine", lambda: machine() | {"gpu": "another card"})
    card = Record(record.path, "python -m tests.gpu", {"clips": 2})
    assert card.items == {}
    monkeypatch.setattr(stages, "tree", lambda: "another version")
    version = Record(record.path, "python -m tests.gpu", {"clips": 2})
    version.add("a", {})
    runs_kept = json.loads(record.path.read_text())["runs"]
    assert [set(run["items"]) for run in runs_kept] == [{"a", "b", "c"}, {"a"}]
    assert {run["tree"] for run in runs_kept} == {machine_tree(), "another version"}


def test_a_record_says_where_it_comes_from(record: Record) -> None:
    record.write()
    (run,) = json.loads(record.path.read_text())["runs"]
    assert run["command"] == "python -m tests.gpu"
    assert (run["commit"], run["tree"]) == (commit(), machine_tree())
    assert {"gpu", "driver", "torch", "triton"} <= set(run["machine"])
    assert Record(record.path.with_name("b.json"), "x", {}, "abc").run["commit"] == "abc"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": []}', '{"runs": 3}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not a results file"):
        Record(path, "x", {})
    assert path.read_text() == content


def test_what_another_process_added_is_read(record: Record) -> None:
    record.add("a", {})
    other = Record(record.path, "bench.headline", {"clips": 2})
    other.add("b", {"found": 1})
    record.reload()
    record.add("c", {})
    assert set(on_disk(record)) == {"a", "b", "c"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


# Verdicts


def test_every_op_has_its_small_shapes() -> None:
    assert set(OPS) == {op for case in CASES for op in case.ops.split(" + ")}
    assert all(small_shapes.cases_of(op) for op in OPS)
    assert set(gpu.STEP_OPS.split(" + ")) < set(OPS)


def test_small_shapes_run_and_count(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_shapes.run_small("mix_clips", torch.device("cpu")) >= len(small_shapes.SMALL)
    monkeypatch.setattr(sys, "argv", ["small_shapes", "mix_clips"])
    monkeypatch.setattr(small_shapes, "run_small", lambda op, device: 0)
    assert small_shapes.main() == 1
    assert "mix_clips ran 0 times" in capsys.readouterr().out
    assert small_shapes.run_layers(torch.device("cpu")) in (0, 4)  # fused where Triton runs


def outcomes(**changes: str) -> list[Content]:
    """Every op proved on both GPU back ends, except for the changes (op -> outcome)."""
    return [outcome_line(op, backend, changes.get(op, "passed")) for op in OPS for backend in GPU_BACKENDS]


def outcome_line(op: str, backend: str | None, outcome: str) -> Content:
    return {"test": f"tests/kernels/test_{op}.py::test_{backend}", "ops": [op], "backend": backend, "outcome": outcome}


def clean_sanitizer() -> dict[str, Any]:
    return {tool: {op: GREEN._asdict() for op in (*OPS, small_shapes.LAYERS)} for tool in gpu.TOOLS}


def test_only_verified_speeds_are_shown() -> None:
    result = {"tests": count_tests(outcomes()), "sanitizer": clean_sanitizer()}
    assert {may_show(result, op, backend) for op in OPS for backend in (*GPU_BACKENDS, "auto")} == {"green"}
    assert may_show({}, "mix_clips", "cuda") == "unverified"
    assert may_show({"tests": count_tests([])}, "mix_clips", "auto") == "unverified"

    skipped = {"tests": count_tests(outcomes(draw_plan="skipped"))}
    assert may_show(skipped, "draw_plan", "triton") == "unverified"
    assert may_show(skipped, "draw_plan + saliency_update", "triton") == "unverified"
    assert may_show(skipped, "saliency_update", "triton") == "green"

    failed = {"tests": count_tests([*outcomes(), outcome_line("draw_plan", None, "failed")])}
    assert may_show(failed, "draw_plan", "cuda") == "red"
    assert may_show(failed, "saliency_update + draw_plan", "cuda") == "red"
    assert may_show(failed, "mix_clips", "cuda") == "green"

    sanitizer = clean_sanitizer()
    sanitizer["racecheck"]["mix_clips"] = {"verdict": "red", "reason": "2 errors"}
    assert may_show(result | {"sanitizer": sanitizer}, "mix_clips", "triton") == "red"
    sanitizer["racecheck"]["mix_clips"] = {"verdict": "not run", "reason": "it refused the device"}
    assert may_show(result | {"sanitizer": sanitizer}, "mix_clips", "triton") == "green"


def test_a_test_proves_its_own_back_end_only() -> None:
    result = {"tests": count_tests(outcome for outcome in outcomes() if outcome["backend"] == "cuda")}
    assert may_show(result, "mix_clips", "cuda") == "green"
    assert may_show(result, "mix_clips", "triton") == "unverified"
    elsewhere = [outcome_line("draw_plan", backend, "passed") for backend in (None, "cpp", "reference")]
    assert may_show({"tests": count_tests(elsewhere)}, "draw_plan", "triton") == "unverified"


# Tests on the device


TESTS = """
import pytest
@pytest.mark.proves("mix_clips", backend="triton")
def test_passes(): pass
@pytest.mark.proves("draw_plan")
def test_fails(): assert False
@pytest.mark.skip(reason="no")
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError
def test_errs(broken): pass
@pytest.fixture
def spills():
    yield
    raise RuntimeError
def test_spills(spills): pass
"""


def test_outcomes_are_written_as_tests_end(tmp_path: Path) -> None:
    files = {
        "test_all.py": TESTS,
        "test_lacks.py": "import no_such_package",
        "test_broken.py": "import shapmix.no_such_module",
        "test_left_out.py": "import pytest; pytest.importorskip('no_such_package')",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    lines = tmp_path / "lines.jsonl"
    command = [
        PYTHON,
        "-m",
        "pytest",
        *(str(tmp_path / name) for name in files),
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.gpu.outcomes",
    ]
    command += ["--outcomes", str(lines), "--rootdir", str(tmp_path), "--continue-on-collection-errors"]
    run_command(command, 300)
    ended = [line for line in read_lines(lines) if "outcome" in line]
    found = {(line["test"].rpartition("::")[2], line["outcome"]) for line in ended}
    assert found == {
        ("test_lacks.py", "missing"),
        ("test_broken.py", "failed"),
        ("test_left_out.py", "skipped"),
        ("test_passes", "passed"),
        ("test_fails", "failed"),
        ("test_skipped", "skipped"),
        ("test_errs", "failed"),
        ("test_spills", "passed"),
        ("test_spills", "failed"),
    }
    reasons = {line["test"].rpartition("::")[2]: line["reason"] for line in ended if line["outcome"] == "failed"}
    assert "no_such_module" in reasons["test_broken.py"]
    assert all(reasons.values())
    of = {line["test"].rpartition("::")[2]: (line["ops"], line["backend"]) for line in read_lines(lines)}
    assert of["test_passes"] == (["mix_clips"], "triton")
    assert of["test_fails"] == (["draw_plan"], None)
    assert of["test_errs"] == of["test_broken.py"] == ([], None)
    assert len([line for line in read_lines(lines) if "outcome" not in line]) == 5


@pytest.mark.parametrize(
    ("code", "told", "added"),
    [
        (0, "passed", None),
        (5, "skipped", None),
        (1, "failed", None),
        (2, "missing", None),
        (2, "passed", "failed"),
        (1, "passed", "failed"),
        (-11, "failed", "failed"),
        (3, "failed", "failed"),
        (-11, None, "failed"),
        (None, "passed", "missing"),  # interrupted: unreached tests are unverified
        (4, None, "missing"),  # conftest.py could not be imported
    ],
)
def test_how_pytest_ended_counts(code: int | None, told: str | None, added: str | None) -> None:
    before = [{"test": "tests/test_x.py::test_y", "outcome": told, "ops": [], "backend": None}] if told else []
    after = gpu.with_end("tests/test_x.py", before, Finished(code, 1.0, "last words\n"))
    assert [outcome["outcome"] for outcome in after] == [told] * bool(told) + [added] * bool(added)
    if added:
        assert after[-1]["test"].startswith("tests/test_x.py::" + ("killed" if code is None else f"exited with code {code}"))


def test_a_crash_speaks_against_the_test_that_did_not_end() -> None:
    tests = [
        {"test": f"tests/test_x.py::test_{op}", "ops": [op], "backend": "cuda"} for op in ("draw_plan", "mix_clips", "batch_norm")
    ]
    lines = [*tests, {**tests[0], "outcome": "passed"}]
    found = {"tests": count_tests(gpu.with_end("tests/test_x.py", lines, Finished(-11, 1.0, "")))}
    assert [may_show(found, op, "cuda") for op in ("draw_plan", "mix_clips", "batch_norm")] == ["green", "red", "unverified"]


def test_a_conftest_that_cannot_be_imported_makes_nothing_red(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import no_such_package")
    lines = tmp_path / "lines.jsonl"
    (tmp_path / "test_draw_plan.py").write_text("def test_cuda(): pass")
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.gpu.outcomes", "--outcomes", str(lines), "--rootdir", str(tmp_path)]
    done = run_command([PYTHON, "-m", "pytest", str(tmp_path / "test_draw_plan.py"), *options], 300)
    assert done.code == 4, done.output
    found = gpu.with_end("tests/kernels/test_draw_plan.py", read_lines(lines), done)
    assert may_show({"tests": count_tests(found)}, "draw_plan", "cuda") == "unverified"


class Commands:
    """Replaces `run_commands`: returns prepared results and records the commands."""

    def __init__(self, act: Callable[[str, Sequence[str]], Finished]) -> None:
        self.act = act
        self.asked: dict[str, Sequence[str]] = {}
        self.environment: Mapping[str, str] = {}

    def __call__(
        self, commands: Mapping[str, Sequence[str]], limit: float, *, workers: int, environment: Mapping[str, str]
    ) -> dict[str, Finished]:
        self.asked |= commands
        self.environment = environment
        return {name: self.act(name, command) for name, command in commands.items()}


def end_tests(monkeypatch: pytest.MonkeyPatch, outcome_of: Callable[[str], str | None]) -> tuple[Content, Commands]:
    def act(file: str, command: Sequence[str]) -> Finished:
        lines = Path(command[command.index("--outcomes") + 1])
        outcome = outcome_of(file)
        if outcome is None:
            return Finished(None, 1.0, "")
        op = Path(file).stem.removeprefix("test_")
        lines.write_text(json.dumps(outcome_line(op, "cuda", outcome) | ({} if op in OPS else {"ops": []})) + "\n")
        return Finished(int(outcome == "failed"), 1.0, "")

    commands = Commands(act)
    monkeypatch.setattr(gpu, "run_commands", commands)
    return gpu.run_tests(100), commands


def test_the_tests_of_a_gpu_run_a_file_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found, commands = end_tests(monkeypatch, lambda file: "passed")
    assert tuple(commands.asked) == gpu.GPU_FILES
    assert all("gpu" in command for command in commands.asked.values())
    assert found["counts"]["passed"] == len(gpu.GPU_FILES)
    assert "not run" not in found
    assert may_show({"tests": found["counts"]}, "draw_plan", "cuda") == "green"


def test_one_failing_file_reddens_its_op(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = end_tests(monkeypatch, lambda file: "failed" if file == "kernels/test_balanced_mix_loss.py" else "passed")
    assert found["counts"]["failures"] == ["tests/kernels/test_balanced_mix_loss.py::test_cuda"]
    assert may_show({"tests": found["counts"]}, "balanced_mix_loss", "cuda") == "red"
    assert may_show({"tests": found["counts"]}, "draw_plan", "cuda") == "green"


def test_a_file_that_is_cut_off_is_unverified_and_runs_again(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    found, _ = end_tests(monkeypatch, lambda file: None if file == "kernels/test_balanced_mix_loss.py" else "passed")
    assert found["not run"] == "killed at the time limit: kernels/test_balanced_mix_loss.py"
    assert may_show({"tests": found["counts"]}, "balanced_mix_loss", "cuda") == "unverified"
    record.add("tests", found)
    assert not record.has("tests")
    assert may_show(as_result(record.run), "draw_plan", "cuda") == "green"


def test_a_bare_machine_collects_the_tests_of_a_gpu() -> None:
    """Tests that need more packages are skipped by name; the suite knows every file with a GPU test."""
    whole = collected("")
    assert whole.code == 0, whole.output
    files = {line.partition("::")[0].removeprefix("tests/") for line in whole.output.splitlines() if "::" in line}
    assert files == set(gpu.GPU_FILES)

    bare = collected(bare_machine())
    assert bare.code == 0, bare.output
    files = {line.partition("::")[0].removeprefix("tests/") for line in bare.output.splitlines() if "::" in line}
    assert {"training/test_step.py", "bench/test_headline.py"} <= files
    assert "it needs hypothesis, which is not installed" in bare.output
    assert "it needs tyro, which is not installed" in bare.output


def collected(before: str) -> Finished:
    """Collects the GPU tests without running them."""
    arguments = ["-m", "gpu", "--collect-only", "-q", "-rs", "-p", "no:cacheprovider", "tests"]
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return run_command(script(f"{before}\nimport pytest\nraise SystemExit(pytest.main({arguments!r}))"), 300, plugins)


# The sanitizer


@pytest.mark.parametrize(
    ("code", "output", "verdict", "reason"),
    [
        (0, CLEAN, "green", ""),
        (0, NO_RACE, "green", ""),
        (0, FOUND, "red", "3 errors, first: Invalid __global__ read of size 4 bytes"),
        (1, FOUND, "red", "3 errors"),
        (0, NO_RACE.replace("0 hazards", "2 hazards"), "red", "2 errors"),
        (1, CLEAN, "not run", "exited with code 1"),
        (0, "", "not run", "exited with code 0: no output"),
        (255, "========= Error: Device not supported\n", "not run", "Device not supported"),
        (None, CLEAN, "not run", "killed at its time limit"),
    ],
)
def test_what_the_sanitizer_says(code: int | None, output: str, verdict: str, reason: str) -> None:
    judged = gpu.sanitized(Finished(code, 1.0, output))
    assert judged.verdict == verdict
    assert reason in judged.reason


def sanitize(monkeypatch: pytest.MonkeyPatch, tool: str, output_of: Callable[[str], str]) -> tuple[Content, Commands]:
    commands = Commands(lambda name, command: Finished(0, 1.0, output_of(name)))
    monkeypatch.setattr(gpu, "run_commands", commands)
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: "compute-sanitizer")
    return gpu.sanitize(tool, (*OPS, small_shapes.LAYERS), 100), commands


def well(name: str) -> str:
    return FOUND if name == gpu.FAULT else CLEAN


def test_every_op_is_sanitized(monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in gpu.TOOLS:
        found, commands = sanitize(monkeypatch, tool, well)
        assert list(commands.asked) == [gpu.FAULT] * (tool == "memcheck") + [*OPS, small_shapes.LAYERS]
        assert all("tests.gpu.small_shapes" in command and tool in command for command in commands.asked.values())
        assert commands.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        assert found == {tool: clean_sanitizer()[tool]}
    assert sorted(op for ops in gpu.GROUPS.values() for op in ops) == sorted([*OPS, small_shapes.LAYERS])


def test_a_sanitizer_that_is_blind_clears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = sanitize(monkeypatch, "memcheck", lambda name: CLEAN)
    assert "did not find a planted fault" in found["not run"]
    assert {of_op["verdict"] for of_op in found["memcheck"].values()} == {"not run"}


def test_one_error_reddens_its_op(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    found, _ = sanitize(monkeypatch, "memcheck", lambda name: FOUND if name == "draw_plan" else well(name))
    record.add("memcheck of the step", found)
    record.add("tests", {"counts": count_tests(outcomes())})
    assert may_show(as_result(record.run), "draw_plan", "triton") == "red"
    assert may_show(as_result(record.run), "mix_clips", "triton") == "green"
    assert gpu.failures(record) == ["memcheck draw_plan: 3 errors, first: Invalid __global__ read of size 4 bytes"]


def test_no_sanitizer_is_not_green(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: None)
    with pytest.raises(CannotRunError, match=r"compute-sanitizer was not found"):
        gpu.sanitize("memcheck", OPS, 100)


def test_the_sanitizer_is_found_in_the_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu.find_sanitizer() is None
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.touch()
    program.chmod(0o755)
    assert gpu.find_sanitizer() == str(program)


# Build, measurements and the end


def test_the_build_runs_in_the_background_offline() -> None:
    assert gpu.BUILD[1:] == ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", "."]
    assert gpu.BUILD_ENVIRONMENT["SHAPMIX_CUDA"] == "1"
    with in_background(script("import os; print('log'); print(os.environ['SHAPMIX_CUDA'])"), gpu.BUILD_ENVIRONMENT) as building:
        assert set(gpu.wait_for_build(building, 300)) == {"seconds"}
        assert building.end().output == "log\n1\n"
    with in_background(script("print('error: no compiler'); raise SystemExit(1)")) as building:
        found = gpu.wait_for_build(building, 300)
    assert found["error"] == "exited with code 1: error: no compiler"
    assert "no compiler" in found["log"]
    with in_background(script("import time; time.sleep(60)")) as building, pytest.raises(CannotRunError, match=r"still building"):
        gpu.wait_for_build(building, 0.1)
    assert building.has_ended()


def measured_row(op: str = "mix_clips", backend: str = "cuda") -> dict[str, Any]:
    """An op of 12.3 us device time and 45.6 us wall time."""

    def each(time: float) -> dict[str, float]:
        return {"p20": time, "p50": time, "p80": time}

    return {
        "ops": op,
        "variant": "",
        "shape": "ntu",
        "dtype": "float32",
        "backend": backend,
        "device": "cuda",
        "clock": "cold",
        "bytes_moved": 1000,
        "gb_per_s": 100.0,
        "copy_share": 0.9,
        "speedup": each(7.0),
        "seconds": {
            "wall": {"op": each(45.6e-6), "copy": each(1e-5), "reference": each(1e-3)},
            "cold": {"op": each(12.3e-6), "copy": each(1e-5)},
            "hot": {"op": each(7.8e-6), "copy": each(5e-6)},
        },
    }


def a_path(**changes: Any) -> dict[str, Any]:
    times = {"wall": {"reference": {"p50": 9e-3}}, "cold": {"op": {"p50": 71e-6}}, "hot": {"op": {"p50": 59e-6}}}
    return {"backend": "auto", "shape": "ntu", "target": 60e-6, "seconds": times | changes}


def measure(monkeypatch: pytest.MonkeyPatch, item: Any, lines: list[dict[str, Any]], code: int | None = 0) -> Content:
    monkeypatch.setattr(gpu, "run_measurement", lambda module, limit, *options: (lines, Finished(code, 1.0, "")))
    found: Content = item(100)
    return found


def test_rows_are_kept_whatever_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"copy": {"gb_per_s": 3000}}, {"row": measured_row()}]
    found = measure(monkeypatch, gpu.measure_ops, lines)
    assert found == {"copy": {"gb_per_s": 3000}, "rows": [measured_row()], "skipped": []}
    found = measure(monkeypatch, gpu.measure_ops, lines, code=None)
    assert found["not run"] == "killed at its time limit, after 1 rows"
    assert len(found["rows"]) == 1
    failed = {"row": {"ops": "draw_plan", "shape": "ntu", "error": "RuntimeError: no"}}
    found = measure(monkeypatch, gpu.measure_ops, [*lines, failed])
    assert found["error"] == "1 failed, first draw_plan on ntu: RuntimeError: no"


def test_an_augment_path_that_waits_for_the_host_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure(monkeypatch, gpu.measure_augment_path, [{"augment_path": a_path(host_read=None)}]).keys() == {"augment_path"}
    waits = [{"augment_path": a_path(host_read="called a synchronizing operation")}]
    found = measure(monkeypatch, gpu.measure_augment_path, waits)
    assert found["error"] == "on auto it synchronises with the host: called a synchronizing operation"
    assert "killed" in measure(monkeypatch, gpu.measure_augment_path, [], code=None)["not run"]


def test_measurements_run_as_modules() -> None:
    lines, done = gpu.run_measurement("bench.no_such_module", 300)
    assert lines == []
    assert "No module named bench.no_such_module" in gpu.describe_end(done)


def test_without_a_gpu_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "finds no CUDA device on this machine" in printed.err
    assert not (tmp_path / "out.json").exists()


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> dict[str, Content]:
    """The content of each item on a simulated GPU, in order; tests modify it."""
    where = machine() | {"gpu": "made up", "driver": "1.0"}
    monkeypatch.setattr(stages, "machine", lambda: where)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "unavailable", lambda backend, device: None)
    rows = [measured_row(), measured_row(backend="triton"), measured_row("draw_plan", "triton"), {"ops": "mix_clips", "error": "x"}]
    found: dict[str, Content] = {
        "headline": {},
        "tests": {"counts": count_tests(outcomes())},
        "memcheck of the network": {"memcheck": clean_sanitizer()["memcheck"]},
        "memcheck of the step": {},
        "augment path": {"augment_path": [a_path()]},
        "ops": {"copy": {"gb_per_s": 3000.0}, "rows": rows},
        "racecheck of the network": {"racecheck": clean_sanitizer()["racecheck"]},
        "racecheck of the step": {},
    }

    def made_up(record: Record, building: object) -> list[Item]:
        def run(name: str, left: float) -> Content:
            if name == "headline":
                record.items.update(headline_items())
            return found[name]

        return [Item(item.name, 1, partial(run, item.name)) for item in items(record, None)]

    items = gpu.items
    monkeypatch.setattr(gpu, "items", made_up)
    return found


def headline_items() -> dict[str, Content]:
    times = {"seconds": {"p20": 0.06, "p50": 0.064, "p80": 0.07}, "captured": True}
    eager = {"seconds": {"p20": 0.25, "p50": 0.256, "p80": 0.26}}
    found = {headline.OURS: times, headline.OURS_FLOAT32: times, headline.EAGER: eager, headline.EAGER_HALF: eager}
    found |= {headline.COMPILED: eager, headline.CORRECTNESS: {"failed": []}, headline.PROFILE: {"launches": 4000.0}}
    return found | {headline.COPY: {"gb_per_s": 3000.0}, headline.PRODUCT_NAME: {"tflop_per_s": 798.0}}


def test_the_walk_goes_by_value(record: Record) -> None:
    names = [item.name for item in gpu.items(record, None)]
    order = ["headline", "tests", "memcheck of the network", "memcheck of the step", "augment path", "ops"]
    assert names == [*order, "racecheck of the network", "racecheck of the step"]
    with in_background(script("pass")) as building:
        assert "build" in [item.name for item in gpu.items(record, building)]


def test_all_green_ends_with_0_and_shows_speeds(
    tmp_path: Path, suite: dict[str, Content], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert gpu.main(["--out", str(out), "--commit", "abc123"]) == 0
    shown = capsys.readouterr().out
    assert "ours, bf16, is 4.0x faster than reference, eager, float32 (64 ms, 256 ms)\n" in shown
    assert "ours, bf16, one CUDA graph | 64 ms | 60 ms to 70 ms |  | 4000 |" in shown
    assert "| mix_clips, ntu | 10 us | 1 ms | 12.3 us / 7.8 us | 7.0x (7.0 to 7.0) | 90% |" in shown
    assert "augment path, auto: 71 us cold, 59 us hot on the device (target 60 us met); eager reference 9 ms" in shown
    assert "made up, driver 1.0" in shown
    (run,) = json.loads(out.read_text())["runs"]
    assert (run["commit"], run["card"], run["workload"]["clips"]) == ("abc123", "made up", PUBLISHED.clips)
    assert run["items"]["tests"]["counts"]["passed"] == 2 * len(OPS)

    for name in suite:
        suite[name] = {"error": "it ran again"}
    assert gpu.main(["--resume", str(out)]) == 0
    assert gpu.main(["--out", str(out)]) == 2
    assert "give --resume" in capsys.readouterr().err


def test_no_speed_of_a_red_op_is_shown(tmp_path: Path, suite: dict[str, Content], capsys: pytest.CaptureFixture[str]) -> None:
    """The test of `draw_plan` fails: its row and the augment path are red; the row of `mix_clips` is shown."""
    suite["tests"] = {"counts": count_tests(outcomes(draw_plan="failed"))}
    assert gpu.main(["--out", str(tmp_path / "out.json")]) == 1
    shown = capsys.readouterr().out
    assert "| draw_plan, ntu | 10 us | 1 ms | not run | not run | not run | red | red | red |" in shown
    assert "augment path, auto: red" in shown
    assert "(64 ms, 256 ms) (red)" in shown
    assert "| mix_clips, ntu | 10 us | 1 ms | 12.3 us" in shown


def test_speeds_whose_tests_could_not_run_are_unverified(
    tmp_path: Path, suite: dict[str, Content], capsys: pytest.CaptureFixture[str]
) -> None:
    """Speeds are shown with that word; nothing is red."""
    unread = [
        {"test": f"tests/{file}::exited with code 4: no conftest", "outcome": "missing", "ops": [], "backend": None}
        for file in gpu.GPU_FILES
    ]
    suite["tests"] = {"counts": count_tests(unread), "not run": "interrupted"}
    assert gpu.main(["--out", str(tmp_path / "out.json")]) == 3
    shown = capsys.readouterr().out
    assert "| 12.3 us / 7.8 us (unverified) |" in shown
    assert "eager reference 9 ms (unverified)" in shown
    assert "could not run: tests/kernels/test_draw_plan.py::exited with code 4" in shown
    assert "red" not in shown.replace("measured", "").replace("compared", "")


def test_a_red_build_cancels_nothing(
    tmp_path: Path, suite: dict[str, Content], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "unavailable", lambda backend, device: "not built")
    monkeypatch.setattr(gpu, "BUILD", script("print('no nvcc'); raise SystemExit(1)"))
    made_up = gpu.items

    def with_build(record: Record, building: Any) -> list[Item]:
        first, *others = made_up(record, building)
        return [first, Item("build", 1, partial(gpu.wait_for_build, building)), *others]

    monkeypatch.setattr(gpu, "items", with_build)
    out = tmp_path / "out.json"
    assert gpu.main(["--out", str(out)]) == 1
    (run,) = json.loads(out.read_text())["runs"]
    assert {name for name, of in run["items"].items() if "error" in of} == {"build"}
    assert {"headline", "tests", "ops"} <= set(run["items"])
    assert "build: exited with code 1: no nvcc" in capsys.readouterr().out


def test_what_does_not_fit_is_left_for_another_time(
    tmp_path: Path, suite: dict[str, Content], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert gpu.main(["--out", str(out), "--minutes", "0"]) == 3
    assert "headline: not run: it takes about 1 s, and 0 s are left" in capsys.readouterr().out
    assert gpu.main(["--resume", str(out)]) == 0


def test_the_headline_joins_the_file(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def command(arguments: Sequence[str], limit: float) -> Finished:
        asked.extend(arguments)
        other = Record(record.path, "bench.headline", {"clips": 2})
        other.items.update(headline_items())
        if len(asked) > len(arguments):
            del other.items[headline.COMPILED]
        other.write()
        return Finished(0, 1.0, "")

    monkeypatch.setattr(gpu, "run_command", command)
    record.write()
    assert gpu.run_headline(record, 300) == {"code": 0}
    assert asked[1:] == ["-m", "bench.headline", "--resume", str(record.path), "--commit", commit(), "--seconds", "170"]
    assert headline.is_complete(record)
    with pytest.raises(CannotRunError, match=r"incomplete"):
        gpu.run_headline(record, 100)
    assert asked[-1] == "95"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_command_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run_command([PYTHON, "-m", "tests.gpu", "--out", str(tmp_path / "out.json")], 300, {"PYTHONPATH": os.pathsep})
    assert done.code == 2
    assert "finds no CUDA device" in done.last_line
