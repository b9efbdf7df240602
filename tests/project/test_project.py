"""The project's own files agree with each other: workflows, hooks, justfile, extras, pins, templates and changelog."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import shapmix.__main__ as script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# installed by a workflow itself, so no extra of the project has them
WORKFLOW_TOOLS = {"cibuildwheel", "build", "venv"}
TOOLS = {"ruff", "mypy", "pytest", "mkdocs", "pre-commit", "clang-format", "pip", "python", "python3", "bash", "just"}


def workflow(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["on"] = content.pop(True)  # YAML 1.1 reads `on` as a truth value
    return content


def commands_of(path: Path) -> list[str]:
    jobs = workflow(path)["jobs"].values()
    return [line.strip() for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines() if line.strip()]


def ci_steps() -> list[str]:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^all=\((.*)\)$", script, re.MULTILINE)
    assert set(listed.split()) == set(re.findall(r"^step_(\w+)\(\)", script, re.MULTILINE))
    return listed.split()


def modules_run(command: str) -> list[str]:
    return re.findall(r"python3? -m ([\w.]+)", command)


def exists(module: str) -> bool:
    if module in WORKFLOW_TOOLS:
        return True
    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_what_every_one_has(path: Path) -> None:
    content = workflow(path)
    assert content["name"]
    assert content["permissions"] == {"contents": "read"}, "jobs that write say so themselves"
    for name, job in content["jobs"].items():
        assert job["runs-on"], name
        assert job["timeout-minutes"] <= 90, name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "actions/checkout@v4")), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_of_a_workflow_exist(path: Path) -> None:
    for command in commands_of(path):
        if command.startswith("bash "):
            assert (ROOT / command.split()[1]).exists(), command
        for module in modules_run(command):
            assert exists(module), command


def test_the_workflows_run_every_step_of_the_ci_script_and_no_other() -> None:
    run = [command.split()[2:] for path in WORKFLOWS for command in commands_of(path) if command.startswith("bash .ci/run")]
    assert run
    assert all(steps[0] == "install" for steps in run)
    assert {step for steps in run for step in steps} == set(ci_steps())


def test_continuous_integration_and_wheels_cover_the_same_pythons() -> None:
    matrix = workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    assert PROJECT["tool"]["cibuildwheel"]["build"] == [f"cp{python.replace('.', '')}-*" for python in PYTHONS]
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"


def test_the_gpu_workflow_either_runs_or_says_why_not() -> None:
    jobs = workflow(ROOT / ".github" / "workflows" / "gpu.yml")["jobs"]
    assert jobs["suite"]["if"] == "vars.GPU_RUNNER != ''"
    assert jobs["skipped"]["if"] == "vars.GPU_RUNNER == ''"
    assert any("tests.gpu" in command for command in commands_of(ROOT / ".github" / "workflows" / "gpu.yml"))
    assert "skipped: " in jobs["skipped"]["steps"][0]["run"]


def test_hooks_and_recipes_call_tools_of_the_development_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = {hook["id"]: shlex.split(hook["entry"]) for repository in hooks["repos"] for hook in repository["hooks"]}
    assert set(entries) == {"ruff", "ruff-format", "clang-format", "mypy"}
    recipes = re.findall(r"^    @?(.+)$", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in [*entries.values(), *map(shlex.split, recipes)]:
        assert command[0] in TOOLS, command
    for module in (module for recipe in recipes for module in modules_run(recipe)):
        assert exists(module), module


def test_checks_are_the_same_in_the_justfile_and_in_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    justfile = (ROOT / "justfile").read_text(encoding="utf-8")
    recipes = {line.split()[0].rstrip(":") for line in justfile.splitlines() if re.match(r"[a-z][\w ]*(\*options)?:$", line)}
    assert recipes == {"install", "train", "test", "slow", "check", "docs"}
    for command in (
        "ruff check .",
        "ruff format --check .",
        "clang-format --dry-run -Werror csrc/*.cpp csrc/*.cu csrc/*.h",
        "mypy shapmix bench tests/gpu",
        "mkdocs build --strict",
    ):
        assert command in script, command
        assert command in justfile, command
    for command in ("pytest -n auto --dist loadfile", "pytest -m slow"):
        assert command in script
        assert command in justfile


def test_every_requirement_of_an_extra_is_pinned() -> None:
    def name(requirement: str) -> str:
        return re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name(line) for line in lines if line and not line.startswith("#")}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {name(requirement) for group in extras.values() for requirement in group}
    stubs_and_fallbacks = {"shapmix", "types-pyyaml", "types-tqdm"}
    assert wanted - stubs_and_fallbacks <= pinned


@pytest.mark.parametrize("template", ["ISSUE_TEMPLATE/bug.yml", "ISSUE_TEMPLATE/feature.yml", "pull_request_template.md"])
def test_templates_ask_for_the_doctor(template: str) -> None:
    text = (ROOT / ".github" / template).read_text(encoding="utf-8")
    assert "python -m shapmix.doctor --json" in text
    if template.endswith(".yml"):
        form = yaml.safe_load(text)
        assert {"name", "description", "body"} <= set(form)
        for field in form["body"]:
            assert field["type"] in ("textarea", "input", "dropdown", "checkboxes", "markdown")
            assert field["type"] == "markdown" or {"id", "attributes"} <= set(field)


def test_the_changelog_is_by_release() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    for head in heads[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", head), head


def test_the_console_script_is_the_list_of_commands() -> None:
    assert PROJECT["project"]["scripts"] == {"shapmix": f"{script.__name__}:main"}
    verbs = {path.stem for path in (ROOT / "shapmix").glob("*.py") if not path.stem.startswith("_")}
    assert set(script.COMMANDS) == verbs
