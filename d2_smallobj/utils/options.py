"""Option look-up with a hint, so that a typo in a config is one readable error."""

from __future__ import annotations

import difflib
from collections.abc import Collection

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
