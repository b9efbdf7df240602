"""The files that were read last, for formats with many clips per file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Content = TypeVar("Content")


class KeptFiles(Generic[Content]):
    """Reads files through `load` and keeps the last `most`, so that clips in the order of their files read each file once.

    Thread-safe: threads that ask for the same file wait for the first one. An error of `load` is raised to all of them.
    """

    def __init__(self, load: Callable[[Path], Content], most: int) -> None:
        self._load, self._most = load, most
        self._kept: dict[Path, Content] = {}
        self._lock = threading.Lock()

    def read(self, path: Path) -> Content:
        """The content of a file."""
        with self._lock:
            content = self._kept.pop(path) if path in self._kept else self._load(path)
            self._kept[path] = content
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return content
