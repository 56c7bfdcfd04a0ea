"""Read files of the user, regular ones only, and write files atomically.

A device or a pipe under the name of an image would be read without end, or block for ever. What
is written is seen old or new by a reader, never half.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from d2_smallobj.utils.messages import itemized


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: as ``open`` does.
        OSError: it is a device, a pipe or a socket; nothing of it is read.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK, a pipe that nobody writes to blocks here; regular files know no difference
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _refuse_devices(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what :func:`open_file` refuses, for a library that opens a file itself.

    A path that does not exist, and a URL, is left to that library.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        _refuse_devices(os.stat(path), path)


def check_names(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Refuse file names that are no UTF-8: they become image ids, which no table could hold.

    Raises ValueError; names the folder and the names as bytes.
    """
    wrong = [repr(os.fsencode(name)) for name in names if not is_utf8(name)]
    if wrong:
        what = f"file name(s) in {os.fspath(folder)} that are not UTF-8; rename them"
        raise ValueError(itemized(what, wrong))


def is_utf8(name: str) -> bool:
    """Tell if a name can be written as UTF-8; other bytes of a file system are lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _refuse_devices(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        what = "not a regular file, but a device, a pipe or a socket, which is not read"
        raise OSError(errno.EINVAL, what, os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file whole; errors as :func:`open_file`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read UTF-8 text, with or without a byte order mark.

    Args:
        path: the file.
        what: what is in it, for messages: ``"an image list"``.

    Raises:
        OSError: as :func:`open_file`; names the file and, if it is missing, what it should be.
        ValueError: it is no UTF-8 text; names the file.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        reason = f"no such file; {what} is expected here"
        raise FileNotFoundError(error.errno, reason, os.fspath(path)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {what} is UTF-8 text; {error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file whole.

    Raises:
        OSError: as :func:`open_file`.
        ValueError: it is truncated, malformed or nested too deeply; names the file.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a complete JSON file ({error})") from error


def require_files(wanted: Iterable[tuple[str, str | os.PathLike[str] | None]]) -> None:
    """Raise one FileNotFoundError if several files are missing, before any is read.

    A single one is left to its reader, which can say more about it. ``wanted`` are pairs of an
    option and its file; options without a file (None) are passed over.
    """
    missing = [f"{flag} {path}" for flag, path in wanted if path and not os.path.exists(path)]
    if len(missing) > 1:
        raise FileNotFoundError(itemized("input(s) missing", missing))


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


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, hexadecimal, read in pieces; errors as :func:`open_file`."""
    found = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content: ``sha256:`` and 64 digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _umask() -> int:
    """The process's umask: mkstemp creates 0600, which would hide results from colleagues."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
