"""Configuration: which value wins, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from shapmix.draws.augment import AugmentConfig
from shapmix.mixing.rule import Rule
from shapmix.training.baselines import baseline_config
from shapmix.training.config import changed_on_resume, parse_config, save_config
from shapmix.training.options import FREE_ON_RESUME, NOT_SAVED, ConfigError, TrainConfig, options


def test_command_line_over_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\nschedule:\n  lr: 0.5\nnetwork:\n  widths: [8, 16]\n  halve: null\n")
    assert parse_config([]).network.widths == (16, 32, 64)  # the preset of the embedded data
    config = parse_config(["--config", str(file), "--epochs", "9", "--mix", "stmix"])
    assert (config.epochs, config.schedule.lr, config.network.widths, config.network.halve) == (9, 0.5, (8, 16), None)
    assert config.batch_size == parse_config([]).batch_size
    assert parse_config(["--dataset", "nw-ucla", "--data-root", str(tmp_path)]).network.widths is None  # the backbone's own


def test_layers_that_halve_are_those_of_the_widths_beside_them(tmp_path: Path) -> None:
    assert parse_config([]).network.halve == (0, 1)  # the embedded data's preset
    assert parse_config(["--network.widths", "8"]).network.halve is None
    assert parse_config(["--network.widths", "8", "16", "--network.halve", "1"]).network.halve == (1,)
    assert parse_config(["--network.widths", "8", "16", "--network.halve=0"]).network.halve == (0,)
    file = tmp_path / "a.yaml"
    for text, halve in (("{widths: [8]}", None), ("{widths: [8], halve: [0]}", (0,)), ("{halve: [2]}", (2,))):
        file.write_text(f"network: {text}\n")
        assert parse_config(["--config", str(file)]).network.halve == halve
    with pytest.raises(ConfigError, match=r"^network\.halve: 1 is none of the 1 layers, which are 0 to 0$"):
        parse_config(["--network.widths", "8", "--network.halve", "0", "1"])
    file.write_text("network: {halve: [3]}\n")
    with pytest.raises(ConfigError, match=r"^network\.halve: 3 is none of the 3 layers"):
        parse_config(["--config", str(file)])


def test_augmentation_is_read_saved_and_kept_on_resume(tmp_path: Path) -> None:
    config = parse_config(["--augment.mirror", "0.5", "--augment.stretch", "0.9", "1.1", "--augment.rotation", "0.2"])
    assert config.augment == AugmentConfig(mirror=0.5, stretch=(0.9, 1.1), rotation=0.2)
    assert parse_config([]).augment == AugmentConfig()
    save_config(config, tmp_path / "config.yaml")
    again = parse_config(["--resume", str(tmp_path)])
    assert again.augment == config.augment
    with pytest.raises(ConfigError, match=r"augment.mirror: the run was started with 0.5 and cannot go on with 0.2"):
        changed_on_resume(again, parse_config(["--resume", str(tmp_path), "--augment.mirror", "0.2"]))


def test_a_saved_configuration_is_read_back(tmp_path: Path) -> None:
    config = parse_config(["--epochs", "9", "--baselines", "plain", "balanced", "--imbalance", "None"])
    save_config(config, tmp_path / "saved.yaml")
    assert parse_config(["--config", str(tmp_path / "saved.yaml")]) == parse_config(
        ["--epochs", "9", "--baselines", "plain", "balanced", "--imbalance", "None", "--config", str(tmp_path / "saved.yaml")]
    )


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["--epcohs", "3"], "--epochs"),
        (["--saliency.temprature", "1"], "--saliency.temperature"),
        (["--batchsize", "4"], "--batch-size"),
    ],
)
def test_an_unknown_key_names_the_nearest(arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_config(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert arguments[0] in message
    assert nearest in message


def test_an_unknown_key_in_a_file_names_the_file_and_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("saliency:\n  decya: 0.5\n")
    with pytest.raises(ConfigError) as stopped:
        parse_config(["--config", str(file)])
    message = str(stopped.value)
    assert message.startswith(str(file))
    assert "--saliency.decay" in message
    assert "\n" not in message
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "2"], "batch_size: mixing needs at least 3 clips in a batch, not 2"),
        (["--num-frames", "30"], "num_frames: mixing windows need a multiple of 4"),
        (["--imbalance", "0.5"], "imbalance: largest over smallest class, at least 1"),
        (["--dataset", "nw-ucla"], "data_root: dataset 'nw-ucla' is read from a folder"),
        (["--data-root", "x"], "dataset 'synthetic' is generated"),
        (["--epochs", "2", "--saliency.warmup-epochs", "2"], "saliency.warmup_epochs: Shap-Mix would begin after"),
        (["--blend-probability", "1.5"], "blend_probability: a share of the batches, between 0 and 1, not 1.5"),
        (["--augment.mirror", "1.5"], "augment.mirror: a probability, from 0 to 1, not 1.5"),
        (["--augment.joint-drop", "1"], "augment.joint_drop: a probability, at least 0 and below 1, not 1"),
        (["--augment.scale", "0", "1"], "augment.scale: the least and the largest factor, above 0, not 0"),
        (["--augment.speed", "1.2", "0.8"], "augment.speed: the least factor comes first, not 1.2 0.8"),
        (["--augment.jitter", "-1"], "augment.jitter: at least 0, not -1"),
        (["--augment.rotation", "4"], "augment.rotation: radians, from 0 to pi, not 4"),
        (["--epochs", "0"], "epochs: must be at least 1, not 0"),
        (["--threads", "0"], "threads: must be at least 1, not 0"),
        (["--n-max", "0"], "n_max: must be at least 1, not 0"),
        (["--seed", "-1"], "seed: from 0 to"),
        (["--network.widths", "10", "20"], "network.widths: each a multiple of 8, not 10"),
        (["--network.widths"], "network.widths: at least one layer"),
        (["--network.graph-gain", "nan"], "network.graph_gain: a finite number, not nan"),
        (["--saliency.temperature", "0"], "saliency.temperature: above 0, not 0"),
        (["--saliency.budget", "0"], "saliency.budget: forward passes per clip, above 0, not 0"),
        (["--saliency.every", "0"], "saliency.every: must be at least 1, not 0"),
        (["--saliency.decay", "1.5"], "saliency.decay: between 0 and 1, not 1.5"),
        (["--schedule.lr", "inf"], "schedule.lr: above 0, not inf"),
        (["--schedule.weight-decay", "-1"], "schedule.weight_decay: at least 0, not -1"),
        (["--schedule.milestones", "0.5", "2"], "schedule.milestones: each a share of the epochs, between 0 and 1, not 2"),
        (["--schedule.optimizer", "sgd", "--schedule.momentum", "0"], "schedule.momentum: above 0 and below 1, not 0"),
        (["--schedule.clip-norm", "0"], "schedule.clip_norm: above 0, not 0"),
        (["--repeat", "0"], "repeat: must be at least 1, not 0"),
        (["--test-clips", "0"], "test_clips: must be at least 1, not 0"),
        (["--label-smoothing", "1"], "label_smoothing: a share of the labels, at least 0 and below 1, not 1"),
        (["--network.dropout", "1"], "network.dropout: a probability, at least 0 and below 1, not 1"),
        (["--network.drop-path", "-0.1"], "network.drop_path: a probability, at least 0 and below 1, not -0.1"),
        (["--checkpoint.every-minutes", "-1"], "checkpoint.every_minutes: at least 0, not -1"),
        (["--config", "none.yaml"], "none.yaml: cannot read the configuration: No such file"),
    ],
)
def test_values_that_cannot_be_used(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(arguments)


@pytest.mark.parametrize(("text", "message"), [("- a\n- b\n", "mapping of keys to values, not a list"), ("a: [", "not valid YAML")])
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        parse_config(["--config", str(file)])
    assert str(error.value).startswith(str(file))


def test_a_new_option_is_kept_on_resume_unless_it_is_listed() -> None:
    keys = set(options(TrainConfig()))
    assert keys >= FREE_ON_RESUME
    kept = keys - FREE_ON_RESUME - set(NOT_SAVED)
    assert {"mix", "loss", "stream", "batch_size", "compat", "schedule.lr", "saliency.temperature", "saliency.estimator"} <= kept
    assert {"repeat", "pipeline", "label_smoothing", "network.dropout", "network.drop_path", "schedule.per"} <= kept
    assert {"test_clips", "test_mirror"} <= FREE_ON_RESUME  # what is measured in the end


@pytest.mark.parametrize("key", sorted(options(TrainConfig())))
def test_another_value_is_refused_or_reported(key: str) -> None:
    before = TrainConfig()
    group, _, below = key.rpartition(".")
    changed = replace(getattr(before, group), **{below: "other"}) if group else "other"
    now = replace(before, **{group or key: changed})
    if key in FREE_ON_RESUME or key in NOT_SAVED:
        expected = {key: (options(before)[key], "other")} if key in FREE_ON_RESUME else {}
        assert changed_on_resume(before, now) == expected
    else:
        with pytest.raises(ConfigError, match=f"^{key}: the run was started with .* and cannot go on with other; leave it out"):
            changed_on_resume(before, now)
    assert changed_on_resume(before, before) == {}


def test_resume_has_a_directory_of_its_own_and_hears_a_preset(tmp_path: Path) -> None:
    save_config(parse_config(["--network.widths", "8"]), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"run_dir: --resume .* resumes in that directory"):
        parse_config(["--resume", str(tmp_path), "--run-dir", "other"])
    assert parse_config(["--resume", str(tmp_path)]).network.widths == (8,)
    assert parse_config(["--resume", str(tmp_path), "--preset", "synthetic"]).network.widths == (16, 32, 64)


ODD_FILES = [
    b"{1: 2}",
    b"[" * 5000,
    b"epochs: " + b"9" * 5000,
    b"epochs: " + b"9" * 401,
    b"epochs: !!int ''",
    b"epochs: !!bool odd",
    b"epochs: !!timestamp odd",
    b"epochs: !!python/object:os.system {}",
    b"epochs: [[3]]",
    b"epochs: {a: 3}",
    b"schedule: {lr: {a: 1}}",
    b"schedule: 3",
    b"network: {widths: [a]}",
    b"help: true",
    b"\xff\xfe\x00",
    b"\x00",
    b"device: 2001-01-01",
    b"num_people: .nan",
    b"epochs: .inf",
    b"dataset: [store]",
    b"dataset: {}",
    b"x" * (2 << 20),
    b"a: &a {" + b", ".join(b"k%d: 1" % n for n in range(2000)) + b"}\n",
    b"a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
]


@pytest.mark.parametrize("content", ODD_FILES, ids=range(len(ODD_FILES)))
def test_odd_files_are_one_line_errors(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    for arguments in (["--config", str(path)], ["--resume", str(tmp_path)]):
        with pytest.raises(ConfigError) as caught:
            parse_config(arguments)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1500
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_damaged_files_are_configurations_or_one_line_errors(tmp_path: Path) -> None:
    path, generator = tmp_path / "config.yaml", random.Random(0)
    save_config(parse_config([]), path)
    parse_config(["--config", str(path)])  # what is not damaged
    content, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(damaged))
            if generator.random() < 0.5:
                damaged[place] = generator.choice(b":-[]{}&*!|>#%@\n\t\0 9a")
            else:
                del damaged[place : place + generator.randint(1, 30)]
        path.write_bytes(damaged)
        try:
            parse_config(["--config", str(path)])
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 10


def test_the_word_none_is_no_file() -> None:
    config = parse_config(["--init-from", "None", "--stage2", "None", "--config", "None", "--resume", "None"])
    assert (config.init_from, config.stage2, config.config, config.resume) == (None, None, None, None)


def test_rules_are_options_and_say_what_they_contradict() -> None:
    config = parse_config(["--rule.partner", "inverse", "--rule.align", "--rule.outside", "smooth", "--rule.unit", "layout"])
    assert config.rule == Rule(partner="inverse", align=True, outside="smooth", unit="layout")
    assert baseline_config(config, "balanced").rule == Rule()
    for arguments, message in (
        (
            ["--mix", "bone_mix", "--stream", "bone"],
            "mix: 'bone_mix' mixes positions of joints; stream 'bone' has none, choose joint",
        ),
        (["--rule.align", "--stream", "bone"], "rule.align: moves joints to where they hang; stream 'bone' has no positions"),
        (["--rule.fresh", "--mix", "mixup"], "rule.fresh: changes the rule of shapmix and stmix; mix 'mixup' has another"),
        (["--rule.outside", "smooth", "--label-smoothing", "0.1"], "rule.outside: 'smooth' is a label smoothing of its own"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(arguments)


def test_rows_that_do_not_mix_take_any_batch_and_any_number_of_frames() -> None:
    for mix in ("none", "two_views"):
        assert parse_config(["--mix", mix, "--batch-size", "2", "--num-frames", "10"]).batch_size == 2
    for odd in (["--batch-size", "2"], ["--num-frames", "10"]):
        with pytest.raises(ConfigError, match="mixing"):
            parse_config(["--mix", "stmix", *odd])
