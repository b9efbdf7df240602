"""Coverage-guided fuzzing of the readers in Python, with atheris (pip install atheris):

    python tests/data/fuzz/readers_fuzz.py --seeds corpus
    python tests/data/fuzz/readers_fuzz.py -max_total_time=600 -rss_limit_mb=2048 -timeout=20 -max_len=20000 corpus

The first byte of an input selects the reader of the rest.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[3]))  # for the made-up files of the tests

with atheris.instrument_imports(include=["shapmix.data", "shapmix.skeleton.layout"]):
    from readers import Readers


def main() -> None:
    logging.disable()
    warnings.simplefilter("error")  # a NumPy warning is an unhandled case
    readers = Readers(Path(tempfile.mkdtemp()))
    names = sorted(readers.read)
    if sys.argv[1] == "--seeds":
        corpus = Path(sys.argv[2])
        corpus.mkdir(exist_ok=True)
        for place, name in enumerate(names):
            for number, seed in enumerate(readers.seeds[name]):
                (corpus / f"{name.replace(' ', '_')}{number}").write_bytes(bytes([place]) + seed)
        return

    def one(content: bytes) -> None:
        if content:
            readers.check(names[content[0] % len(names)], content[1:])

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
