"""Atomic file writes, locks of folders, and I/O errors that name their file."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, BinaryIO
from uuid import uuid4

from shapmix.process.errors import ShapmixError

log = logging.getLogger("shapmix")

LOCK_BEGINS = b'{"pid"'
UNFINISHED = ".tmp"  # suffix of temporary files, which a killed process leaves behind


class InUseError(ShapmixError, RuntimeError):
    """Another process is writing the folder; the message says which, and what to do."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds the file name to an OSError raised inside, because those of writes lack it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing that atomically replaces `path` once complete and synced; an error leaves `path` as is.

    Raises:
        OSError: with the file name.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid4().hex[:8]}{UNFINISHED}")
    with named(path):
        try:
            with temporary.open("xb") as file:
                yield file
                synced(file)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_whole(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
        OSError: with the file name.
    """
    with whole_file(path) as file:
        file.write(text.encode())


def check_output_file(path: Path) -> None:
    """Checks that a file can be written, before its content is computed.

    Raises:
        OSError: it cannot; with the path of the problem.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; give a file", str(path))
    _check_folder(path.parent)


def check_output_folder(path: Path) -> None:
    """Checks that files can be written into a folder (which may not exist yet), before they are computed.

    Raises:
        OSError: they cannot; with the path of the problem.
    """
    _check_folder(next(folder for folder in (path, *path.absolute().parents) if folder.exists()))


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write there: {error.strerror}", str(folder)) from error


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file.

    Raises:
        OSError: with the file name.
    """
    with named(path), path.open("ab") as file:
        file.write(line.encode() + b"\n")


def synced(file: IO[bytes]) -> None:
    """Flushes a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes the renames in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def only_writer(folder: Path, lock: Path) -> Iterator[None]:
    """Locks `folder` for this process with the file `lock`, which names the holder.

    The kernel releases the lock when the process ends for any reason; the lock file of a killed process is taken over.

    Raises:
        InUseError: another process holds the lock.
        OSError: the lock file cannot be created.
    """
    handle = _locked(folder, lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before the release: a process that has it open notices and creates a new one
        os.close(handle)


def _locked(folder: Path, lock: Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 4096, 0)
            os.close(handle)
            raise InUseError(f"{folder}: {_described(holder)}") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(handle)
                raise
            log.warning("%s: this file system does not support locks (%s); start no other process there", folder, error.strerror)
        found = os.pread(handle, 4096, 0).strip(b"\0")  # a power failure leaves zeros
        if found and not found.startswith(LOCK_BEGINS):
            os.close(handle)
            raise InUseError(f"{lock} is not a lock file of shapmix and is not overwritten; move it away")
        if _is_open_as(lock, handle):
            break
        os.close(handle)
    since = datetime.now(timezone.utc).astimezone().isoformat(sep=" ", timespec="seconds")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:500]
    content = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since, "command": command})
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, content.encode(), 0)
    except OSError as error:  # full disk: the lock is held, but does not name its holder
        log.warning("%s: %s", lock, error.strerror)
    return handle


def _is_open_as(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _described(holder: bytes) -> str:
    try:
        content = json.loads(holder)
        who = f"process {content['pid']} on {content['host']} has been writing here since {content['since']} ({content['command']})"
        stop = f"stop it (kill {content['pid']})"
    except (ValueError, TypeError, KeyError, RecursionError):
        who, stop = "another process is writing here", "stop it"
    return f"{who}; wait for it, {stop}, or give another folder"
