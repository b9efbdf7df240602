"""The headline without a GPU: the whole command on small steps, with few packages installed, interrupted and resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import compiled, correctness, headline, stages
from bench.stages import Content, Item, Record, run_command
from bench.step import PUBLISHED, WholeStep, Workload
from shapmix.networks import ctrgcn, ctrgcn_reference
from tests.bench.bare import bare_machine

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Workload(3, 8, (8, 16), 1)
LEAST = Workload(3, 8, (8,), 1)
OPTIONS = ["--clips", "3", "--frames", "8", "--widths", "8", "16", "--rounds", "1"]


def items_of(path: Path) -> dict[str, Content]:
    (run,) = json.loads(path.read_text())["runs"]
    return dict(run["items"])


def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


# The whole command


def test_the_command_needs_torch_triton_and_numpy_alone(tmp_path: Path) -> None:
    """It also needs no build and no installation: runs from a checkout, on a CPU."""
    out = tmp_path / "out.json"
    code = f"{bare_machine()}\nfrom bench.headline import main\nraise SystemExit(main({['--out', str(out), *OPTIONS]!r}))"
    done = run_command([sys.executable, "-c", code], 240, {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.code == 0, done.output
    found = items_of(out)
    assert headline.EAGER in found
    assert found[headline.COMPILED]["not run"] == "no CUDA device"
    assert {name for name, of in found.items() if "not run" in of} == {headline.COMPILED}
    assert all(found[name]["verdict"] == "green" for name in headline.STEPS)
    assert "ours, bf16, is " in done.output
    assert "reference, torch.compile, bf16 | not run: no CUDA device |" in done.output
    losses = [found[name]["losses"] for name in (headline.OURS_FLOAT32, headline.EAGER)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    kernels = found[headline.PROFILE]["kernels"]
    assert 0 < len(kernels) <= headline.KERNELS
    assert kernels == sorted(kernels, key=lambda kernel: -kernel["us"])


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu_only(monkeypatch)
    ran: list[str] = []

    def small(workload: Workload, device: torch.device, compiling: object) -> list[Item]:
        def run(name: str) -> Item:
            return Item(name, 1, lambda left: ran.append(name) or {"seconds": {"p20": 1, "p50": 1, "p80": 1}})  # type: ignore[func-returns-value]

        return [run(name) for name in headline.STEPS[:2]]

    monkeypatch.setattr(headline, "items", small)
    out, copy = tmp_path / "out.json", tmp_path / "copy.json"
    for options in (["--out", str(out)], ["--resume", str(out)], ["--resume", str(out), "--out", str(copy)]):
        assert headline.main([*options, *OPTIONS]) == 0
    assert ran == list(headline.STEPS[:2])
    assert items_of(copy) == items_of(out)
    assert headline.main(["--resume", str(out), *OPTIONS[2:], "--clips", "4"]) == 0
    assert len(ran) == 4  # a different workload
    before = out.read_text()
    assert headline.main(["--out", str(out), *OPTIONS]) == 2
    assert "exists: give --resume" in capsys.readouterr().err
    assert out.read_text() == before


@pytest.mark.parametrize(
    "options", [[], ["--clips", "2"], ["--frames", "4"], ["--frames", "10"], ["--rounds", "0"], ["--widths", "4"]]
)
def test_arguments_that_cannot_be_measured_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        headline.main(options and ["--out", str(tmp_path / "out.json"), *options])
    assert "bench" not in os.listdir(tmp_path)
    assert "error: " in capsys.readouterr().err


WAITS = """
import sys, time
from bench import headline, stages
from bench.stages import Item
stages.commit = stages.tree = lambda: "quick"  # so that the limit of three seconds ends the second item, not the start
def items(workload, device, compiling):
    def waits(left):
        print("waits", file=sys.stderr, flush=True)
        time.sleep(3600)
    times = {"seconds": {"p20": 0.5, "p50": 0.5, "p80": 0.5}}
    return [Item(headline.OURS, 0, lambda left: times), Item(headline.EAGER, 0, waits)]
