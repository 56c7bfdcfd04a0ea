r"""Score predicted label maps: mIoU, IA-mIoU and what happened to every instance, in percent.

Needs no torch, except for --dataset. docs/metric.md#run-it says more about every option.

Examples:
    smallobj evaluate --predictions preds --semantic VOC2012/SegmentationClass \
        --instances VOC2012/SegmentationObject --list val.txt --output output/mine --jobs 8
    smallobj evaluate --predictions sem_seg_predictions.json \
        --coco-json instances_val2017.json --output output/coco --report output/coco.html
    smallobj evaluate merge shard1 shard2 --output output/mine    (of --shard 1/2 and 2/2)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from d2_smallobj.utils.cli import add_shared, checked, make_parser, natural_int, readable_errors

with readable_errors():
    from d2_smallobj import scoring
    from d2_smallobj.metrics import parse_size_bins
    from d2_smallobj.metrics.summary import WORST_PERCENT, check_worst
    from d2_smallobj.metrics.validation import MODES
    from d2_smallobj.report.comparison_tables import format_comparison
    from d2_smallobj.scoring import Inputs, ScoredRun, Settings, check_writable, load_runs
    from d2_smallobj.scoring.inputs import PREDICTION_IDS
    from d2_smallobj.scoring.pipeline import parse_shard
    from d2_smallobj.scoring.run_tables import format_run
    from d2_smallobj.scoring.scored_run import input_warnings, warnings
    from d2_smallobj.statistics.comparison import compare_runs
    from d2_smallobj.utils.opencv import cv2

MISSING = ("error", "components", "void")
MERGE_HELP = """Put the shards of a run together, to the bit as if it had been one.

Example:
    smallobj evaluate merge shard1 shard2 shard3 shard4 --output output/mine
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a run."""
    parser = make_parser(__doc__)
    add_shared(parser, "--predictions", required=True)
    truth = parser.add_argument_group("ground truth, one of")
    add_shared(truth, "--semantic", "--coco-json", "--lvis-json", "--panoptic", "--cityscapes")
    add_shared(truth, "--dataset")
    more = parser.add_argument_group("more about the ground truth")
    add_shared(more, "--instances", "--classes", "--category-map")
    stuff = more.add_mutually_exclusive_group()
    add_shared(stuff, "--stuff", "--no-stuff")
    add_shared(more, "--list", "--images")
    for option, metavar, text, given in (
        ("--ignore-label", "N", "label of ignored pixels (default: the ground truth's, or 255)",
         {"type": int}),
        ("--prediction-ids", "KIND", "of --cityscapes: train (default) or label, the ids predicted",
         {"choices": PREDICTION_IDS}),
        ("--import", "MODULE", "of --dataset: module that registers it; may be repeated",
         {"dest": "modules", "action": "append", "default": []}),
        ("--unannotated", "CLASS|void", "of --dataset, a detection set: class of the other pixels",
         {}),
        ("--missing-instances", "HOW", "of --dataset: error (default), components or void",
         {"choices": MISSING}),
    ):  # fmt: skip
        more.add_argument(option, metavar=metavar, help=text, **given)
    how = parser.add_argument_group("how to score")
    for option, kind, default, metavar, text in (
        ("--mode", str, "exact", "MODE", "exact, or official: round as the authors' code"),
        ("--worst", checked(_percent), WORST_PERCENT, "PERCENT", "share of the images that "
         "mIoU_I@ and mIoU_C@ are of"),
        ("--bootstrap", natural_int, 1000, "N", "resamples for the intervals, 0 = none"),
        ("--shard", checked(parse_shard), "1/1", "I/N", "score the I-th of N parts, to be merged"),
    ):  # fmt: skip
        choices = MODES if option == "--mode" else None
        how.add_argument(
            option, type=kind, default=default, metavar=metavar, help=text, choices=choices
        )
    add_shared(how, "--size-bins", type=checked(parse_size_bins))
    add_shared(how, "--seed", "--jobs")
    _add_output(parser)
    args = parser.parse_args(arguments)
    if args.modules and args.dataset is None:
        parser.error("--import goes with --dataset")
    if args.shard[1] > 1 and (args.compare or args.report):
        parser.error("--compare and --report need the whole run: give them to merge")
    return _check_output(parser, args)


def parse_merge_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a merge."""
    parser = make_parser(MERGE_HELP)
    parser.prog += " merge"
    parser.add_argument("shards", nargs="+", metavar="DIR", help="folders of all shards")
    _add_output(parser)
    return _check_output(parser, parser.parse_args(arguments))


