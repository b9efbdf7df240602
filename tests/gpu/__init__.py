"""The GPU suite: tests, sanitizers and benchmarks on a GPU within a time budget: `python -m tests.gpu --minutes M --out FILE`."""
