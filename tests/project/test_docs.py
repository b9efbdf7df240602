"""A stranger's path: what the pages in docs/ say works as it is written."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shapmix import ShapMix, evaluate, load_layout, prepare, report, train
from shapmix.data.store import open_store
from shapmix.experiments.plan import read_plan
from shapmix.mixing.mixers import MIXERS
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.process import cpu
from shapmix.skeleton.layout import BUILT_IN
from tests.data.ntu_files import made, text_of
from tests.small_run import leave_pictures_out

DOCS = Path(__file__).parents[2] / "docs"

# Pages name the paper's recipes, which take GPU days: every training is told to be short, and is otherwise the page's own.
SHORT = (
    "--device cpu --threads 1 --epochs 2 --saliency.warmup-epochs 1 --schedule.warmup-epochs 0 --batch-size 32 --num-frames 8 "
    "--network.widths 8 --imbalance None --n-max None"
)
SHELL = f"""
set -euo pipefail
export OMP_NUM_THREADS=1
short() {{
  case "$*" in
    *--train-list*) echo "{SHORT.replace("--imbalance None ", "")}" ;;
    *--imbalance*) echo "{SHORT.replace("--imbalance None --n-max None", "")}" ;;
    *) echo "{SHORT}" ;;
  esac
}}
python() {{ if [ "${{2-}}" = shapmix.train ]; then "$PYTHON" "$@" $(short "$@"); else "$PYTHON" "$@"; fi; }}
torchrun() {{
  case "$*" in *--resume*) "$PYTHON" -m torch.distributed.run "$@" ;; *) "$PYTHON" -m torch.distributed.run "$@" {SHORT} ;; esac
}}
"""


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [dedent(block) for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def run_shell(text: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", SHELL + text], cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def ntu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up recordings under NTU's names: every action of two training subjects and one of the test's."""
    folder = tmp_path_factory.mktemp("ntu")
    raw = folder / "nturgb+d_skeletons"
    raw.mkdir()
    train = []
    with zipfile.ZipFile(folder / "nturgbd_skeletons_s001_to_s017.zip", "w") as archive:
        for action in range(1, 121):
            for subject in (1, 2, 3):
                name = f"S001C001P{subject:03d}R001A{action:03d}"
                content = text_of(made(1, 9 + action % 5, seed=10 * action + subject))
                (raw / f"{name}.skeleton").write_bytes(content)
                if action <= 60:
                    archive.writestr(f"nturgb+d_skeletons/{name}.skeleton", content)
                    train += [name] if subject != 3 else []
        archive.writestr("nturgb+d_skeletons/S001C002P001R001A001.skeleton", "0\n")  # holds no skeleton, as 302 of them do
    (folder / "NTU60_xsub_exp_100.txt").write_text("\n".join(train))
    return folder


@pytest.mark.slow
def test_ntu_from_raw_files_to_a_result(ntu: Path) -> None:
    raw, arrays, recipes, streams = blocks("ntu.md", "bash")
    said = run_shell(raw, ntu)
    assert "--check" in raw
    assert (ntu / "ntu60" / "store.json").exists(), said
    run_shell(recipes, ntu)
    assert "NTU60_xsub_exp_100.txt" in recipes
    assert "shapmix" in run_shell(streams, ntu)
    elsewhere = ntu / "elsewhere"
    elsewhere.mkdir()
    one_hot = np.eye(60)[[0, 1, 0]]
    clips = np.random.default_rng(1).normal(size=(3, 9, 150)).astype(np.float32)
    np.savez(elsewhere / "NTU60_CS.npz", x_train=clips[:2], y_train=one_hot[:2], x_test=clips[2:], y_test=one_hot[2:])
    (elsewhere / "train.txt").write_text("S001C001P001R001A001\nS001C001P001R001A002\n")
    (elsewhere / "test.txt").write_text("S001C001P003R001A001\n")
    run_shell(arrays, elsewhere)
    assert (elsewhere / "ntu60" / "store.json").exists()
    # the page of several GPUs goes on from here, with processes on the CPU
    start, resume = blocks("several_gpus.md", "bash")
    run_shell(start, ntu)
    (ntu / "runs" / "four" / "result.json").unlink()
    run_shell(resume, ntu)
    assert (ntu / "runs" / "four" / "result.json").exists()


