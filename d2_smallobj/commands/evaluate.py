r"""Score predicted label maps: mIoU, IA-mIoU and what happened to every instance, in percent.

Needs neither torch nor detectron2, except for --dataset. Writes metrics.json, instances.csv and
the other files of a scored run to --output.

Examples:
    smallobj evaluate --predictions preds --semantic VOC2012/SegmentationClass \
        --instances VOC2012/SegmentationObject --list val.txt --output output/mine --jobs 8
    smallobj evaluate --predictions sem_seg_predictions.json \
        --coco-json instances_val2017.json --output output/coco --report output/coco.html
    smallobj evaluate --predictions preds --output output/panoptic \
        --panoptic panoptic_val2017.json panoptic_val2017
    smallobj evaluate --predictions preds --cityscapes gtFine/val --output output/city
    smallobj evaluate ... --shard 1/4 --output shard1        (and 2/4, 3/4, 4/4)
    smallobj evaluate merge shard1 shard2 shard3 shard4 --output output/mine
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

from d2_smallobj.utils.cli import checked, make_parser, natural_int, positive_int, readable_errors

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
    from d2_smallobj.scoring.scored_run import warnings
    from d2_smallobj.statistics.comparison import compare_runs
    from d2_smallobj.utils.opencv import cv2


MERGE_HELP = """Put the shards of a run together, to the bit as if it had been one.

Example:
    smallobj evaluate merge shard1 shard2 shard3 shard4 --output output/mine
"""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a run."""
    parser = make_parser(__doc__, epilog="`smallobj evaluate merge --help`: put shards together.")
    text = (
        "folder of <image>.png (mode L, P or 16-bit grey) or <image>.npy (integer labels), or the "
        "sem_seg_predictions.json of detectron2's SemSegEvaluator (its category_id is the label; "
        "with --panoptic, and with --dataset if its metadata number categories, their id)"
    )
    parser.add_argument("--predictions", required=True, metavar="PATH", help=text)
    truth = parser.add_argument_group("ground truth, one of")
    maps = "COCO panoptic file and the folder of its PNGs; labels follow the order of category ids"
    truth.add_argument("--panoptic", nargs=2, metavar=("JSON", "DIR"), help=maps)
    more = parser.add_argument_group("more about the ground truth")
    for group, option, metavar, text in (
        (truth, "--semantic", "DIR", "folder of semantic maps, <image>.png"),
        (truth, "--coco-json", "FILE", "COCO annotations; the rest is background"),
        (truth, "--lvis-json", "FILE", "LVIS annotations; --classes must choose 254 at most"),
        (truth, "--cityscapes", "DIR", "gtFine, or a split of it; predictions are called "
         "<city>_<sequence>_<frame>.png, with or without the suffix of the picture or the map"),
        (truth, "--dataset", "NAME", "data set registered with detectron2, or by this package "
         "(python -m d2_smallobj.data lists those); see docs/evaluator.md"),
        (more, "--instances", "DIR", "with --semantic: folder of instance maps; default: the "
         "connected components of the semantic maps are the instances"),
        (more, "--classes", "voc|coco|FILE|N", "class names: built in, one a line in a file, or "
         "their number, with background (default: voc with --semantic, else the truth's own)"),
        (more, "--unannotated", "CLASS|void", "with --dataset: paint the label maps of a detection "
         "set (coco_2017_val); pixels without annotation are this class, or void: left out"),
        (more, "--category-map", "FILE", "with --coco-json or --lvis-json and --classes: JSON "
         "object from category name or id to class name or label; others are background"),
        (more, "--list", "FILE", "text file of the images to score, one a line (default: all)"),
        (more, "--images", "DIR", "folder of the pictures, for the report"),
    ):  # fmt: skip
        group.add_argument(option, metavar=metavar, help=text)
    text = "with --dataset: Python module of a project that registers the data set (repeated)"
    truth.add_argument(
        "--import", dest="modules", action="append", default=[], metavar="MODULE", help=text
    )
    stuff = more.add_mutually_exclusive_group()
    text = "a class whose pixels are no objects, such as sky; repeat it for each (default: as the "
    text += "ground truth says, else the class background)"
    stuff.add_argument("--stuff", action="append", metavar="NAME", help=text)
    stuff.add_argument("--no-stuff", action="store_true", help="all classes are objects")
    text = "with --dataset: for an image without instances where others have them: refuse it "
    text += "(default), take its connected components, or leave its objects out"
    more.add_argument("--missing-instances", choices=("error", "components", "void"), help=text)
    text = "with --cityscapes: ids in the predictions, train ids (default) or label ids"
    more.add_argument("--prediction-ids", choices=PREDICTION_IDS, help=text)
    text = "label of pixels that are left out (default: the ground truth's own, else 255)"
    more.add_argument("--ignore-label", type=int, metavar="N", help=text)
    how = parser.add_argument_group("how to score")
    text = "official: round as the code of the paper's authors does (default: exact)"
    how.add_argument("--mode", choices=MODES, default="exact", help=text)
    for option, kind, default, metavar, text in (
        ("--size-bins", checked(parse_size_bins), "coco", "BINS", "upper bounds of the sizes in "
         "pixels, S:1024,M:9216,L:inf, or as shares of the image, relative:S:0.01,M:0.1,L:1"),
        ("--worst", checked(_percent), WORST_PERCENT, "PERCENT", "mIoU_I@PERCENT and "
         "mIoU_C@PERCENT are means over the worst PERCENT of the (class's) images: 1 to 100"),
        ("--bootstrap", natural_int, 1000, "N", "resamples for the intervals, 0 = none"),
        ("--seed", natural_int, 0, "N", "seed of the resamples"),
        ("--jobs", positive_int, 1, "N", "number of processes; the figures are the same"),
        ("--shard", checked(parse_shard), "1/1", "I/N", "score the I-th of N parts, to be merged"),
    ):  # fmt: skip
        text += " (default: %(default)s)"
        how.add_argument(option, type=kind, default=default, metavar=metavar, help=text)
    _add_output(parser)
    args = parser.parse_args(arguments)
    if args.modules and args.dataset is None:
        parser.error("--import goes with --dataset")
    if args.shard[1] > 1 and (args.compare or args.report):
        parser.error("--compare and --report need the whole run: give them to merge")
    return args


def parse_merge_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a merge."""
    parser = make_parser(MERGE_HELP)
    parser.prog += " merge"
    parser.add_argument("shards", nargs="+", metavar="SHARD_DIR", help="folders of all shards")
    _add_output(parser)
    return parser.parse_args(arguments)


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
        others = load_runs(args.compare, open_dataset=open_dataset) if args.compare else []
        run = scoring.merge(args.shards, open_dataset=open_dataset) if merging else score(args)
        scoring.save_run(args.output, run)
        for line in warnings(run):
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
    if comparison is not None:
        print(format_comparison(comparison))
    if args.report is not None:
        from d2_smallobj.report.html import write_report

        write_report(args.report, [run, *others], comparison=comparison)


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options that both commands have."""
    output = parser.add_argument_group("output").add_argument
    output("--output", required=True, metavar="DIR", help="folder of the result")
    text = "also compare with these runs: paired differences, p-values, ranks"
    output("--compare", nargs="+", default=[], metavar="RUN_DIR", help=text)
    output("--report", type=Path, metavar="FILE.html", help="also write an HTML report")
    output("--quiet", action="store_true", help="no progress bar, no table")


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
def _removed_if_empty(folder: str) -> Iterator[None]:
    """Leave no empty folder behind that was made for a result that did not come."""
    made = not os.path.isdir(folder)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
