"""What a person is told when a run fails: the message, not the machinery around it."""

from __future__ import annotations

import re

from torch.multiprocessing import ProcessRaisedException

USER_ERRORS = (ValueError, OSError, FloatingPointError)
"""Errors that say what to do about them; all others are defects and show their traceback."""

# The line of a traceback that names the exception, e.g. "detectron2.x.SomeError: message".
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): ", re.MULTILINE)


def user_message(error: BaseException) -> str | None:
    """The message of an error that a person can do something about.

    Errors of loader workers and of launched processes arrive as the text of a traceback; of those
    the last exception's message is returned.

    Args:
        error: what a run raised.

    Returns:
        The message; None for a defect.
    """
    text = str(error).strip()
    raised = list(_RAISED.finditer(text)) if "Traceback (most recent call last)" in text else []
    if isinstance(error, ProcessRaisedException):
        if not raised or not _is_user_error(raised[-1].group(1)):
            return None
    elif not isinstance(error, USER_ERRORS):
        return None
    return text[raised[-1].end() :] if raised else text


def _is_user_error(name: str) -> bool:
    """Whether a class of this name is one of, or derived from, :data:`USER_ERRORS`."""
    known = {c.__name__ for base in USER_ERRORS for c in (base, *base.__subclasses__())}
    return name in known