headline.items = items
sys.exit(headline.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("end", ["SIGTERM", "the time"])
def test_a_table_is_printed_where_it_is_cut_off(end: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--out", str(out), *OPTIONS, *(["--seconds", "3"] if end == "the time" else [])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, "-c", WAITS, *options], cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1
    ) as process:
        if end == "SIGTERM":
            assert process.stderr is not None
            assert process.stderr.readline() == "waits\n"
            process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 3
    assert "| ours, bf16 | 500 ms (unverified) |" in printed
    assert "| reference, eager, float32 | not run: interrupted |" in printed
    assert set(items_of(out)) == {headline.OURS}
    assert items_of(out)[headline.OURS]["verdict"] == "unverified"


def test_what_ends_by_itself_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    with headline.time_limit(math.inf, never):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# Marks


def record_of(tmp_path: Path, items: dict[str, Content]) -> Record:
    record = Record(tmp_path / "out.json", "x", {**vars(TINY)})
    record.items.update(items)
    headline.judge(record)
    return record


TIMES: Content = {"seconds": {"p20": 0.1, "p50": 0.1, "p80": 0.1}}


@pytest.mark.parametrize(
    ("compared", "word", "shown"),
    [
        ({"failed": []}, "green", "100 ms |"),
        ({"failed": ["bf16 logits: 1 from the reference, 0.1 allowed"]}, "red", "100 ms (red) |"),
        ({"not run": "no time"}, "unverified", "100 ms (unverified) |"),
        ({"error": "RuntimeError: out of memory"}, "unverified", "100 ms (unverified) |"),
        (None, "unverified", "100 ms (unverified) |"),
    ],
)
def test_a_failed_comparison_marks_every_line(compared: Content | None, word: str, shown: str, tmp_path: Path) -> None:
    items = dict.fromkeys(headline.STEPS, TIMES) | ({headline.CORRECTNESS: compared} if compared is not None else {})
    record = record_of(tmp_path, json.loads(json.dumps(items)))
    table = headline.table(record)
    assert headline.COMPILING not in table
    assert table.count(f"| {shown}") == len(headline.STEPS)
    assert table.count(f"({word})") == (0 if word == "green" else len(headline.STEPS) + len(headline.HEADLINES))
    assert f"in float64: {word}" in table
    on_disk = items_of(record.path)
    assert {on_disk[name]["verdict"] for name in headline.STEPS} == {word}


def test_what_failed_is_said_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu_only(monkeypatch)

    def fails(*arguments: object, **options: object) -> Content:
        raise RuntimeError("out of memory")

    def items(workload: Workload, device: torch.device, compiling: object) -> list[Item]:
        return [Item(headline.OURS, 0, fails), Item(headline.EAGER, 0, lambda left: TIMES)]

    monkeypatch.setattr(headline, "items", items)
    assert headline.main(["--out", str(tmp_path / "out.json"), *OPTIONS]) == 1
    shown = capsys.readouterr().out
    assert "| ours, bf16 | failed: RuntimeError: out of memory |" in shown
    assert "| reference, eager, float32 | 100 ms (unverified) |" in shown


def test_what_torch_compile_compiled_beside_is_marked(tmp_path: Path) -> None:
    class Compiling:
        compiles = True

    (ours,) = (item for item in headline.items(LEAST, CPU, Compiling()) if item.name == headline.OURS)  # type: ignore[arg-type]
    shown = headline.table(record_of(tmp_path, {headline.OURS: ours.run(100)}))
    assert "| ours, bf16 * |" in shown
    assert f"* {headline.COMPILING}" in shown


# What is measured


def test_what_is_worth_most_comes_first_and_fits() -> None:
    kept = headline.items(PUBLISHED, CPU, None)
    order = [headline.COPY, headline.PRODUCT_NAME, headline.OURS, headline.EAGER, headline.CORRECTNESS, headline.EAGER_HALF]
    assert [item.name for item in kept] == [*order, headline.PROFILE, headline.OURS_FLOAT32, headline.COMPILED]
    assert sum(item.estimate for item in kept) < headline.SECONDS / 2  # the rest is left for torch.compile
    assert (PUBLISHED.clips, PUBLISHED.frames, PUBLISHED.rounds, len(PUBLISHED.widths)) == (64, 64, 30, 10)


def test_the_reference_is_the_references_network() -> None:
    eager, ours = (WholeStep(TINY, CPU, eager=which) for which in (True, False))
    assert type(eager.network) is ctrgcn_reference.CTRGCN
    assert type(ours.network) is ctrgcn.CTRGCN
    for _ in range(3):
        eager.run()
        ours.run()
        assert ours.check_losses() == pytest.approx(eager.check_losses(), rel=1e-4)


def test_a_step_whose_loss_is_not_finite_is_no_measurement() -> None:
    step = WholeStep(TINY, CPU, eager=False)
    with torch.no_grad():
        step.network.fc.weight.fill_(math.nan)
    step.run()
    with pytest.raises(RuntimeError, match=r"nan.* after 1 steps"):
        step.check_losses()


def test_torch_compile_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    process = compiled.CompilingProcess(LEAST, "eager", tmp_path)
    try:
        assert process.compiles
        found = process.result(120)
    finally:
        process.process.end()
    assert not process.compiles
    assert found["seconds"]["p50"] > 0
    assert found["compiler"] == "eager"
    eager = WholeStep(LEAST, CPU, eager=True, autocast=torch.bfloat16)
    for _ in range(compiled.WARM_UP_STEPS + LEAST.rounds):
        eager.run()
    assert found["losses"] == pytest.approx(eager.check_losses(), rel=1e-2)


def test_a_compilation_that_fails_or_takes_too_long_is_told(tmp_path: Path) -> None:
    broken = compiled.CompilingProcess(LEAST, "no_such_compiler", tmp_path)
    with pytest.raises(RuntimeError, match=r"the torch\.compile process exited: .*no_such_compiler"):
        broken.result(120)
    slow = compiled.CompilingProcess(LEAST, "eager", tmp_path / "nowhere")
    try:
        with pytest.raises(stages.CannotRunError, match=r"it is still compiling at the time limit"):
            slow.result(0)
    finally:
        slow.process.end()


# Correctness


def test_ours_is_as_near_as_rounding_allows() -> None:
    found = correctness.compare(TINY, CPU)
    assert found["failed"] == []
    judged = found["distances"]["float32"]
    assert judged[correctness.TRAINED]["allowed"] < 1e-4
    assert judged["gradient of gcn1.convs.conv4.weight"]["allowed"] < 0.1
    assert all(of["allowed"] < 1 for of in judged.values())


class WrongGraph(ctrgcn.GraphUnit):
    """Transposed shared graphs."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.PA.copy_(self.PA.transpose(1, 2).clone())
        return super().forward(x)


class WrongGradient(ctrgcn.GraphUnit):
    """Without the gradient of the relations."""

    def _relation_terms(self, x: Tensor) -> Tensor:
        return super()._relation_terms(x).detach() + 0 * sum(
            parameter.sum() for name, parameter in self.named_parameters() if "conv1" in name or "conv2" in name
        )


@pytest.mark.parametrize(
    ("unit", "told"), [(WrongGraph, "logits in training"), (WrongGradient, "float32 gradient of gcn1.convs.conv1.weight")]
)
def test_a_wrong_network_is_found(unit: type[ctrgcn.GraphUnit], told: str) -> None:
    class Wrong(ctrgcn.CTRGCN):
        graph_unit = unit

    failed = correctness.compare(TINY, CPU, Wrong)["failed"]
    assert any(told in line for line in failed), failed
    assert all("allowed" in line for line in failed)


def test_every_different_layer_is_compared_once() -> None:
    assert correctness.distinct(PUBLISHED.widths) == (64, 64, 128, 128, 256, 256)
    assert correctness.distinct((8, 16)) == (8, 16)
    assert correctness.kind_of("l7.gcn1.convs.2.conv4.weight") == "gcn1.convs.conv4.weight"


def test_tf32_is_off_while_it_compares_and_as_before_afterwards() -> None:
    switches: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    with correctness.no_tf32():
        assert [switch.allow_tf32 for switch in switches] == [False, False]
    assert [switch.allow_tf32 for switch in switches] == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("widths", [(8, 16), (64, 64, 128, 128, 256, 256)])
def test_ours_is_as_near_on_a_gpu(widths: tuple[int, ...]) -> None:
    assert correctness.compare(Workload(3, 32, widths, 1), torch.device("cuda:0"))["failed"] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_profile_counts_the_kernels_of_a_graph() -> None:
    found = headline.measure_profile(Workload(3, 16, (8, 16), 1), torch.device("cuda:0"))
    assert found["launches"] > 100
    assert found["us"] > 0
