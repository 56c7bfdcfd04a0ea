"""Lists of images that somebody has rejected by eye."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VERSION = 1


def read_reject_list(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read a reject list.

    Either what the review sheet exports, ``{"version": 1, "rejected": [{"image_id": 123,
    "reason": "..."}]}`` (a reason is optional), or plain text: one image id a line, the rest of
    a line after ``#`` being the reason.

    Args:
        path: the list, UTF-8.

    Returns:
        Reason by image id, empty where none is given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, or names an image twice; says where.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a reject list is UTF-8 text; {error}") from error
    entries = _parse_json(path, text) if text.lstrip().startswith("{") else _parse_text(path, text)
    rejected: dict[int, str] = {}
    for image_id, reason in entries:
        if image_id in rejected:
            raise ValueError(f"{path}: image {image_id} is listed twice")
        rejected[image_id] = reason
    return rejected


def _parse_json(path: Path, text: str) -> list[tuple[int, str]]:
    """Entries of an exported list."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: truncated or malformed JSON ({error})") from error
    if content.get("version") != VERSION or not isinstance(content.get("rejected"), list):
        raise ValueError(
            f"{path}: a reject list has 'version': {VERSION} and a list 'rejected', got version "
            f"{content.get('version')!r} and keys {sorted(content)}"
        )
    return [_entry(path, entry) for entry in content["rejected"]]


def _entry(path: Path, entry: Any) -> tuple[int, str]:
    """One entry of an exported list."""
    image_id = entry.get("image_id") if isinstance(entry, dict) else None
    reason = entry.get("reason", "") if isinstance(entry, dict) else None
    if type(image_id) is not int or not isinstance(reason, str):
        raise ValueError(
            f"{path}: an entry of 'rejected' has an integer 'image_id' and a text 'reason', got "
            f"{entry!r:.80}"
        )
    return image_id, reason


def _parse_text(path: Path, text: str) -> list[tuple[int, str]]:
    """Entries of a plain list."""
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        image_id, _, reason = (part.strip() for part in line.partition("#"))
        if not image_id:
            continue
        if not (image_id.isascii() and image_id.isdigit()):
            raise ValueError(f"{path}, line {number}: expected an image id, got {image_id!r}")
        entries.append((int(image_id), reason))
    return entries
