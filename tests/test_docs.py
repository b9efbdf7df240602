"""A stranger's path: what docs/own_data.md says works as it is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


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
