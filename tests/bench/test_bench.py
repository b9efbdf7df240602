"""The benchmarks: traffic, timers and tables. No speed is tested here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import collect, measure, report, step, timing
from bench.cases import ALL, CASES, SHAPES, Case
from bench.machine import commit, machine
from bench.measure import copy_bandwidth, measure_all
from bench.ptxas import Kernel, read_report
from bench.roofline import roofline
from bench.rows import cannot_run, row
from bench.tables import assembled, in_bytes, in_units, markdown, measured, name_of, read_rows, tables, unmeasured
from shapmix import kernels, reference
from shapmix.kernels.examples import Batch, Shape

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Shape("tiny", "ntu25", (5, 3, 16, 25, 2), 9)
CLIP = 3 * 16 * 25 * 2 * 4  # bytes


def case_named(name: str) -> Case:
    return next(case for case in CASES if str(case) == name)


# What is measured


def test_every_op_is_measured() -> None:
    ops = {op for case in CASES for op in case.ops.split(" + ")}
    assert ops == set(kernels.__all__) & set(reference.__all__)


def test_shapes_are_the_fields() -> None:
    for shapes in SHAPES.values():
        assert {shape.name: shape.size for shape in shapes if shape.name != "large"} == {
            "ntu": (64, 3, 64, 25, 2),
            "k400": (80, 3, 100, 17, 2),
            "nw_ucla": (32, 3, 64, 20, 1),
        }


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [value for part in (result if isinstance(result, tuple) else vars(result).values()) for value in flat(part)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_sides_of_a_ratio_compute_the_same(case: Case, dtype: torch.dtype) -> None:
    if dtype not in case.dtypes:
        pytest.skip(f"{case} does not depend on it")
    if reason := cannot_run(case, "cpp", dtype, CPU):
        pytest.skip(reason)
    problem = case.make(Batch(TINY, dtype, CPU))
    found, expected = flat(problem.run("cpp")), flat(problem.reference())
    assert len(found) == len(expected) > 0
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance * max(1.0, float(right.double().abs().max())))


@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("coalition_inputs S=2", 1 + 2 + 1 / 5),
        ("coalition_inputs S=31", 1 + 31 + 1 / 5),
        ("coalition_inputs S=31 into a buffer", 1 + 31 + 1 / 5),
        ("mix_clips", 3),
    ],
)
def test_bytes_are_each_input_and_output_once(name: str, clips: float) -> None:
    """All arguments except index tensors, which are small."""
    problem = case_named(name).make(Batch(TINY, torch.float32, CPU))
    rest = problem.bytes_moved - clips * 5 * CLIP
    assert 0 <= rest < 0.1 * 5 * CLIP


def test_bytes_of_recordings_are_at_most_two_frames_a_frame() -> None:
    batch = Batch(TINY, torch.float32, CPU)
    crops = batch.recorded[2]
    assert bool((crops.length > 32).any())
    frames = int(crops.length.clamp(max=2 * 16).sum())
    index = 5 * (3 * 8 + 3 * 8)
    assert case_named("sample_clips").make(batch).bytes_moved == frames * CLIP // 16 + index + 5 * CLIP


def test_bytes_of_logits_are_halved_in_half_types() -> None:
    case = case_named("balanced_mix_loss forward and backward")
    full, half = (case.make(Batch(TINY, dtype, CPU)).bytes_moved for dtype in (torch.float32, torch.bfloat16))
    assert full - half == 3 * 10 * 9 * 2  # read, read again, written


def test_batches_repeat() -> None:
    one, other = (Batch(TINY, torch.float32, CPU) for _ in range(2))
    assert torch.equal(one.clips, other.clips)
    assert torch.equal(one.coalitions, other.coalitions)
    assert torch.equal(one.plan.lam, other.plan.lam)


# How it is timed


def test_quantiles() -> None:
    assert timing.quantiles([float(time) for time in range(101)]) == {"p20": 20.0, "p50": 50.0, "p80": 80.0}
    assert timing.quantiles([3.0]) == {"p20": 3.0, "p50": 3.0, "p80": 3.0}


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = timing.interleaved(calls, CPU, budget=0.0, least=3)
    assert "".join(order) == "ab" * (1 + 1 + 3)  # warm-up, choice of the number of rounds, the rounds
    assert all(len(own) == 3 and min(own) > 0 for own in times.values())


@pytest.mark.parametrize(("once", "rounds"), [(1.0, 5), (0.1, 10), (1e-6, 50)])
def test_rounds(once: float, rounds: int) -> None:
    assert timing.rounds_within(1.0, once, 5, 50) == rounds


def test_a_copy_moves_its_bytes() -> None:
    target = timing.copy_of(1000, CPU)()
    assert isinstance(target, torch.Tensor)
    assert target.nbytes == 500
    assert not target.any()


@pytest.mark.parametrize("cold", [True, False])
def test_device_time_of_a_cpu_is_wall_time_of_the_call_alone(cold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    assert timing.device_seconds(lambda: None, CPU, cold=cold, replays=4) == [1.0] * 4


@pytest.mark.parametrize("cold", [True, False])
def test_device_time_of_a_gpu_is_the_calls_share_of_a_replay(cold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated GPU: the call takes 3 us, a cache flush 40 us, and the launch of a replay 1 ms."""
    call_seconds, flush_seconds = 3e-6, 40e-6
    now, captured = [0.0], []

    def call() -> None:
        now[0] += call_seconds

    class Graph:
        def __init__(self, calls: list[Any], launches: int) -> None:
            self.seconds = launches * sum(call_seconds if each is call else flush_seconds for each in calls)
            captured.append((len(calls), launches))

        def replay(self) -> None:
            now[0] += self.seconds

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now[0]

        def synchronize(self) -> None:
            now[0] += 1e-3

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(timing, "_captured", Graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=64))
    times = timing.device_seconds(call, torch.device("meta"), cold=cold, replays=4)
    assert times == pytest.approx([call_seconds] * 4)
    assert captured == ([(2, 25), (1, 25)] if cold else [(1, 100)])


