"""HTML pages of one file each: their templates, style sheets, scripts and policy.

Class names, image ids and method names come from users' files. Templates escape every value, and
the pages' own Content-Security-Policy forbids other scripts and the network.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import io
import math
import re
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

# C0 controls and lone surrogates are no legal HTML and cannot all be written as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def render_page(template: str, **values: Any) -> str:
    """Fill in a template of ``html_assets``.

    Only :class:`markupsafe.Markup` enters the page as it is. Other text is escaped, its unprintable
    characters become U+FFFD; ``None`` is empty, and a missing value is an error.
    """
    return template_environment().get_template(template).render(values)


@functools.cache
def template_environment() -> jinja2.Environment:
    """The environment of all pages: autoescape on, undefined names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, thousands=thousands)
    return environment


def read_asset(name: str) -> str:
    """Read a template, style sheet or script of the package."""
    folder = importlib.resources.files("d2_smallobj.report") / "html_assets"
    return (folder / name).read_text(encoding="utf-8")


def content_policy(script: str) -> str:
    """Content-Security-Policy of a page: nothing may be loaded, no script may run but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def jpeg_uri(picture: Image.Image, quality: int) -> str:
    """The picture as a JPEG in a data URI, the only address that the policy allows."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def percent(value: float, digits: int = 1) -> str:
    """A percentage without its sign; a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def thousands(value: float) -> str:
    """A number of things, with commas between thousands."""
    return f"{int(value):,}"


def _printable(value: Any) -> Any:
    """A value as a template may show it, before it is escaped."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else _UNPRINTABLE.sub("\ufffd", str(value))
