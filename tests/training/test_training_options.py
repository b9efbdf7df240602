"""What a run can do besides: averages of weights, bf16, early stopping, a backbone of one's own, records, no leaks."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from shapmix import train
from shapmix.data import sampling
from shapmix.data.clips import Splits
from shapmix.data.sampling import ClipSampler
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.process import device
from shapmix.process.errors import RunError
from shapmix.training import baselines, build, metrics, trainer
from shapmix.training.eager_step import EagerStep

TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "3", "--threads", "1", "--device", "cpu"]
TINY += ["--saliency.warmup-epochs", "1"]

pytestmark = pytest.mark.usefixtures("small_data", "no_pictures")


def state(run: str, name: str = "last") -> dict:
    return torch.load(Path(run) / "checkpoints" / f"{name}.pt", weights_only=True)


def linear(*, layout: object, num_classes: int, num_people: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool3d((4, 25, 1)), nn.Flatten(), nn.Linear(in_channels * 100, num_classes))


def test_an_average_of_the_weights_is_evaluated_and_resumed(monkeypatch: pytest.MonkeyPatch, small_splits: Splits) -> None:
    arguments = [*TINY, "--ema", "0.9", "--checkpoint.every-steps", "2"]
    assert train.main([*arguments, "--run-dir", "whole"]) == 0
    step, calls = EagerStep.forward_backward, iter(range(10_000))

    def cut_off(*given: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(EagerStep, "forward_backward", cut_off)
    assert train.main([*arguments, "--run-dir", "cut"]) == 130
    assert train.main(["--resume", "cut"]) == 0
    whole, cut = state("whole"), state("cut")
    assert not torch.equal(whole["network"]["fc.weight"], whole["trained"]["fc.weight"])
    assert whole["averaged_steps"] == cut["averaged_steps"] == 3 * (len(small_splits.train) // 8)
    for name in ("network", "trained"):
        assert all(torch.equal(cut[name][key], value) for key, value in whole[name].items()), name


def test_bf16_runs_the_network_alone_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    forward = CTRGCN.forward

    def noted(self: CTRGCN, clips: torch.Tensor) -> torch.Tensor:
        logits = forward(self, clips)
        seen.add(logits.dtype)
        return logits

    monkeypatch.setattr(CTRGCN, "forward", noted)
    assert train.main([*TINY, "--precision", "bf16", "--force", "--run-dir", "run"]) == 0
    assert seen == {torch.bfloat16}
    final = state("run")
    assert {value.dtype for value in final["network"].values()} == {torch.float32, torch.int64}
    assert final["mixer"]["class_saliency.mean"].dtype == torch.float32
    assert (final["mixer"]["class_saliency.mean"] > 1e-6).any()


def test_early_stopping_stops_and_stays_stopped(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO", logger="shapmix")
    worse = iter(range(100))
    measure = metrics.accuracy

    def declining(*arguments: object) -> metrics.Accuracy:
        return replace(measure(*arguments), class_mean=1 / (1 + next(worse)))

    monkeypatch.setattr(metrics, "accuracy", declining)
    assert train.main([*TINY, "--epochs", "20", "--patience", "2", "--run-dir", "run"]) == 0
    assert (state("run")["epoch"], state("run", "best")["epoch"]) == (3, 1)
    assert "stopped early: the best of 3 epochs was epoch 1" in caplog.text
    assert train.main(["--resume", "run"]) == 0
    assert state("run")["epoch"] == 3


def test_a_backbone_of_ones_own() -> None:
    assert train.main([*TINY, "--network.backbone", f"{__name__}:linear", "--run-dir", "run"]) == 0
    assert list(state("run")["network"]) == ["2.weight", "2.bias"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_backbone_trains_as_the_eager_one() -> None:
    backbone = [*TINY, "--network.backbone", f"{__name__}:linear"]
    assert train.main([*backbone, "--run-dir", "eager"]) == 0
    assert train.main([*backbone, "--compile", "--run-dir", "compiled"]) == 0
    for name, value in state("eager")["network"].items():
        torch.testing.assert_close(state("compiled")["network"][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [("nowhere:net", "No module named 'nowhere'"), ("math:net", "module 'math' has no 'net'")],
)
def test_a_backbone_that_cannot_be_made_says_why(backbone: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*TINY, "--network.backbone", backbone]) == 2
    assert message in capsys.readouterr().err


def test_a_backbone_that_is_not_in_the_registry_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main([*TINY, "--network.backbone", "math"])
    assert "MODULE:FUNCTION" in capsys.readouterr().err


def poisoned(at: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`forward_backward` whose call number `at` finds a loss that is not finite, and leaves NaN in the statistics."""
    step, calls = EagerStep.forward_backward, iter(range(10_000))

    def once(self: EagerStep, *arguments: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, clean, mixed = step(self, *arguments)
        if next(calls) == at:
            for buffer in self.run.network.buffers():
                if buffer.is_floating_point():
                    buffer.fill_(math.nan)
            clean = clean * math.nan
        return logits, clean, mixed

    return once


def test_a_step_without_a_finite_loss_can_be_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(EagerStep, "forward_backward", poisoned(at=4))
    assert train.main([*TINY, "--non-finite", "skip", "--run-dir", "run"]) == 0
    assert "the loss of step 4 (epoch 1) is nan and the step is skipped; clips of the batch: train_c0" in caplog.text
    assert all(value.isfinite().all() for value in state("run")["network"].values())
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped_steps") for row in rows] == [1, None, None]
    assert all(math.isfinite(row["loss_clean"]) for row in rows)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--compat", "official"],
        ["--ema", "0.9", "--saliency.estimator", "exact"],
        ["--rule.partner", "inverse", "--rule.align", "--rule.outside", "weigh"],
    ],
)
def test_a_clip_that_is_not_finite_is_left_out_of_all_state(
    options: list[str], monkeypatch: pytest.MonkeyPatch, small_splits: Splits
) -> None:
    """Its steps change nothing: weights, their average, optimizer, running statistics, saliency, mean motion."""
    view, bad = ClipSampler.training, int(small_splits.train[3])

    def broken(self: ClipSampler, clips: torch.Tensor, step: int) -> torch.Tensor:
        views = view(self, clips, step)
        views[clips == bad, :, 3] = math.nan
        return views

    def values(state: object) -> list[torch.Tensor]:
        if isinstance(state, dict | list | tuple):
            return [value for part in (state.values() if isinstance(state, dict) else state) for value in values(part)]
        return [state] if isinstance(state, torch.Tensor) else []

    monkeypatch.setattr(ClipSampler, "training", broken)
    seen, save = [], trainer.snapshot
    monkeypatch.setattr(trainer, "snapshot", lambda *given: seen.append(copy.deepcopy(save(*given))) or seen[-1])
    arguments = [*TINY, *options, "--non-finite", "skip", "--checkpoint.every-steps", "1", "--run-dir", "run"]
    assert train.main(arguments) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("skipped_steps", 0) for row in rows) >= 2
    assert all(value.isfinite().all() for state in seen for value in values(state))
    skipping = [
        (earlier, later)
        for earlier, later in itertools.pairwise(seen)
        if earlier["epoch"] == later["epoch"] and later["skipped"] > earlier["skipped"]
    ]
    assert skipping
    for earlier, later in skipping:
        kept = ("network", "mixer", "optimizer", "trained", "averaged_steps")
        before, after = ([value for name in kept if name in state for value in values(state[name])] for state in (earlier, later))
        assert len(before) == len(after) > 100
        assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))


