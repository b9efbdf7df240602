"""Recorded launches: bytes, operations and dtype, on fake tensors too, where nothing is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from shapmix.kernels.triton_launch import Launch, architecture, in_three_products, launch, record_launches


def kernel_named(name: str, calls: list[Any]) -> Any:
    """Stands in for a kernel: notes grid, arguments and options of each launch."""

    class Kernel:
        fn = SimpleNamespace(__name__=name)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: calls.append((grid, arguments, options))

    return Kernel()


def test_a_launch_is_run_and_recorded() -> None:
    calls: list[Any] = []
    x, out = torch.zeros(4, 6, dtype=torch.bfloat16), torch.zeros(3)
    kernel = kernel_named("add_kernel", calls)
    launch(kernel, (7,), out, x, 5, reads=[x], writes=[out], BLOCK=8)
    with record_launches() as launches:
        launch(kernel, (7,), out, x, 5, reads=[x, None, (x, 0.5)], writes=[(out, 2)], flops=11, BLOCK=8)
    launch(kernel, (7,), out, x, 5, reads=[x], writes=[out], BLOCK=8)
    assert calls == 3 * [((7,), (out, x, 5), {"BLOCK": 8})]
    assert launches == [Launch("add_kernel", 48 + 24, 24, 11, torch.bfloat16)]


def test_launches_are_recorded_by_the_innermost_context() -> None:
    kernel, x = kernel_named("kernel", []), torch.zeros(2)
    with record_launches() as outer:
        with record_launches() as inner:
            launch(kernel, (1,), reads=[x], writes=[])
        launch(kernel, (1,), reads=[x], writes=[x])
    assert [found.bytes_written for found in inner] == [0]
    assert [found.bytes_written for found in outer] == [8]


@pytest.mark.parametrize("fake", [True, False])
def test_fake_and_meta_tensors_are_only_recorded(fake: bool) -> None:
    calls: list[Any] = []
    if fake:
        with FakeTensorMode():
            x = torch.empty(1 << 40)
    else:
        x = torch.empty(1 << 40, device="meta")
    with record_launches() as launches:
        launch(kernel_named("copy_kernel", calls), (1,), x, reads=[x], writes=[x])
    assert not calls
    assert launches == [Launch("copy_kernel", 1 << 42, 1 << 42, 0, torch.float32)]


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 100), ((12, 0), 80)])
def test_blocks_are_those_of_the_architecture(capability: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    assert architecture(on_gpu) == expected
    assert architecture(torch.zeros(1)) == 90


def test_only_products_of_whole_float32_are_three(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        found = [in_three_products(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
        assert found == [not allowed, False, False]