@pytest.mark.slow
def test_an_own_layout_and_an_own_network(tmp_path: Path) -> None:
    (layout,) = blocks("own_layout.md", "toml")
    (tmp_path / "palm21.toml").write_text(layout)
    check, module = blocks("own_layout.md", "python")
    found = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "20 combinations, the first of them palm+thumb+index\n"
    (tmp_path / "mine.py").write_text(module)
    shown, train = blocks("own_layout.md", "bash")
    assert "no mistakes found" in run_shell(shown, tmp_path)
    assert (tmp_path / "palm21.svg").exists()
    run_shell(train, tmp_path)
    assert (tmp_path / "mine.run" / "explanation" / "index.html").exists()


@pytest.fixture(scope="module")
def folder_with_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `RUN` is a short run on the embedded data and `clip.npy` a recording."""
    folder = tmp_path_factory.mktemp("pages")
    run_shell("python -m shapmix.train --run-dir RUN", folder)
    np.save(folder / "clip.npy", np.random.default_rng(0).normal(size=(90, 25, 3)).astype(np.float32))
    return folder


@pytest.mark.slow
def test_installation_and_first_run(tmp_path: Path) -> None:
    install, doctor, first = blocks("install.md", "bash")
    assert install == "pip install -c constraints.txt -e .\n", "what .ci/run does, with the extras of the tests"
    assert "back ends" in run_shell(doctor, tmp_path)
    said = run_shell(first, tmp_path)
    assert "plain" in said
    (run,) = (tmp_path / "runs").glob("*shapmix*")
    page = (DOCS / "install.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| `([\w.]+)/?`", page, re.MULTILINE):
        assert (run / name).exists(), name


@pytest.mark.slow
def test_evaluate_predict_and_export(folder_with_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, predict, export, onnx = blocks("use.md", "bash")
    assert "calibration error" in run_shell(evaluate, folder_with_run)
    assert (folder_with_run / "scores.npz").exists()
    json.loads(run_shell(predict, folder_with_run).splitlines()[-1])
    run_shell(export, folder_with_run)
    assert (folder_with_run / "network.pt2").exists()
    monkeypatch.chdir(folder_with_run)
    (code,) = blocks("use.md", "python")
    scope: dict[str, Any] = {}
    exec(code, scope)
    logits = torch.export.load("network.pt2").module()(scope["clips"])
    torch.testing.assert_close(logits, scope["trained"].network(scope["clips"]), atol=1e-4, rtol=1e-4)
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    run_shell(onnx, folder_with_run)
    assert (folder_with_run / "network.onnx").exists()


@pytest.mark.slow
def test_a_start_from_a_checkpoint(folder_with_run: Path, ntu: Path) -> None:
    ours, theirs, stages, mixed = blocks("start.md", "bash")
    run_shell(ours, folder_with_run)
    for name in ("further", "other", "guided"):
        assert (folder_with_run / "runs" / name / "result.json").exists(), name
    run_shell(stages, folder_with_run)
    assert json.loads((folder_with_run / "RUN" / "evaluation" / "result.json").read_text())["tau_norm"] >= 0
    run_shell(mixed, folder_with_run)
    if not (ntu / "ntu60").exists():
        run_shell(blocks("ntu.md", "bash")[0], ntu)
    torch.save(CTRGCN(load_layout("ntu25"), 60).state_dict(), ntu / "ctrgcn.pt")
    np.save(ntu / "clip.npy", np.random.default_rng(0).normal(size=(90, 25, 3)).astype(np.float32))
    run_shell(theirs, ntu)
    assert (ntu / "theirs.pt2").exists()


@pytest.mark.slow
def test_report_and_explanation(folder_with_run: Path) -> None:
    (report,) = blocks("report.md", "bash")
    run_shell(report, folder_with_run)
    assert (folder_with_run / "RUN" / "report.html").exists()
    (explain,) = blocks("explain.md", "bash")
    run_shell(explain, folder_with_run)
    assert (folder_with_run / "RUN" / "explanation" / "index.html").exists()
    assert (folder_with_run / "logits" / "index.html").exists()
    read, _ = blocks("explain.md", "python")
    subprocess.run([sys.executable, "-c", read], cwd=folder_with_run, check=True)


@pytest.mark.slow
def test_an_experiment(tmp_path: Path) -> None:
    (plan,) = blocks("experiments.md", "yaml")
    network = "network: {widths: [8]}\n  saliency: {warmup-epochs: 1}\n  schedule: {warmup-epochs: 0}"
    short = f"epochs: 2\n  batch-size: 32\n  num-frames: 8\n  n-max: 40\n  {network}"
    assert "  epochs: 6\n" in plan
    (tmp_path / "plan.yaml").write_text(plan.replace("epochs: 6", short))
    commands, dry_run, on_trial = blocks("experiments.md", "bash")
    assert all(read_plan(DOCS.parent / name).cells for name in re.findall(r"bench/plans/\S+", on_trial))
    run_shell(commands, tmp_path)
    table = (tmp_path / "grid" / "table.md").read_text()
    assert "| Shap-Mix |" in table
    assert "of 2 seeds" in table
    assert run_shell(dry_run, tmp_path).startswith("0 of 6 cells have no result.")


def test_a_custom_mixer() -> None:
    (code,) = blocks("experiments.md", "python")
    known = dict(MIXERS)
    try:
        exec(compile(code, "experiments.md", "exec"), {"__name__": "custom"})
        mixer = ShapMix(load_layout("ntu25"), [5, 4, 3], torch.zeros(3, 16, 25, 1), mix="half")
        clips, labels = torch.randn(4, 3, 16, 25, 1), torch.tensor([0, 1, 2, 0])
        batch = mixer.mix(clips, labels, 0)
        assert torch.equal(batch.clips[4:], (clips + clips[batch.partner]) / 2)
    finally:
        for name in set(MIXERS) - set(known):
            del MIXERS[name]


def matlab_files(folder: Path) -> None:
    """Penn Action and UTD-MHAD as MATLAB files: two actions, six clips of each."""
    from scipy.io import savemat

    labels, skeletons = folder / "Penn_Action" / "labels", folder / "Skeleton"
    labels.mkdir(parents=True)
    skeletons.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        x, y = (100 + 40 * rng.random((9, 13)) for _ in range(2))
        clip = {"x": x, "y": y, "visibility": np.ones((9, 13), np.uint8), "train": 1 if number < 8 else -1}
        clip |= {"action": ("bowl", "squat")[number % 2], "bbox": np.tile([90.0, 90.0, 150.0, 150.0], (9, 1))}
        savemat(labels / f"{number + 1:04d}.mat", clip)
        name = f"a{1 + number % 2}_s{1 + number // 4}_t{1 + number % 4}"
        savemat(skeletons / f"{name}_skeleton.mat", {"d_skel": rng.normal(size=(20, 3, 9))})


def test_small_sets_are_converted_and_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch.setattr)
    matlab_files(tmp_path)
    for code in blocks("small_sets.md", "python"):
        exec(code, {})
    short = [*SHORT.split(), "--batch-size", "3", "--epochs", "1", "--saliency.warmup-epochs", "0"]
    for line in "".join(blocks("small_sets.md", "bash")).splitlines():
        _, _, module, *arguments = shlex.split(line)
        more = short if module == "shapmix.train" else []
        assert importlib.import_module(module).main([*arguments, *more]) == 0, line


SMALL_SETS = {  # folder variable -> options of prepare, clips, classes
    "SHAPMIX_PENN_ACTION": (["--scores"], 2326, 15),
    "SHAPMIX_UTD_MHAD": ([], 861, 27),
}


@pytest.mark.parametrize("variable", SMALL_SETS)
def test_real_small_sets_are_trained(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips in the plain format, in a folder or in the only archive of a folder."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: no recordings of this data set")
    folder = Path(os.environ[variable])
    options, clips, classes = SMALL_SETS[variable]
    if not (folder / "labels.csv").is_file():
        (archive,) = folder.glob("*.tar.*")
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path / "raw", filter="data")
        (table,) = (tmp_path / "raw").glob("*/labels.csv")
        folder = table.parent
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch.setattr)
    assert prepare.main([str(folder), "store", *options]) == 0
    found = open_store("store").clips
    assert (len(found), found.num_classes) == (clips, classes)
    short = [*SHORT.split(), "--epochs", "1", "--saliency.warmup-epochs", "0"]
    assert train.main(["--dataset", "store", "--data-root", "store", *short]) == 0


@pytest.mark.slow
def test_nw_ucla(tmp_path: Path) -> None:
    """Made-up clips under the data set's names: enough for the published imbalance, three of each class in the test view."""
    clips = tmp_path / "DIR" / "all_sqe"
    clips.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for label, action in enumerate((1, 2, 3, 4, 5, 6, 8, 9, 11, 12), start=1):
        names = [f"a{action:02d}_s{1 + i // 10:02d}_e{i % 10:02d}_v{view:02d}" for view in (1, 2) for i in range(60)]
        for name in [*names, *(f"a{action:02d}_s01_e{i:02d}_v03" for i in range(3))]:
            skeletons = rng.normal(size=(4, 20, 3)).round(3).tolist()
            (clips / f"{name}.json").write_text(json.dumps({"file_name": name, "skeletons": skeletons, "label": label}))
    (train,) = blocks("nw_ucla.md", "bash")
    assert "Test accuracy (30 clips)" in run_shell(train, tmp_path)


