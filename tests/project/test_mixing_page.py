"""docs/mixing.md: its script draws every picture, and its table is that of the results file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from bench import mixing_page
from shapmix.data.clips import Splits

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS.parent / "bench" / "results" / "mixing_page.json"
SMALL = ["--num-frames", "16", "--network.widths", "8", "--network.halve", "0", "--batch-size", "8", "--epochs", "2"]
SMALL += ["--threads", "1", "--device", "cpu"]


def pictures() -> set[str]:
    return set(re.findall(r"\]\((mixing_\w+\.png)\)", (DOCS / "mixing.md").read_text(encoding="utf-8")))


@pytest.mark.usefixtures("small_data")
def test_one_command_draws_every_picture(tmp_path: Path, small_splits: Splits) -> None:
    results = tmp_path / "seen.json"
    command = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--results", str(results), *SMALL]
    mixing_page.main(command)
    drawn = {path.name for path in tmp_path.glob("*.png") if path.stat().st_size > 5000}
    assert drawn == pictures()
    seen = json.loads(results.read_text())["embedded data"]["seen"]
    assert list(seen) == ["joint", "bone"]
    for rows in seen.values():
        assert set(rows) == set(mixing_page.ROWS)
        for name, row in rows.items():
            assert sum(row[column] for column in ("host", "partner", "neither")) == pytest.approx(1)
            assert (row["label"] == 0) == (name == "clean")
            assert 0 < row["rarer"] < row["host"] + row["partner"]
    assert seen["joint"] != seen["bone"]
    first = (tmp_path / "mixing_clips.png").stat().st_mtime_ns
    mixing_page.main([*command, "--set", "another"])
    assert (tmp_path / "mixing_clips.png").stat().st_mtime_ns == first
    sets = json.loads(results.read_text())
    assert sets["another"]["seen"] == sets["embedded data"]["seen"] == seen  # of the runs that are there
    assert "/" not in json.dumps(sets["another"]["options"])


def test_place_and_motion_of_a_paste_are_told_apart() -> None:
    time = torch.arange(8.0).view(1, 1, 8, 1, 1)
    host, partner = (time % 2).expand(1, 3, 8, 2, 1), (5 + 3 * (time % 2)).expand(1, 3, 8, 2, 1)
    mixed = host.clone()
    mixed[:, :, 2:6, 1] = partner[:, :, 2:6, 1]  # joint 1 in frames 2 to 5
    motion, place = mixing_page.apart(host, mixed)
    for clips, joints in ((motion, 0), (place, 0)):
        torch.testing.assert_close(clips[:, :, :, joints], host[:, :, :, joints])
        torch.testing.assert_close(clips[:, :, [0, 1, 6, 7]], host[:, :, [0, 1, 6, 7]])
    torch.testing.assert_close(motion[0, 0, 2:6, 1, 0], torch.tensor([-1.0, 2.0, -1.0, 2.0]))  # about the host's mean of 0.5
    torch.testing.assert_close(place[0, 0, 2:6, 1, 0], torch.tensor([6.0, 7.0, 6.0, 7.0]))  # about the partner's of 6.5


def test_the_page_shows_what_was_measured() -> None:
    page = (DOCS / "mixing.md").read_text(encoding="utf-8")
    sets = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(sets) == {"embedded data", "NW-UCLA"}
    for name, found in sets.items():
        assert mixing_page.seen_table(found["seen"]) in page.partition(f"**{name}**")[2].partition("**")[0], mixing_page.seen_table(
            found["seen"]
        )
    assert pictures() == {path.name for path in DOCS.glob("mixing_*.png")}


def test_the_readings_are_those_of_the_results_file() -> None:
    page = " ".join((DOCS / "mixing.md").read_text(encoding="utf-8").split())
    seen = {name: found["seen"] for name, found in json.loads(RESULTS.read_text(encoding="utf-8")).items()}

    def points(of: str, mixes: tuple[str, ...], less: str, column: str) -> list[int]:
        each = (rows[mix][column] - rows[less][column] for rows in seen[of].values() for mix in mixes)
        return sorted(round(100 * value) for value in each)

    clean = sorted(round(100 * rows["clean"]["neither"]) for streams in seen.values() for rows in streams.values())
    assert f"clean clips have {clean[0]} to {clean[-1]}%" in page
    real, embedded = (points(name, ("stmix", "shapmix"), "clean", "neither") for name in ("NW-UCLA", "embedded data"))
    assert f"adds {real[0]} to {real[-1]} points on NW-UCLA and {embedded[0]} to {embedded[-1]} on the embedded data" in page
    real, embedded = (points(name, ("shapmix",), "stmix", "rarer") for name in ("NW-UCLA", "embedded data"))
    assert f"by {real[0]} and {real[1]} points on NW-UCLA, and by {embedded[0]} and {embedded[1]} on the embedded data" in page
    for rows in seen["NW-UCLA"].values():
        assert max(rows[half]["partner"] for half in ("motion", "place")) < rows["shapmix"]["partner"] / 2
    shares = {
        name: sorted(
            round(100 * mix["partner"] / (mix["host"] + mix["partner"])) for mix in (rows["shapmix"] for rows in streams.values())
        )
        for name, streams in seen.items()
    }
    real, embedded = shares["NW-UCLA"], shares["embedded data"]
    labels = {name: {round(100 * rows["shapmix"]["label"]) for rows in streams.values()} for name, streams in seen.items()}
    assert labels == {"NW-UCLA": {30}, "embedded data": {32}}
    assert f"{real[0]} and {real[1]}% on NW-UCLA, where the label says 30%" in page
    assert f"{embedded[0]} and {embedded[1]}% on the embedded data, where it says 32%" in page
    for name, streams in seen.items():
        for rows in streams.values():
            for mix in ("stmix", "shapmix"):  # "a third", "about half"
                assert rows[mix]["neither"] == pytest.approx(1 / 3 if name == "NW-UCLA" else 1 / 2, abs=0.09)


def test_the_command_of_the_page_is_the_script() -> None:
    (command,) = re.findall(r"```bash\n(.*?)\n```", (DOCS / "mixing.md").read_text(encoding="utf-8"))
    assert command == json.loads(RESULTS.read_text(encoding="utf-8"))["embedded data"]["command"]
