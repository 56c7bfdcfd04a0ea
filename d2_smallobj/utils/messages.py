"""Lists of names in messages: the first ten, and how many more there are."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

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
