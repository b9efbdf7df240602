"""The trainer end to end, on data small enough to train in seconds."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from shapmix import train
from shapmix.process.errors import RunError
from shapmix.training import trainer
from shapmix.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from shapmix.training.run_folder import forget_later_epochs, read_metrics
from shapmix.training.trainer import Trainer
from tests.small_run import make_small

SMALL = ["--num-frames", "16", "--network.widths", "8", "16", "--network.halve", "1", "--batch-size", "8", "--epochs", "3"]
SMALL += ["--saliency.warmup-epochs", "1", "--threads", "1", "--device", "cpu"]  # bit for bit is the CPU's promise

pytestmark = pytest.mark.usefixtures("small_data", "no_pictures")


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
    return {
        **state["network"],
        "saliency": state["mixer"]["class_saliency.mean"],
        "measured": state["mixer"]["class_saliency.measured"],
    }


@pytest.mark.parametrize("mix", ["none", "mixup", "stmix", "shapmix"])
def test_a_run_leaves_everything_it_promises(mix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--mix", mix]) == 0
    run = Path("runs") / f"synthetic-{mix}-1"
    expected = ["config.yaml", "environment.jsonl", "metrics.jsonl", "result.json", "tensorboard", "checkpoints"]
    expected += [
        f"{stem}_{name}.{kind}" for stem, kind in (("per_class", "csv"), ("confusion", "png")) for name in ("last", "best")
    ]
    expected += ["saliency.png"] if mix == "shapmix" else []
    expected += ["mixed_clip.png"] if mix == "stmix" else []  # Mixup pastes no window
    # three epochs may not draw the combination that the saliency ranks first
    assert sorted(path.name for path in run.iterdir() if mix != "shapmix" or path.name != "mixed_clip.png") == sorted(expected)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(line["clips_per_second"] > 0 and "val_class_mean" in line for line in lines)
    assert all((line["loss_mixed"] > 0) == (mix != "none") for line in lines)
    result = json.loads((run / "result.json").read_text())
    printed = capsys.readouterr().out
    for name in ("last", "best"):
        row = result["test"][f"{mix} {name}"]
        assert row["clips"] == 12
        assert f"{mix} {name}" in printed
        assert f"{100 * row['top1']:.1f}%" in printed
    assert result["test"][f"{mix} last"]["many"] is None  # no class has more than 100 clips
    splits = make_small()
    names = sorted(splits.store.names[clip] for clip in splits.train.tolist())
    assert result["training_list"] == hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert "n/a" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        ["--mix", "shapmix"],
        ["--saliency.estimator", "exact"],
        ["--compat", "official", "--stream", "bone"],
        ["--saliency.estimator", "official", "--saliency.budget", "1", "--saliency.every", "2"],
        [
            "--rule.partner",
            "inverse",
            "--rule.align",
            "--rule.outside",
            "weigh",
            "--rule.unit",
            "layout",
            "--rule.fresh",
            "--rule.windows",
            "clip",
        ],
    ],
)
def test_a_resumed_run_equals_the_undisturbed_one_bit_for_bit(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.main([*SMALL, *options, "--run-dir", "whole"]) == 0
    save = trainer.save_checkpoint

    class KilledError(BaseException):
        pass

    def save_then_die(path: Path, state: dict, *, keep: int = 1) -> None:
        save(path, state, keep=keep)
        if path.name == "last.pt" and state["epoch"] == 2:
            raise KilledError

    monkeypatch.setattr(trainer, "save_checkpoint", save_then_die)
    with pytest.raises(KilledError):
        train.main([*SMALL, *options, "--run-dir", "cut"])
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    assert train.main(["--resume", "cut"]) == 0
    whole, cut = weights(Path("whole")), weights(Path("cut"))
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(cut[name], tensor), name
    results = [json.loads((Path(run) / "result.json").read_text())["test"] for run in ("whole", "cut")]
    assert results[0] == results[1]


def test_the_same_seed_gives_the_same_run_and_another_does_not() -> None:
    for run, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train.main([*SMALL, "--epochs", "2", "--seed", seed, "--run-dir", run]) == 0
    a, b, c = (weights(Path(run)) for run in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["fc.weight"], c["fc.weight"])


def test_baselines_stand_beside_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--rule.align", "--baselines", "plain", "balanced"]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[-6:]]
    assert rows == [f"{name} {kind}" for name in ("shapmix", "plain", "balanced") for kind in ("last", "best")]
    assert "loss: ce" in Path("runs/synthetic-shapmix-1/plain/config.yaml").read_text()


def test_run_directories_are_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert train.main([*SMALL, "--mix", "none", "--epochs", "1"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"synthetic-none-1", "synthetic-none-2"}
    before = weights(Path("runs/synthetic-none-1"))
    assert train.main([*SMALL, "--run-dir", "runs/synthetic-none-1"]) == 2
    assert "exists; give a different --run-dir, or --resume runs/synthetic-none-1" in capsys.readouterr().err
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(Path("runs/synthetic-none-1")).items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run-dir", "file/run"], "cannot be created: "),
        (["--batch-size", "500"], "batch_size 500 is more than the .* training clips"),
        (["--device", "cuda:99"], "device 'cuda:99': "),
        (["--num-people", "3"], "num_people: 3 requested, but the clips have 2"),
        (
            ["--saliency.budget", "0.1", "--batch-size", "8"],
            "saliency.budget: estimator 'exact_subset' needs a budget of at least 3.875 forward passes per clip in batches of 8",
        ),
        (["--device", "gpu"], "device 'gpu': choose auto, cpu, cuda or cuda:N"),
        (["--resume", "nowhere"], "nowhere/config.yaml: cannot read the configuration"),
        (["--cuda-graph", "always"], "cuda_graph: the step cannot be captured as a CUDA graph: the device is cpu"),
    ],
)
def test_what_cannot_start_says_why(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if arguments[1] == "cuda:99" and torch.cuda.is_available():
        pytest.skip("the message is for machines without a GPU")
    Path("file").write_text("")
    assert train.main([*SMALL, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_loss_that_is_not_finite_names_the_clips(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--schedule.lr", "1e30", "--schedule.warmup-epochs", "0"]) == 2
    message = capsys.readouterr().err
    assert "the loss of step" in message
    assert "clips of the batch: train_c0" in message
    failed = Path("runs/synthetic-shapmix-1/checkpoints/failed.pt")
    assert f"the state before its update is saved in {failed}" in message
    step = int(re.search(r"the loss of step (\d+)", message).group(1))
    state = torch.load(failed, weights_only=True)
    assert state["epoch"] * 6 + state["batch"] == step


def test_checkpoints_of_another_layout_or_class_count_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--mix", "none", "--epochs", "1", "--run-dir", "run"]) == 0
    path = Path("run/checkpoints/last.pt")
    names = torch.load(path, weights_only=True)["class_names"]
    load_checkpoint(path, layout="ntu25", class_names=names)
    with pytest.raises(CheckpointError, match="trained on layout 'ntu25', the data has layout 'coco17'"):
        load_checkpoint(path, layout="coco17", class_names=names)
    with pytest.raises(CheckpointError, match="trained on 4 classes, the data has 5"):
        load_checkpoint(path, layout="ntu25", class_names=[*names, "more"])
    with pytest.raises(CheckpointError, match=f"class 3 was '{names[3]}', in the data it is 'other'"):
        load_checkpoint(path, layout="ntu25", class_names=[*names[:3], "other"])
    assert train.main(["--resume", "run", "--epochs", "2", "--network.widths", "8", "8"]) == 2
    assert "network.widths: the run was started with [8, 16] and cannot go on with [8, 8]" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_damaged_checkpoints_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"layout": "ntu25", "class_names": ["a"], "network": {"w": torch.zeros(1000)}})
    content = {"truncated": path.read_bytes()[:2000], "text": b"hello", "empty": b"", "missing": None}[damage]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt: (damaged or not a checkpoint|no such checkpoint)"):
        load_checkpoint(path, layout="ntu25", class_names=["a"])


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    state = {"layout": "ntu25", "class_names": ["a"], "network": {"w": torch.ones(3)}}
    save_checkpoint(path, state)

    class Unwritable:
        def __reduce__(self) -> str:
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        save_checkpoint(path, {**state, "extra": Unwritable()})
    assert torch.equal(load_checkpoint(path, layout="ntu25", class_names=["a"])["network"]["w"], torch.ones(3))


class Broken(torch.nn.Module):
    """Works in eval mode, in which a network is tried out before the first step."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.layers(clips[:, :1] if self.training else clips)


