"""Runs that start from trained weights: what is loaded, reset, frozen and refused, and the second stages of training."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from shapmix import evaluate, train
from shapmix.data.synthetic import make_synthetic
from shapmix.networks.backbones import BACKBONES
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.skeleton.layout import load_layout
from shapmix.training import build
from shapmix.training.checkpoint import CheckpointError, save_checkpoint
from shapmix.training.config import parse_config
from shapmix.training.options import ConfigError
from shapmix.training.start import load_network
from shapmix.training.weights import read_saliency, read_weights
from tests.small_run import make_small_runs

SHORT = ["--batch-size", "8", "--epochs", "2", "--threads", "1", "--device", "cpu"]
TINY = [*SHORT, "--num-frames", "8", "--network.widths", "8", "16", "--saliency.warmup-epochs", "1"]

READ_SPLITS = build.read_splits
MIXED = ["--mix", "shapmix", "--loss", "balanced", "--saliency.warmup-epochs", "1", "--ema", "0.9"]

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def first(small_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    run = tmp_path_factory.mktemp("first") / "run"
    assert train.main([*TINY, "--run-dir", str(run)]) == 0
    return run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def state_of(run: Path | str, name: str = "last") -> dict:
    return torch.load(Path(run) / "checkpoints" / f"{name}.pt", weights_only=True)


def network_of(run: Path | str) -> dict[str, torch.Tensor]:
    return state_of(run)["network"]


def kept(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if name in after and torch.equal(before[name], after[name])}


# What is loaded


def test_a_run_starts_from_another_and_records_which(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shapmix")
    # one frozen pass shows that the weights are those of the file: nothing but the head's bias has moved
    assert train.main([*TINY, "--init-from", str(first), "--freeze", "backbone", "head.weight", "--run-dir", "next"]) == 0
    before, after = network_of(first), network_of("next")
    assert set(before) - kept(before, after) == {"fc.bias"}
    assert f"{first}/checkpoints/last.pt: {len(before)} tensors loaded" in caplog.text
    parameters = sum(value.numel() for name, value in before.items() if "running" not in name and "num_batches" not in name)
    assert f"4 trained of {parameters:,} parameters" in caplog.text
    (line,) = map(json.loads, Path("next/environment.jsonl").read_text().splitlines())
    assert line["started_from"] == {"init_from": read_weights(first).record}
    config = yaml.safe_load(Path("next/config.yaml").read_text())
    assert config["init_from"] == str(first.resolve())
    assert config["freeze"] == ["backbone", "head.weight"]
    # the optimizer has a state for what it trains, and for nothing else
    assert len(state_of("next")["optimizer"]["param_groups"][0]["params"]) == 1


@pytest.mark.parametrize("name", ["run", "checkpoints/last.pt", "copy.pt"])
def test_the_network_of_a_run_is_taken_over(first: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = first if name == "run" else first / name
    if name == "copy.pt":
        given = Path(name)
        given.write_bytes((first / "checkpoints" / "last.pt").read_bytes())
    code = train.main(
        [*SHORT, "--num-frames", "8", "--saliency.warmup-epochs", "1", "--init-from", str(given), "--run-dir", "next"]
    )
    if name == "copy.pt":  # a file alone does not say which network it is of
        assert code == 2
        assert "does not fit network.backbone 'ctrgcn'" in capsys.readouterr().err
        assert not Path("next").exists()
        return
    assert code == 0
    assert parse_config(["--config", "next/config.yaml"]).network.widths == (8, 16)


def test_another_number_of_classes_resets_the_head(
    first: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "shapmix")
    eight = make_synthetic(num_classes=8, n_max=24, imbalance=3, val_per_class=2, test_per_class=3)
    make_small_runs(monkeypatch.setattr, eight)
    assert train.main([*TINY, "--init-from", str(first), "--freeze", "backbone", "--run-dir", "eight"]) == 0
    assert "fc.weight, fc.bias reset (4 classes there, 8 here)" in caplog.text
    before, after = network_of(first), network_of("eight")
    assert set(before) - kept(before, after) == {"fc.weight", "fc.bias"}
    assert len(after["fc.weight"]) == 8


def test_other_classes_of_the_same_number_reset_the_head(first: Path) -> None:
    config = parse_config([*TINY, "--init-from", str(first)])
    splits = build.load_splits(config)
    network = build.make_network(config, splits.store)
    weights = read_weights(first)
    names = list(splits.store.class_names)
    names[2] = "other"
    fresh = network.fc.weight.detach().clone()
    loaded = load_network(network, weights, config, replace(splits.store, class_names=names))
    assert loaded.anew == dict.fromkeys(("fc.weight", "fc.bias"), f"class 2 is '{weights.class_names[2]}' there, 'other' here")
    assert torch.equal(network.fc.weight, fresh)


def test_what_is_reset_has_its_initial_values(first: Path) -> None:
    frozen = ["--freeze", "backbone", "head.weight"]
    assert train.main([*TINY, "--init-from", str(first), "--reset", "l2", "*.PA", "head", *frozen, "--run-dir", "next"]) == 0
    torch.manual_seed(0)
    config = parse_config(["--config", "next/config.yaml"])
    fresh = build.make_network(config, build.load_splits(config).store).state_dict()
    before, after = network_of(first), network_of("next")
    for name, value in after.items():
        source = fresh if name.startswith(("l2.", "fc.")) or name.endswith(".PA") else before
        assert torch.equal(value, source[name]) == (name != "fc.bias"), name


def test_a_head_that_the_file_lacks_is_reset(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shapmix")
    without = {name: value for name, value in network_of(first).items() if not name.startswith("fc.")}
    torch.save(without, "without_fc.pt")
    assert train.main([*TINY, "--init-from", "without_fc.pt", "--freeze", "backbone", "--run-dir", "next"]) == 0
    assert "fc.weight, fc.bias reset (the file has no head)" in caplog.text
    assert kept(without, network_of("next")) == set(without)


def test_fewer_people_use_the_norm_of_the_first(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shapmix")
    two = CTRGCN(load_layout("ntu25"), 4, num_people=2, widths=(8, 16))
    torch.save({"state_dict": two.state_dict()}, "two.pt")
    assert train.main([*TINY, "--init-from", "two.pt", "--num-people", "1", "--freeze", "backbone", "--run-dir", "next"]) == 0
    assert "the input norm is of 2 people, of whom the first one is used" in caplog.text


# Second stages


@pytest.mark.parametrize("stage", ["crt", "lws"])
@pytest.mark.parametrize("options", [[], MIXED])
def test_a_second_stage_trains_the_head_alone(first: Path, stage: str, options: list[str]) -> None:
    assert train.main(["--stage2", stage, "--init-from", str(first), *SHORT, *options, "--run-dir", stage]) == 0
    before, after = network_of(first), network_of(stage)
    changed = {"fc.weight", "fc.bias"} if stage == "crt" else {"fc.scale"}
    moved = set(after) - kept(before, after)
    # the average of a counter is rounded
    assert {name for name in moved if "num_batches_tracked" not in name or "--ema" not in options} == changed
    config = parse_config(["--config", f"{stage}/config.yaml"])
    assert (config.sampler, config.network.widths, config.num_frames, config.stage2) == ("class_balanced", (8, 16), 8, stage)
    assert (config.mix, config.loss) == (("shapmix", "balanced") if options else ("none", "ce"))
    assert config.network.class_scale == (stage == "lws")
    assert evaluate.main([stage, "--device", "cpu"]) == 0
    result = json.loads(Path(stage, "evaluation/result.json").read_text())
    assert result["top1"] == pytest.approx(json.loads(Path(stage, "result.json").read_text())["test"][f"{config.mix} last"]["top1"])


def test_a_second_stage_resumes_bit_for_bit_without_the_file(first: Path) -> None:
    Path("start").mkdir()
    for name in ("config.yaml", "checkpoints"):
        os.symlink(first / name, f"start/{name}")
    options = ["--stage2", "crt", "--init-from", "start", *SHORT, "--schedule.decay", "step", "--schedule.milestones", "1"]
    assert train.main([*options, "--epochs", "4", "--run-dir", "same"]) == 0
    assert train.main([*options, "--run-dir", "cut"]) == 0
    (Path("start") / "checkpoints").unlink()  # the file is gone
    assert train.main(["--resume", "cut", "--epochs", "4"]) == 0
    assert kept(network_of("same"), network_of("cut")) == set(network_of("same"))
    lines = [json.loads(line)["started_from"] for line in Path("cut/environment.jsonl").read_text().splitlines()]
    assert [bool(line) for line in lines] == [True, False]


def test_the_factors_of_a_stage_fold_into_a_plain_head(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shapmix")
    assert train.main(["--stage2", "lws", "--init-from", str(first), *SHORT, "--run-dir", "lws"]) == 0
    options = ["--init-from", "lws", "--network.no-class-scale", "--freeze", "backbone", "head.weight"]
    assert train.main([*TINY, *options, "--run-dir", "plain"]) == 0
    scaled, plain = network_of("lws"), network_of("plain")
    torch.testing.assert_close(plain["fc.weight"], scaled["fc.weight"] * scaled["fc.scale"][:, None])
    assert "fc.scale" not in plain
    assert "multiplied into its head" in caplog.text


def test_a_stage_in_a_file_yields_to_the_file(first: Path) -> None:
    Path("mine.yaml").write_text(f"stage2: crt\ninit_from: {first}\nepochs: 3\n")
    config = parse_config(["--config", "mine.yaml"])
    assert (config.epochs, config.sampler, config.freeze) == (3, "class_balanced", ("backbone",))
    Path("mine.yaml").write_text("stage2: ctr\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: stage2: 'ctr' is unknown; give one of crt, lws"):
        parse_config(["--config", "mine.yaml"])
    for option in (["--stage2", "crt"], ["--freeze", "head"], ["--reset", "head"]):
        with pytest.raises(ConfigError, match="there are no trained weights; give --init-from FILE"):
            parse_config(option)


# Saliency


def test_the_saliency_of_a_run_and_of_a_table_is_taken_over(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shapmix")
    table = state_of(first)["mixer"]["class_saliency.mean"]
    still = ["--saliency.decay", "1", "--run-dir"]  # no measurement changes it
    assert train.main([*TINY, "--saliency-from", str(first), *still, "ours"]) == 0
    np.save("table.npy", table.double().numpy())
    assert train.main([*TINY, "--saliency-from", "table.npy", *still, "theirs"]) == 0
    for run in ("ours", "theirs"):
        torch.testing.assert_close(state_of(run)["mixer"]["class_saliency.mean"], table, rtol=1e-6, atol=0)
    assert "saliency of 4 classes loaded; mixing is guided from the first step" in caplog.text
    (line,) = map(json.loads, Path("theirs/environment.jsonl").read_text().splitlines())
    assert line["started_from"]["saliency_from"]["file"] == str(Path("table.npy").resolve())
    assert train.main(["--resume", "theirs", "--epochs", "3"]) == 0


def test_a_table_that_does_not_fit_says_so(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("wrong.npy", np.zeros((5, 20)))
    np.save("objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    Path("text.npy").write_text("none")
    Path("empty.npy").write_bytes(b"")
    nan = np.zeros((4, 20))
    nan[1, 1] = np.nan
    np.save("nan.npy", nan)
    for name, message in {
        "wrong.npy": "the table of saliency is [5, 20]; it needs [4, 20]",
        "objects.npy": "neither a checkpoint nor a table of numbers",
        "text.npy": "neither a checkpoint nor a table of numbers",
        "empty.npy": "neither a checkpoint nor a table of numbers",
        "nan.npy": "'the table of saliency' is not finite",
        "absent.npy": "no such file",
    }.items():
        assert train.main([*TINY, "--saliency-from", name, "--run-dir", "next"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: {name}: ")
        assert message in said
        assert not Path("next").exists()
    np.save("table.npy", np.zeros((4, 20)))
    pairs = ["--saliency-from", "table.npy", "--saliency.estimator", "pair_table"]
    assert train.main([*TINY, *pairs, "--run-dir", "next"]) == 2
    assert "averages pairs of coalitions" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"the data has layout 'ntu25' and the 2 classes a, b"):
        read_saliency(first, "ntu25", ["a", "b"], 20)


# Faults


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("executed",))


def test_files_that_do_not_fit_say_what_does(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = network_of(first)
    content = (first / "checkpoints" / "last.pt").read_bytes()
    torch.save({**whole, "l1.gcn1.PA": torch.zeros(3, 20, 20)}, "shape.pt")
    torch.save({name: value for name, value in whole.items() if name != "l2.gcn1.alpha"}, "missing.pt")
    torch.save({**whole, "l1.gcn1.PA": whole["l1.gcn1.PA"] * torch.nan}, "nan.pt")
    torch.save({"state_dict": whole, "hook": Code()}, "code.pt")
    torch.save(whole, "cut.pt")
    Path("cut.pt").write_bytes(Path("cut.pt").read_bytes()[:-500])
    Path("ours_cut.pt").write_bytes(content[:-500])
    Path("flipped.pt").write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    Path("text.pt").write_text("weights")
    torch.save({"epoch": 3}, "none.pt")
    torch.save(CTRGCN(load_layout("ntu25"), 4).state_dict(), "published.pt")
    for name, messages in {
        "shape.pt": ["'l1.gcn1.PA' is [3, 20, 20] there and [3, 25, 25] here", "--reset PATTERN"],
        "missing.pt": [f"1 of {len(whole)} are not in it: l2.gcn1.alpha"],
        "nan.pt": ["'l1.gcn1.PA' is not finite"],
        "code.pt": ["mkdir, which would run code when loaded, and is refused"],
        "cut.pt": ["damaged, or not a file of torch.save"],
        "ours_cut.pt": ["damaged"],
        "flipped.pt": ["damaged"],
        "text.pt": ["damaged, or not a file of torch.save"],
        "none.pt": ["there is no state dict in it; its keys are 'epoch'"],
        "absent.pt": ["no such file"],
        "published.pt": ["the nearest is --network.backbone ctrgcn --network.widths None, of whose"],
    }.items():
        assert train.main([*TINY, "--init-from", name, "--run-dir", "next"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: {name}: "), said
        assert all(message in said for message in messages), said
        assert not Path("next").exists()
    assert not Path("executed").exists()


def test_another_skeleton_names_the_input_norm(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(CTRGCN(load_layout("ucla20"), 4, num_people=1, widths=(8, 16)).state_dict(), "ucla.pt")
    assert train.main([*TINY, "--init-from", "ucla.pt", "--run-dir", "next"]) == 2
    said = capsys.readouterr().err
    assert "data_bn has a channel per person, joint and coordinate, here 1 x 25 x 3: choose --num-people" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze", "l1.gcm1"], "freeze: 'l1.gcm1' matches no weight of the network; did you mean 'l1.gcn1'?"),
        (["--freeze", "*"], "freeze: * leave no parameter to train"),
        (["--reset", "l3"], "reset: 'l3' matches no weight of the network; names begin with data_bn, l1, l2, fc"),
    ],
)
def test_patterns_that_match_nothing_say_so(
    first: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, "--init-from", str(first), *options, "--run-dir", "next"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("next").exists()


def test_a_damaged_first_checkpoint_is_not_resumed_silently(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that stopped before its first checkpoint begins again, and so needs the file again."""
    save_checkpoint(Path("w.pt"), state_of(first))
    assert train.main([*TINY, "--init-from", "w.pt", "--run-dir", "next"]) == 0
    for path in Path("next/checkpoints").iterdir():
        path.unlink()
    Path("w.pt").unlink()
    assert train.main(["--resume", "next"]) == 2
    assert "w.pt: no such file" in capsys.readouterr().err