@pytest.mark.parametrize("skip", [False, True])
def test_an_infinite_gradient_of_a_finite_loss_updates_nothing(
    skip: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = EagerStep.forward_backward, iter(range(10_000))

    def once(self: EagerStep, *arguments: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = step(self, *arguments)
        if next(calls) == 4:
            dict(self.run.network.named_parameters())["fc.weight"].grad[0, 0] = math.inf
        return found

    monkeypatch.setattr(EagerStep, "forward_backward", once)
    options = ["--non-finite", "skip"] if skip else []
    assert train.main([*TINY, *options, "--run-dir", "run"]) == (0 if skip else 2)
    said = caplog.text if skip else capsys.readouterr().err
    assert "the gradient of step 4 (epoch 1) is not finite (first in fc.weight)" in said
    final = state("run", "last" if skip else "failed")
    assert all(value.isfinite().all() for value in (final["network"] | final["mixer"]).values())
    assert all(value.isfinite().all() for each in final["optimizer"]["state"].values() for value in each.values())


def test_what_is_saved_of_a_failure_is_the_state_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EagerStep, "forward_backward", poisoned(at=4))
    assert train.main([*TINY, "--run-dir", "run"]) == 2
    failed = state("run", "failed")
    assert all(value.isfinite().all() for value in (failed["network"] | failed["mixer"]).values())


@pytest.mark.parametrize("name", ["cuda:1", "cuda", "auto"])
def test_a_gpu_becomes_the_current_one_before_anything_is_launched(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    current: list[torch.device] = []

    def enough(config: object) -> Splits:
        raise RunError(f"data is read with {current[-1]} as the current device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(baselines, "load_splits", enough)
    assert train.main([*TINY, "--device", name, "--run-dir", "run"]) == 2
    assert f"with cuda:{1 if name == 'cuda:1' else 0} as the current device" in capsys.readouterr().err
    assert device.choose_device("cuda:1") == current[-1] == torch.device("cuda:1")  # what the other commands call
    assert device.choose_device("cpu") == torch.device("cpu")
    assert len(current) == 2


def test_the_thread_that_makes_batches_has_the_same_current_device(monkeypatch: pytest.MonkeyPatch, small_splits: Splits) -> None:
    """Pinned memory is made on a thread's current device, which is 0 at first."""
    current: list[tuple[torch.device, bool]] = []
    in_thread = threading.get_ident()
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append((device, threading.get_ident() != in_thread)))
    monkeypatch.setattr(sampling, "_copied", lambda sampler, chosen, step, views, device: chosen)
    sampler = ClipSampler(small_splits.store, "crop", "joint", 8)
    made = list(sampling.training_batches(sampler, [(small_splits.train[:4], 0)], torch.device("cuda:1")))
    assert len(made) == 1
    assert current == [(torch.device("cuda:1"), True)]


def test_records_say_what_a_run_was(
    small_splits: Splits, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.main([*TINY, "--epochs", "2", "--run-dir", "run"]) == 0
    (record,) = [json.loads(line) for line in Path("run/environment.jsonl").read_text().splitlines()]
    assert record["versions"]["torch"] == torch.__version__
    assert record["processes"] == 1
    assert len(record["data_sha256"]) == 64
    assert record["commit"] is None or len(record["commit"].rstrip("+")) == 40
    store = small_splits.store
    changed = replace(small_splits, store=replace(store, frames=store.frames + 1e-3))
    monkeypatch.setattr(build, "read_splits", lambda config: changed)
    assert train.main(["--resume", "run", "--epochs", "3"]) == 2
    assert "the data differs from that of the run" in capsys.readouterr().err


def test_tensorboard_shows_saliency_and_a_mixed_clip() -> None:
    assert train.main([*TINY, "--mix", "stmix", "--run-dir", "st", "--picture-every", "2"]) == 0
    assert train.main([*TINY, "--run-dir", "shap", "--picture-every", "2"]) == 0
    tags = {}
    for run in ("st", "shap"):
        events = EventAccumulator(f"{run}/tensorboard", size_guidance={"images": 0})
        events.Reload()
        tags[run] = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
        assert {"loss_clean", "val_class_mean", "clips_per_second", "data_wait"} <= set(events.Tags()["scalars"])
    assert tags["st"] == {"mixed_clip": [2, 3]}
    assert tags["shap"]["saliency"] == [2, 3]


def test_deterministic_is_of_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not fill every new tensor, which is a pass over each."""
    step, seen, fills = EagerStep.forward_backward, set(), torch.utils.deterministic

    def noted(*given: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen.add((torch.are_deterministic_algorithms_enabled(), fills.fill_uninitialized_memory))
        return step(*given)

    monkeypatch.setattr(EagerStep, "forward_backward", noted)
    assert train.main([*TINY, "--deterministic", "--run-dir", "run"]) == 0
    assert seen == {(True, False)}
    assert not torch.are_deterministic_algorithms_enabled()
    assert fills.fill_uninitialized_memory


def test_an_unknown_preset_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--preset", "ntu61"]) == 2
    assert "preset: 'ntu61' is unknown; give one of kinetics, ntu120" in capsys.readouterr().err


LEAKS = """
import gc, json, os, sys, threading
from shapmix import train
from shapmix.training.eager_step import EagerStep
step, seen, calls = EagerStep.forward_backward, [], [0]
def counted(*arguments):
    result = step(*arguments)
    calls[0] += 1
    if calls[0] % 500 == 0:
        gc.collect()
        resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        seen.append([calls[0], resident, len(os.listdir("/proc/self/fd")), threading.active_count()])
    return result
EagerStep.forward_backward = counted
code = train.main(sys.argv[1:])
print(json.dumps(seen))
sys.exit(code)
"""


@pytest.mark.slow
def test_two_thousand_steps_leak_nothing(tmp_path: Path) -> None:
    """Resident memory, open files and threads at steps 1,000 and 3,000, with evaluations, checkpoints and pictures between them."""
    arguments = [
        *TINY,
        "--n-max",
        "24",
        "--imbalance",
        "8",
        "--epochs",
        "150",
        "--picture-every",
        "20",
        "--checkpoint.every-steps",
        "5",
    ]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    process = subprocess.run(
        [sys.executable, "-c", LEAKS, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    seen = json.loads(process.stdout.splitlines()[-1])
    print("\nsteps, MB, files, threads:", [[steps, round(resident / 1e6, 1), *more] for steps, resident, *more in seen])
    rows = {row[0]: row[1:] for row in seen}  # by step 1,000 the first pictures have loaded matplotlib's fonts
    assert rows[3000][0] - rows[1000][0] < 2e6
    assert rows[3000][1:] == rows[1000][1:]
