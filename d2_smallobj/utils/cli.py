"""Command lines: short help, one clear line for an error, one name and text for one option."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from d2_smallobj.utils.installation import explain_missing
from d2_smallobj.utils.messages import UsageError
from d2_smallobj.utils.parallel import WorkerError

# Before any command imports torch, which loads its OpenMP: threads that wait actively for a core
# that another program has make training and prediction on a busy CPU many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What torch will drop one day, told in every process, is nothing that users of a command can mend.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|detectron2|fvcore)\b")

_Value = TypeVar("_Value")

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, WorkerError)
"""Errors that say what to do about them; all others are defects and show their traceback."""

_LONGEST_LINE = 1000
# A key of the config; its first part is named, for a photograph may be called IMG_0001.JPG.
_KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|SMALLOBJ|GLOBAL)(\.[A-Z0-9_]+)+"
    r"|CUDNN_BENCHMARK|FLOAT32_PRECISION|OUTPUT_DIR|SEED|VERSION|VIS_PERIOD"
)
# The line of a traceback that names the exception, e.g. "detectron2.x.SomeError: message".
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): ", re.MULTILINE)


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """End the program with ``error: <message>`` when a user error is raised.

    The status is 2 for a :class:`.UsageError`, 1 for all others. Ctrl-C ends it quietly with
    status 130; a defect keeps its traceback. Wrap the imports of a command, too: a missing package
    is then one line.

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
        if isinstance(error, UsageError):
            sys.stderr.write(f"error: {message}\n")
            sys.exit(2)
        sys.exit(f"error: {message}")


class _Layout(argparse.RawDescriptionHelpFormatter):
    """Shows the description line by line, an option a line, and the default of each option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        # "--seeds N ..." says as much as "--seeds N [N ...]".
        listed = bool(action.option_strings) and action.nargs in ("+", "*")
        return f"{action.metavar or default_metavar} ..." if listed else text

    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = action.help or "", action.default
        unset = value is None or value is False or value in (argparse.SUPPRESS, [])
        if unset or not action.option_strings or "(default" in text:
            return text
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{text} (default: {shown.replace('%', '%%')})" if shown else text


class _Parser(argparse.ArgumentParser):
    """A parser whose help begins with the examples of its description; its usage is one line."""

    def format_usage(self) -> str:
        return f"usage: {self._summary()}\n"

    def format_help(self) -> str:
        whole = self.description
        text, mark, examples = (whole or "").partition("\nExample")
        self.description, self.usage = text, self._summary()
        try:
            plain = super().format_help()
        finally:
            self.description, self.usage = whole, None
        return f"Example{examples.rstrip()}\n\n{plain}" if mark else plain

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete  # a shell asks for completions, so it is installed

            argcomplete.autocomplete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def _summary(self) -> str:
        """The program, its required options, [OPTION ...], and its positional arguments."""
        needed = [action for action in self._actions if action.option_strings and action.required]
        places = [action for action in self._actions if not action.option_strings]
        parts = []
        for actions in (needed, places):
            formatter = self._get_formatter()
            formatter.add_usage(None, actions, [], "")
            parts.append(" ".join(formatter.format_help().split()))
        return f"{parts[0]} [OPTION ...]{parts[1][len(self.prog) :]}"


def make_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Make a parser whose help shows a program's docstring line by line, its examples first."""
    return _Parser(description=description, formatter_class=_Layout, **options)


def parse_with_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line that ends with ``KEY VALUE`` overrides of the config: ``opts``.

    They begin at the first argument that is a config key, so that an option before them may take
    any number of values.
    """
    help_text = "overrides of the config, last: SOLVER.MAX_ITER 1000 ..."
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
    elif isinstance(error, OSError) and error.strerror:
        # Without the number, which says nothing to a person.
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return _shortened(text[raised[-1].end() :] if raised else text)


def _shortened(text: str) -> str:
    """Cut what a damaged file can put into a line: a number of thousands of digits."""
    most = _LONGEST_LINE
    lines = text.split("\n")
    return "\n".join(f"{x[:most]} ... {x[-most // 4 :]}" if len(x) > 2 * most else x for x in lines)


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


def finite(text: str) -> float:
    """Read a number, as an argparse type; NaN and infinity are none."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")


positive_int = at_least(1)
natural_int = at_least(0)

_FLAG = {"action": "store_true"}
_NAME = {"metavar": "NAME"}
_DIR = {"metavar": "DIR"}
_FILE = {"metavar": "FILE"}
SHARED: dict[str, dict[str, Any]] = {
    # What is read.
    "--predictions": {
        "metavar": "PATH",
        "help": "folder of <image>.png or <image>.npy, or detectron2's JSON file",
    },
    "--semantic": {**_DIR, "help": "folder of semantic maps, <image>.png"},
    "--coco-json": {**_FILE, "help": "COCO annotations"},
    "--lvis-json": {**_FILE, "help": "LVIS annotations"},
    "--panoptic": {"metavar": ("JSON", "DIR"), "nargs": 2, "help": "COCO panoptic file and PNGs"},
    "--cityscapes": {**_DIR, "help": "gtFine, or a split of it"},
    "--dataset": {**_NAME, "help": "registered data set; needs torch"},
    "--instances": {
        **_DIR,
        "help": "of --semantic: instance maps (default: connected components)",
    },
    "--classes": {
        "metavar": "voc|coco|FILE|N",
        "help": "class names: built in, one a line in a file, or their number",
    },
    "--category-map": {**_FILE, "help": "JSON object: the class of each category"},
    "--stuff": {**_NAME, "action": "append", "help": "a class without objects; may be repeated"},
    "--no-stuff": {**_FLAG, "help": "all classes are objects"},
    "--list": {**_FILE, "help": "images to use, one a line (default: all)"},
    "--images": {**_DIR, "help": "folder of the pictures"},
    "--root": {**_DIR, "type": Path, "help": "folder of the data"},
    "--config-file": {**_FILE, "help": "file, or name of a config of this package"},
    # How it is worked on.
    "--size-bins": {
        "metavar": "BINS",
        "default": "coco",
        "help": "as S:1024,M:9216,L:inf or relative:S:0.01,L:1",
    },
    "--seed": {
        "metavar": "N",
        "type": natural_int,
        "default": 0,
        "help": "seed of the random numbers",
    },
    "--seeds": {
        "metavar": "N",
        "type": natural_int,
        "nargs": "+",
        "default": [0, 1, 2],
        "help": "seeds; every variant is trained with each",
    },
    "--variants": {
        "metavar": "VARIANT",
        "help": "variants to train, of those above (default: all)",
    },
    "--num-gpus": {
        "metavar": "N",
        "type": positive_int,
        "default": 1,
        "help": "GPUs, or processes, of a run on each machine",
    },
    "--jobs": {
        "metavar": "N",
        "type": positive_int,
        "default": 1,
        "help": "processes at once; the result is the same",
    },
    "--check": {**_FLAG, "help": "read every file and check it"},
    # What is written.
    "--output": {**_DIR, "type": Path, "required": True, "help": "folder to write into"},
    "--force": {**_FLAG, "help": "replace what is there"},
    "--quiet": {**_FLAG, "help": "no progress bar, no tables; warnings about inputs only"},
}
"""Options that several commands have: the same name, placeholder and text everywhere."""


def add_shared(group: Any, *flags: str, **changes: Any) -> None:
    """Add options of :data:`SHARED` to a parser or group, with ``changes`` to all of them."""
    for flag in flags:
        group.add_argument(flag, **{**SHARED[flag], **changes})
