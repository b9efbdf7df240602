"""A stranger's path: what the pages in docs/ say works as it is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from tests.test_ntu_raw import made, text_of

DOCS = Path(__file__).parent.parent / "docs"

# Pages name the paper's recipes, which take GPU days: every training is told to be short, and is otherwise the page's own.
SHORT = (
    "--device cpu --threads 1 --epochs 2 --saliency.warmup-epochs 1 --schedule.warmup-epochs 0 --batch-size 32 --num-frames 8 "
    "--network.widths 8 --imbalance None --n-max None"
)
SHELL = f"""
set -euo pipefail
export OMP_NUM_THREADS=1
short() {{ case "$*" in *--train-list*) echo "{SHORT.replace("--imbalance None ", "")}" ;; *) echo "{SHORT}" ;; esac; }}
python() {{ if [ "$2" = shapmix.train ]; then "$PYTHON" "$@" $(short "$@"); else "$PYTHON" "$@"; fi; }}
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
    (tmp_path / "hand21.toml").write_text(layout)
    check, module = blocks("own_layout.md", "python")
    found = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "20 combinations, the first of them palm+thumb+index\n"
    (tmp_path / "mine.py").write_text(module)
    (train,) = blocks("own_layout.md", "bash")
    run_shell(train, tmp_path)
    assert (tmp_path / "mine.run" / "explanation" / "index.html").exists()
    # and what docs/explain.md says of a run, on this one
    (tmp_path / "mine.run").rename(tmp_path / "RUN")
    (code,) = blocks("explain.md", "python")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    run_shell("python -m shapmix.explain RUN --output logit", tmp_path)


def test_an_own_data_set_trains_explains_and_predicts(tmp_path: Path) -> None:
    page = (DOCS / "own_data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    modules = [f"shapmix.{name}" for name in ("prepare", "train", "explain", "predict", "export")]
    assert [command.split()[2] for command in commands] == modules
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = {}
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "python"
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, env=alone)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[words[2]] = done.stdout
    top1 = float(re.search(r"shapmix best +([\d.]+)%", said["shapmix.train"]).group(1))
    assert top1 > 80  # chance is 60, for the most frequent class
    assert said["shapmix.predict"].splitlines()[0].split(": ")[1].startswith("kick ")
    assert "right_leg +" in said["shapmix.predict"].splitlines()[1].split(";")[1].split(",")[0]  # the part that kicks comes first
    assert (tmp_path / "gestures.run" / "explanation" / "index.html").stat().st_size > 100_000
    assert "within" in said["shapmix.export"]


def test_links_of_the_pages_exist() -> None:
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (DOCS / link).exists(), f"{page.name}: {link}"
