"""HTML and SVG built from elements, so that no text gets in unescaped.

Class names, image ids and method names come from users' files: whatever is not :class:`Markup`
is escaped where it enters an element, and only this module makes markup out of text.
"""

from __future__ import annotations

import html
import math
import re

_VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9:-]*")
# C0 controls and lone surrogates are no legal HTML and cannot all be written as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already; a plain ``str`` is not."""

    __slots__ = ()


Child = object
"""What may stand in an element: Markup as it is, str escaped, numbers as text, None left out."""


def escape(text: object) -> Markup:
    """Escape text for element content and for quoted attributes.

    Args:
        text: anything; Markup passes unchanged, other objects through ``str``.

    Returns:
        The text with ``& < > " '`` as entities, and unprintable characters as U+FFFD.
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True))


def tag(name: str, *children: Child, **attributes: object) -> Markup:
    """Make an element.

    Args:
        name: of the element.
        children: its content; see :data:`Child`. Lists and tuples are taken apart.
        attributes: by name; a trailing underscore is dropped and others become hyphens
            (``class_``, ``aria_sort``). ``None`` and ``False`` leave one out, ``True`` gives it
            without a value.

    Returns:
        The element.

    Raises:
        ValueError: if a name is none of HTML's, or an element that has no content gets some.

    Example:
        >>> tag("td", "<b>", 3, class_="n", hidden=True)
        '<td class="n" hidden>&lt;b&gt;3</td>'
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be an element's name, got {name!r}")
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    content = join(children)
    if name in _VOID:
        if content:
            raise ValueError(f"<{name}> cannot have content, got {content[:60]!r}")
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{content}</{name}>")


def join(children: object) -> Markup:
    """Put children beside each other; see :data:`Child`."""
    if children is None:
        return Markup("")
    if isinstance(children, (list, tuple)):
        return Markup("".join(join(child) for child in children))
    return escape(children)


def percent(value: float, digits: int = 1) -> str:
    """A percentage as text without the sign; an undefined one as a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def count(value: float) -> str:
    """A number of things, thousands apart."""
    return f"{int(value):,}"


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    # viewBox and its like keep their capitals: SVG attributes are case-sensitive.
    if not _NAME.fullmatch(name):
        raise ValueError(f"attributes must have names of HTML, got {key!r}")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{escape(value)}"'
