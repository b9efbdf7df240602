"""The GPU suite without a GPU: time limits, verdicts, what may be shown, and what is on disk when something fails."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from bench import gpu, small_shapes, stages
from bench.cases import CASES
from bench.stages import GREEN, Finished, Judged, Stage, read_lines, run_command, run_commands, run_stages, write_json
from bench.verdicts import GPU_BACKENDS, OPS, OPS_OF_FILE, count_tests, may_show, ops_of
from shapmix import kernels

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
NO_RACE = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
FOUND = "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n=========     at mix_kernel\n"
FOUND += "========= ERROR SUMMARY: 3 errors\n"


def script(code: str) -> list[str]:
    return [PYTHON, "-c", code]


# Commands


def test_a_command_tells_its_code_and_output() -> None:
    done = run_command(script("import os, sys; print(os.environ['WORD']); sys.exit(3)"), 20, {"WORD": "here"})
    assert (done.code, done.output, done.last_line) == (3, "here\n", "here")
    assert run_command(script("pass"), 20).last_line == "no output"


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(60)"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    done = run_command(script(parent), 3)
    assert time.monotonic() - begin < 20
    assert (done.code, done.output) == (None, "begun\n")
    (pid,) = pids.read_text().split()
    for _ in range(100):
        if not is_running(int(pid)):
            break
        time.sleep(0.05)
    assert not is_running(int(pid))


def test_commands_share_one_limit() -> None:
    commands = {"quick": script("print(1)"), "hangs": script("import time; time.sleep(60)"), "never begun": script("print(2)")}
    finished = run_commands(commands, 4, workers=1)
    assert [finished[name].code for name in commands] == [0, None, None]
    assert finished["never begun"].seconds == 0


def test_commands_run_beside_each_other(tmp_path: Path) -> None:
    """Each waits for the other's file."""
    wait = "import pathlib, sys, time\nown, other = map(pathlib.Path, sys.argv[1:])\nown.touch()\n"
    wait += "while not other.exists(): time.sleep(0.01)"
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    finished = run_commands({"a": [*script(wait), one, other], "b": [*script(wait), other, one]}, 30, workers=2)
    assert list(finished) == ["a", "b"]
    assert [done.code for done in finished.values()] == [0, 0]


def test_commands_end_with_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    class Watched(stages._Running):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            begun.append(self)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "_Running", Watched)
    monkeypatch.setattr(stages.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_command(script("import time; time.sleep(60)"), 30)
    assert not is_running(begun[0].process.pid)
    assert not begun[0].log.exists()


# Stages and files


def test_stages_go_on_after_a_failure_and_are_on_disk(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.json"

    def raises(result: dict[str, Any], limit: float) -> Judged:
        result["partial"] = 1
        raise RuntimeError("boom")

    def looks(result: dict[str, Any], limit: float) -> Judged:
        on_disk = json.loads(out.read_text())
        assert on_disk["partial"] == 1
        assert on_disk["stages"]["raises"]["verdict"] == "red"
        assert on_disk["stages"]["looks"] == {"verdict": "not run", "reason": "the suite ended before it", "seconds": 0.0}
        result["limit"] = limit
        return GREEN

    result: dict[str, Any] = {}
    kept = [Stage("raises", 5, raises), Stage("looks", 5, looks), Stage("waits", 5, looks, needs="raises")]
    run_stages(kept, result, out, budget=100)
    found = json.loads(out.read_text())["stages"]
    assert found["raises"]["reason"] == "RuntimeError: boom"
    assert found["looks"]["verdict"] == "green"
    assert (found["waits"]["verdict"], found["waits"]["reason"]) == ("not run", "it needs a green raises")
    assert result["limit"] == 5
    assert not gpu.all_green(result)


def test_a_stage_gets_what_is_left_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, limits = [0.0], []
    monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])

    def spends(result: dict[str, Any], limit: float) -> Judged:
        limits.append(limit)
        now[0] += limit
        return GREEN

    result: dict[str, Any] = {}
    run_stages([Stage(name, 60, spends) for name in "abc"], result, tmp_path / "out.json", budget=100)
    assert limits == [60, 40]
    assert result["stages"]["c"]["reason"] == "the suite's 100 s were spent"


