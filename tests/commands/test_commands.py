"""What every command has in common: its help, and one line for each fault that a user can meet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import doctor, evaluate, experiment, explain, export, predict, prepare, report, train
from shapmix.pages import run as run_page
from shapmix.process import cpu
from shapmix.training import build
from shapmix.training.config import TrainConfig, parse_config, presets, save_config

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
    assert COMMANDS[command]([argument.replace("RUN", str(run)) for argument in OF_A_RUN[command]]) == 1
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
    assert train.main([*TINY, *arguments, "--run-dir", "run"]) == 1
    assert message in one_line(capsys.readouterr().err)
    assert not os.path.exists("run")


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(("name", "message"), [("cuda", "'cuda' cannot run on cpu"), ("fast", "give one of reference, cpp")])
def test_the_variable_for_back_ends_is_read_before_training(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHAPMIX_BACKEND", name)
    assert train.main([*TINY, "--run-dir", "run"]) == 1
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
    assert "this CPU has no bfloat16 products" in line
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
    assert doctor.processor()["bfloat16 products"] == told


def test_force_is_no_property_of_a_run(tmp_path: Path) -> None:
    save_config(TrainConfig(force=True), tmp_path / "config.yaml")
    assert "force" not in (tmp_path / "config.yaml").read_text()


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
        assert COMMANDS[command](arguments) == 1, command
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "coalitions" not in line]
        assert line.startswith("error: ")
        assert message in line


def test_pages_are_tried_before_the_work_and_stop_without_a_word(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No place to write: said before anything is forwarded; Ctrl-C: exit code 130, and no page."""
    worked: list[str] = []
    for module in (explain, run_page):
        monkeypatch.setattr(module, "open_with_data", lambda *arguments: worked.append("work"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    capsys.readouterr()
    for command, out in ((explain, "file"), (report, "file/page.html"), (report, "folder")):
        assert command.main([str(tiny_run), "--out", str(tmp_path / out)]) == 1
        assert str(tmp_path / out.split("/")[0]) in one_line(capsys.readouterr().err)

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("shapmix.process.ending.tempfile.TemporaryFile", refuse)
        for command in (explain, report):
            assert command.main([str(tiny_run)]) == 1
            assert "cannot write there: Permission denied" in one_line(capsys.readouterr().err)
    assert not worked

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    for module, command in ((explain, explain), (run_page, report)):
        monkeypatch.setattr(module, "open_with_data", interrupted)
        assert command.main([str(tiny_run)]) == 130
        assert capsys.readouterr().err.splitlines() == ["stopped"]
    assert not (tiny_run / "report.html").exists()
    assert not (tiny_run / "explanation").exists()
