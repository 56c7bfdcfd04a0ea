#!/usr/bin/env python
r"""Measure speed and memory, each against a yardstick in the same run.

`benchmark.py NAME --help` says what the yardstick of a benchmark is.

Examples:
    nice python tools/benchmark.py metric --check --json benchmark.json
    nice python tools/benchmark.py folder --check
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

# Before numpy, OpenCV and torch start their threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from d2_smallobj.utils.cli import make_parser, readable_errors

with readable_errors():
    from benchmarks import BENCHMARKS, Measurement, load

    from d2_smallobj.utils.files import atomic_write_text


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; only the module of the benchmark named is imported."""
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, summary in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name not in arguments[:1]:
            continue
        module = load(name)
        command.description = module.__doc__
        command.set_defaults(run=module.run)
        module.add_arguments(command)
        command.add_argument("--json", metavar="FILE", help="write the figures here, too")
        command.add_argument(
            "--check", action="store_true", help="exit with 1 if a target is missed"
        )
    return parser.parse_args(arguments)


@readable_errors()
def main() -> None:
    """Measure, print, write, check."""
    args = parse_arguments(sys.argv[1:])
    found: Measurement = args.run(args)
    print(found.text)
    if args.json:
        atomic_write_text(args.json, json.dumps(found.figures, indent=2) + "\n")
    if args.check and found.missed:
        sys.exit(f"error: missed: {'; '.join(found.missed)}")


if __name__ == "__main__":
    main()
