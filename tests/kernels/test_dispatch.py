"""Back end selection, the doctor, and Triton's interpreter, which needs a separate process."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from shapmix import doctor
from shapmix.kernels import BackendError, backends, cpp, dispatch, mix_clips, sample_clips
from tests.kernels.backends import EXAMPLES
from tests.kernels.examples import crop_problem, mix_problem
from tests.proofs import CPU, INTERPRETED

HERE = Path(__file__).parent
PROVES_TRITON = re.compile(r'proves\(.*backend="triton"|on_backends\(.*"triton"|mark\.triton')
INTERPRETED_FILES = sorted(file.name for file in HERE.glob("test_*.py") if PROVES_TRITON.search(file.read_text()))


@pytest.mark.skipif(INTERPRETED, reason="this test starts the interpreter process and does not run inside it")
def test_triton_interpreter() -> None:
    """Every Triton test that is not slow on CPU tensors, of a few drawn problems each."""
    interpret(INTERPRETED_FILES, examples=4, which="triton and not slow")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this test starts the interpreter process and does not run inside it")
@pytest.mark.parametrize("file", INTERPRETED_FILES)
def test_triton_interpreter_on_many_problems(file: str) -> None:
    interpret([file], examples=25, which="triton")


def interpret(files: list[str], examples: int, which: str) -> None:
    """Runs the Triton tests of files in a process with the interpreter on."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if version_of(triton.__version__) < (3, 7) and version_of(np.__version__) >= (2, 5):
        pytest.skip(f"the interpreter of Triton {triton.__version__} takes int() of arrays, which NumPy {np.__version__} refuses")
    paths = [str(HERE / file) for file in files]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths, "-m", which]
    environment = {**os.environ, "TRITON_INTERPRET": "1", EXAMPLES: str(examples)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:2]))


def run_mix(backend: str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    problem = mix_problem(dtype)
    mixed: Tensor = mix_clips(problem.clips, problem.plan, problem.part_of_joint, backend=backend)
    return mixed


def test_an_explicit_back_end_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="mix_clips: backend=cuda cannot run on cpu: it works on CUDA tensors, not on cpu"):
        run_mix("cuda")
    with pytest.raises(BackendError, match=r"sample_clips: .* it supports float32, float64, not float16"):
        sample_clips(*crop_problem(2, torch.float16)[:4], backend="cpp")
    monkeypatch.setenv("SHAPMIX_BACKEND", "cuda")
    with pytest.raises(BackendError, match="SHAPMIX_BACKEND=cuda cannot run"):
        run_mix()


def test_unknown_back_ends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend is 'cpu'; give one of auto, reference, cpp, triton, cuda"):
        run_mix("cpu")
    monkeypatch.setenv("SHAPMIX_BACKEND", "fast")
    with pytest.raises(ValueError, match="SHAPMIX_BACKEND is 'fast'"):
        run_mix()


def test_a_misspelt_argument_is_a_type_error() -> None:
    clips = torch.zeros(3, 3, 8, 25, 1)
    with pytest.raises(TypeError, match=r"part_of_joint|parts"):
        mix_clips(clips, mix_problem().plan, parts=torch.zeros(25, dtype=torch.int64))


def test_argument_comes_before_environment_before_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = mix_problem().clips
    assert dispatch.choose("mix_clips", clips, None) == "cpp"
    assert dispatch.choose("sample_clips", clips.half(), None) == "reference"
    monkeypatch.setenv("SHAPMIX_BACKEND", "reference")
    assert dispatch.choose("mix_clips", clips, None) == "reference"
    assert dispatch.choose("mix_clips", clips, "cpp") == "cpp"


@pytest.fixture
def untold() -> Iterator[None]:
    """Clears the caches of the dispatcher before and after a test."""
    caches = (dispatch._fastest, dispatch._log_choices, dispatch._choices, dispatch._reason, cpp.load)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("untold")
def test_auto_tells_all_ops_of_a_device_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    clips = mix_problem().clips
    with caplog.at_level(logging.INFO, logger="shapmix"):
        for op in dispatch.OPS:
            for dtype in (torch.float32, torch.float64):
                dispatch.choose(op, clips.to(dtype), None)
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == ("INFO", f"back ends on cpu: cpp for all {len(dispatch.OPS)} ops")
        for _ in range(2):
            assert dispatch.choose("sample_clips", clips.half(), None) == "reference"
    _, record = caplog.records
    told = "sample_clips of float16 on cpu runs on back end 'reference' (cpp: it supports float32, float64, not float16)"
    assert (record.levelname, record.getMessage()) == ("WARNING", told)


@pytest.mark.usefixtures("untold")
def test_where_nothing_was_built_one_warning_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "shapmix._native", None)
    for op in dispatch.OPS:
        assert dispatch.choose(op, torch.zeros(1), None) == "reference"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        f"back ends on cpu: reference for all {len(dispatch.OPS)} ops (cpp: shapmix._native cannot"
    )


def test_backends_lists_every_reason() -> None:
    reasons = backends("cpu")
    assert list(reasons) == list(dispatch.BACKENDS)
    assert reasons["reference"] is None
    assert reasons["cpp"] is None
    assert "CUDA tensors" in str(reasons["cuda"])


@pytest.mark.usefixtures("untold")
def test_a_module_that_does_not_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapmix._native", None)
    assert "shapmix._native cannot be imported" in str(cpp.unavailable(CPU))
    with pytest.raises(BackendError, match="reinstall shapmix"):
        run_mix("cpp")


def test_doctor_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    assert "agree with the reference" in capsys.readouterr().out


def test_doctor_fails_where_a_back_end_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.unavailable("cpp", CPU, op="mix_clips") is None
    wrong = dispatch.Kernel(lambda *, out, **_: out.zero_(), dispatch.KERNELS["mix_clips", "cpp"].dtypes)
    monkeypatch.setitem(dispatch.KERNELS, ("mix_clips", "cpp"), wrong)
    assert doctor.main(["--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)["back ends"]["cpp on cpu"]
    assert verdict.startswith("WRONG: differs from the reference in mix_clips on [1, 1, 1, 1, 1] torch.float32")


@pytest.mark.parametrize("backend", ["cpp", "cuda"])
def test_a_module_built_from_older_sources_says_so(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"shapmix.kernels.{backend}")
    monkeypatch.setattr(cpp, "import_module", lambda name: ModuleType(name))
    found, reason = module.load.__wrapped__()
    assert found is None
    assert re.fullmatch(r"shapmix\._native(_cuda)? was built from older sources: rerun `pip install -e \.`", str(reason))