# Published weights


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_networks_own_weights_load(backbone: str) -> None:
    config = parse_config([*TINY, "--network.widths", "None", "--network.backbone", backbone])
    store = build.load_splits(config).store
    torch.save(build.make_network(config, store).state_dict(), "own.pt")
    network = build.make_network(config, store)
    loaded = load_network(network, read_weights(Path("own.pt")), config, store)
    assert (loaded.anew, loaded.left, loaded.notes) == ({}, [], [])
    assert kept(torch.load("own.pt", weights_only=True), network.state_dict()) == set(network.state_dict())


def test_the_weights_of_another_network_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_config([*TINY, "--network.widths", "None", "--network.backbone", "stgcn"])
    torch.save(build.make_network(config, build.load_splits(config).store).state_dict(), "stgcn.pt")
    assert train.main([*TINY, "--init-from", "stgcn.pt", "--run-dir", "next"]) == 2
    said = capsys.readouterr().err
    assert "are not in it: " in said
    assert "the nearest is --network.backbone stgcn, of whose" in said


def test_the_fields_weights_load_from_each_form(first: Path) -> None:
    whole = network_of(first)
    torch.save(OrderedDict((f"module.{name}", value) for name, value in whole.items()), "parallel.pt")
    torch.save(
        {
            "meta": {"epoch": 16, "config": "model = dict()", "CLASSES": ("a", "b")},
            "state_dict": OrderedDict(
                (f"cls_head.fc_cls.{name.removeprefix('fc.')}" if name.startswith("fc.") else f"backbone.{name}", value)
                for name, value in whole.items()
            ),
        },
        "mmcv.pth",
    )
    torch.save(whole, "old.pt", _use_new_zipfile_serialization=False)
    config = parse_config(TINY)
    store = build.load_splits(config).store
    for name in ("parallel.pt", "mmcv.pth", "old.pt"):
        network = build.make_network(config, store)
        loaded = load_network(network, read_weights(Path(name)), config, store)
        assert (len(loaded.given), loaded.anew, loaded.left) == (len(whole), {}, [])
        assert kept(whole, network.state_dict()) == set(whole)