def test_stages_side_by_side_are_each_judged(tmp_path: Path) -> None:
    """Each waits for the other to begin."""
    begun = {name: Event() for name in "ab"}

    def waits_for(other: str) -> Callable[[dict[str, Any], float], Judged]:
        def run(result: dict[str, Any], limit: float) -> Judged:
            begun["b" if other == "a" else "a"].set()
            if not begun[other].wait(limit):
                raise RuntimeError("alone")
            return GREEN

        return run

    out = tmp_path / "out.json"
    kept = [Stage("a", 20, waits_for("b")), Stage("b", 20, waits_for("a"), beside=True), Stage("c", 5, lambda result, limit: GREEN)]
    assert [len(group) for group in stages.side_by_side(kept)] == [2, 1]
    run_stages(kept, {}, out, budget=60)
    assert [stage["verdict"] for stage in json.loads(out.read_text())["stages"].values()] == ["green"] * 3


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


def test_stages_fit_into_nine_minutes() -> None:
    together = [max(stage.limit for stage in group) for group in stages.side_by_side(gpu.STAGES)]
    assert sum(together) <= gpu.BUDGET <= 9 * 60 - 10
    assert gpu.LIMITS["ops"] / 1.5 > gpu.OPS_SECONDS
    assert {stage.name: stage.limit for stage in gpu.STAGES} == gpu.LIMITS


# Verdicts


def test_every_op_has_its_tests_and_its_small_shapes() -> None:
    assert set(OPS) == {op for case in CASES for op in case.ops.split(" + ")}
    assert all(callable(getattr(kernels, op)) for op in OPS)
    assert {op for ops in OPS_OF_FILE.values() for op in ops} == set(OPS)
    assert all((ROOT / "tests" / file).exists() for file in (*OPS_OF_FILE, *gpu.LONGEST))
    assert all(small_shapes.cases_of(op) for op in OPS)
    assert set(gpu.STEP_OPS.split(" + ")) < set(OPS)


def test_small_shapes_run_and_count(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_shapes.run_small("mix_clips", torch.device("cpu")) >= len(small_shapes.SMALL)
    monkeypatch.setattr(sys, "argv", ["small_shapes", "mix_clips"])
    monkeypatch.setattr(small_shapes, "run_small", lambda op, device: 0)
    assert small_shapes.main() == 1
    assert "mix_clips ran 0 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("test", "ops"),
    [
        ("tests/test_kernels_plan.py::test_triton_is_the_reference", ("draw_plan",)),
        ("tests/test_kernels.py::test_cuda_is_the_reference", ("coalition_inputs", "normalised_coalition_inputs", "mix_clips")),
        ("tests/test_kernels_network.py::test_triton_batch_norm_is_the_reference", ("batch_norm",)),
        ("tests/test_kernels_network.py::test_opcheck", ("graph_conv", "batch_norm")),
        ("tests/test_registered_ops.py::test_gradients[mix_clips]", ("mix_clips",)),
        ("tests/test_dispatch.py::test_triton_interpreter[test_kernels_plan.py]", ("draw_plan",)),
        ("tests/test_layout.py::test_parts", ()),
    ],
)
def test_which_ops_a_test_speaks_of(test: str, ops: tuple[str, ...]) -> None:
    assert ops_of(test) == ops


def outcomes(**changes: str) -> list[dict[str, str]]:
    """Every op proved on both back ends of the GPU, but for the changes (test file -> outcome)."""
    files = dict.fromkeys(OPS_OF_FILE, "passed") | {name + ".py": outcome for name, outcome in changes.items()}
    return [
        {"test": f"tests/{file}::test_{backend}_is_the_reference", "outcome": outcome}
        for file, outcome in files.items()
        for backend in GPU_BACKENDS
    ]


def clean_sanitizer() -> dict[str, Any]:
    return {tool: {op: GREEN._asdict() for op in OPS} for tool in gpu.TOOLS}