def broken(*, layout: object, num_classes: int, num_people: int, in_channels: int) -> torch.nn.Module:
    return Broken(num_classes)


def test_what_stops_before_its_first_step_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--batch-size", "500"], ["--cuda-graph", "always"], ["--network.backbone", "nowhere:net"]):
        assert train.main([*SMALL, *arguments, "--run-dir", "run"]) == 2
        assert not Path("run").exists()
    with pytest.raises(RuntimeError):  # in the first step
        train.main([*SMALL, "--network.backbone", f"{__name__}:broken", "--mix", "none", "--loss", "ce", "--run-dir", "run"])
    assert not Path("run").exists()
    with pytest.raises(RuntimeError):
        train.main([*SMALL, "--network.backbone", f"{__name__}:broken"])
    assert not list(Path("runs").iterdir())
    capsys.readouterr()


def test_a_folder_in_which_no_step_was_saved_is_taken_by_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As a kill between the start and the first checkpoint leaves it; other folders are not touched."""
    run = Path("run")
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "environment.jsonl", "lock", "config.yaml.3-1.tmp"):
        (run / name).write_text("")
    quick = [*SMALL, "--epochs", "1", "--mix", "none"]
    assert train.main([*quick, "--run-dir", "run"]) == 0
    assert not (run / "lock").exists()
    for foreign in ("photos", "checkpoints"):
        Path("other", foreign).mkdir(parents=True)
        Path("other", foreign, "mine").write_text("")
        assert train.main([*quick, "--run-dir", "other"]) == 2
        assert "run directory other exists" in capsys.readouterr().err
        assert Path("other", foreign, "mine").exists()
        Path("other", foreign, "mine").unlink()
        Path("other", foreign).rmdir()


def test_a_baseline_that_stopped_before_its_first_step_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*SMALL, "--epochs", "1", "--saliency.warmup-epochs", "0", "--mix", "none", "--baselines", "plain"]
    step = Trainer.train_epoch

    def fails_below(self: Trainer) -> dict[str, float]:
        if self.run_dir.name == "plain":
            raise ZeroDivisionError
        return step(self)

    monkeypatch.setattr(Trainer, "train_epoch", fails_below)
    with pytest.raises(ZeroDivisionError):
        train.main([*arguments, "--run-dir", "run"])
    assert not Path("run/plain").exists()
    monkeypatch.setattr(Trainer, "train_epoch", step)
    assert train.main(["--resume", "run"]) == 0
    assert "plain last" in Path("run/result.json").read_text()


@pytest.fixture
def two_epochs(capsys: pytest.CaptureFixture[str]) -> Path:
    assert train.main([*SMALL, "--mix", "none", "--epochs", "2", "--run-dir", "run"]) == 0
    capsys.readouterr()
    return Path("run")


def rates(run: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_as_it_was_started(two_epochs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in two_epochs.rglob("*") if path.is_file()}
    refused = [("mix", "stmix"), ("loss", "ce"), ("stream", "bone"), ("batch-size", "4"), ("schedule.lr", "0.5"), ("seed", "3")]
    refused += [("saliency.temperature", "0.3"), ("saliency.estimator", "chain"), ("compat", "official"), ("ema", "0.5")]
    refused += [("saliency.budget", "1.5"), ("saliency.every", "2")]
    for option, value in refused:
        assert train.main(["--resume", "run", "--epochs", "3", f"--{option}", value]) == 2
        key = option.replace("-", "_")
        assert re.search(f"error: {key}: the run was started with .* and cannot go on with {value};", capsys.readouterr().err)
    assert train.main(["--resume", "run", "--epochs", "1"]) == 2
    assert "epochs: the run is in epoch 2 and cannot end after 1" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in two_epochs.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("decay", ["step", "cosine"])
def test_more_epochs_are_recorded_and_the_schedule_is_theirs(decay: str) -> None:
    """The rate of an epoch is a function of the configuration, however often its number of epochs was changed."""
    quick = [*SMALL, "--mix", "none", "--schedule.decay", decay, "--schedule.warmup-epochs", "2", "--eval-every", "9"]
    assert train.main([*quick, "--epochs", "5", "--run-dir", "whole"]) == 0
    assert train.main([*quick, "--epochs", "2", "--run-dir", "run"]) == 0
    assert train.main(["--resume", "run", "--epochs", "5", "--picture-every", "4"]) == 0
    assert rates(Path("run"))[2:] == rates(Path("whole"))[2:]
    starts = [json.loads(line)["changed"] for line in Path("run/environment.jsonl").read_text().splitlines()]
    assert starts == [{}, {"epochs": [2, 5], "picture_every": [10, 4]}]
    assert "epochs: 5\n" in Path("run/config.yaml").read_text()


@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_a_run_without_its_best_checkpoint_ends(damage: bytes | None, two_epochs: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = two_epochs / "checkpoints/best.pt"
    best.unlink() if damage is None else best.write_bytes(damage)
    assert train.main(["--resume", "run"]) == 0
    assert re.search(r"best\.pt: .*; the result is of the last checkpoint alone", caplog.text)
    assert set(json.loads((two_epochs / "result.json").read_text())["test"]) == {"none last"}
    assert train.main(["--resume", "run", "--epochs", "3"]) == 0
    assert "the best of the following epochs replaces it" in caplog.text
    assert set(json.loads((two_epochs / "result.json").read_text())["test"]) == {"none last", "none best"}


def test_damaged_lines_of_the_metrics_are_named_and_left_out(two_epochs: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = two_epochs / "metrics.jsonl"
    good = path.read_text().splitlines()
    for bad in (b"{", b"[" * 5000, b"3", b"{}", b'{"epoch": "1"}', b'{"epoch": true}', b"\xff", b"9" * 5000):
        path.write_bytes(good[0].encode() + b"\n" + bad + b"\n" + good[1].encode())
        with pytest.raises(RunError, match="line 2 is not the record of an epoch"):
            read_metrics(path)
        caplog.clear()
        forget_later_epochs(path, 2)
        assert "metrics.jsonl: line 2 is not the record of an epoch and was removed" in caplog.text
        assert path.read_text().splitlines() == good
