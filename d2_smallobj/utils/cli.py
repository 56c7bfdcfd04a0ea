"""Command lines: one clear line for an error, and number types for options."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from d2_smallobj.utils.installation import explain_missing
from d2_smallobj.utils.parallel import WorkerError

_Value = TypeVar("_Value")

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, WorkerError)
"""Errors that say what to do about them; all others are defects and show their traceback."""

# A key of the config; its first part is named, for a photograph may be called IMG_0001.JPG.
_KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|SMALLOBJ|GLOBAL)(\.[A-Z0-9_]+)+"
    r"|CUDNN_BENCHMARK|FLOAT32_PRECISION|OUTPUT_DIR|SEED|VERSION|VIS_PERIOD"
)
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


class _Parser(argparse.ArgumentParser):
    """A parser whose help begins with the examples of its description."""

    def format_help(self) -> str:
        text, mark, examples = (self.description or "").partition("\nExample")
        plain = argparse.ArgumentParser.format_help
        if not mark:
            return plain(self)
        whole, self.description = self.description, text
        try:
            return f"Example{examples.rstrip()}\n\n{plain(self)}"
        finally:
            self.description = whole


def make_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Make a parser whose help shows a program's docstring line by line, its examples first."""
    shape = argparse.RawDescriptionHelpFormatter
    return _Parser(description=description, formatter_class=shape, **options)


def parse_with_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line that ends with ``KEY VALUE`` overrides of the config: ``opts``.

    They begin at the first argument that is a config key, so that an option before them may take
    any number of values.
    """
    help_text = "overrides of the config, last: SOLVER.MAX_ITER 1000 MODEL.WEIGHTS x.pth ..."
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=help_text)
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = next((i for i, text in enumerate(given) if _KEY.fullmatch(text)), len(given))
    args = parser.parse_args(given[:first])
    args.opts += given[first:]
    return args


def user_message(error: BaseException) -> str | None:
    """Return the message of an error that a person can do something about.

    Errors of loader workers and of launched processes arrive as the text of a traceback; of those
    the last exception's message is returned.

    Args:
        error: what a run raised.

    Returns:
        The message; None for a defect.
    """
    text = str(error).strip() or "memory is used up" * isinstance(error, MemoryError)
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
