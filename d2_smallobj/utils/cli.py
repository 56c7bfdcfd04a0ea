"""Command lines: one clear line for an error, and number types for options."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from d2_smallobj.utils.installation import explain_missing
from d2_smallobj.utils.parallel import WorkerError

_Value = TypeVar("_Value")

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, WorkerError)
"""Errors that say what to do about them; all others are defects and show their traceback."""

# The line of a traceback that names the exception, e.g. "detectron2.x.SomeError: message".
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): ", re.MULTILINE)


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """End the program with ``error: <message>`` and status 1 when a user error is raised.

    Ctrl-C ends it quietly with status 130; a defect keeps its traceback. Wrap the imports of a
    command, too: a missing package is then one line.

    Example:
        >>> with readable_errors():
        ...     main()
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser whose help shows the description, a program's docstring, line by line."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def user_message(error: BaseException) -> str | None:
    """Return the message of an error that a person can do something about.

    Errors of loader workers and of launched processes arrive as the text of a traceback; of those
    the last exception's message is returned.

    Args:
        error: what a run raised.

    Returns:
        The message; None for a defect.
    """
    text = str(error).strip()
    raised = list(_RAISED.finditer(text)) if "Traceback (most recent call last)" in text else []
    # torch's class for an error of a launched process, named so that torch is not imported.
    if any(base.__name__ == "ProcessRaisedException" for base in type(error).__mro__):
        known = {c.__name__ for base in USER_ERRORS for c in (base, *base.__subclasses__())}
        if not raised or raised[-1].group(1) not in known:
            return None
    elif not isinstance(error, USER_ERRORS):
        return None
    elif isinstance(error, ImportError):
        text = explain_missing(error) or text
    return text[raised[-1].end() :] if raised else text


def checked(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Turn a parser that raises ValueError into an argparse type that shows its message."""

    def convert(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def at_least(minimum: int) -> Callable[[str], int]:
    """Make an argparse type of integers that are not below ``minimum``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer >= {minimum}, got {text!r}")
        return value

    return convert


positive_int = at_least(1)
natural_int = at_least(0)
