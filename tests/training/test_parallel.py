"""Several processes train as one: the same losses, the same saliency, every clip once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from shapmix.networks import synced_norm
from shapmix.process import parallel
from tests.small_run import HOLD_AT

ROOT = Path(__file__).parents[2]
STEPS = 4  # of an epoch
LIMIT = 300  # seconds after which a process hangs, on a machine however busy
TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "12", "--epochs", "5", "--threads", "1", "--device", "cpu"]
TINY += ["--saliency.warmup-epochs", "1", "--schedule.lr", "0.1", "--run-dir", "run"]
# what a process trains is written beside the run, for the test to compare
RECORDER = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dataclasses import replace
from shapmix import train
from shapmix.training import build
from shapmix.training.eager_step import EagerStep
from tests.small_run import hold, leave_pictures_out, make_small, make_small_runs
splits = make_small()
leave_pictures_out(setattr)
if "DOUBLE" in os.environ:  # rounding apart, as a comparison over many steps needs it: ReLU and pooling make a jump of it
    torch.set_default_dtype(torch.float64)
    splits = replace(splits, store=replace(splits.store, frames=splits.store.frames.double()))
    make = build.make_network
    build.make_network = lambda config, store: make(config, store).double()
make_small_runs(setattr, splits)
rank, out = os.environ.get("RANK", "0"), Path(sys.argv[1])
step = EagerStep.forward_backward
def recorded(self, batch):
    logits, clean, mixed = step(self, batch)
    saliency = self.run.mixer.saliency.tolist()
    row = {"loss": [clean.item(), mixed.item()], "labels": batch.labels.tolist(), "saliency": saliency}
    row["rows"] = torch.cat(self.rows).tolist()
    with (out / f"steps{rank}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
    return logits, clean, mixed
EagerStep.forward_backward = recorded
hold(setattr)
sys.exit(train.main(sys.argv[2:]))
"""
BACKBONE = """
from torch import nn
def linear(*, layout, num_classes, num_people, in_channels):
    return nn.Sequential(nn.AdaptiveAvgPool3d((4, layout.num_joints, num_people)), nn.Flatten(),
                         nn.Linear(in_channels * 4 * layout.num_joints * num_people, num_classes))
"""


AUGMENT = ["--augment.mirror", "0.5", "--augment.stretch", "0.9", "1.1", "--augment.jitter", "0.01", "--augment.joint-drop", "0.05"]


