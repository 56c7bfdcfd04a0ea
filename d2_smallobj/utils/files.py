"""Atomic file writing: a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and move it there when the block ends well.

    Args:
        path: the file to create or replace; its folder is created when missing.

    Yields:
        A binary file object.

    Raises:
        OSError: if the file cannot be written (disk full, no permission). The message names
            ``path``; whatever stood there before is left as it was, and no part is left behind.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; what stood there before is kept",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def remove_leftovers(folder: str | os.PathLike[str], names: str) -> None:
    """Remove the temporary files that killed processes have left in a folder.

    Args:
        folder: where no other process is writing; it may not exist.
        names: regular expression of the files that were being written by :func:`atomic_write`.
    """
    pattern = re.compile(rf"\.(?:{names})\.[a-z0-9_]{{8}}")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def lock_folder(folder: str | os.PathLike[str]) -> int | None:
    """Lock a folder until the returned descriptor is closed, or the process ends.

    None if another process has locked it, or where the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically; see :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_csv(
    path: str | os.PathLike[str], header: Iterable[object], rows: Iterable[Iterable[object]]
) -> None:
    """Write a table as CSV to ``path`` atomically; see :func:`csv_text`."""
    atomic_write_text(path, csv_text(header, rows))


def csv_text(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Lay out a table as CSV, lines ending in a line feed."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content: ``sha256:`` and 64 digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _umask() -> int:
    """The process's umask: mkstemp creates 0600, which would hide results from colleagues."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
