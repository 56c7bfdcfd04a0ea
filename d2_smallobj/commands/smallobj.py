"""The command ``smallobj``: one name for all that the package does on a command line.

A subcommand's module is imported when it is asked for, so that help comes at once and nothing
needs a package that the subcommand does not use.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import d2_smallobj
from d2_smallobj.utils.cli import readable_errors

SUBCOMMANDS = {
    "evaluate": ("commands.evaluate", "score folders of predictions by object size"),
    "compare": ("commands.compare", "compare scored methods: differences, intervals, ranks"),
    "report": ("commands.compare:report", "write scored methods as one HTML page"),
    "sensitivity": ("commands.draw_sensitivity", "show how figures move when predictions change"),
    "stats": ("commands.dataset_stats", "count the instances of data sets by class and size"),
    "prepare coco": ("commands.prepare:prepare_coco", "paint COCO's annotations as label maps"),
    "prepare demo": ("commands.prepare:prepare_demo", "draw the demo scenes"),
    "prepare pascal-b": ("commands.build_pascal_b:prepare_pascal_b", "build PASCAL-B"),
    "prepare pseudo-labels": ("commands.prepare:prepare_pseudo_labels", "convert pseudo labels"),
    "prepare weak-labels boxes": ("commands.weak_labels:boxes", "label maps of boxes"),
    "prepare weak-labels cam": ("commands.weak_labels:cam", "label maps of image labels"),
    "prepare review": ("commands.build_pascal_b:review_pascal_b", "sort PASCAL-B's images by eye"),
    "data": ("data.__main__", "list and check the registered data sets"),
    "doctor": ("commands.doctor", "print versions, and what is missing or does not work together"),
    "train": ("commands.train_net", "train and evaluate a network"),
    "predict": ("commands.train_net:predict", "predict label maps with trained weights"),
    "ablation": ("commands.run_experiments:ablation", "train the paper's variants"),
    "mixed": ("commands.run_experiments:mixed_supervision", "compare few masks and many boxes"),
}
"""Subcommands in the order of the help: module[:function] in d2_smallobj, one line."""
GROUPS = {
    "prepare": "prepare demo",
    "prepare weak-labels": "prepare weak-labels boxes --dataset NAME --output FOLDER",
}
"""First words of several subcommands, with the example of their help."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; exit status 2 for wrong usage, 1 for a failure."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        args = completed_words()
    if not args or args[0] in ("-h", "--help"):
        print(help_text())
        return
    if args[0] == "--version":
        print(f"smallobj {d2_smallobj.__version__}")
        return
    words = 1
    while " ".join(args[:words]) in GROUPS:
        words += 1
        if len(args) < words or args[words - 1] in ("-h", "--help"):
            print(help_text(" ".join(args[: words - 1])))
            return
    name = " ".join(args[:words])
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=3) or list(SUBCOMMANDS)
        print(f"error: no subcommand {name!r}; did you mean {', '.join(near)}?", file=sys.stderr)
        sys.exit(2)
    # The parsers take the name of their usage line from here.
    sys.argv[0] = f"smallobj {name}"
    with readable_errors():
        module, _, function = SUBCOMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(f"d2_smallobj.{module}"), function or "main")
        command(args[words:])


def completed_words() -> list[str]:
    """Return a subcommand's words from the line that a shell asks argcomplete to complete.

    Where they name no subcommand yet, complete the next one and end the program. The subcommand's
    parser does the rest; its first word is the last of its name.
    """
    import argcomplete

    point = int(os.environ["COMP_POINT"])
    *_, words, _ = argcomplete.split_line(os.environ["COMP_LINE"], point)
    name: list[str] = []
    for word in words[1:]:
        if " ".join(name) in SUBCOMMANDS:
            break
        name.append(word)
    os.environ["_ARGCOMPLETE"] = str(len(name) + 1)
    if " ".join(name) not in SUBCOMMANDS:
        parser = argparse.ArgumentParser(add_help=False)
        names = [known.split() for known in SUBCOMMANDS]
        nexts = {known[len(name)] for known in names if known[: len(name)] == name}
        parser.add_argument("subcommand", choices=sorted(nexts))
        argcomplete.autocomplete(parser)
    return words[1:]


def help_text(prefix: str = "") -> str:
    """List the subcommands whose name begins with ``prefix``."""
    shown = {name: line for name, (_, line) in SUBCOMMANDS.items() if name.startswith(prefix)}
    width = max(map(len, shown))
    lines = [f"  {name:{width}}  {line}" for name, line in shown.items()]
    example = GROUPS.get(prefix, "evaluate --predictions MAPS --semantic TRUTH --output RUN")
    return "\n".join(
        [
            f"Example: smallobj {example}",
            "",
            f"usage: smallobj {prefix or 'SUBCOMMAND'} ...    (--help after any of them)",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