@pytest.mark.slow
def test_two_stages_on_nw_ucla() -> None:
    folder = os.environ.get("SHAPMIX_NW_UCLA")
    if not folder:
        pytest.skip("SHAPMIX_NW_UCLA is not set: no NW-UCLA recordings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "read_splits", READ_SPLITS)
        data = ["--dataset", "nw-ucla", "--data-root", folder, "--imbalance", "10", "--threads", "1", "--device", "cpu"]
        network = ["--network.widths", "16", "32", "--network.graph-gain", "1", "--schedule.lr", "0.05"]
        short = ["--epochs", "6", "--saliency.warmup-epochs", "1", "--schedule.warmup-epochs", "1"]
        assert train.main([*data, *network, *short, "--mix", "none", "--loss", "ce", "--run-dir", "one"]) == 0
        for stage in ("crt", "lws"):
            assert train.main(["--stage2", stage, "--init-from", "one", "--device", "cpu", "--run-dir", stage]) == 0
        assert evaluate.main(["one", "--tau-norm", "validation", "--device", "cpu"]) == 0
    accuracy = {
        name: json.loads(Path(name, "result.json").read_text())["test"]["none last"]["class_mean"] for name in ("one", "crt", "lws")
    }
    accuracy["tau"] = json.loads(Path("one/evaluation/result.json").read_text())["class_mean"]
    assert accuracy["crt"] > accuracy["one"] > 0.1  # balanced classes of a head on the same features
    before = network_of("one")
    assert set(before) - kept(before, network_of("crt")) == {"fc.weight", "fc.bias"}
    assert kept(before, network_of("lws")) == set(before)
    assert parse_config(["--config", "crt/config.yaml"]).imbalance == 10
