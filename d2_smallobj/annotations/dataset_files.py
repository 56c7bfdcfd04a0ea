"""Check that a data set's files exist, decode JSON, and name the folders of known data sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from d2_smallobj.utils.files import is_utf8, read_bytes
from d2_smallobj.utils.messages import itemized

_ADVICE = "See datasets/README.md for the layout and where the files come from."


class FileCheck:
    """Collect the missing files of a data set and raise one error for all.

    A folder is listed once, so that 10,582 images cost one system call; a folder that is missing as
    a whole is named once. ``prepare`` says in a sentence what to do about missing files. One
    below the folder ``made_in`` is no error: it is made on first use, and only counted.
    """

    def __init__(
        self, data_set: str, prepare: str = _ADVICE, *, made_in: Path | None = None
    ) -> None:
        self.data_set = data_set
        self.required = 0
        """Number of files required so far."""
        self.to_make = 0
        """Number of missing files that are made on first use."""
        self._made_in = None if made_in is None else os.path.join(made_in, "")
        self._prepare = prepare
        self._listings: dict[str, frozenset[str] | None] = {}
        self._missing: dict[str, None] = {}

    @property
    def missing(self) -> list[str]:
        """Recorded paths; a folder that is missing as a whole ends in a separator."""
        return list(self._missing)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a file exists; nothing is recorded."""
        folder, name = os.path.split(os.fspath(path))
        listing = self._listing(folder)
        return listing is not None and name in listing

    def require(self, path: str | os.PathLike[str], *, one_of_many: bool = True) -> bool:
        """Return whether a file exists; if not, record it.

        With ``one_of_many``, a missing folder is recorded instead of the file.
        """
        self.required += 1
        if self.exists(path):
            return True
        if self._made_in is not None and os.fspath(path).startswith(self._made_in):
            self.to_make += 1
            return False
        folder = os.path.dirname(os.fspath(path))
        whole = one_of_many and self._listing(folder) is None
        self._missing[f"{folder}{os.sep}" if whole else os.fspath(path)] = None
        return False

    def require_folder(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a folder exists; if not, record it."""
        if self._listing(os.fspath(path)) is not None:
            return True
        self._missing[f"{os.fspath(path)}{os.sep}"] = None
        return False

    def raise_if_missing(self) -> None:
        """Raise FileNotFoundError if anything was recorded."""
        if not self._missing:
            return
        missing = itemized("path(s) missing", self.missing)
        raise FileNotFoundError(f"data set {self.data_set!r}: {missing}\n{self._prepare}")

    def _listing(self, folder: str) -> frozenset[str] | None:
        """Names in ``folder``, or None if it is no folder."""
        if folder not in self._listings:
            try:
                with os.scandir(folder or ".") as entries:
                    self._listings[folder] = frozenset(entry.name for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                self._listings[folder] = None
        return self._listings[folder]


def resolve_inside(root: Path, relative: str, where: str) -> Path:
    """Join a path from a list or an annotation file to the data set's folder.

    A leading ``/`` means the folder itself. Raises ValueError, beginning with ``where``, if the
    path is empty, climbs out of ``root``, or is none that a file can have.
    """
    parts = [part for part in relative.replace("\\", "/").split("/") if part not in ("", ".")]
    wrong = not parts or ".." in parts or ":" in parts[0]
    if wrong or "\0" in relative or not is_utf8(relative):
        raise ValueError(
            f"{where}: {relative!r} is not a path within the data set's folder ({root})"
        )
    return root.joinpath(*parts)


def decode_json(path: str | os.PathLike[str], form: Any, expected: str) -> Any:
    """Read a JSON file of a form, a type for msgspec; fields that the form lacks are skipped.

    Raises ValueError, which says what was ``expected``, for a file that is damaged or of another
    form.
    """
    try:
        return msgspec.json.decode(read_bytes(path), type=form)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {expected}; {error}") from error
    # Older versions of msgspec do not count theirs as ValueErrors, which UnicodeDecodeError is.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a complete JSON file ({error})") from error


VOC_FOLDER = Path("VOCdevkit", "VOC2012")
COCO_FOLDER = Path("coco")
DEMO_FOLDER = Path("smallobj_demo")
COCO_YEARS = ("2014", "2017")
METHODS = ("irn", "cda", "amn", "rib", "clims", "rca", "edam", "nsrom", "bana", "bbam")
"""Methods whose pseudo labels are registered, on VOC and on COCO (docs/method.md#data-sets)."""
PSEUDO_LABELS = "PseudoLabels"


def datasets_root() -> Path:
    """The folder of all data sets: ``$DETECTRON2_DATASETS``, else ``datasets``."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def coco_annotations(root: Path, split: str, year: str) -> Path:
    """COCO's instance annotations of a split (``"train"``, ``"val"``)."""
    return root / COCO_FOLDER / "annotations" / f"instances_{split}{year}.json"


def coco_images(root: Path, split: str, year: str) -> Path:
    """Folder of COCO's images."""
    return root / COCO_FOLDER / f"{split}{year}"


def voc_labels(method: str) -> str:
    """Folder of a method's pseudo labels below VOC's folder."""
    return f"{PSEUDO_LABELS}/{method}"


def coco_labels(method: str, year: str) -> str:
    """Folder of a method's pseudo labels below COCO's folder."""
    return f"{PSEUDO_LABELS}/{method}_{year}"
