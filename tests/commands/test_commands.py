"""What every command has in common: its help, its exit codes, and one line for each fault that a user can meet."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import shapmix.__main__ as script
from shapmix import doctor, evaluate, experiment, explain, export, predict, prepare, report, train
from shapmix.data.store import open_store
from shapmix.kernels import installation
from shapmix.pages import explanation as explanation_page
from shapmix.pages import run as run_page
from shapmix.process import command as frame
from shapmix.process import cpu, device
from shapmix.process.errors import DataError, RunError, ShapmixError
from shapmix.process.parallel import SharedForward
from shapmix.skeleton.layout import layout_toml, load_layout
from shapmix.training import build, ensemble, prediction, scores
from shapmix.training import export as exporting
from shapmix.training.build import load_splits
from shapmix.training.checkpoint import read_checkpoint, save_checkpoint
from shapmix.training.config import parse_config, presets
from shapmix.training.trained import open_run

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "doctor": doctor.main,
    "evaluate": evaluate.main,
    "experiment": experiment.main,
    "explain": explain.main,
    "export": export.main,
    "predict": predict.main,
    "prepare": prepare.main,
    "report": report.main,
    "train": train.main,
}
# RUN stands for the run directory
OF_A_RUN = {
    "evaluate": ["RUN"],
    "explain": ["RUN"],
    "export": ["RUN", "network.pt2"],
    "predict": ["RUN", "clip.npy"],
    "report": ["RUN"],
    "train": ["--resume", "RUN"],
}
TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "2", "--threads", "1", "--device", "cpu"]
TINY += ["--saliency.warmup-epochs", "1"]

pytestmark = pytest.mark.usefixtures("no_pictures")


def one_line(errors: str) -> str:
    """The line on standard error, of which there is no other."""
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_command_and_its_arguments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[command](["--help"])
    assert stopped.value.code == 0
    usage = capsys.readouterr().out.splitlines()[0]
    assert usage.startswith(f"usage: python -m shapmix.{command} ")
    names = {"predict": "RUN FILE...", "export": "RUN OUT", "evaluate": "RUN...", "explain": "RUN", "report": "RUN"}
    assert names.get(command, "") in usage
    assert " PATH" not in usage.split("[-h]")[1].split("[--")[0]


@pytest.mark.parametrize(
    ("arguments", "whose"),
    [([], "preset synthetic."), (["--preset", "ntu60-lt"], "preset ntu60-lt."), (["--dataset", "nw-ucla"], "nw-ucla.")],
)
def test_help_of_train_says_whose_defaults_it_shows(arguments: list[str], whose: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main([*arguments, "--help"])
    text = capsys.readouterr().out
    assert f"The defaults below are those of {whose}" in " ".join(text.split()).replace("preset nw-ucla", "nw-ucla")
    assert all(name in text for name in presets())


def test_an_option_that_is_not_there_is_one_message_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as stopped:
            command(["--no-such-option"])
        assert stopped.value.code == 2, name
        assert "Traceback" not in capsys.readouterr().err


# One dialect: for each command, arguments that ask for what is not there, and what it calls first when it works
MISSING = {
    "doctor": ["--device", "cpu"],
    "evaluate": ["nowhere"],
    "experiment": ["nowhere.yaml", "--out", "out"],
    "explain": ["nowhere"],
    "export": ["nowhere", "network.pt2"],
    "predict": ["nowhere", "clip.npy"],
    "prepare": ["nowhere", "store"],
    "report": ["nowhere"],
    "train": ["--resume", "nowhere"],
}
WORK = {
    "doctor": "shapmix.kernels.installation.examine",
    "evaluate": "shapmix.evaluate.score_runs",
    "experiment": "shapmix.experiment.read_plan",
    "explain": "shapmix.explain.explain_run",
    "export": "shapmix.export.open_run",
    "predict": "shapmix.predict.open_run",
    "prepare": "shapmix.prepare.find_source",
    "report": "shapmix.report.write_report",
    "train": "shapmix.train.run_with_baselines",
}
COMPUTING = ("evaluate", "explain", "predict", "report", "train")


def arguments_of(name: str) -> list[str]:
    """Arguments with which the command gets to its work."""
    return {"doctor": [], "train": []}.get(name, MISSING[name])


def test_the_commands_are_those_of_the_console_script() -> None:
    assert sorted(script.COMMANDS) == sorted(COMMANDS) == sorted(MISSING) == sorted(WORK)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "doctor"])
def test_a_missing_input_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[name](MISSING[name]) == 2
    captured = capsys.readouterr()
    assert "nowhere" in one_line(captured.err)
    assert captured.out == ""


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ShapmixError("what and why"), "error: what and why"),
        (OSError(28, "No space left on device", "file"), "error: file: No space left on device"),
        (OSError(28, "No space left on device"), "error: output: No space left on device"),
    ],
)
def test_an_error_is_one_line(
    name: str,
    error: Exception,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WORK[name], fail)
    assert COMMANDS[name](arguments_of(name)) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()) == ("", [line])


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WORK[name], interrupted)
    assert COMMANDS[name](arguments_of(name)) == 130
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("stopped")
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMPUTING)
def test_a_computing_command_says_where(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = torch.get_num_threads()
    caplog.set_level("INFO", "shapmix")
    monkeypatch.setattr(cpu.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WORK[name], lambda *arguments, **options: (_ for _ in ()).throw(ShapmixError("far enough")))
    try:
        assert COMMANDS[name]([*arguments_of(name), "--device", "cpu", "--threads", "2"]) == 2
    finally:
        torch.set_num_threads(before)
    assert "computing on cpu, 2 threads" in caplog.messages
    assert one_line(capsys.readouterr().err) == "error: far enough"
    assert COMMANDS[name]([*arguments_of(name), "--device", "tpu"]) == 2
    assert one_line(capsys.readouterr().err) == "error: device 'tpu': choose auto, cpu, cuda or cuda:N"
    assert COMMANDS[name]([*arguments_of(name), "--threads", "0"]) == 2
    assert "threads" in one_line(capsys.readouterr().err)


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device.torch.cuda, "set_device", current.append)
    monkeypatch.setattr(frame.torch.cuda, "get_device_name", lambda where: "a GPU")
    caplog.set_level("INFO", "shapmix")
    assert frame.start_computing(frame.ComputeOptions()) == torch.device("cuda:0")
    assert current == [torch.device("cuda:0")]
    assert caplog.messages == ["computing on cuda:0 (a GPU)"]


@pytest.mark.parametrize("name", ["evaluate", "explain", "export", "predict", "report"])
def test_the_checkpoint_is_the_last_one_everywhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        COMMANDS[name](["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--checkpoint {best,last}" in text
    assert "(default: last)" in text.rpartition("--checkpoint {best,last}")[2].partition(" --")[0]


@pytest.mark.parametrize("listed", [[], ["--help"], ["-h"]])
def test_the_script_lists_the_commands(listed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(listed) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 4


def test_the_script_runs_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/shapmix", "export", "--help"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: shapmix export [-h]")


@pytest.mark.parametrize(
    ("name", "hint"), [("reprot", "; did you mean 'report'?"), ("zzz", "; give one of prepare, train, evaluate, predict, explain")]
)
def test_an_unknown_command_is_one_line(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([name, "RUN"]) == 2
    assert one_line(capsys.readouterr().err).startswith(f"error: unknown command '{name}'{hint}")


def test_a_reader_that_has_gone_is_no_error() -> None:
    code = "import sys; from shapmix.process.command import run_command; sys.exit(run_command(lambda: print('x' * 100_000)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 128 + signal.SIGPIPE)


def test_an_unknown_key_of_a_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a configuration, and of a plan of runs."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("epohcs: 3\n")
    assert train.main(["--config", "config.yaml"]) == 2
    line = one_line(capsys.readouterr().err)
    assert "config.yaml" in line
    assert "--epohcs" in line
    assert "--epochs" in line
    Path("plan.yaml").write_text("rows:\n  plain: {mix: none, epohcs: 3}\n")
    assert experiment.main(["plan.yaml", "--out", "out"]) == 2
    line = one_line(capsys.readouterr().err)
    assert "plan.yaml" in line
    assert "plain" in line
    assert "--epohcs" in line
    assert not Path("out").exists()


def test_every_error_of_the_package_is_a_shapmix_error() -> None:
    """A class of errors that no command turns into one line is internal, and is listed here."""
    internal = {"RefusedError", "OtherLibraryError", "Interruption"}
    seen = {ShapmixError}
    for kind in seen_below(Exception):
        if kind.__module__.startswith("shapmix.") and kind.__name__ not in internal:
            assert issubclass(kind, ShapmixError), kind
            seen.add(kind)
    assert len(seen) > 10


def seen_below(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(seen_below(below) for below in type.__subclasses__(kind)))


# Runs that cannot be read


def fault_missing(run: Path) -> None:
    """There is no such folder."""


def fault_file(run: Path) -> None:
    run.write_text("no folder")


def fault_empty(run: Path) -> None:
    run.mkdir()


def fault_no_yaml(run: Path) -> None:
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes(b"\x00\xff")


def fault_no_checkpoint(run: Path) -> None:
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(
        "num_frames: 8\nnetwork: {widths: [8]}\nn_max: 8\nimbalance: 4\nsaliency: {warmup_epochs: 1}\nepochs: 2\n"
    )


def fault_damaged_checkpoint(run: Path) -> None:
    fault_no_checkpoint(run)
    for name in ("best", "last"):
        (run / "checkpoints" / f"{name}.pt").write_bytes(b"PK\x03\x04 no checkpoint")


FAULTS = [fault_missing, fault_file, fault_empty, fault_no_yaml, fault_no_checkpoint, fault_damaged_checkpoint]


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("command", OF_A_RUN)
def test_a_run_that_cannot_be_read_is_one_line(
    command: str, fault: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fault(run)
    if (command, fault) == ("train", fault_no_checkpoint):
        pytest.skip("a run that was stopped before its first checkpoint starts from the beginning")
    assert COMMANDS[command]([argument.replace("RUN", str(run)) for argument in OF_A_RUN[command]]) == 2
    assert str(run) in one_line(capsys.readouterr().err)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cuda"], "backend: 'cuda' cannot run on cpu: it works on CUDA tensors, not on cpu"),
        (["--device", "xpu"], "device 'xpu': choose auto, cpu, cuda or cuda:N"),
        (["--network.widths", "10", "20"], "network.widths: each a multiple of 8, not 10"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, *arguments, "--run-dir", "run"]) == 2
    assert message in one_line(capsys.readouterr().err)
    assert not os.path.exists("run")


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(("name", "message"), [("cuda", "'cuda' cannot run on cpu"), ("fast", "give one of reference, cpp")])
def test_the_variable_for_back_ends_is_read_before_training(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHAPMIX_BACKEND", name)
    assert train.main([*TINY, "--run-dir", "run"]) == 2
    line = one_line(capsys.readouterr().err)
    assert "SHAPMIX_BACKEND: " in line
    assert message in line


def cpuinfo(folder: Path, text: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f bf16_like\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("processor\t: 0\n", None),
    ],
)
def test_bfloat16_products_are_read_from_the_flags(
    text: str, has: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo(tmp_path, text))
    assert cpu.multiplies_bf16() is has
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "not there")
    assert cpu.multiplies_bf16() is None


@pytest.mark.usefixtures("small_data")
def test_bf16_without_products_needs_force(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: False)
    bf16 = [*TINY, "--precision", "bf16", "--run-dir", "run"]
    assert train.main(bf16) == 2
    line = one_line(capsys.readouterr().err)
    assert "this CPU has no bfloat16 arithmetic" in line
    assert "--force" in line
    assert not os.path.exists("run")
    assert train.main([*TINY, "--run-dir", "float32"]) == 0
    build.check_machine(parse_config(bf16), torch.device("cuda", 0))  # a GPU multiplies bf16
    build.check_machine(parse_config([*bf16, "--force"]), torch.device("cpu"))
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: None)  # what is not known is not refused
    build.check_machine(parse_config(bf16), torch.device("cpu"))
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: True)
    build.check_machine(parse_config(bf16), torch.device("cpu"))


@pytest.mark.parametrize(
    ("has", "told"), [(True, "yes"), (False, "no: bf16 is slower than float32 on this CPU"), (None, "unknown")]
)
def test_doctor_tells_of_bfloat16(has: bool | None, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: has)
    assert installation.processor()["bfloat16 products"] == told


@pytest.mark.usefixtures("small_data")
def test_what_began_with_force_goes_on_without(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And is measured in float32."""
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: False)
    assert train.main([*TINY, "--precision", "bf16", "--force", "--run-dir", "run"]) == 0
    assert train.main(["--resume", "run", "--epochs", "3"]) == 0
    used: list[bool] = []
    forward = SharedForward.forward

    def watched(self: SharedForward, clips: torch.Tensor) -> torch.Tensor:
        used.append(self.autocast is not None)
        return forward(self, clips)

    monkeypatch.setattr(SharedForward, "forward", watched)
    for has, what in ((False, False), (None, True), (True, True)):
        monkeypatch.setattr(cpu, "multiplies_bf16", lambda has=has: has)
        used.clear()
        caplog.clear()
        assert evaluate.main(["run"]) == 0
        assert set(used) == {what}
        assert ("run: was trained in bf16, of which this CPU has no products; it is measured in fp32" in caplog.text) != what