def test_only_what_is_proved_is_shown() -> None:
    result = {"tests": count_tests(outcomes()), "sanitizer": clean_sanitizer()}
    assert {may_show(result, op, backend) for op in OPS for backend in (*GPU_BACKENDS, "auto")} == {"green"}
    assert may_show({}, "mix_clips", "cuda") == "unproved"
    assert may_show({"tests": count_tests([])}, "mix_clips", "auto") == "unproved"

    skipped = {"tests": count_tests(outcomes(test_kernels_plan="skipped"))}
    assert may_show(skipped, "draw_plan", "triton") == "unproved"
    assert may_show(skipped, "draw_plan + saliency_update", "triton") == "unproved"
    assert may_show(skipped, "saliency_update", "triton") == "green"

    failed = {"tests": count_tests([*outcomes(), {"test": "tests/test_registered_ops.py::test_x[draw_plan]", "outcome": "failed"}])}
    assert may_show(failed, "draw_plan", "cuda") == "red"
    assert may_show(failed, "saliency_update + draw_plan", "cuda") == "red"
    assert may_show(failed, "mix_clips", "cuda") == "green"

    sanitizer = clean_sanitizer()
    sanitizer["racecheck"]["mix_clips"] = {"verdict": "red", "reason": "2 errors"}
    assert may_show(result | {"sanitizer": sanitizer}, "mix_clips", "triton") == "red"
    sanitizer["racecheck"]["mix_clips"] = {"verdict": "not run", "reason": "it refused the device"}
    assert may_show(result | {"sanitizer": sanitizer}, "mix_clips", "triton") == "green"


def test_a_proof_names_the_back_end() -> None:
    of_cuda = [outcome for outcome in outcomes() if "cuda" in outcome["test"]]
    result = {"tests": count_tests(of_cuda)}
    assert may_show(result, "mix_clips", "cuda") == "green"
    assert may_show(result, "mix_clips", "triton") == "unproved"


def test_what_ran_elsewhere_is_no_proof() -> None:
    interpreted = {"test": "tests/test_dispatch.py::test_triton_interpreter[test_kernels_plan.py]", "outcome": "passed"}
    on_cpu = {"test": "tests/test_kernels_plan.py::test_cpp_is_the_reference", "outcome": "passed"}
    assert may_show({"tests": count_tests([interpreted, on_cpu])}, "draw_plan", "triton") == "unproved"
    broken = interpreted | {"outcome": "failed"}
    assert may_show({"tests": count_tests([*outcomes(), broken])}, "draw_plan", "triton") == "red"


# Tests on the device


