"""Choose the ``detectron2`` to run: an installed one, or the stand-in :mod:`d2_smallobj._embedded`.

The choice is made when ``detectron2`` is first imported, by the environment variable
``D2_SMALLOBJ_HOST``:

- ``auto`` (default): an installed detectron2 if there is one, the stand-in otherwise;
- ``embedded``: the stand-in even where a detectron2 is installed;
- ``detectron2``: an installed detectron2, or an ``ImportError`` that says how to get one.

Nothing here imports torch, and no mistake in the variable stops ``import d2_smallobj``: it
surfaces when ``detectron2`` is imported or :func:`host` is called.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from d2_smallobj.utils.messages import look_up_option

VARIABLE = "D2_SMALLOBJ_HOST"
MODES = ("auto", "embedded", "detectron2")
PACKAGE = "detectron2"
EMBEDDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_embedded", PACKAGE)
INSTALL_URL = "https://github.com/facebookresearch/detectron2/blob/main/INSTALL.md"

_announced = False


class Host(NamedTuple):
    """The host in use: ``"embedded"`` or ``"detectron2"``, its version and its folder.

    The version is ``"unknown"`` where the package states none.
    """

    name: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.path})"


class HostFinder(importlib.abc.MetaPathFinder):
    """Answers for the top-level name ``detectron2`` and for nothing else.

    It stands first in ``sys.meta_path`` and asks the others itself: to the standard finder a mere
    folder called ``detectron2`` (in the parent of a git clone, say) is a namespace package.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of the chosen host, ``None`` for every other name."""
        if fullname != PACKAGE:
            return None
        mode = requested_mode()
        installed = None if mode == "embedded" else _find_installed()
        if installed is not None:
            return installed
        if mode == "detectron2":
            raise ModuleNotFoundError(
                f"{VARIABLE}=detectron2 asks for an installed detectron2, and none was found. "
                f"Install one ({INSTALL_URL}), or unset {VARIABLE} to use the embedded stand-in.",
                name=PACKAGE,
            )
        return importlib.util.spec_from_file_location(
            PACKAGE,
            os.path.join(EMBEDDED, "__init__.py"),
            submodule_search_locations=[EMBEDDED],
        )


def install() -> None:
    """Put the finder into ``sys.meta_path``, once."""
    if not any(isinstance(finder, HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, HostFinder())


def requested_mode() -> str:
    """Return the mode that ``D2_SMALLOBJ_HOST`` asks for; ``ValueError`` if it is none."""
    return look_up_option(VARIABLE, os.environ.get(VARIABLE) or "auto", MODES)


def host() -> Host:
    """Return which detectron2 is, or would be, imported. Imports neither it nor torch.

    Raises:
        ValueError: if ``D2_SMALLOBJ_HOST`` is not a known mode.
        ImportError: if the mode cannot be had: ``detectron2`` without an installation, or a mode
            that contradicts the package which was imported already.
    """
    mode = requested_mode()
    module = sys.modules.get(PACKAGE)
    if module is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
        return _describe(spec.origin, _stated_version(spec.origin))
    found = _describe(str(module.__file__), str(getattr(module, "__version__", "unknown")))
    if mode not in ("auto", found.name):
        raise ImportError(
            f"{VARIABLE}={mode}, but {found} was imported before the choice could be made. "
            "Set the variable, and import d2_smallobj, before anything imports detectron2.",
            name=PACKAGE,
        )
    return found


def announce_host() -> Host:
    """Log once per process, at INFO, which host runs; return it."""
    global _announced
    found = host()
    logger = logging.getLogger("d2_smallobj")
    # While nobody listens (logging is set up later) nothing counts as announced.
    if not _announced and logger.isEnabledFor(logging.INFO):
        logger.info("Host: %s", found)
        _announced = True
    return found


def call_in_child(local_rank: int, worker: str, *args: Any) -> None:
    """Run ``worker`` ("module:function") in a spawned process.

    A spawned process unpickles its target before any code of the user runs, so the target of
    the embedded ``launch`` must live where importing it installs the finder: here.
    """
    module, _, function = worker.partition(":")
    getattr(importlib.import_module(module), function)(local_rank, *args)


def rebuild(module: str, qualname: str, state: dict[str, Any]) -> object:
    """Unpickle an embedded data set in a loader worker, which may not know the finder yet."""
    cls = getattr(importlib.import_module(module), qualname)
    instance = cls.__new__(cls)
    instance.__dict__.update(state)
    return instance


def _find_installed() -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        if isinstance(finder, HostFinder) or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(PACKAGE, None, None)
        if spec is not None and spec.origin is not None and not _is_embedded(spec.origin):
            return spec
    return None


def _is_embedded(origin: str) -> bool:
    return os.path.realpath(os.path.dirname(origin)) == os.path.realpath(EMBEDDED)


def _describe(origin: str, version: str) -> Host:
    name = "embedded" if _is_embedded(origin) else "detectron2"
    return Host(name, version, os.path.dirname(origin))


def _stated_version(origin: str) -> str:
    # Read, not imported: importing a detectron2 imports torch.
    with open(origin, encoding="utf-8") as stream:
        match = re.search(r"^__version__\s*=\s*[\"']([^\"']+)", stream.read(), re.MULTILINE)
    return match.group(1) if match else "unknown"
