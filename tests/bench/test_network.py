"""The network's benchmark: its floor, its ratios, and a whole run of a small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import network
from bench.network import PASSES, STEPS, Options, Product
from shapmix import kernels
from shapmix.kernels import cpp
from shapmix.kernels.examples import Batch, Shape, example
from shapmix.networks import ctrgcn, ctrgcn_reference
from tests.proofs import CPU

SMALL = Shape("small", "ntu25", (8, 3, 8, 25, 1), 5)


def small_networks(shape: Shape, device: torch.device = CPU) -> dict[str, nn.Module]:
    layout = Batch(shape, torch.float32, device).layout
    kinds = {"reference": ctrgcn_reference.CTRGCN, "op": ctrgcn.CTRGCN}
    pair = {name: kind(layout, 5, num_people=1, widths=(8, 16), graph_gain=1.0) for name, kind in kinds.items()}
    pair["op"].load_state_dict(pair["reference"].state_dict())
    return pair


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "NTU", SMALL)
    monkeypatch.setattr(network, "networks", small_networks)
    monkeypatch.setattr(network, "PRODUCTS", ((64, 64, 64), (128, 32, 32)))


def test_the_flops_of_graph_conv_are_those_of_its_products() -> None:
    """Counted by torch on the products of the same sums, with gradients."""
    arguments = example("graph_conv", Batch(Shape("odd", None, (3, 2, 5, 7, 1), 6, width=16), torch.float32, CPU))
    features, terms, weight = (arguments[name].requires_grad_() for name in ("features", "relation_terms", "weight"))
    rows, _, frames, joints = features.shape
    subsets, relations, channels = weight.shape
    relation = terms[:, :, 0, None] - terms[:, None, :, 1]  # [N, U, V, S, K]
    by_subset = relation.permute(3, 0, 1, 2, 4).reshape(subsets, -1, relations)
    with FlopCounterMode(display=False) as counted:
        graphs = torch.bmm(by_subset, weight).view(subsets, rows, joints, joints, channels)
        left = graphs.permute(1, 0, 4, 2, 3).reshape(-1, joints, joints)
        right = features.reshape(rows, subsets, channels, frames, joints).permute(0, 1, 2, 4, 3).reshape(-1, joints, frames)
        out = torch.bmm(left, right)
    assert network.flops(lambda: kernels.graph_conv(**arguments)) == counted.get_total_flops()
    with FlopCounterMode(display=False) as counted:
        out.sum().backward()
    result: Tensor = kernels.graph_conv(**arguments)
    assert network.flops(lambda: result.sum().backward()) == counted.get_total_flops()


def test_ratios_are_computed_within_a_round() -> None:
    """The machine is three times slower in one round."""
    times = {"reference": [4.0, 12.0, 4.0], "float32": [2.0, 6.0, 2.0], "bfloat16": [1.0, 3.0, 1.0], "product": [0.1, 0.3, 0.1]}
    found = network.row(times, Product(lambda: None, 1e9, 0.2), 1e10)
    same = {"p20": 2.0, "p50": 2.0, "p80": 2.0}
    assert found["speed-up"] == {"float32": same, "bfloat16": dict.fromkeys(same, 4.0)}
    assert found["floor"] == 1.0  # at the rate of the fastest product
    assert found["gigaflops per second of a product"] == 10.0
    assert {name: value["p50"] for name, value in found["times the floor"].items()} == {"reference": 4.0, "float32": 2.0}


@pytest.mark.usefixtures("small")
def test_the_fastest_product_is_a_product_of_its_size() -> None:
    product = network.fastest_product()
    assert product.flops in {2 * rows * depth * columns for rows, depth, columns in network.PRODUCTS}
    assert network.flops(product.run) == product.flops
    assert product.seconds > 0


@pytest.mark.usefixtures("small")
def test_every_row_is_measured() -> None:
    found = network.measure(Options(8, 2, ("float32", "bfloat16"), "official"))
    for name in (*PASSES, *STEPS):
        assert set(found[name]["seconds"]) == {"reference", "float32", "bfloat16"}, name
        assert found[name]["floor"] > 0, name
        assert set(found[name]["times the floor"]) == {"reference", "float32"}, name
    for name in PASSES:
        assert found[name]["distance"]["float32"] < 1e-4 < found[name]["distance"]["bfloat16"], name
    forward, training, published, half = (found[name]["gigaflops"] for name in (*PASSES, *STEPS))
    assert 2.5 * forward < training < 3.1 * forward
    assert 1.9 * training < half < published < 2 * training + 2.3 * forward  # clean and mixed clips, and the coalitions


@pytest.mark.usefixtures("small")
def test_half_the_budget_measures_in_every_second_step() -> None:
    pair = small_networks(SMALL)
    batch = Batch(SMALL, torch.float32, CPU)
    rows: list[int] = []
    pair["op"].register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    for measures in (True, False):
        step = network.whole_step(batch, "official", measures=measures)(pair["op"], False)
        step()
        step()
    training = [2 * len(batch.clips)] * 2
    assert len(rows) == 6
    assert rows[1:4:2] == training  # after the coalitions of each step
    assert rows[4:] == training


def content(threads: int = 1) -> dict[str, Any]:
    """A results file as it is written."""

    def measured(reference: float, **variants: float) -> dict[str, Any]:
        speed_up = {name: {"p50": reference / seconds} for name, seconds in variants.items()}
        return {
            "seconds": {"reference": {"p50": reference}},
            "speed-up": speed_up,
            "times the floor": {"reference": {"p50": 4.0}, "float32": {"p50": 1.46}},
        }

    avx2 = {name: measured(2.0, float32=0.8) for name in (*PASSES, *STEPS)}
    avx512 = {name: measured(1.5, float32=0.5, bfloat16=0.25) for name in (*PASSES, *STEPS)}
    peak = {"reference": 2.5e9, "float32": 1.5e9, "bfloat16": 1e9}
    return {"clips": 8, "threads": threads, "instruction sets": {"avx2": avx2, "avx512": avx512}, "peak bytes": peak}


def test_the_table_has_the_columns_of_every_instruction_set() -> None:
    lines = network.table(content()).splitlines()
    assert lines[0] == (
        "| 8 clips, 1 thread | AVX2: reference | float32 | times the floor "
        "| AVX-512: reference | float32 | bfloat16 | times the floor |"
    )
    assert lines[2] == "| coalition forward | 2.00 s | 2.5x | 1.5 | 1.50 s | 3.0x | 6.0x | 1.5 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in (*PASSES, *STEPS)]
    assert network.table(content(threads=2)).startswith("| 8 clips, 2 threads |")
    assert (
        network.memory_line(content()) == "peak memory of a training pass: 2.50 GB, 0.60 of it in float32, 0.40 of it in bfloat16"
    )


@pytest.mark.skipif(cpp.load()[0] is None, reason="shapmix._native was not built")
def test_a_results_file_says_how_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[dict[str, str], list[str]]] = []

    def in_process(_module: str, environment: dict[str, str], *options: object) -> Any:
        asked.append((environment, list(map(str, options))))
        sets = content()["instruction sets"]
        return 10**9 if "--memory-of" in options else sets["avx512" if "bfloat16" in options else "avx2"]

    monkeypatch.setattr(network, "in_process", in_process)
    out = tmp_path / "network.json"
    threads = torch.get_num_threads()
    network.main(["--out", str(out), "--threads", str(threads), "--clips", "4", "--precision", "float32"])
    found = json.loads(out.read_text())
    assert {"command", "commit", "machine", "load average", "peak bytes"} < set(found)
    assert found["command"].endswith("--clips 4 --precision float32")
    assert (found["threads"], found["clips"]) == (threads, 4)
    measured = [environment for environment, options in asked if "--measure" in options]
    assert [environment["SHAPMIX_ISA"] for environment in measured] == list(found["instruction sets"])
    available = cpp.instruction_set()
    assert available is not None
    pinned = [environment.get("ATEN_CPU_CAPABILITY") for environment in measured]
    assert pinned == [None if isa == available.available[-1] else isa for isa in found["instruction sets"]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--out is required"),
        (["--out", "x", "--threads", "0"], "--threads is 0; give at least 1"),
        (["--out", "x", "--clips", "1"], "give at least 4 clips and 2 rounds"),
        (["--out", "x", "--isa", "avx1024"], "invalid choice: 'avx1024'"),
    ],
)
def test_bad_options_end_with_a_message(capsys: pytest.CaptureFixture[str], options: list[str], told: str) -> None:
    with pytest.raises(SystemExit):
        network.read_arguments(options, ["baseline", "avx2"])
    assert told in capsys.readouterr().err
