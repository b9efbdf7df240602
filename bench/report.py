"""Prints results files as Markdown tables and draws a roofline.

    python -m bench.report FILE... [--shapes ntu large] [--dtypes float32] [--ptxas LOG] [--roofline OUT.png]

Reads the output of `python -m bench.measure --out FILE.jsonl` and of `python -m tests.gpu --out FILE`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.ptxas import read_report
from bench.roofline import roofline
from bench.tables import assembled, markdown, read_rows, tables


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--shapes", nargs="+", help="shapes to show; default: all")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="dtypes to show")
    parser.add_argument("--ptxas", type=Path, help="ptxas reports, for a table of registers, spills and shared memory per kernel")
    parser.add_argument("--roofline", type=Path, help="write a roofline plot of all measurements to this file")
    options = parser.parse_args(arguments)
    rows = [row for path in options.results for row in read_rows(path)]
    shown = [row for row in rows if row["dtype"] in options.dtypes and row["shape"] in (options.shapes or [row["shape"]])]
    if not shown:
        raise SystemExit("bench.report: the files have no measurement of an op with these shapes and dtypes")
    print(tables(shown))
    if options.ptxas:
        print("\n" + markdown(assembled(read_report(options.ptxas.read_text(encoding="utf-8")))))
    if options.roofline:
        roofline(rows, options.roofline)


if __name__ == "__main__":
    main()
