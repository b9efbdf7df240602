"""Several nodes: torchrun on two hosts, which are network namespaces joined by a virtual cable, trains one run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import small_run

ROOT = Path(__file__).parents[2]
HOSTS = {"shapmix-a": "10.213.7.1", "shapmix-b": "10.213.7.2"}
LIMIT = 300  # seconds after which a process hangs, on a machine however busy


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Name -> address of two network namespaces with one interface each."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts need the command ip of iproute2")
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", "shapmix0", "netns", "shapmix-a", "type", "veth", "peer", "name", "shapmix0", "netns", "shapmix-b")
        for name, address in HOSTS.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "shapmix0")
            ip("-n", name, "link", "set", "shapmix0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"two hosts need network namespaces, which this machine refuses: {getattr(error, 'stderr', error)}")
    else:
        yield HOSTS
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_hosts_train_one_run(hosts: dict[str, str], tmp_path: Path) -> None:
    first = next(iter(hosts.values()))
    options = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "12", "--epochs", "2", "--threads", "1"]
    options += ["--device", "cpu", "--saliency.warmup-epochs", "1", "--run-dir", "run"]
    processes = []
    for node, name in enumerate(hosts):
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node)]
        torchrun += ["--master-addr", first, "--master-port", "29511"]
        command = ["ip", "netns", "exec", name, sys.executable, *torchrun, str(Path(small_run.__file__)), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "shapmix0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes))
    said = [process.communicate(timeout=LIMIT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    started = json.loads((tmp_path / "run" / "environment.jsonl").read_text().splitlines()[0])
    assert started["processes"] == 2
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    alone = [sys.executable, str(Path(small_run.__file__)), *options[:-1], "alone"]
    subprocess.run(alone, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, timeout=LIMIT)
    both = [json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0]) for run in ("run", "alone")]
    assert both[0]["loss_clean"] == pytest.approx(both[1]["loss_clean"], rel=1e-4)  # the first epoch: float32 drifts apart later
    assert both[0]["loss_mixed"] == pytest.approx(both[1]["loss_mixed"], rel=1e-4)