def test_the_doctor_of_the_troubleshooting_page(tmp_path: Path) -> None:
    (commands,) = blocks("troubleshooting.md", "bash")
    assert commands.splitlines() == ["python -m shapmix.doctor", "python -m shapmix.doctor --json"]


def test_the_loop_of_the_plug_in_page_trains_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("own_loop.md", "python")
    prepared: list[int] = []
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: prepared.append(1))  # it would last for all further tests
    torch.manual_seed(0)
    clips, labels = torch.randn(12, 3, 16, 25, 2), torch.arange(12) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(clips[0].numel(), 3))
    scope = {
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "class_counts": torch.tensor([30, 20, 4]),
        "mean_motion": clips.mean(0),
        "loader": [(clips, labels)] * 3,
        "epochs": 2,
    }
    exec(code, scope)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert any(torch.equal(value, scope["mixer"].saliency) for value in saved["mixer"].values())
    assert prepared == [1]
    (example,) = blocks("own_loop.md", "bash")
    assert (DOCS.parent / example.split()[1]).exists(), "tests/project/test_examples.py runs it"


def test_the_explanation_lines_explain_any_network() -> None:
    _, code = blocks("explain.md", "python")
    torch.manual_seed(0)
    clips, labels = torch.randn(4, 3, 16, 25, 2), torch.arange(4) % 3
    network = nn.Sequential(nn.Flatten(), nn.Linear(clips[0].numel(), 3))
    scope = {
        "network": network,
        "layout": load_layout("ntu25"),
        "mean_motion": clips.mean(0),
        "clips": clips,
        "labels": labels,
        "names": list("abcd"),
    }
    exec(code, scope)
    found = scope["found"]
    torch.testing.assert_close(found.parts.sum(1), found.full_values - found.base_values)


