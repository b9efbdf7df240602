# The commands that people type; `just` lists them.
_default:
    @just --list --unsorted

# install for development, with pinned versions
install:
    pip install -c constraints.txt -e ".[dev]"
    pre-commit install

# train on the embedded data, with plain training for comparison
train *options:
    python -m shapmix.train --baselines plain {{ options }}

# the tests of every change
test *options:
    pytest -n auto --dist loadfile {{ options }}

# the long tests
slow *options:
    pytest -m slow -n auto --dist worksteal {{ options }}

# lint, format and types
check:
    ruff check .
    ruff format --check .
    clang-format --dry-run -Werror csrc/*.cpp csrc/*.cu csrc/*.h
    mypy shapmix bench tests/gpu

# build the documentation into site/
docs:
    mkdocs build --strict
