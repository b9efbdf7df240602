"""Files that are whole or absent, folders that one process writes at a time, and errors that name their file."""

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
UNFINISHED = ".tmp"  # ends the name of a file that is being written, and of one whose writer was killed


class InUseError(ShapmixError, RuntimeError):
    """A folder that another process writes; the message says which, and what to do."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError inside says of which file it is, which that of a write does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` when it is complete and on the disk; an error leaves what was there before.

    Raises:
        OSError: with the file's name.
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
    """The text as a file, whole or not at all.

    Raises:
        OSError: with the file's name.
    """
    with whole_file(path) as file:
        file.write(text.encode())


def check_output_file(path: Path) -> None:
    """That a file can be written, before work is done for it.

    Raises:
        OSError: it cannot; with the path that is at fault.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; give a file", str(path))
    _check_folder(path.parent)


def check_output_folder(path: Path) -> None:
    """That files can be written into a folder, which may still have to be made, before work is done for them.

    Raises:
        OSError: they cannot; with the path that is at fault.
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
    """Adds a line to a file.

    Raises:
        OSError: with the file's name.
    """
    with named(path), path.open("ab") as file:
        file.write(line.encode() + b"\n")


def synced(file: IO[bytes]) -> None:
    """What was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Renames in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def only_writer(folder: Path, lock: Path) -> Iterator[None]:
    """Holds `folder` for this process by the file `lock`, which says who does.

    The kernel drops the lock with the process, however that ends: a lock file that a killed process left is taken over.

    Raises:
        InUseError: another process holds it.
        OSError: the lock file cannot be made.
    """
    handle = _locked(folder, lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone, and makes a new one
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
            log.warning("%s: this file system has no locks (%s); start no other process there", folder, error.strerror)
        found = os.pread(handle, 4096, 0).strip(b"\0")  # zeros are what a power cut leaves
        if found and not found.startswith(LOCK_BEGINS):
            os.close(handle)
            raise InUseError(f"{lock} is not a lock file of shapmix, and is left as it is; move it away")
        if _is(lock, handle):
            break
        os.close(handle)
    since = datetime.now(timezone.utc).astimezone().isoformat(sep=" ", timespec="seconds")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:500]
    content = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since, "command": command})
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, content.encode(), 0)
    except OSError as error:  # a full disk: the lock holds all the same, without its holder's name
        log.warning("%s: %s", lock, error.strerror)
    return handle


def _is(path: Path, handle: int) -> bool:
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