def test_an_own_data_set_trains_explains_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process, as each command by itself would import torch anew."""
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("own_data.md", "python")
    exec(code, {})
    commands = [shlex.split(line) for block in blocks("own_data.md", "bash") for line in block.splitlines()]
    modules = [f"shapmix.{name}" for name in ("prepare", "train", "explain", "predict", "export")]
    assert [command[:3] for command in commands] == [["python", "-m", module] for module in modules]
    said = {}
    for _, _, module, *arguments in commands:
        status = importlib.import_module(module).main(arguments)
        captured = capsys.readouterr()
        assert status == 0, f"{module} {arguments}\n{captured.out}{captured.err}"
        said[module] = captured.out
    top1 = float(re.search(r"shapmix best +([\d.]+)%", said["shapmix.train"]).group(1))
    assert top1 > 80  # chance is 60, for the most frequent class
    assert said["shapmix.predict"].splitlines()[0].split(": ")[1].startswith("kick ")
    assert "right_leg +" in said["shapmix.predict"].splitlines()[1].split(";")[1].split(",")[0]  # the part that kicks comes first
    assert (tmp_path / "gestures.run" / "explanation" / "index.html").stat().st_size > 100_000
    Path("gestures.store").rename("moved.store")
    assert evaluate.main(["gestures.run"]) == 2
    assert "gestures.store" in capsys.readouterr().err
    assert evaluate.main(["gestures.run", "--data-root", "moved.store"]) == 0
    assert report.main(["gestures.run", "--data-root", "moved.store"]) == 0
    assert "within" in said["shapmix.export"]


def test_one_array_of_all_clips_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = np.random.default_rng(0).normal(size=(4, 3, 10, 25, 1))
    data[1, :, 6:] = 0
    np.savez("data.npz", data=data, labels=np.array([0, 1, 1, 0]))
    _, code = blocks("own_data.md", "python")
    exec(code, {})
    assert prepare.main(["own", "own.store", "--layout", "ntu25"]) == 0
    clips = open_store(Path("own.store")).clips
    assert (clips.names, clips.labels.tolist(), clips.lengths.tolist()) == (
        ["clip_0", "clip_1", "clip_2", "clip_3"],
        [0, 1, 1, 0],
        [10, 6, 10, 10],
    )


def test_classes_in_file_names_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_data").mkdir()
    for name in ("wave_01", "kick_02", "high_kick_1"):
        np.savetxt(f"my_data/{name}.csv", np.random.default_rng(0).random((5, 33 * 4)), delimiter=",")
    (code,) = blocks("pose_tools.md", "python")
    exec(code, {})
    assert prepare.main(["my_data", "my.store", "--format", "mediapipe"]) == 0
    clips = open_store(Path("my.store")).clips
    assert {name: clips.class_names[label] for name, label in zip(clips.names, clips.labels.tolist(), strict=True)} == {
        "high_kick_1": "high_kick",
        "kick_02": "kick",
        "wave_01": "wave",
    }


def test_every_page_with_commands_or_code_is_run_by_a_test_above_or_by_its_own() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        if (Path(__file__).parent / f"test_{page.stem}_page.py").exists():
            continue
        for language in ("bash", "python"):
            if blocks(page.name, language):
                assert f'blocks("{page.name}", "{language}")' in here, (page.name, language)


def test_the_choices_on_the_pages_are_those_of_the_trainer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # a choice is not cut
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = capsys.readouterr().out
    rows = {
        "mix": ("experiments.md", "--mix", {"shapmix"}),
        "loss": ("experiments.md", "--loss", {"balanced"}),
        "sampler": ("experiments.md", "--sampler", {"instance"}),
        "saliency.estimator": ("own_loop.md", "estimator", {"None"}),
    }
    for option, (name, head, default) in rows.items():
        (choices,) = re.findall(rf"--{re.escape(option)} \{{([\w,]+)\}}", shown)
        (row,) = re.findall(rf"^\| `{head}` \| (.*) \|$", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert default | set(re.findall(r"`(\w+)`", row)) == set(choices.split(",")), option


def test_links_of_the_pages_exist() -> None:
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (DOCS / link).exists(), f"{page.name}: {link}"


def test_names_of_the_package_that_the_pages_mention_exist() -> None:
    texts = [page.read_text(encoding="utf-8") for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md")]
    names = {name for text in texts for name in re.findall(r"`(shapmix(?:\.\w+)+)[`(:]", text)}
    assert len(names) >= 5
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    generated = {"contributing.md", "changelog.md"}
    assert set(re.findall(r"[\w]+\.md", navigation)) == {page.name for page in DOCS.glob("*.md")} | generated


def test_the_doctor_of_the_page_of_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = blocks("layouts.md", "bash")
    _, _, module, *arguments = shlex.split(command)
    assert importlib.import_module(module).main(arguments) == 0


def test_the_page_of_the_layouts_lists_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "layouts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d or]+) \| .+ \|$", page, re.MULTILINE)
    layouts = {name: load_layout(name) for name in BUILT_IN}
    assert sorted(rows) == [
        (name, str(layout.num_joints), " or ".join(map(str, layout.dimensions))) for name, layout in layouts.items()
    ]
    monkeypatch.syspath_prepend(str(DOCS))
    skeletons = importlib.import_module("skeletons")
    assert page.count(skeletons.MARK) == 1
    sections = skeletons.sections()
    for name, layout in layouts.items():
        assert f"## {name}\n" in sections
        assert f"(layouts/{name}.svg)" in sections
        assert f"layouts/{name}.svg" in skeletons.pictures()
        assert f"| {layout.num_joints - 1} | {layout.joints[-1]} |" in sections
    assert sections.count("order: ") >= len(layouts) - 3  # the three older files name their data set alone


def test_the_picture_of_the_packages_is_that_of_their_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    rooms = importlib.import_module("rooms")
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.draw(), "draw it again: python docs/rooms.py"


def test_the_page_of_the_architecture_names_every_package() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (DOCS.parent / "shapmix").glob("*/__init__.py")}
    commands = {path.stem for path in (DOCS.parent / "shapmix").glob("[!_]*.py")}
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", page, re.MULTILINE)))
    assert folders <= set(named)
    assert commands <= set(re.findall(r"`(\w+)`", next(line for line in page.splitlines() if line.startswith("| commands"))))


def test_a_clips_way_names_files_in_order_each_once() -> None:
    page = (DOCS / "data_path.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d+\. `([\w/]+\.py)`", page, re.MULTILINE)
    assert len(steps) == len(re.findall(r"\w\.py`", page)) == len(set(steps)) > 6
    for file in steps:
        assert (DOCS.parent / file).is_file(), file
