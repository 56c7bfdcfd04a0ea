"""Texts of errors: lists that are cut, unknown options with a hint, problems of many files."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice

_SHOWN = 40
_LONGEST = 60


def look_up_option(argument: str, value: object, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Args:
        argument: name of the argument or config key, for the error message.
        value: what the user gave.
        choices: the legal values.

    Returns:
        ``value`` unchanged.

    Raises:
        ValueError: if ``value`` is not among ``choices``; the message names the argument, the
            received value, the first legal values and the closest one.
    """
    if isinstance(value, str) and value in choices:
        return value
    # A data set may have a thousand classes, with names of hundreds of letters.
    legal = ", ".join(f"{choice!r:.{_LONGEST}}" for choice in [*choices][:_SHOWN])
    if len(choices) > _SHOWN:
        legal += f", ... ({len(choices)} in all)"
    message = f"{argument}: unknown value {value!r}; expected one of {legal}"
    close = difflib.get_close_matches(str(value), list(choices), n=1)
    if close:
        message += f"; did you mean {close[0]!r}?"
    raise ValueError(message)


LIMIT = 10  # names that a message shows


def listed(names: Collection[object], limit: int = LIMIT) -> str:
    """List names in a sentence: ``"a, b, c and 7 more"``."""
    shown = ", ".join(str(name) for name in islice(names, limit))
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def itemized(kind: str, entries: Collection[object]) -> str:
    """List names below their number: ``"12 file(s) missing:"`` and the first ten, one a line."""
    shown = "".join(f"\n  {entry}" for entry in islice(entries, LIMIT))
    more = f"\n  and {len(entries) - LIMIT} more" if len(entries) > LIMIT else ""
    return f"{len(entries)} {kind}:{shown}{more}"


class UsageError(ValueError):
    """Arguments that are missing, malformed or do not go together, whatever is in the files."""


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
        d2_smallobj.utils.messages.InputError: 2 prediction(s) missing:
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
