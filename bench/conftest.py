"""Results files name the kind of machine, and nothing else about it."""

from __future__ import annotations

from typing import Any

from collect import machine


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine())
