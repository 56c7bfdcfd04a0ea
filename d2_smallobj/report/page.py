"""What all pages share: they are one file, and may ask no network for anything."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources

_PACKAGE = "d2_smallobj.report"


def content_policy(script: str) -> str:
    """Content-Security-Policy of a page: nothing may be loaded, no script may run but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def read_asset(name: str) -> str:
    """The text of a style sheet or script of the package."""
    folder = importlib.resources.files(_PACKAGE) / "html_assets"
    return (folder / name).read_text(encoding="utf-8")
