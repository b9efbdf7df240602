"""The report of a run is a self-contained page without external resources, animated in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from shapmix import explain, report, train
from shapmix.data.clips import Splits
from shapmix.pages import run
from shapmix.training import build
from shapmix.training.trained import open_with_data

TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "2", "--threads", "1"]
TINY += ["--n-max", "8", "--imbalance", "4", "--saliency.warmup-epochs", "1"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*TINY, "--test-clips", "2", "--run-dir", str(run)]) == 0
    assert report.main([str(run)]) == 0
    return run / "report.html"


def test_the_page_shows_what_the_run_reached(page: Path) -> None:
    text = page.read_text()
    reached = json.loads((page.parent / "result.json").read_text())["test"]["shapmix last"]
    (row,) = re.findall(r"<tbody><tr>((?:<td>[\d.na/%]+</td>)+)</tr></tbody>", text)
    shown = re.findall(r"<td>(.*?)</td>", row)
    names = ("top1", "top5", "class_mean", "many", "medium", "few", "macro_f1", "worst_class")
    names += ("ece", "ece_many", "ece_medium", "ece_few")
    assert shown == ["n/a" if reached[name] is None else f"{100 * reached[name]:.1f}%" for name in names]
    assert re.search(r"the last checkpoint, 2 crops; adamw, lr 0\.01, cosine per epoch to 0; 2 epochs of \d+ steps", text)
    assert text.count('<td class="track">') == 24
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert len(data["edges"]) == 24
    for views in data["scenes"]:
        for view in views:
            assert len(view["frames"]) == 8
            assert all(0 <= value <= 1 for frame in view["frames"] for joint in frame for value in joint)
    assert re.findall(r"<h2>(.*?)</h2>\n<figure><img", text) == ["Curves", "Confusion", "Parts", "Class saliency"]
    mixed = data["scenes"][0][2]
    assert sum(map(sum, mixed["changed"])) > 0


def test_part_values_are_those_of_the_networks_test_clips(page: Path) -> None:
    found = open_with_data(page.parent, "last")
    values = run.part_values(found.network, found.mixer, found.splits, found.sampler)
    store, test = found.splits.store, found.splits.test
    assert values.shape == (24, 5)
    for label in (0, 23):
        clips = found.sampler.evaluation(test[store.labels[test] == label][: run.EXPLAINED])
        nothing = found.mixer.mean_motion[None]
        with torch.no_grad():
            whole, none = (found.network(some).softmax(1)[:, label].mean() for some in (clips, nothing))
        assert float(values[label].sum()) == pytest.approx(float(whole - none), abs=1e-5)  # efficiency


def test_the_page_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"https?://|//[a-z]+\.|@import|url\(", text.replace("data:", ""))
    assert set(re.findall(r'(?:src|href)="([^"#]{0,11})', text)) <= {"", "data:image/p", "data:image/", "data:,"}


def test_the_page_moves_in_a_browser(page: Path) -> None:
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium was found: the page was not opened")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
        "--dump-dom",
    ]
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'max="7"' in done.stdout  # the script has run: there are 8 frames


class Page(HTMLParser):
    """Tags, script texts and visible text, as parsed by a browser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


HOSTILE = [
    "<!--<script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}&lt;b&gt;",
    "$\\frac{",
    "=cmd",
]


def test_hostile_names_are_text_on_both_pages(tmp_path: Path, small_splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small_splits.store
    names = [f"{HOSTILE[at % len(HOSTILE)]} {at}" for at in range(len(store.names))]
    hostile = replace(small_splits, store=replace(store, class_names=HOSTILE[: store.num_classes], names=names))
    monkeypatch.setattr(build, "read_splits", lambda config: hostile)
    run = tmp_path / "<b>run"
    assert train.main([*TINY, "--epochs", "1", "--saliency.warmup-epochs", "0", "--run-dir", str(run)]) == 0
    assert report.main([str(run)]) == 0
    assert explain.main([str(run), "--per-class", "2"]) == 0
    for path, scripts in ((run / "report.html", 2), (run / "explanation" / "index.html", 0)):
        page = Page(path.read_text(encoding="utf-8"))
        assert page.tags.count("script") == scripts == len(page.scripts)
        assert "b" not in page.tags
        assert page.tags.count("img") == (4 if scripts else 5)
        assert "<b>run" in page.text
        for name in hostile.store.class_names:
            assert name in page.text
    data = json.loads(Page((run / "report.html").read_text(encoding="utf-8")).scripts[0])
    titles = " ".join(view["title"] for views in data["scenes"] for view in views)
    assert any(name in titles for name in hostile.store.class_names)


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "cannot read the configuration" in capsys.readouterr().err
