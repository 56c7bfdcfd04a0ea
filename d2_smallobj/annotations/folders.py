"""Folders of label maps, listed once."""

from __future__ import annotations

import os
from pathlib import Path

from d2_smallobj.annotations.label_files import SUFFIXES


class LabelFolder:
    """The label maps in a folder, by name without suffix.

    Subfolders, hidden files and files of other kinds are passed over.

    Args:
        path: the folder.
        argument: name of the option that gave it, for messages.

    Attributes:
        path: the folder.
        files: file name by stem.
        ambiguous: stems that two files have (``a.png`` and ``a.npy``), with both names.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: there is no label map in it.
    """

    def __init__(self, path: str | os.PathLike[str], argument: str) -> None:
        self.path = Path(path)
        self.files: dict[str, str] = {}
        self.ambiguous: dict[str, tuple[str, str]] = {}
        try:
            names = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise type(error)(
                error.errno, f"{argument}: no such folder of label maps", os.fspath(path)
            ) from error
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            if stem in self.files:
                self.ambiguous[stem] = (self.files[stem], name)
            self.files.setdefault(stem, name)
        if not self.files:
            raise ValueError(
                f"{argument}: no label map ({', '.join(SUFFIXES)}) in {self.path}"
                f" ({len(names)} other entries)"
            )

    def find(self, *stems: str) -> str | None:
        """Path of the label map of the first of these names that has one."""
        for stem in stems:
            if stem in self.files:
                return os.path.join(self.path, self.files[stem])
        return None