def score(args: argparse.Namespace) -> ScoredRun:
    """Score the predictions that the command line names."""
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    for module in args.modules:
        _import(module)

    def fields(kind: type) -> dict[str, Any]:
        return {name: value for name, value in vars(args).items() if name in kind.__annotations__}

    given = fields(Inputs)
    given |= {"image_list": args.list, "pictures": args.images, "open_dataset": open_dataset}
    given["panoptic"], given["panoptic_maps"] = args.panoptic or (None, None)
    given["stuff"] = () if args.no_stuff else args.stuff and tuple(args.stuff)
    settings = Settings(samples=args.bootstrap, **fields(Settings))
    return scoring.evaluate(Inputs(**given), settings, jobs=args.jobs, progress=not args.quiet)


def open_dataset(name: str, **options: Any) -> Any:
    """Open a registered data set; this alone needs torch."""
    from d2_smallobj.data.ground_truth import open_dataset as open_registered

    return open_registered(name, **options)


def load(texts: Sequence[str]) -> list[ScoredRun]:
    """Read scored runs from ``DIR`` or ``NAME=DIR``."""
    parts = [text.partition("=") for text in texts]
    named = ["=" in text and not Path(text).is_dir() for text in texts]
    folders = [part[2] if own else text for text, part, own in zip(texts, parts, named)]
    runs = load_runs(folders, open_dataset=open_dataset)
    return [
        dataclasses.replace(run, name=part[0]) if own else run
        for run, part, own in zip(runs, parts, named)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Score or merge, write the files, print a table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    merging = arguments[:1] == ["merge"]
    args = parse_merge_arguments(arguments[1:]) if merging else parse_arguments(arguments)
    with readable_errors(), _removed_if_empty(args.output):
        check_writable(args.output)
        if args.report is not None:
            check_writable(args.report.parent)
        # Read before the work: a wrong folder should not cost a run.
        others = load(args.compare) if args.compare else []
        run = scoring.merge(args.shards, open_dataset=open_dataset) if merging else score(args)
        scoring.save_run(args.output, run)
        for line in input_warnings(run) if args.quiet else warnings(run):
            print(f"warning: {line}", file=sys.stderr)
        if not args.quiet:
            print(format_run(run))
        _compare_and_report(args, run, others)


def _compare_and_report(args: argparse.Namespace, run: ScoredRun, others: list[ScoredRun]) -> None:
    """Print the comparison and write the report, as asked for."""
    own = Path(args.output).resolve()
    taken = own.name in {other.name for other in others}
    run = dataclasses.replace(run, name=str(own) if taken else own.name)
    comparison = compare_runs([*others, run]) if others else None
    if comparison is not None and not args.quiet:
        print(format_comparison(comparison))
    if args.report is not None:
        from d2_smallobj.report.html import write_report

        write_report(args.report, [run, *others], comparison=comparison)


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options that both commands have."""
    output = parser.add_argument_group("output")
    add_shared(output, "--output")
    text = "also compare with these scored runs, paired by image"
    output.add_argument("--compare", nargs="+", default=[], metavar="[NAME=]DIR", help=text)
    text = "also write an HTML report"
    output.add_argument("--report", type=Path, metavar="FILE.html", help=text)
    add_shared(output, "--quiet")


def _check_output(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    if args.quiet and args.compare and not args.report:
        parser.error("--compare with --quiet would show nothing: give --report, too")
    return args


def _percent(text: str) -> int:
    # What is no number is refused there, too.
    given: Any = int(text) if text.strip().isdecimal() else text
    return check_worst(given)


def _import(module: str) -> None:
    """Import a module that registers data sets; it is never written down with a run."""
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ImportError(
            f"--import {module}: {type(error).__name__}: {error} (run this in the project's folder "
            "with PYTHONPATH=. and its packages installed)"
        ) from error


@contextlib.contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """Leave no empty folder behind that was made for a result that did not come."""
    made = not os.path.isdir(folder)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
