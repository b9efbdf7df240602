"""Reduces results files to machine type, commit and the fields of `bench.rows` per measurement."""

from __future__ import annotations

from typing import Any

from bench.machine import commit, machine


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine())


def pytest_benchmark_update_commit_info(config: object, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
    commit_info["id"] = commit()


def pytest_benchmark_update_json(config: object, benchmarks: object, output_json: dict[str, Any]) -> None:
    output_json["benchmarks"] = [{key: row[key] for key in ("group", "name", "extra_info")} for row in output_json["benchmarks"]]
