r"""Compare scored methods: paired differences with intervals and p-values, ranks, warnings.

The runs are folders that `smallobj evaluate` wrote, of the same images and ground truth;
NAME=DIR gives one another name. --published shows the paper's tables with ranks and rank
correlations. Needs neither torch nor detectron2.

Examples:
    smallobj compare output/irn output/amn --output comparison.md --output comparison.csv
    smallobj compare --published voc
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_smallobj.utils.cli import (
    add_shared,
    checked,
    finite,
    make_parser,
    positive_int,
    readable_errors,
)

with readable_errors():
    from tqdm import tqdm

    from d2_smallobj.commands.evaluate import load
    from d2_smallobj.experiments.paper_tables import TITLES, format_published
    from d2_smallobj.report.comparison_tables import comparison_csv, format_comparison
    from d2_smallobj.scoring import ScoredRun, check_writable
    from d2_smallobj.statistics.comparison import Comparison, compare_runs
    from d2_smallobj.utils.files import atomic_write_text

REPORT = """Write scored methods as one HTML page that needs no network.

The runs are folders that `smallobj evaluate` wrote, of the same images and ground truth;
NAME=DIR gives one another name. Several are also compared, paired by image.

Example:
    smallobj report output/irn output/amn --output methods.html
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="[NAME=]DIR", help="scored runs, at least 2")
    text = f"all, {', '.join(TITLES)}: print the paper's tables instead"
    add("--published", nargs="?", const="all", choices=("all", *TITLES), metavar="TABLE", help=text)
    add("--baseline", metavar="NAME", help="compare with this run only")
    text = "resamples and permutations"
    add("--samples", type=positive_int, default=10000, metavar="N", help=text)
    add_shared(parser, "--seed")
    text = "confidence level of the intervals, between 0 and 1"
    add("--level", type=checked(_level), default=0.95, metavar="NUMBER", help=text)
    text = "also write the tables: .md or .csv; may be repeated"
    add("--output", type=Path, action="append", default=[], metavar="FILE", help=text)
    add_shared(parser, "--quiet")
    args = parser.parse_args(arguments)
    if (args.published is None) == (not args.runs):
        parser.error("give scored runs to compare, or --published")
    if args.runs and len(args.runs) < 2:
        parser.error(f"at least two runs are needed, got {args.runs[0]}")
    wrong = [str(path) for path in args.output if path.suffix not in (".md", ".csv")]
    if wrong:
        parser.error(f"--output must end in .md or .csv, got {', '.join(wrong)}")
    if args.published and any(path.suffix == ".csv" for path in args.output):
        parser.error("--published writes Markdown only")
    if args.quiet and not args.output:
        parser.error("--quiet prints nothing: give --output")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    args = parse_arguments(arguments)
    with readable_errors():
        if args.published:
            tables = list(TITLES) if args.published == "all" else [args.published]
            texts = {".md": "\n".join(format_published(table) for table in tables)}
        else:
            names = ("samples", "seed", "level", "baseline")
            given = {name: getattr(args, name) for name in names}
            comparison = compare(load(args.runs), quiet=args.quiet, **given)
            texts = {".md": format_comparison(comparison), ".csv": comparison_csv(comparison)}
        if not args.quiet:
            print(texts[".md"], end="")
        for path in args.output:
            atomic_write_text(path, texts[path.suffix])


def report(arguments: Sequence[str] | None = None) -> None:
    """Write scored methods as one HTML page: ``smallobj report``."""
    parser = make_parser(REPORT)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]DIR", help="scored runs")
    add_shared(parser, "--output", metavar="FILE.html", help="HTML page to write")
    args = parser.parse_args(arguments)
    with readable_errors():
        from d2_smallobj.report.html import write_report

        check_writable(args.output.parent)
        runs = load(args.runs)
        write_report(args.output, runs, comparison=compare(runs) if len(runs) > 1 else None)
        print(f"wrote {args.output}")


def compare(runs: Sequence[ScoredRun], *, quiet: bool = False, **options: Any) -> Comparison:
    """Resample, with a progress bar if it takes long."""
    hidden = True if quiet else None  # None: on a terminal only
    with tqdm(desc="resampling", unit="draw", disable=hidden, delay=1, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return compare_runs(runs, **options, progress=progress)


def _level(text: str) -> float:
    level = finite(text)
    if not 0 < level < 1:
        raise ValueError(f"expected a number between 0 and 1, got {text!r}")
    return level