def test_measuring_covers_every_back_end_and_survives_a_failure() -> None:
    def fails(batch: Batch) -> Any:
        raise RuntimeError("out of memory\nand more")

    broken = Case("mix_clips", "broken", fails)
    found = list(measure_all(CPU, [TINY], [torch.float32], (broken, case_named("mix_clips"))))
    assert found[0] == {
        "ops": "mix_clips",
        "variant": "broken",
        "shape": "tiny",
        "dtype": "float32",
        "error": "RuntimeError: out of memory",
    }
    (good,) = found[1:]
    assert (good["backend"], good["size"], good["device"]) == ("cpp", [5, 3, 16, 25, 2], "cpu")
    assert set(good["seconds"]["wall"]) == {"op", "copy", "reference"}


def test_bandwidth_counts_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.device_seconds", lambda call, device, **options: [0.5e-3, 1e-3, 2e-3])
    assert copy_bandwidth(CPU, 4_000_000)["gb_per_s"] == 4.0


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_augment_path_is_the_reference_and_counts_its_steps(backend: str) -> None:
    path, eager = (step.AugmentPath(TINY, CPU, name) for name in (backend, "reference"))
    for _ in range(2):
        for left, right in zip(path.run(), eager.run(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    assert int(path.step) == 2
    torch.testing.assert_close(path.table, eager.table)
    assert not torch.equal(path.table, path.batch.saliency)


def test_augment_path_is_measured() -> None:
    found = step.measure_augment_path(TINY, CPU, "auto")
    assert set(found["seconds"]) == {"wall", "cold", "hot"}
    assert "auto" in step.path_backends(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_host_reads_are_found_on_a_gpu() -> None:
    one = torch.ones(1, device="cuda")
    assert step.find_host_sync(lambda: one + 1) is None
    assert "synchroniz" in str(step.find_host_sync(one.item))
    assert torch.cuda.get_sync_debug_mode() == 0


# What is kept


def made_up(backend: str = "cpp", device: str = "cpu", **changes: Any) -> dict[str, Any]:
    """An op at 1 ms, a copy at 0.5 ms, the reference at 10 ms."""
    case, shape = case_named("mix_clips"), SHAPES["cpu"][0]
    wall = {"op": [1e-3] * 3, "copy": [5e-4] * 3, "reference": [1e-2] * 3}
    times = {"wall": wall}
    if device == "cuda":
        times |= {"cold": {"op": [2e-5], "copy": [1.8e-5]}, "hot": {"op": [9e-6], "copy": [8e-6]}}
    found = row(case, shape, torch.float32, backend, torch.device(device), 6_000_000, times)
    return json.loads(json.dumps({**found, "shown": "green"} | changes))


def test_a_row_has_bandwidth_share_and_speed_up() -> None:
    found = made_up()
    assert found["gb_per_s"] == pytest.approx(6.0)
    assert found["copy_share"] == pytest.approx(0.5)
    assert found["speedup"] == pytest.approx({"p20": 10, "p50": 10, "p80": 10})
    on_gpu = made_up("cuda", "cuda")
    assert on_gpu["clock"] == "cold"
    assert on_gpu["gb_per_s"] == pytest.approx(300)
    assert on_gpu["copy_share"] == pytest.approx(0.9)


def test_the_speed_up_is_taken_within_a_turn() -> None:
    """The machine is twice as slow in the second round, for both calls."""
    wall = {"op": [1.0, 2.0], "copy": [1.0, 2.0], "reference": [8.0, 16.0]}
    found = row(case_named("mix_clips"), TINY, torch.float32, "cpp", CPU, 1, {"wall": wall})
    assert found["speedup"] == {"p20": 8, "p50": 8, "p80": 8}


def test_a_time_below_the_clock_has_no_bandwidth() -> None:
    times = {"wall": {"op": [1.0], "copy": [1.0], "reference": [1.0]}, "cold": {"op": [0.0], "copy": [1e-6]}, "hot": {"op": [1e-6]}}
    found = {**row(case_named("mix_clips"), TINY, torch.float32, "cuda", CPU, 1, times), "shown": "green"}
    assert found["gb_per_s"] is None
    assert "below the clock" in measured([found])[1]


def test_machine_and_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {"cpu", "cores", "gpu", "driver", "cuda", "python", "torch", "triton"} <= set(machine())
    monkeypatch.setattr("bench.machine.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "uncommitted"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "uncommitted"


# What is shown


def test_table_of_the_cpu() -> None:
    head, body = measured([made_up()])
    assert head == ["op, shape", "floor", "reference", "cpp", "speed-up (p20 to p80)", "of copy speed"]
    assert body == ["mix_clips, ntu", "500 us", "10 ms", "1 ms", "10.0x (10.0 to 10.0)", "50%"]


def test_table_of_a_gpu_has_device_times_and_a_back_end_that_did_not_run() -> None:
    rows = [made_up("cuda", "cuda"), made_up("triton", "cuda"), made_up("cuda", "cuda", shape="large")]
    head, ntu, large = measured(rows)
    assert head[3::3] == ["cuda", "triton"]
    assert ntu[1:6] == ["18 us", "10 ms", "20 us / 9 us", "10.0x (10.0 to 10.0)", "90%"]
    assert large[6:] == ["not run"] * 3


def test_no_speed_of_an_op_that_something_speaks_against() -> None:
    (_, body) = measured([made_up("cuda", "cuda", shown="red")])
    assert body[3:] == ["red"] * 3
    (_, body) = measured([made_up("cuda", "cuda", shown="unverified")])
    assert body[3:] == ["20 us / 9 us (unverified)", "10.0x (10.0 to 10.0)", "90%"]


def test_without_a_gpu_the_floor_stands_there_as_nominal() -> None:
    head, *body = unmeasured([made_up(), made_up(shape="large")])
    assert head[2] == "floor at nominal 3.35 TB/s"
    assert body == [["mix_clips, ntu", "6 MB", "1.79 us", "not measured"]]
    both = tables([made_up()])
    assert "not measured" in both
    assert "not measured" not in tables([made_up(), made_up("cuda", "cuda")])


def test_names_and_units() -> None:
    assert name_of(made_up(variant="S=2", dtype="bfloat16")) == "mix_clips S=2, ntu bfloat16"
    assert [in_units(time) for time in (1e-3, 9.99e-4, 0.1234, 4.449e-7)] == ["1 ms", "999 us", "123 ms", "445 ns"]
    assert [in_bytes(count) for count in (7_412_345, 12_340)] == ["7.41 MB", "12.3 kB"]


PTXAS = """
ptxas info    : Compiling entry function '_ZN12_GLOBAL__N_110mix_kernelIfLb1EEEv4Args' for 'sm_90'
ptxas info    : Function properties for _ZN12_GLOBAL__N_110mix_kernelIfLb1EEEv4Args
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 448 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN12_GLOBAL__N_110mix_kernelIdLb1EEEv4Args' for 'sm_90'
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers
ptxas-blackwell info    : Compiling entry function 'mix_kernel' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas-blackwell info    : Used 122 registers, used 0 barriers
"""


def test_assembler_reports_become_the_most_of_each_kernel() -> None:
    found = read_report(PTXAS)
    assert found == [Kernel("mix_kernel", "cuda", "sm_90", 2, 40, 16, 128), Kernel("mix_kernel", "triton", "sm_90a", 1, 122, 0, 0)]
    assert assembled(found)[1] == ["mix_kernel", "cuda", "sm_90", "2", "40", "16 B", "128 B"]


def test_markdown() -> None:
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def lines_of(*rows: dict[str, Any]) -> str:
    """A file of bench.measure."""
    return "".join(json.dumps(line) + "\n" for line in ({"command": "x"}, *({"row": found} for found in rows)))


def test_report_reads_several_files_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_cpu, on_gpu, log, picture = (tmp_path / name for name in ("cpu.jsonl", "gpu.json", "ptxas.log", "roofline.png"))
    on_cpu.write_text(lines_of(made_up(), made_up(dtype="bfloat16"), {"error": "no memory"}))
    counts = {"failed": 0, "cuda": 1, "triton": 0}
    suite = {"rows": [made_up("cuda", "cuda"), {"ops": "x", "error": "y"}], "tests": {"ops": {"mix_clips": counts}}}
    on_gpu.write_text(json.dumps(suite))
    log.write_text(PTXAS)
    report.main([str(on_cpu), str(on_gpu), "--ptxas", str(log), "--roofline", str(picture)])
    shown = capsys.readouterr().out
    assert "| 1 ms |" in shown
    assert "| 20 us / 9 us |" in shown
    assert "bfloat16" not in shown
    assert "| sm_90a |" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")

    suite["tests"]["ops"]["mix_clips"]["failed"] = 1
    on_gpu.write_text(json.dumps(suite))
    report.main([str(on_cpu), str(on_gpu)])
    shown = capsys.readouterr().out
    assert "| red | red | red |" in shown
    assert "20 us" not in shown


def test_report_says_what_it_cannot_show(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text(lines_of())
    with pytest.raises(SystemExit, match="no measurement of an op"):
        report.main([str(empty)])
    with pytest.raises(SystemExit, match="nothing to draw"):
        roofline([made_up(shown="red")], tmp_path / "none.png")


def test_benchmarks_write_what_the_report_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(measure.COPIED, "cpu", 1 << 16)
    out = tmp_path / "ops.jsonl"
    options = ["--out", str(out), "--ops", "mix_clips", "--shapes", "nw_ucla", "--dtypes", "float32", "--budget", "0"]
    measure.main(options)
    (found,) = read_rows(out)
    assert (found["backend"], found["shape"], found["shown"]) == ("cpp", "nw_ucla", "green")
    assert found["threads"] == torch.get_num_threads()
    head, copied, row = map(json.loads, out.read_text().splitlines())
    assert head == {"command": "python -m bench.measure", "commit": commit(), "machine": machine()}
    assert copied["copy"]["bytes_moved"] == 1 << 16
    assert set(row) == {"row"}
    measure.main([*options, "--seconds", "-1"])
    assert json.loads(out.read_text().splitlines()[-1]) == {"skipped": "nw_ucla float32"}
    with out.open("a") as lines:
        print(json.dumps({"row": {"ops": "mix_clips", "error": "no memory"}}), file=lines)
    assert len(read_rows(out)) == 1


def test_there_is_one_clock() -> None:
    """But in the programs of bench/sources.py, which run in processes of their own without this package."""
    clocks = ("perf_counter", "process_time", "time.time(", "benchmark.pedantic", "timeit")
    files = (ROOT / "bench").glob("*.py")
    assert {file.name for file in files if any(clock in file.read_text() for clock in clocks)} == {"timing.py", "sources.py"}


def test_training_runs_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (run / "config.yaml").write_text("seed: 0\ndata_root: somewhere\n")
    (run / "result.json").write_text('{"test": {"last": 1}}')
    monkeypatch.setattr(sys, "argv", ["collect", str(run), "--out", str(tmp_path / "out.json")])
    collect.main()
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["runs"]["run"] == {"config": {"seed": 0}, "test": {"last": 1}, "epochs": [{"epoch": 1}, {"epoch": 2}]}
    assert content["machine"] == machine()