def launch(
    processes: int, folder: Path, arguments: list[str], double: bool = False, hold_at: int | None = None
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "recorder.py").write_text(RECORDER)
    (folder / "backbone.py").write_text(BACKBONE)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *torchrun, "recorder.py", ".", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"DOUBLE": "1"} if double else {})}
    environment |= {} if hold_at is None else {HOLD_AT: str(hold_at)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    until = time.monotonic() + LIMIT
    while not (folder / "run/checkpoints/last.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def records(folder: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (folder / f"steps{rank}.jsonl").read_text().splitlines()]


def run(processes: int, folder: Path, *arguments: str, double: bool = False) -> list[list[dict]]:
    """The steps of every process."""
    process = launch(processes, folder, [*TINY, *arguments], double)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    assert "Warning" not in said
    return [records(folder, rank) for rank in range(processes)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, run(1, folder, *AUGMENT, double=True)[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, run(2, folder, *AUGMENT, double=True)


def test_two_processes_train_as_one(one: tuple[Path, list[dict]], two: tuple[Path, list[list[dict]]]) -> None:
    """20 steps at a learning rate that moves the weights: losses to 1e-6."""
    alone, (first, second) = one[1], two[1]
    assert len(alone) >= 20
    losses = [torch.tensor([step["loss"] for step in steps[:20]], dtype=torch.float64) for steps in (alone, first)]
    worst = float((losses[0] - losses[1]).abs().max())
    moved = abs(alone[0]["loss"][0] - alone[19]["loss"][0])
    print(f"\nlargest difference of a loss over 20 steps: {worst:.1e}; the loss moved by {moved:.2f}")
    assert moved > 0.1
    assert worst <= 1e-6
    for step, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        assert mine["saliency"] == theirs["saliency"], step
        assert mine["loss"] == theirs["loss"], step
        assert mine["labels"] == theirs["labels"] == alone[step]["labels"], step
        assert sorted(mine["rows"] + theirs["rows"]) == list(range(12)), step


@pytest.mark.slow
def test_sam_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """The weights are moved along the gradient of the whole batch, not along that of a process's clips."""
    options = ["--schedule.sam", "0.05", "--epochs", "2"]
    alone = run(1, tmp_path / "one", *options, double=True)[0]
    first, second = run(2, tmp_path / "two", *options, double=True)
    assert len(alone) == len(first) == 2 * 2 * STEPS  # two passes a step
    expected = torch.tensor([step["loss"] for step in alone], dtype=torch.float64)
    for steps in (first, second):
        torch.testing.assert_close(torch.tensor([step["loss"] for step in steps], dtype=torch.float64), expected, atol=1e-6, rtol=0)
    assert (expected[::2] - expected[1::2]).abs().min() > 1e-4  # the second pass is at other weights


@pytest.mark.slow
def test_clipped_and_smoothed_steps_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """The norm is that of the whole batch's gradient; an epoch passes twice over the clips, and the cosine goes by steps."""
    options = ["--schedule.clip-norm", "0.05", "--label-smoothing", "0.1", "--repeat", "2", "--epochs", "2"]
    options += ["--schedule.decay", "cosine", "--schedule.per", "step"]
    alone = run(1, tmp_path / "one", *options, double=True)[0]
    first, second = run(2, tmp_path / "two", *options, double=True)
    assert len(alone) == len(first) >= 2 * 2 * STEPS
    expected = torch.tensor([step["loss"] for step in alone], dtype=torch.float64)
    for steps in (first, second):
        torch.testing.assert_close(torch.tensor([step["loss"] for step in steps], dtype=torch.float64), expected, atol=1e-6, rtol=0)


def test_each_test_clip_counts_once(one: tuple[Path, list[dict]], two: tuple[Path, list[list[dict]]]) -> None:
    results = [json.loads((folder / "run/result.json").read_text())["test"]["shapmix last"] for folder, _ in (one, two)]
    assert results[0]["clips"] == results[1]["clips"]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(two: tuple[Path, list[list[dict]]], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    options = ["--network.backbone", "backbone:linear", "--schedule.decay", "step", "--schedule.milestones"]  # none: constant
    run(2, folder, *options, "--epochs", "2")
    process = launch(1, folder, ["--resume", "run", "--epochs", "3"])
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    whole = run(1, tmp_path / "whole", *options, "--epochs", "3")[0]
    resumed = records(folder)
    assert len(resumed) == len(whole)
    torch.testing.assert_close(
        torch.tensor([row["loss"] for row in resumed]), torch.tensor([row["loss"] for row in whole]), atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_accumulated_passes_are_the_same_step(tmp_path: Path) -> None:
    """Of a network without BatchNorm, whose meaning a pass changes."""
    backbone = ["--network.backbone", "backbone:linear"]
    whole = run(1, tmp_path / "whole", *backbone)[0]
    parts = run(1, tmp_path / "parts", *backbone, "--accumulate", "3")[0]
    both = run(2, tmp_path / "both", *backbone, "--accumulate", "2")[0]
    expected = torch.tensor([row["loss"] for row in whole], dtype=torch.float64)
    for other in (parts, both):
        torch.testing.assert_close(torch.tensor([row["loss"] for row in other], dtype=torch.float64), expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_the_job_goes_on(tmp_path: Path) -> None:
    process = launch(2, tmp_path, [*TINY, "--epochs", "100000", "--checkpoint.every-steps", "2"])
    wait_for_checkpoint(process, tmp_path)
    os.kill(workers_of(process.pid)["RANK=1"], signal.SIGKILL)
    killed = time.monotonic()
    said, _ = process.communicate(timeout=LIMIT)
    print(f"\nthe job ended {time.monotonic() - killed:.0f} s after the kill")
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in said
    assert "error: process 0 lost another process of the job" in said
    again = launch(2, tmp_path, ["--resume", "run", "--epochs", str(2 + last_epoch(tmp_path / "run"))])
    said, _ = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, said
    assert "resuming from run/checkpoints/last" in said


def workers_of(torchrun: int) -> dict[str, int]:
    """RANK=... -> process."""
    found = {}
    for worker in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        try:
            environment = Path(f"/proc/{worker}/environ").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):  # a child of another kind that has ended since
            continue
        found |= {entry: int(worker) for entry in environment if entry.startswith("RANK=")}
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_the_processes_end_with_torchrun_and_the_job_goes_on(tmp_path: Path) -> None:
    options = ["--network.backbone", "backbone:linear", "--checkpoint.every-minutes", "0"]
    run(2, tmp_path / "whole", *options)
    process = launch(2, tmp_path / "cut", [*TINY, *options], hold_at=6)
    wait_for_checkpoint(process, tmp_path / "cut")
    workers = workers_of(process.pid)
    assert sorted(workers) == ["RANK=0", "RANK=1"]
    process.kill()
    said, _ = process.communicate(timeout=LIMIT)  # the workers have ended when nobody can write any more
    assert process.returncode == -signal.SIGKILL
    until = time.monotonic() + LIMIT
    while any(map(is_running, workers.values())):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "SIGTERM: finishing the step, then saving" in said
    again = launch(2, tmp_path / "cut", ["--resume", "run"])
    said, _ = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, said
    whole, cut = (torch.load(tmp_path / name / "run/checkpoints/last.pt", weights_only=True) for name in ("whole", "cut"))
    for part in ("network", "mixer"):
        for name, value in whole[part].items():
            assert torch.equal(value, cut[part][name]), name


def errors_of(said: str, reason: str) -> bool:
    """Whether each process that had the time to speak wrote one line of this error: torchrun ends the others with the first."""
    lines = [line[: len(reason)] for line in said.splitlines() if line.startswith("error: ")]
    return 1 <= len(lines) <= 2 and set(lines) == {reason}


@pytest.mark.slow
def test_a_second_job_on_a_live_run_ends_with_one_line_a_process(tmp_path: Path) -> None:
    process = launch(2, tmp_path, [*TINY, "--network.backbone", "backbone:linear", "--epochs", "100000"])
    try:
        wait_for_checkpoint(process, tmp_path)
        for arguments, reason in (
            (["--resume", "run"], "error: run: process "),
            (TINY, "error: run directory run exists"),
            (["--resume", "run", "--mix", "none"], "error: run: process "),
        ):
            second = launch(2, tmp_path, arguments)
            said, _ = second.communicate(timeout=LIMIT)
            assert second.returncode == 1
            assert errors_of(said, reason)
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=LIMIT)
    assert "resume with --resume run" in said
    second = launch(2, tmp_path, ["--resume", "run", "--mix", "none"])
    said, _ = second.communicate(timeout=LIMIT)
    reason = "error: mix: the run was started with shapmix and cannot go on with none"
    assert errors_of(said, reason)


def test_a_signal_to_the_job_saves_once_and_the_job_goes_on(tmp_path: Path) -> None:
    process = launch(2, tmp_path, [*TINY, "--epochs", "100000", "--checkpoint.every-steps", "7"])
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert "resume with --resume run" in said
    stopped = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert stopped["epoch"] * STEPS + stopped["batch"] == len(records(tmp_path))  # not a step is lost


def last_epoch(run: Path) -> int:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["epoch"]


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    process = launch(2, tmp_path, [*TINY, "--batch-size", "13"])
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "batch_size 13 is not divisible by 2 processes times 1 passes; change one of them" in said


@pytest.mark.parametrize("name", ["broadcast_buffers", "forward_sync_buffers"])
@pytest.mark.parametrize("synced", [False, True])
def test_buffers_are_broadcast_once_a_step(synced: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By DistributedDataParallel before the forward, or by `copy_buffers` after it; torch 2.13 renamed its option."""
    given: list[dict[str, bool]] = []

    def before(network: nn.Module, *, broadcast_buffers: bool = True) -> None:
        given.append({"broadcast_buffers": broadcast_buffers})

    def now(network: nn.Module, *, forward_sync_buffers: bool = True) -> None:
        given.append({"forward_sync_buffers": forward_sync_buffers})

    monkeypatch.setattr(parallel, "ranks", lambda: 2)
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", before if name == "broadcast_buffers" else now)
    parallel.averaged_gradients(nn.BatchNorm1d(2), broadcast_buffers=synced)
    assert given == [{name: synced}]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("level", "spread"), [(1e8 / 3, 0.0), (1e6, 0.1), (1e4, 1.0), (0.0, 1.0)])
def test_a_synced_norm_keeps_its_digits_far_from_zero(
    level: float, spread: float, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch in float64; a second process would hold the same clips, so that every sum doubles."""
    monkeypatch.setattr(synced_norm, "summed", lambda x: x.mul_(processes))
    generator = torch.Generator().manual_seed(0)
    x = (level + spread * torch.randn(7, 3, 63, 5, generator=generator)).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    y, mean, variance, rows = synced_norm.synced_batch_norm(x, None, None, 1e-5)
    y64 = nn.functional.batch_norm(x64, None, None, training=True)
    spread64, mean64 = torch.var_mean(x64.detach(), (0, 2, 3), correction=0)
    assert int(rows) == processes * 7 * 63 * 5
    torch.testing.assert_close(mean.double(), mean64, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(variance.double(), spread64, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(y.double(), y64, rtol=1e-5, atol=1e-5)
    (y * y.detach().sin()).sum().backward()
    (y64 * y64.detach().sin()).sum().backward()
    assert x.grad is not None
    assert x64.grad is not None
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5 * float(x64.grad.abs().max()) + 1e-12)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False, momentum=None)])
def test_a_synced_norm_alone_is_torchs(norm: nn.Module) -> None:
    torch.manual_seed(0)
    shape = (5, 6, 7) if isinstance(norm, nn.BatchNorm1d) else (5, 6, 7, 3)
    ours = nn.Sequential(type(norm)(6, affine=norm.affine, momentum=norm.momentum)).double()
    norm = norm.double()
    synced_norm.sync_norms(ours)
    assert type(ours[0]) is synced_norm.SyncedBatchNorm
    for module in (norm, ours):
        for train in (True, True, False):
            module.train(train)
            torch.manual_seed(1)
            x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
            y = module(x)
            (y * y.detach().sin()).sum().backward()
            module.seen = (y.detach(), x.grad)
    for mine, theirs in zip(ours.seen, norm.seen, strict=True):
        torch.testing.assert_close(mine, theirs)
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[f"0.{key}"], value)
