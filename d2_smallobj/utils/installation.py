"""Say which packages are missing, and how to install them where this copy came from.

The name d2_smallobj is not on PyPI, so that nothing here advises to install it by name.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import shlex
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

EXTRAS = {
    "plots": ("matplotlib",),
    "data": ("scipy", "lvis", "matplotlib"),
    "train": ("torch", "fvcore", "iopath", "tensorboard", "scipy", "lvis", "matplotlib"),
    "torchmetrics": ("torch", "torchmetrics"),
}
"""Modules that each extra of setup.py brings, the smallest extra of a module first."""


def needed_extra(module: str) -> str | None:
    """Return the smallest extra that brings a top-level module; ``None`` if none does."""
    return next((extra for extra, modules in EXTRAS.items() if module in modules), None)


def missing_modules(extra: str) -> list[str]:
    """List the modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]


def install_command(extra: str) -> str:
    """Return the command that installs an extra for this copy of the package.

    It names the folder, wheel or repository that this copy was installed from, the clone that it
    runs in, or, where neither can be told, the packages themselves.
    """
    source = _source()
    if source is None:
        return f"pip install {' '.join(EXTRAS[extra])}"
    if source.startswith("git+"):
        return f"pip install {shlex.quote(f'd2_smallobj[{extra}] @ {source}')}"
    return f"pip install {shlex.quote(f'{source}[{extra}]')}"


def explain_missing(error: ImportError) -> str | None:
    """Explain a module that cannot be imported; ``None`` if no extra brings it."""
    module = (error.name or "").partition(".")[0]
    extra = needed_extra(module)
    if extra is None or importlib.util.find_spec(module) is not None:
        return None
    missing = ", ".join(missing_modules(extra))
    return f"{missing}: not installed, but needed here; install with: {install_command(extra)}"


@contextlib.contextmanager
def explained_imports() -> Iterator[None]:
    """Let an import that an extra would mend fail with :func:`explain_missing`'s line."""
    try:
        yield
    except ImportError as error:
        text = explain_missing(error)
        if text is None:
            raise
        raise ImportError(text) from error


def _source() -> str | None:
    """Find where this copy came from: a folder, a wheel, or ``git+URL@commit``."""
    package = Path(__file__).parents[1]
    if (package.parent / "setup.py").is_file():
        return str(package.parent)
    try:
        text = importlib.metadata.distribution("d2_smallobj").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(text) if text else {}
    url = urllib.parse.urlsplit(origin.get("url", ""))
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
    path = urllib.parse.unquote(url.path)
    return path if url.scheme == "file" and Path(path).exists() else None
