r"""Compare scored methods: paired differences with intervals and p-values, ranks, warnings.

The runs are folders that `smallobj evaluate` wrote, of the same images and ground truth;
NAME=FOLDER gives one another name. --published shows the paper's tables with ranks and rank
correlations. Needs neither torch nor detectron2.

Example:
    smallobj compare output/irn output/amn --output comparison.md --output comparison.csv
    smallobj compare --published voc
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_smallobj.utils.cli import make_parser, readable_errors

with readable_errors():
    from tqdm import tqdm

    from d2_smallobj.commands.evaluate import open_dataset
    from d2_smallobj.experiments.paper_tables import TITLES, format_published
    from d2_smallobj.report.comparison_tables import comparison_csv, format_comparison
    from d2_smallobj.scoring import ScoredRun, check_writable, load_runs
    from d2_smallobj.statistics.comparison import Comparison, compare_runs
    from d2_smallobj.utils.files import atomic_write_text

REPORT = """Write scored methods as one HTML page that needs no network.

The runs are folders that `smallobj evaluate` wrote, of the same images and ground truth;
NAME=FOLDER gives one another name. Several are also compared, paired by image.

Example:
    smallobj report output/irn output/amn --output methods.html
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="[NAME=]FOLDER", help="scored runs, at least 2")
    text = "print the paper's tables (default: all of them) instead of comparing runs"
    add("--published", nargs="?", const="all", choices=("all", *TITLES), help=text)
    add("--baseline", metavar="NAME", help="compare with this run only")
    text = "resamples and permutations (default: 10000)"
    add("--samples", type=int, default=10000, help=text)
    add("--seed", type=int, default=0)
    add("--level", type=float, default=0.95, help="of intervals (default: 0.95)")
    text = "also write the tables: .md or .csv; may be given more than once"
    add("--output", type=Path, action="append", default=[], metavar="FILE", help=text)
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
            comparison = compare(load(args.runs), **given)
            texts = {".md": format_comparison(comparison), ".csv": comparison_csv(comparison)}
        print(texts[".md"], end="")
        for path in args.output:
            atomic_write_text(path, texts[path.suffix])


def report(arguments: Sequence[str] | None = None) -> None:
    """Write scored methods as one HTML page: ``smallobj report``."""
    parser = make_parser(REPORT)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]FOLDER", help="scored runs")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.html")
    args = parser.parse_args(arguments)
    with readable_errors():
        from d2_smallobj.report.html import write_report

        check_writable(args.output.parent)
        runs = load(args.runs)
        write_report(args.output, runs, comparison=compare(runs) if len(runs) > 1 else None)
        print(f"wrote {args.output}")


def compare(runs: Sequence[ScoredRun], **options: Any) -> Comparison:
    """Resample, with a progress bar if it takes long."""
    with tqdm(desc="resampling", unit="draw", disable=None, delay=1, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return compare_runs(runs, **options, progress=progress)


def load(texts: Sequence[str]) -> list[ScoredRun]:
    """Read scored runs from ``FOLDER`` or ``NAME=FOLDER``."""
    parts = [text.partition("=") for text in texts]
    named = ["=" in text and not Path(text).is_dir() for text in texts]
    folders = [part[2] if own else text for text, part, own in zip(texts, parts, named)]
    runs = load_runs(folders, open_dataset=open_dataset)
    return [
        dataclasses.replace(run, name=part[0]) if own else run
        for run, part, own in zip(runs, parts, named)
    ]
