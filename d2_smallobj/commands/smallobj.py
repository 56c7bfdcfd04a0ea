"""The command ``smallobj``: one name for all that the package does on a command line.

A subcommand's module is imported when it is asked for, so that help comes at once and nothing
needs a package that the subcommand does not use.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import d2_smallobj
from d2_smallobj.utils.cli import readable_errors

SUBCOMMANDS = {
    "evaluate": ("evaluate", "score folders of predictions by object size"),
    "compare": ("compare", "compare scored methods: differences, intervals, ranks"),
    "report": ("report", "write an HTML report of scored methods"),
    "sensitivity": ("sensitivity", "show how figures move when predictions change"),
    "stats": ("stats", "count the instances of data sets by class and size"),
    "prepare coco": ("prepare_coco", "paint VOC-class label maps from COCO or LVIS"),
    "prepare demo": ("prepare_demo", "draw the demo scenes"),
    "prepare pascal-b": ("prepare_pascal_b", "build PASCAL-B"),
    "prepare pseudo-labels": ("prepare_pseudo_labels", "turn a method's output into label maps"),
    "prepare review": ("review_pascal_b", "sort the images of PASCAL-B by hand"),
    "data": ("data", "list and check the registered data sets"),
    "doctor": ("doctor", "print versions, what is missing and what does not work together"),
    "train": ("train", "train and evaluate a network"),
    "predict": ("predict", "predict label maps with trained weights"),
    "ablation": ("ablation", "train the paper's variants and tabulate them"),
}
"""Subcommands in the order of the help: module in this package, and one line."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; exit status 2 for wrong usage, 1 for a failure."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(help_text())
        return
    if args[0] == "--version":
        print(f"smallobj {d2_smallobj.__version__}")
        return
    words = 2 if args[0] == "prepare" else 1
    name = " ".join(args[:words])
    if name == "prepare" or (words == 2 and args[1:2] in (["-h"], ["--help"])):
        print(help_text("prepare"))
        sys.exit(0 if len(args) > 1 else 2)
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=3) or list(SUBCOMMANDS)
        print(f"error: no subcommand {name!r}; did you mean {', '.join(near)}?", file=sys.stderr)
        sys.exit(2)
    # The parsers take the name of their usage line from here.
    sys.argv[0] = f"smallobj {name}"
    with readable_errors():
        module = importlib.import_module(f"d2_smallobj.commands.{SUBCOMMANDS[name][0]}")
        module.main(args[words:])


def help_text(prefix: str = "") -> str:
    """List the subcommands whose name begins with ``prefix``."""
    shown = {name: line for name, (_, line) in SUBCOMMANDS.items() if name.startswith(prefix)}
    width = max(map(len, shown))
    lines = [f"  {name:{width}}  {line}" for name, line in shown.items()]
    example = (
        "smallobj prepare demo" if prefix else "smallobj evaluate --predictions PRED --output RUN"
    )
    return "\n".join(
        [
            f"Example: {example}",
            "",
            f"usage: smallobj {prefix or 'SUBCOMMAND'} ...    (--help after any of them)",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
