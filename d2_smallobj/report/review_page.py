"""The HTML around the images of a review sheet.

Everything that changes is JSON in inert script elements, one an image, so that a browser parses
and decodes only the images that it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from d2_smallobj.report.html_markup import escape
from d2_smallobj.report.page import content_policy, read_asset

# Nothing in the data may look like markup to the HTML parser, or end a line of a script.
_MARKUP = re.compile("[<>&\u2028\u2029]")


def data_script(identity: str, data: Mapping[str, Any]) -> str:
    """A value as inert JSON within a page.

    Args:
        identity: the element's id.
        data: anything that JSON can hold; texts may be hostile.
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text = _MARKUP.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    # Lone surrogates of odd file names cannot be written as UTF-8.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return f'<script type="application/json" id="{escape(identity)}">{text}</script>\n'


def page_start(title: str) -> str:
    """The document up to the first image's data."""
    replacements = {
        "@TITLE@": escape(title),
        "@POLICY@": escape(content_policy(_script())),
        "@STYLE@": read_asset("report.css") + read_asset("review.css"),
    }
    return re.sub("@[A-Z]+@", lambda found: replacements[found[0]], read_asset("review.html"))


def page_end(sheet: Mapping[str, Any]) -> str:
    """The sheet's own data, its script, and the end of the document."""
    return f"{data_script('sheet', sheet)}<script>{_script()}</script>\n</body>\n</html>\n"


def _script() -> str:
    """The theme's switch and the sheet's own script."""
    return read_asset("report.js") + read_asset("review.js")