TESTS = """
import pytest
def test_passes(): pass
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
        "bench.outcomes",
    ]
    command += ["--outcomes", str(lines), "--rootdir", str(tmp_path), "--continue-on-collection-errors"]
    run_command(command, 60)
    found = {(line["test"].rpartition("::")[2], line["outcome"]) for line in read_lines(lines)}
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
    reasons = {line["test"].rpartition("::")[2]: line["reason"] for line in read_lines(lines) if line["outcome"] == "failed"}
    assert "no_such_module" in reasons["test_broken.py"]
    assert all(reasons.values())


@pytest.mark.parametrize(
    ("code", "told", "blamed"),
    [
        (0, "passed", False),
        (5, "skipped", False),
        (1, "failed", False),
        (2, "missing", False),
        (2, "passed", True),
        (1, "passed", True),
        (-11, "failed", True),
        (None, "passed", True),
        (3, "failed", True),
    ],
)
def test_a_file_that_ends_otherwise_than_it_told_has_failed(code: int | None, told: str, blamed: bool) -> None:
    before = [{"test": "tests/test_x.py::test_y", "outcome": told}]
    after = gpu.with_crash("tests/test_x.py", before, Finished(code, 1.0, "last words\n"))
    assert [outcome["outcome"] for outcome in after] == [told] + ["failed"] * blamed
    if blamed:
        assert after[-1]["test"].startswith("tests/test_x.py::" + ("cut off" if code is None else f"ended with code {code}"))


class Commands:
    """In place of `run_commands`: what each command would have done, and which were asked for."""

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


def end_tests(monkeypatch: pytest.MonkeyPatch, outcome_of: Callable[[str], str]) -> tuple[Judged, dict[str, Any], Commands]:
    def act(file: str, command: Sequence[str]) -> Finished:
        lines = Path(command[command.index("--outcomes") + 1])
        outcome = outcome_of(file)
        lines.write_text(json.dumps({"test": f"tests/{file}::test_cuda_and_triton", "outcome": outcome}) + "\n")
        return Finished(int(outcome == "failed"), 1.0, "")

    commands = Commands(act)
    monkeypatch.setattr(gpu, "run_commands", commands)
    result: dict[str, Any] = {}
    return gpu.run_tests(result, 100), result, commands


def test_the_longest_and_the_tests_of_the_ops_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, result, commands = end_tests(monkeypatch, lambda file: "passed")
    assert judged == GREEN
    assert list(commands.asked) == sorted(commands.asked, key=lambda file: (file not in gpu.LONGEST, file not in OPS_OF_FILE))
    assert set(commands.asked) == {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert result["tests"]["passed"] == len(commands.asked)
    assert may_show(result, "draw_plan", "cuda") == "green"


def test_one_failing_file_reddens_its_op(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, result, _ = end_tests(monkeypatch, lambda file: "failed" if file == "test_kernels_loss.py" else "passed")
    assert judged == Judged("red", "1 failed, first tests/test_kernels_loss.py::test_cuda_and_triton")
    assert may_show(result, "balanced_mix_loss", "cuda") == "red"
    assert may_show(result, "draw_plan", "cuda") == "green"


def test_no_test_is_not_green(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, _, _ = end_tests(monkeypatch, lambda file: "skipped")
    assert judged == Judged("red", "no test passed")


# The sanitizer


@pytest.mark.parametrize(
    ("code", "output", "verdict", "reason"),
    [
        (0, CLEAN, "green", ""),
        (0, NO_RACE, "green", ""),
        (0, FOUND, "red", "3 errors, first: Invalid __global__ read of size 4 bytes"),
        (1, FOUND, "red", "3 errors"),
        (0, NO_RACE.replace("0 hazards", "2 hazards"), "red", "2 errors"),
        (1, CLEAN, "not run", "ended with code 1"),
        (0, "", "not run", "ended with code 0: no output"),
        (255, "========= Error: Device not supported\n", "not run", "Device not supported"),
        (None, CLEAN, "not run", "cut off at its time limit"),
    ],
)
def test_what_the_sanitizer_says(code: int | None, output: str, verdict: str, reason: str) -> None:
    judged = gpu.sanitized(Finished(code, 1.0, output))
    assert judged.verdict == verdict
    assert reason in judged.reason


def sanitize(monkeypatch: pytest.MonkeyPatch, output_of: Callable[[str], str]) -> tuple[Judged, dict[str, Any], Commands]:
    commands = Commands(lambda name, command: Finished(0, 1.0, output_of(name)))
    monkeypatch.setattr(gpu, "run_commands", commands)
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: "compute-sanitizer")
    result: dict[str, Any] = {}
    return gpu.sanitize(result, 100), result, commands


def well(name: str) -> str:
    return FOUND if gpu.FAULT in name else CLEAN if "memcheck" in name else NO_RACE


def test_every_op_is_sanitized_by_every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, result, commands = sanitize(monkeypatch, well)
    assert judged == GREEN
    assert len(commands.asked) == 2 * len(OPS) + 1
    assert all("bench.small_shapes" in command for command in commands.asked.values())
    assert commands.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert result["sanitizer"] == clean_sanitizer()


def test_a_sanitizer_that_is_blind_clears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, result, _ = sanitize(monkeypatch, lambda name: CLEAN if gpu.FAULT in name else well(name))
    assert judged.verdict == "not run"
    assert "did not find a planted fault" in judged.reason
    assert {of_op["verdict"] for of_op in result["sanitizer"]["memcheck"].values()} == {"not run"}


def test_one_error_reddens_its_op(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, result, _ = sanitize(monkeypatch, lambda name: FOUND if name == "memcheck draw_plan" else well(name))
    assert judged.verdict == "red"
    assert judged.reason.startswith("memcheck draw_plan: 3 errors")
    proved = result | {"tests": count_tests(outcomes())}
    assert may_show(proved, "draw_plan", "triton") == "red"
    assert may_show(proved, "mix_clips", "triton") == "green"


def test_no_sanitizer_is_not_green(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: None)
    assert gpu.sanitize({}, 100) == Judged("not run", "compute-sanitizer was not found")


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


def test_the_build_is_offline_and_insists_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def command(arguments: list[str], limit: float, environment: dict[str, str]) -> Finished:
        asked.update(arguments=arguments, environment=environment)
        return Finished(asked.get("code", 0), 12.34, "log\nerror: no compiler\n")

    monkeypatch.setattr(gpu, "run_command", command)
    result: dict[str, Any] = {}
    assert gpu.build(result, 100) == GREEN
    assert asked["arguments"][1:] == ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", "."]
    assert asked["environment"] == {"SHAPMIX_CUDA": "1"}
    assert result["build"] == {"seconds": 12.3, "log": ""}
    asked["code"] = 1
    assert gpu.build(result, 100) == Judged("red", "ended with code 1: error: no compiler")
    assert "no compiler" in result["build"]["log"]


def measured_row(op: str = "mix_clips", backend: str = "cuda") -> dict[str, Any]:
    """12.3 us on the device, of an op that takes 45.6 us by wall clock."""

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


def measure(monkeypatch: pytest.MonkeyPatch, stage: Any, lines: list[dict[str, Any]], code: int | None = 0) -> tuple[Judged, Any]:
    monkeypatch.setattr(gpu, "run_measurement", lambda module, limit, *options: (lines, Finished(code, 1.0, "")))
    result: dict[str, Any] = {}
    return stage(result, 100), result


def test_rows_are_kept_whatever_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"copy": {"gb_per_s": 3000}}, {"row": measured_row()}]
    judged, result = measure(monkeypatch, gpu.measure_ops, lines)
    assert judged == GREEN
    assert (result["copy"], result["rows"]) == ({"gb_per_s": 3000}, [measured_row()])
    judged, result = measure(monkeypatch, gpu.measure_ops, lines, code=None)
    assert judged == Judged("red", "cut off at its time limit, after 1 rows")
    assert len(result["rows"]) == 1
    failed = {"row": {"ops": "draw_plan", "shape": "ntu", "error": "RuntimeError: no"}}
    judged, _ = measure(monkeypatch, gpu.measure_ops, [*lines, failed])
    assert judged == Judged("red", "1 failed, first draw_plan on ntu: RuntimeError: no")


def test_a_step_that_waits_for_the_host_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"training_step": {"backend": "auto", "seconds": {"p50": 0.1}}}
    judged, result = measure(monkeypatch, gpu.measure_step, [{"augment_path": a_path(host_read=None)}, training])
    assert judged == GREEN
    assert len(result["augment_path"]) == len(result["training_step"]) == 1
    judged, _ = measure(monkeypatch, gpu.measure_step, [{"resident_step": {"host_read": "called a synchronizing operation"}}])
    assert judged.reason == "the resident step waits for the host: called a synchronizing operation"
    judged, _ = measure(monkeypatch, gpu.measure_step, [{"augment_path": a_path(host_read="called a synchronizing operation")}])
    assert judged.verdict == "red"
    assert "waits for the host: called a synchronizing" in judged.reason


def test_measurements_run_as_modules() -> None:
    lines, done = gpu.run_measurement("bench.no_such_module", 30)
    assert lines == []
    assert "No module named bench.no_such_module" in gpu.ended(done)


def test_without_a_gpu_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def never(result: dict[str, Any], limit: float) -> Judged:
        raise AssertionError

    assert gpu.main(["--out", str(tmp_path / "out.json")], [Stage("build", 1, never)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "sees no CUDA device on this machine" in printed.err
    assert not (tmp_path / "out.json").exists()


def a_suite(tests: list[dict[str, str]], sanitizer: dict[str, Any], verdict: Any = "green") -> list[Stage]:
    """Stages that find what they are given."""

    def found(**content: Any) -> Callable[[dict[str, Any], float], Judged]:
        def run(result: dict[str, Any], limit: float) -> Judged:
            result.update(content)
            return Judged(verdict, "" if verdict == "green" else "as it was made")

        return run

    rows = [measured_row(), measured_row(backend="triton"), measured_row("draw_plan", "triton"), {"ops": "mix_clips", "error": "x"}]
    step = {
        "augment_path": [a_path()],
        "training_step": [{"backend": name, "seconds": {"p50": 0.123}} for name in ("auto", "reference")],
    }
    return [
        Stage("build", 1, found(build={"seconds": 1.0})),
        Stage("tests", 1, found(tests=count_tests(tests)), needs="build"),
        Stage("sanitizer", 1, found(sanitizer=sanitizer), needs="build"),
        Stage("ops", 1, found(copy={"gb_per_s": 3000.0}, rows=rows), needs="build"),
        Stage("step", 1, found(**step), needs="build"),
    ]


@pytest.fixture
def on_a_made_up_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda: {"gpu": "made up", "driver": "1.0"})


@pytest.mark.usefixtures("on_a_made_up_gpu")
def test_all_green_ends_with_0_and_shows_speeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert gpu.main(["--out", str(out), "--commit", "abc123"], a_suite(outcomes(), clean_sanitizer())) == 0
    shown = capsys.readouterr().out
    assert "| mix_clips, ntu | 10 us | 1 ms | 12.3 us / 7.8 us | 7.0x (7.0 to 7.0) | 90% |" in shown
    assert "augment path, auto: 71 us cold, 59 us hot on the device (target 60 us met); eager reference 9 ms" in shown
    assert "training step, auto: 123 ms" in shown
    assert "a copy moves 3000 GB/s" in shown
    content = json.loads(out.read_text())
    assert (content["commit"], content["machine"]["driver"]) == ("abc123", "1.0")
    assert content["tests"]["passed"] == 2 * len(OPS_OF_FILE)
    assert content["sanitizer"] == clean_sanitizer()


@pytest.mark.usefixtures("on_a_made_up_gpu")
def test_no_speed_of_a_red_op_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan's test fails: its row, and the step that draws a plan, say red; the mixing is shown."""
    red = outcomes(test_kernels_plan="failed")
    gpu.main(["--out", str(tmp_path / "out.json")], a_suite(red, clean_sanitizer()))
    shown = capsys.readouterr().out
    assert "| draw_plan, ntu | 10 us | 1 ms | not run | not run | not run | red | red | red |" in shown
    assert "augment path, auto: red" in shown
    assert "71 us" not in shown
    assert "training step, auto" not in shown
    assert "training step, reference: 123 ms" in shown
    assert "| mix_clips, ntu | 10 us | 1 ms | 12.3 us" in shown

    raced = clean_sanitizer()
    raced["racecheck"]["mix_clips"] = {"verdict": "red", "reason": "1 errors"}
    gpu.main(["--out", str(tmp_path / "out.json")], a_suite(outcomes(), raced))
    shown = capsys.readouterr().out
    assert "| mix_clips, ntu | 10 us | 1 ms | red | red | red | red | red | red |" in shown


@pytest.mark.usefixtures("on_a_made_up_gpu")
def test_a_red_build_ends_with_1_and_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert gpu.main(["--out", str(out)], a_suite(outcomes(), clean_sanitizer(), verdict="red")) == 1
    found = json.loads(out.read_text())["stages"]
    assert [stage["verdict"] for stage in found.values()] == ["red"] + ["not run"] * 4
    assert "not run" in capsys.readouterr().out


@pytest.mark.usefixtures("on_a_made_up_gpu")
def test_missing_packages_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tests = [*outcomes(), {"test": "tests/test_train.py", "outcome": "missing"}]
    gpu.main(["--out", str(tmp_path / "out.json")], a_suite(tests, clean_sanitizer()))
    assert "not run, it needs a package that is not installed: tests/test_train.py" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_command_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run_command([PYTHON, "-m", "bench.gpu", "--out", str(tmp_path / "out.json")], 60, {"PYTHONPATH": os.pathsep})
    assert done.code == 2
    assert "sees no CUDA device" in done.last_line
