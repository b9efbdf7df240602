"""A run that is cut off, anywhere and by anything, loses the steps since its last checkpoint and nothing else."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from shapmix import train
from shapmix.data.clips import Splits
from shapmix.data.order import epoch_batches, epoch_order, passes
from shapmix.process import files
from shapmix.process.signals import stop_requests
from shapmix.skeleton.layout import LayoutError
from shapmix.training.build import load_splits, make_mixer, make_network, make_optimizer, make_sampler
from shapmix.training.checkpoint import (
    CheckpointError,
    kept_checkpoints,
    load_checkpoint,
    load_newest,
    read_checkpoint,
    save_checkpoint,
)
from shapmix.training.config import parse_config
from shapmix.training.options import TrainConfig
from shapmix.training.state import Training, restore
from shapmix.training.trained import open_run
from tests import small_run

pytestmark = pytest.mark.usefixtures("small_data", "no_pictures")

TRAIN = [sys.executable, str(Path(small_run.__file__))]
TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "6", "--threads", "1", "--device", "cpu"]
TINY += ["--saliency.warmup-epochs", "1"]
OFTEN = ["--checkpoint.every-steps", "2"]
LIMIT = 300  # seconds after which a process hangs, on a machine however busy
STATE = {"layout": "ntu25", "class_names": ["a"]}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return {**state["network"], **{f"mixer.{key}": value for key, value in state["mixer"].items()}}


def start(arguments: list[str], folder: Path, hold_at: int | None = None) -> subprocess.Popen[str]:
    command = [*TRAIN, *arguments]
    environment = {**os.environ, **({} if hold_at is None else {small_run.HOLD_AT: str(hold_at)})}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said on stderr."""
    _, message = process.communicate(timeout=LIMIT)
    return process.returncode, message


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + LIMIT
    while True:
        ended = process.poll() is not None
        if condition():
            return
        assert not ended, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(small_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert train.main([*TINY, "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def assert_equal_runs(whole: Path, cut: Path) -> None:
    expected, found = tensors(whole), tensors(cut)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, cut)]
    rates = ("clips_per_second", "data_wait")
    for ours, theirs in zip(*lines, strict=True):
        assert {key: value for key, value in ours.items() if key not in rates} == {
            key: value for key, value in theirs.items() if key not in rates
        }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_inside_the_epoch_and_the_run_goes_on_bit_for_bit(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    process = start([*TINY, "--run-dir", "run", "--checkpoint.every-steps", "3"], tmp_path, hold_at=5)
    wait_for((tmp_path / "run/checkpoints/last.pt").exists, process)
    process.send_signal(number)
    code, message = finish(process)
    assert code == 128 + number
    assert f"{number.name}: finishing the step, then saving" in message
    assert "resume with --resume run" in message
    assert train.main(["--resume", "run"]) == 0
    assert_equal_runs(whole, tmp_path / "run")
    assert len((tmp_path / "run/environment.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    process = start([*TINY, *OFTEN, "--epochs", "100000", "--run-dir", "run"], tmp_path)
    wait_for((tmp_path / "run/checkpoints/last.pt").exists, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    until = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < until:
        process.send_signal(signal.SIGINT)  # two pending ones count as one
        time.sleep(0.001)
    assert finish(process)[0] == 130
    load_newest(tmp_path / "run/checkpoints/last.pt", layout="ntu25", class_names=names(tmp_path / "run"))


def names(run: Path) -> list[str]:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["class_names"]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    """30 kill -9, each resumed and killed again at a random moment, with a checkpoint written at every step."""
    generator = random.Random(0)
    kills = runs = 0
    while kills < 30:
        run = tmp_path / str(runs) / "run"
        run.parent.mkdir()
        arguments = [*TINY, "--run-dir", "run", "--checkpoint.every-minutes", "0"]
        starts = 0
        while True:
            process = start(arguments, run.parent)
            if kills < 30:
                record = run / "environment.jsonl"
                wait_for(lambda record=record, starts=starts: record.exists() and record.read_text().count("\n") > starts, process)
                time.sleep(generator.uniform(0, 0.5))
                process.send_signal(signal.SIGKILL)
            code, message = finish(process)
            if code == 0:
                break
            assert code == -signal.SIGKILL, message
            kills, starts = kills + 1, record.read_text().count("\n")
            arguments = ["--resume", "run", "--checkpoint.every-minutes", "0"]
        assert_equal_runs(whole, run)
        runs += 1
    print(f"\n{kills} kills in {runs} runs")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "last.pt"
    for epoch in range(3):
        save_checkpoint(path, {**STATE, "network": {"w": torch.full((1000,), float(epoch))}, "epoch": epoch}, keep=3)
    assert [each.name for each in kept_checkpoints(path)] == ["last.pt", "last-1.pt", "last-2.pt"]
    content = bytearray(path.read_bytes())
    (tmp_path / "last-1.pt").write_bytes(content[:500])
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    state = load_newest(path, layout="ntu25", class_names=["a"])
    assert state is not None
    assert state["epoch"] == 0
    assert "last.pt: damaged or not a checkpoint: its checksum does not match; trying the one before" in caplog.text
    assert "last-1.pt: damaged or not a checkpoint: it does not end with a checksum" in caplog.text
    (tmp_path / "last-2.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 3 checkpoints are damaged"):
        load_newest(path, layout="ntu25", class_names=["a"])


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**STATE, "network": {"w": torch.ones(4)}})
    content = path.read_bytes()
    for place in random.Random(0).sample(range(len(content)), 200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
            load_checkpoint(path, layout="ntu25", class_names=["a"])


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return (os.system, ("touch harm",))

    path = tmp_path / "last.pt"
    save_checkpoint(path, {**STATE, "network": {}, "more": Harmful()})
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged or not a checkpoint"):
        load_checkpoint(path, layout="ntu25", class_names=["a"])
    assert not Path("harm").exists()


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path) -> None:
    """The limit on file sizes stands for a full disk: writing fails in the middle of the file."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**STATE, "network": {"w": torch.ones(3)}}, keep=2)
    code = (
        "import resource, signal, torch; from pathlib import Path; from shapmix.training.checkpoint import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        f"save_checkpoint(Path({str(path)!r}), {{'network': torch.ones(100000)}}, keep=2)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "CheckpointError" in process.stderr
    assert "cannot write the checkpoint: File too large; earlier checkpoints are intact" in process.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]
    assert torch.equal(load_checkpoint(path, layout="ntu25", class_names=["a"])["network"]["w"], torch.ones(3))


def test_a_disk_that_fills_up_ends_the_run_with_a_message(tmp_path: Path) -> None:
    limit = 30_000  # less than a checkpoint
    command = [*TRAIN, *TINY, "--run-dir", "run"]

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=fill)
    assert process.returncode == 2
    assert "error: run/checkpoints/" in process.stderr
    assert "cannot write the checkpoint" in process.stderr
    assert "continue with --resume run" in process.stderr
    assert train.main(["--resume", "run"]) == 0


def test_a_folder_that_cannot_be_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # a test that runs as root is never refused
    assert train.main([*TINY, "--run-dir", "there/run"]) == 2
    assert "run directory there/run cannot be created: Permission denied" in capsys.readouterr().err


def test_batches_go_on_inside_an_epoch() -> None:
    clips = torch.arange(50) * 3
    every = list(epoch_batches(epoch_order(clips, 3, 2), 8))
    assert len(every) == 6
    assert len(torch.cat(every).unique()) == 48
    for first in range(7):
        rest = list(epoch_batches(epoch_order(clips, 3, 2), 8, first=first))
        assert len(rest) == 6 - first
        assert all(torch.equal(one, other) for one, other in zip(rest, every[first:], strict=True))
    assert not torch.equal(torch.cat(every), torch.cat(list(epoch_batches(epoch_order(clips, 3, 1), 8))))


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_processes_and_passes_share_a_batch_without_overlap(ranks: int, accumulate: int) -> None:
    shares = [rows for rank in range(ranks) for rows in passes(24, rank, ranks, accumulate)]
    assert torch.equal(torch.cat(shares), torch.arange(24))
    assert {len(rows) for rows in shares} == {24 // (ranks * accumulate)}
    with pytest.raises(ValueError, match="batch_size 25 is not divisible"):
        passes(25, 0, ranks if ranks * accumulate > 1 else 2, accumulate)


ENDLESS = [*TINY, "--epochs", "100000", "--checkpoint.every-steps", "1"]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on for ever, behind its first checkpoint."""
    process = start([*ENDLESS, "--run-dir", "run"], tmp_path)
    try:
        wait_for((tmp_path / "run/checkpoints/last.pt").exists, process)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_live_run_is_left_alone(
    live: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["--resume", "run"], [*TINY, "--run-dir", "run"]):
        assert train.main(arguments) == 2
        said = capsys.readouterr().err
        assert f"error: run: process {live.pid} on " in said or "run directory run exists" in said
    live.send_signal(signal.SIGTERM)
    code, message = finish(live)
    assert code == 143, message
    assert not (tmp_path / "run/lock").exists()


def test_what_a_killed_run_was_writing_is_removed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    left = [tmp_path / "run/config.yaml.7-0a.tmp", tmp_path / "run/checkpoints/last.pt.7-0a.tmp"]
    for path in left:
        path.write_bytes(b"half")
    assert train.main(["--resume", "run"]) == 0
    assert not any(path.exists() for path in left)


def test_sighup_saves_the_run_though_the_terminal_is_gone(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [*TRAIN, *ENDLESS, "--run-dir", "run"]
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # the tests may run under nohup
    process = subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, **hears)
    os.close(theirs)
    last, until = tmp_path / "run/checkpoints/last.pt", time.monotonic() + LIMIT
    try:
        while not last.exists() and time.monotonic() < until:
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 4096)
        before = torch.load(last, weights_only=True)
        process.send_signal(signal.SIGSTOP)  # so that nothing is written between the end of the terminal and its signal
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        assert process.wait(LIMIT) == 129
    finally:
        process.kill()
        process.wait()
    after = torch.load(last, weights_only=True)
    assert (after["epoch"], after["batch"]) >= (before["epoch"], before["batch"])


def test_nohup_stays_deaf_to_sighup(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_is_saved_though_nothing_can_be_said(tmp_path: Path) -> None:
    """A signal's line goes to a terminal that is gone: the handler raises nothing, and what is said later goes nowhere."""
    code = (
        "import os, signal\nfrom shapmix.process.signals import stop_requests\n"
        "master, slave = os.openpty()\nos.dup2(slave, 2)\nos.close(slave)\nos.close(master)\n"
        "with stop_requests() as request:\n    os.kill(os.getpid(), signal.SIGHUP)\n    os.write(2, b'x')\n"
        "    os._exit(request.signal)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == signal.SIGHUP


QUICK = [*TINY, "--epochs", "2", "--mix", "stmix", "--run-dir", "run"]


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("tensorboard.summary.writer.record_writer.RecordWriter.write", "run/tensorboard"),
        ("shapmix.training.trainer.append_line", "run/metrics.jsonl"),
        ("shapmix.training.metrics.csv.writer", "run/per_class_last.csv"),
        ("shapmix.pictures.plots.plot_mixed_clip", "run/mixed_clip.png"),
        ("shapmix.training.run_folder.append_line", "run/environment.jsonl"),
        ("shapmix.training.config.write_whole", "run/config.yaml"),
    ],
)
def test_a_full_disk_names_the_file_and_the_run_goes_on(
    where: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any file beside the checkpoints; writing to a thread's file is told by the thread that trains."""
    monkeypatch.chdir(tmp_path)

    def full(*given: object, **options: object) -> None:
        with files.named(given[0]) if isinstance(given[0], Path) else nullcontext():
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        assert train.main(QUICK) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {file}: No space left on device"
    assert all(read_checkpoint(path) for path in Path("run").glob("checkpoints/*.pt"))
    assert train.main(["--resume", "run"] if Path("run/config.yaml").exists() else QUICK) == 0


COMMANDS = ["train", "evaluate", "experiment", "prepare", "predict", "export", "explain", "report", "doctor"]


@pytest.mark.parametrize("name", [*COMMANDS, "script", "module"])
def test_ctrl_c_while_a_command_imports(name: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(600)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    script = tmp_path / "bin" / "shapmix"  # as an installer writes it
    script.parent.mkdir()
    script.write_text("from shapmix.__main__ import main\nmain()\n")
    command = {"script": [str(script)], "module": ["-m", "shapmix"]}.get(name, ["-m", f"shapmix.{name}"])
    process = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    # Python ends itself by the signal, which a shell shows as 130
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, "", "stopped\n")


def made(config: TrainConfig, splits: Splits) -> Training:
    network, sampler = make_network(config, splits.store), make_sampler(config, splits.store)
    optimizer = make_optimizer(network, config)
    return Training(network, make_mixer(config, splits, sampler, 1), optimizer, None)


def mutated(state: Any, generator: random.Random) -> Any:
    """A copy with one value, at any depth, replaced or missing."""
    odd = [None, -1, 3.5, "x", [], {}, True, 10**30, torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(-1.0)]
    if not isinstance(state, (dict, list)) or not state or generator.random() < 0.15:
        return generator.choice(odd)
    key = generator.choice(list(state) if isinstance(state, dict) else range(len(state)))
    copy = state.copy()
    if generator.random() < 0.2:
        del copy[key]
    else:
        copy[key] = mutated(state[key], generator)
    return copy


def test_odd_checkpoints_are_read_or_refused_in_one_line(whole: Path, tmp_path: Path) -> None:
    """With a checksum that is right: the fields are odd."""
    config = parse_config(["--config", str(whole / "config.yaml")])
    splits = load_splits(config)
    good = read_checkpoint(whole / "checkpoints/last.pt")
    restore(good, config, made(config, splits), good["data_sha256"])
    shutil.copy(whole / "config.yaml", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    path, generator, refused = tmp_path / "checkpoints/last.pt", random.Random(0), 0
    for _ in range(60):
        save_checkpoint(path, mutated(good, generator))
        for read in (
            lambda: restore(
                load_checkpoint(path, layout="ntu25", class_names=splits.store.class_names),
                config,
                made(config, splits),
                good["data_sha256"],
            ),
            lambda: open_run(tmp_path, "last"),
        ):
            try:
                read()
            except (CheckpointError, LayoutError) as error:
                refused += 1
                assert "\n" not in str(error)  # noqa: PT017
    assert refused > 60


@pytest.mark.parametrize(
    ("theirs", "ours", "read"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.1.9", "0.1.0", True),
        ("0.0.3", "0.1.0", True),
        ("0.2.0", "0.1.0", False),
        ("1.0.dev3+g1234", "0.9.1", False),
        ("0.10.0", "0.9.0", False),
        ("0+unknown", "0.1.0", True),
        ("9.0", "0+unknown", True),
    ],
)
def test_checkpoints_of_a_later_release_are_refused(
    theirs: str, ours: str, read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "last.pt", {**STATE, "network": {}, "shapmix_version": theirs})
    monkeypatch.setattr("shapmix.__version__", ours)
    with (
        nullcontext() if read else pytest.raises(CheckpointError, match=f"written by shapmix .*, this is {ours}; .*update shapmix")
    ):
        load_checkpoint(tmp_path / "last.pt", layout="ntu25", class_names=["a"])


def kill_often(command: list[str], again: list[str], folder: Path, kills: int) -> None:
    """kill -9 of a run, at random moments behind each start, with a checkpoint at every step; then to its end."""
    generator, record = random.Random(1), folder / "run/environment.jsonl"
    for number in range(kills + 1):
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        if number < kills:
            wait_for(lambda number=number: record.exists() and record.read_text().count("\n") > number, process)
            time.sleep(generator.uniform(0, 1))
            os.killpg(process.pid, signal.SIGKILL)
        code, message = finish(process)
        command = again
        if code == 0:
            return
        assert code == -signal.SIGKILL, message
    raise AssertionError("the last start was not left alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (1, ["--ema", "0.9"]),
        (1, ["--saliency.estimator", "exact_subset", "--schedule.optimizer", "adamw"]),
        (2, ["--saliency.estimator", "exact_subset"]),
    ],
    ids=["ema", "exact_subset", "two processes"],
)
def test_a_run_of_any_kind_survives_kills(processes: int, options: list[str], tmp_path: Path) -> None:
    """Of two processes torchrun is killed: they end with it, which is when their error output ends."""
    arguments = [*TINY, *options, "--checkpoint.every-minutes", "0", "--run-dir", "run"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    for kills, name in ((0, "whole"), (4, "cut")):
        (tmp_path / name).mkdir()
        command = [TRAIN[0], *torchrun, TRAIN[1]]
        kill_often([*command, *arguments], [*command, "--resume", "run"], tmp_path / name, kills)
    assert_equal_runs(tmp_path / "whole/run", tmp_path / "cut/run")
