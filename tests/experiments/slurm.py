#!/usr/bin/env python3
"""Stands in for SLURM's commands, under whose names it is linked: jobs are processes of this machine.

`sbatch` starts the jobs of a script, `srun` runs what is behind its options, `sacct` lists what has become of the jobs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(sys.argv[0]).parent
NUMBER = "4711"


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    (FOLDER / "script").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for job in range(int(array[1]) + 1 if array else 1):
        name = f"{NUMBER}_{job}" if array else NUMBER
        variables = {"SLURM_JOB_ID": str(int(NUMBER) + job), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
        variables |= dict.fromkeys(("SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID"), "0")
        if array:
            variables |= {"SLURM_ARRAY_JOB_ID": NUMBER, "SLURM_ARRAY_TASK_ID": str(job)}
        command = f"bash {FOLDER}/script; echo > {FOLDER}/{name}.ended"
        environment = {**os.environ, **variables}
        subprocess.Popen(["bash", "-c", command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (FOLDER / f"{name}.begun").touch()
    print(f"Submitted batch job {NUMBER}")


def srun(*arguments: str) -> None:
    command = list(arguments)
    while command[0].startswith("--"):
        del command[: 2 if command[0] in ("--output", "--error") else 1]
    sys.exit(subprocess.run(command, check=False).returncode)


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for begun in sorted(FOLDER.glob("*.begun")):
        state = "COMPLETED" if begun.with_suffix(".ended").exists() else "RUNNING"
        print(f"{begun.stem}|{state}|here")


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct}[Path(sys.argv[0]).name](*sys.argv[1:])
