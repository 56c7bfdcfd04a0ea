"""Collect problems of input files, so that one error names them all."""

from __future__ import annotations

from collections.abc import Iterable

from d2_smallobj.utils.messages import itemized


class InputError(ValueError):
    """Input files that cannot be scored; the message lists them by what is wrong with them."""


class Problems:
    """Problems by kind, each with the files or images that have it.

    Example:
        >>> problems = Problems()
        >>> problems.add("prediction(s) missing", "a.png")
        >>> problems.add("prediction(s) missing", "b.png")
        >>> problems.raise_if_any()
        Traceback (most recent call last):
        ...
        d2_smallobj.utils.problems.InputError: 2 prediction(s) missing:
          a.png
          b.png
    """

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._found.values())

    def add(self, kind: str, entry: str) -> None:
        """Note one; ``kind`` is what the message says after the number of them."""
        self._found.setdefault(kind, []).append(entry)

    def extend(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Note several (kind, entry)."""
        for kind, entry in pairs:
            self.add(kind, entry)

    def pairs(self) -> list[tuple[str, str]]:
        """All of them as (kind, entry), to be sent to another process."""
        return [(kind, entry) for kind, entries in self._found.items() for entry in entries]

    def raise_if_any(self) -> None:
        """Raise if anything was noted.

        Raises:
            InputError: for every kind how many there are, and the first ten by name.
        """
        if self._found:
            raise InputError("\n".join(itemized(k, sorted(e)) for k, e in self._found.items()))
