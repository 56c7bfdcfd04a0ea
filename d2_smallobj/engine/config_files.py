"""Find and check config files, which may come from anyone, before the host reads them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import d2_smallobj
from d2_smallobj.utils.files import open_file

BASE = "_BASE_"
"""The key whose value names the file, or the files, that a config builds on."""
_LARGEST, _DEEPEST, _MOST_VALUES = 100_000, 20, 10_000  # bytes, levels, values of one file


def shipped_configs() -> dict[str, str]:
    """Map the names of the configs that come with the package to their paths."""
    package = Path(d2_smallobj.__file__).parent
    # In the package when it is installed, beside it in a clone.
    folder = package / "configs"
    folder = folder if folder.is_dir() else package.parent / "configs"
    return {path.name: str(path) for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> str:
    """Return the path of a config: a file, or one of :func:`shipped_configs` by its name.

    Raises:
        FileNotFoundError: if there is neither; names the closest.
    """
    shipped = shipped_configs()
    if os.path.isfile(name):
        return name
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(os.path.basename(name), shipped, n=3) or list(shipped)
    raise FileNotFoundError(
        f"--config-file {name} does not exist, and no config of this name comes with d2_smallobj; "
        f"the nearest: {', '.join(near)}"
    )


def check_config_file(path: str, above: tuple[str, ...] = ()) -> None:
    """Check a config file and those that it builds on.

    Args:
        path: the file.
        above: the files that build on it.

    Raises:
        ValueError: if a file cannot be read as :func:`read_config_file` does, or its ``_BASE_``
            is anything else than YAML files on this machine, none of them one of ``above``.
    """
    for base in _bases(path, read_config_file(path)):
        where = f"{path}: {BASE} {base}"
        if not base.lower().endswith((".yaml", ".yml")):
            raise ValueError(f"{where} must be a local file called *.yaml")
        if not os.path.isfile(base):
            raise ValueError(f"{where} does not exist, or is no regular file")
        if any(os.path.samefile(base, other) for other in (path, *above)):
            raise ValueError(f"{where} builds on itself: a file cannot be its own base")
        check_config_file(base, (path, *above))


def _bases(path: str, tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of the files that a config builds on, found as fvcore finds them."""
    named = tree.get(BASE, [])
    for name in named if isinstance(named, list) else [named]:
        if not isinstance(name, str):
            raise ValueError(f"{path}: {BASE} must be the name of a file, got {name!r:.60}")
        if "://" in name:
            raise ValueError(f"{path}: {BASE} must be a local file called *.yaml, got {name:.200}")
        yield os.path.join(os.path.dirname(path), os.path.expanduser(name))


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the tree of a YAML file, without that of its ``_BASE_``; no code in it is run.

    Returns:
        Names to values; a value may be such a tree again.

    Raises:
        ValueError: names the file, and says what is no config in it, in one line.
        OSError: if it cannot be read.
    """
    with open_file(path) as file:
        content = file.read(_LARGEST + 1)
    try:
        if len(content) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        _check_shape(content)
        tree = yaml.load(content, Loader=yaml.SafeLoader)
        if not isinstance(tree, dict):
            got = "nothing" if tree is None else f"a {type(tree).__name__} ({tree!r:.40})"
            raise ValueError(f"expected lines KEY: VALUE, got {got}")
        _check_keys(tree)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not plain YAML: {_one_line(error)}") from error
    except ValueError as error:  # also of values such as the date 2026-99-99
        raise ValueError(f"{path}: not a config: {error}") from error
    return tree


def _check_shape(content: bytes) -> None:
    """Refuse what would exhaust a parser: nesting, and names (``&a``, ``*a``) for ever more."""
    sizes: dict[str, int] = {}  # values that a finished, named part holds
    parts: list[tuple[str | None, int]] = []  # name and number of values of the unfinished ones
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            parts.append((event.anchor, 1))
            if len(parts) > _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            name, count = parts.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"*{event.anchor} names nothing, or what it is itself a part of")
            name, count = None, sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            name, count = event.anchor, 1
        else:
            continue
        if name is not None:
            sizes[name] = count
        if parts:
            parts[-1] = parts[-1][0], parts[-1][1] + count
        if count > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")


def _check_keys(tree: Mapping[Any, Any], prefix: str = "") -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            where = f" in {prefix[:-1]}" if prefix else ""
            raise ValueError(f"keys must be names, got {key!r:.60}{where}")
        if isinstance(value, Mapping):
            _check_keys(value, f"{prefix}{key}.")


def _one_line(error: yaml.YAMLError) -> str:
    """Say what YAML found and where, without the lines of the file, which may be no config."""
    mark = getattr(error, "problem_mark", None)
    told = [getattr(error, name, None) for name in ("context", "problem")]
    text = " ".join(part for part in told if part) or " ".join(str(error).split())
    return f"{text:.300}, line {mark.line + 1}" if mark else f"{text:.300}"