@pytest.mark.usefixtures("small_data")
def test_a_checkpoint_that_is_not_finite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By every command that reads it, in one line that names the tensor; with one before it, the run goes on from that."""
    assert train.main([*TINY, "--run-dir", "run"]) == 0
    good = read_checkpoint(Path("run/checkpoints/last.pt"))
    momentum = next(iter(good["optimizer"]["state"]))
    for place, value, named in (
        (("network", next(name for name in good["network"] if name.endswith("weight"))), math.inf, "weight' is not finite"),
        (("mixer", "class_saliency.mean"), math.nan, "'class_saliency.mean' is not finite"),
        (("mixer", "mean_motion"), math.nan, "'mean_motion' is not finite"),
        (("optimizer", "state", momentum, next(iter(good["optimizer"]["state"][momentum]))), math.nan, "is not finite"),
    ):
        state = copy.deepcopy(good)
        tensor = functools.reduce(lambda inside, key: inside[key], place, state)
        tensor.view(-1)[0] = value
        for name in ("last", "best"):
            save_checkpoint(Path(f"run/checkpoints/{name}.pt"), state)
        commands = [lambda: train.main(["--resume", "run", "--epochs", "4"])]
        if place[0] == "network":
            commands += [lambda: evaluate.main(["run"]), lambda: explain.main(["run"])]
        if place[0] == "network" or place[1] == "mean_motion":
            np.save("clip.npy", np.ones((5, 25, 3), np.float32))
            commands += [lambda: predict.main(["run", "clip.npy"]), lambda: export.main(["run", "x.onnx"])]
        capsys.readouterr()
        for command in commands:
            assert command() != 0
            assert named in one_line(capsys.readouterr().err)


@pytest.fixture
def tiny_run(small_data: None, tmp_path: Path) -> Path:
    assert train.main([*TINY, "--epochs", "1", "--saliency.warmup-epochs", "0", "--run-dir", "finished"]) == 0
    return tmp_path / "finished"


@pytest.mark.parametrize(("name", "message"), [("cuda", "cannot run on cpu"), ("fast", "SHAPMIX_BACKEND is 'fast'")])
def test_the_variable_for_back_ends_is_one_line_of_every_command(
    name: str, message: str, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHAPMIX_BACKEND", name)
    np.save("clip.npy", np.random.default_rng(0).normal(size=(12, 25, 3)).astype(np.float32))
    capsys.readouterr()
    for command in ("evaluate", "explain", "predict", "report"):
        arguments = [argument.replace("RUN", str(tiny_run)) for argument in OF_A_RUN[command]]
        assert COMMANDS[command](arguments) == 2, command
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "coalitions" not in line]
        assert line.startswith("error: ")
        assert message in line


def test_pages_are_tried_before_the_work_and_stop_without_a_word(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No place to write: said before anything is forwarded; Ctrl-C: exit code 130, and no page."""
    worked: list[str] = []
    for module in (explanation_page, run_page):
        monkeypatch.setattr(module, "open_with_data", lambda *arguments: worked.append("work"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    capsys.readouterr()
    for command, out in ((explain, "file"), (report, "file/page.html"), (report, "folder")):
        assert command.main([str(tiny_run), "--out", str(tmp_path / out)]) == 2
        assert str(tmp_path / out.split("/")[0]) in one_line(capsys.readouterr().err)

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("shapmix.process.files.tempfile.TemporaryFile", refuse)
        for command in (explain, report):
            assert command.main([str(tiny_run)]) == 2
            assert "cannot write there: Permission denied" in one_line(capsys.readouterr().err)
    assert not worked

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, command in ((explanation_page, explain), (run_page, report)):
        monkeypatch.setattr(module, "open_with_data", interrupted)
        assert command.main([str(tiny_run)]) == 130
        assert capsys.readouterr().err.splitlines() == ["stopped"]
    assert not (tiny_run / "report.html").exists()
    assert not (tiny_run / "explanation").exists()


# Trained networks on a store

OPTIONS = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "1", "--mix", "none", "--threads", "1"]
OPTIONS += ["--device", "cpu"]


def write_plain(folder: Path, joints: int = 20, clips: int = 48) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    table = ["name,label,split"]
    for number in range(clips):
        np.save(folder / f"clip{number:02d}.npy", generator.normal(size=(4 + number % 9, joints, 3)).astype(np.float32))
        table.append(f"clip{number:02d},{'ab'[number % 2]},{'test' if number >= clips - 8 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(table))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` in the plain form and `store` made of it."""
    folder = tmp_path_factory.mktemp("data")
    assert prepare.main([str(write_plain(folder / "raw")), str(folder / "store"), "--layout", "ucla20"]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(no_pictures: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds on long-tailed draws of one store: each has training and validation clips of its own."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        arguments = ["--dataset", "store", "--data-root", str(data / "store"), "--imbalance", "2", "--n-max", "10"]
        assert train.main([*arguments, *OPTIONS, "--seed", seed, "--run-dir", str(folder / seed)]) == 0
    return [folder / "0", folder / "1"]


# An ensemble of seeds


def test_weights_of_seeds_are_fitted_on_clips_that_none_trains_on(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    splits = [load_splits(open_run(run).config) for run in runs]
    trained, validated = (
        [{each.store.names[clip] for clip in getattr(each, kind).tolist()} for each in splits] for kind in ("train", "val")
    )
    assert validated[0] != validated[1]
    assert validated[0] & trained[1]  # what must not be taken
    expected = (validated[0] | validated[1]) - trained[0] - trained[1]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(ensemble, "fit_weights", lambda values, labels: seen.append(values) or torch.ones(2, dtype=torch.float64))
    assert evaluate.main([*map(str, runs), "--fit-weights", "--device", "cpu"]) == 0
    assert seen[0].shape == (2, len(expected), 2)
    chosen = scores.weight_clips(splits, runs)
    for each, clips in zip(splits, chosen, strict=True):
        assert {each.store.names[clip] for clip in clips.tolist()} == expected


def test_seeds_without_a_clip_in_common_say_so(runs: list[Path]) -> None:
    splits = [load_splits(open_run(run).config) for run in runs]
    everything = torch.tensor([clip for clip in range(len(splits[0].store)) if clip not in splits[0].test.tolist()])
    with pytest.raises(RunError, match="no validation clip that no run trains on; give --weights"):
        scores.weight_clips([replace(splits[0], train=everything), splits[1]], runs)


# predict


def test_predict_wants_files(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(runs[0])]) == 2
    said = capsys.readouterr().err
    assert "no files" in said
    assert "python -m shapmix.predict RUN FILE..." in said


def test_predict_takes_a_prepared_store(runs: list[Path], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(runs[0]), str(data / "store"), "--json", "--no-parts"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["name"] for each in found] == open_store(data / "store").clips.names
    assert predict.main([str(runs[0]), str(data / "raw" / "clip07.npy"), "--json", "--no-parts"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == found[7]["classes"]


def test_a_bad_file_does_not_lose_the_others(
    runs: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.npy").write_bytes((data / "raw" / "clip00.npy").read_bytes()[:-5])
    np.save(tmp_path / "joints.npy", np.ones((5, 17, 3), np.float32))
    (tmp_path / "torn.skeleton").write_text("3\n")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "folder.npy").mkdir()
    bad = ["missing.npy", "torn.npy", "joints.npy", "torn.skeleton", "missing.skeleton", "notes.txt", "folder.npy", "nowhere"]
    good = [str(data / "raw" / f"clip{number:02d}.npy") for number in (3, 4)]
    assert predict.main([str(runs[0]), good[0], *(str(tmp_path / name) for name in bad), good[1], "--json", "--no-parts"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["name"] for line in captured.out.splitlines()] == ["clip03", "clip04"]
    lines = captured.err.splitlines()
    for name in bad:
        assert sum(f"{tmp_path / name}" in line for line in lines) == 1, name
    assert "17" in next(line for line in lines if "joints.npy" in line)
    assert "Traceback" not in captured.err
    assert "8 of 10" in lines[-1]


def test_a_bad_recording_does_not_lose_its_data_set(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plain(tmp_path / "raw", clips=16)
    (folder / "layout.toml").write_text(layout_toml(load_layout("ucla20")))
    (folder / "clip05.npy").write_bytes(b"nothing")
    assert predict.main([str(runs[0]), str(folder), "--json", "--no-parts"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 15
    assert "clip05.npy" in captured.err


@pytest.mark.parametrize(("option", "value"), [("--top", "0"), ("--window", "0"), ("--stride", "-1"), ("--threads", "0")])
def test_predict_checks_numbers_once(
    option: str, value: str, runs: list[Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(data / "raw" / "clip00.npy")
    assert predict.main([str(runs[0]), file, file, option, value]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {option}: must be at least 1, not {value}"]


def test_other_joints_and_scores_are_refused(data: Path, runs: list[Path], tmp_path: Path) -> None:
    trained = open_run(runs[0])
    folder = write_plain(tmp_path / "raw", clips=16)
    text = layout_toml(load_layout("ucla20"))
    (folder / "layout.toml").write_text(text.replace("hip_centre", "middle"))
    with pytest.raises(DataError, match="joints differ from those that the network was trained on: 'middle'"):
        next(prediction.recordings_of(folder, trained)).read()
    (folder / "layout.toml").write_text(text.replace("dimensions = [3]", "dimensions = [2]"))
    assert prepare.main([str(folder), str(tmp_path / "scored"), "--scores"]) == 0
    with pytest.raises(DataError, match="has scores, the network was trained without"):
        next(prediction.recordings_of(tmp_path / "scored", trained)).read()


# What cannot be written


@pytest.mark.parametrize("out", ["nodir/x.onnx", "nodir/x.pt2", "file/x.pt2", "taken.pt2", "/proc/x.pt2", "x.pth"])
def test_export_says_so_before_any_work(
    out: str, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken.pt2").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(export, "open_run", lambda *_: pytest.fail("work was done"))
    assert export.main([str(runs[0]), str(tmp_path / out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--out", "--save-scores"])
@pytest.mark.parametrize("where", ["file/below.npz", "/proc/below.npz"])
def test_evaluate_says_so_before_any_work(
    option: str, where: str, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(ensemble, "open_member", lambda *_: pytest.fail("work was done"))
    assert evaluate.main([str(runs[0]), option, str(tmp_path / where)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_that_cannot_be_written_is_one_line(runs: list[Path], data: Path) -> None:
    arguments = [sys.executable, "-m", "shapmix.predict", str(runs[0]), str(data / "raw" / "clip00.npy"), "--no-parts"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    *told, error = done.stderr.splitlines()
    assert error == "error: output: No space left on device"
    assert told[0].startswith("computing on ")
    assert not any("rror" in line for line in told)


# Ctrl-C


@pytest.mark.parametrize("name", ["predict", "export", "evaluate"])
def test_an_interrupt_is_no_traceback(
    name: str, runs: list[Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module = {"predict": predict, "export": export, "evaluate": evaluate}[name]
    inside = {"predict": predict, "export": exporting, "evaluate": scores}[name]
    monkeypatch.setattr(inside, {"predict": "predict", "export": "plain_network", "evaluate": "predict_views"}[name], interrupted)
    clip, network = str(data / "raw" / "clip00.npy"), str(tmp_path / "x.pt2")
    rest = {"predict": [clip], "export": [network], "evaluate": ["--device", "cpu"]}[name]
    assert module.main([str(runs[0]), *rest]) == 128 + signal.SIGINT
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_modules_are_imported_is_no_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "shapmix.predict", str(tmp_path), str(tmp_path / "clip.npy")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        imported = iter(process.stderr.readline, "")  # -X importtime names each module when it has been imported
        assert any(line.rstrip().endswith(" shapmix.process.ending") for line in imported)
        assert any(line.rstrip().endswith(" torch.torch_version") for line in imported)
        process.send_signal(signal.SIGINT)
        said = "".join(imported)
        assert process.wait() in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in said
    assert said.endswith("stopped\n")
