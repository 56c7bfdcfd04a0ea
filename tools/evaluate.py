#!/usr/bin/env python
r"""Score predicted label maps: mIoU, IA-mIoU and what happened to every instance, in percent.

Neither torch nor detectron2 is needed (--dataset alone needs them). Writes metrics.json,
instances.csv and the other files of a scored run to --output; docs and errors say the rest.

Examples:
    python tools/evaluate.py --predictions preds --semantic VOC2012/SegmentationClass \
        --instances VOC2012/SegmentationObject --list val.txt --output output/mine --jobs 8
    python tools/evaluate.py --predictions sem_seg_predictions.json \
        --coco-json instances_val2017.json --output output/coco --report output/coco.html
    python tools/evaluate.py --predictions preds --output output/panoptic \
        --panoptic panoptic_val2017.json panoptic_val2017
    python tools/evaluate.py --predictions preds --cityscapes gtFine/val --output output/city
    python tools/evaluate.py ... --shard 1/4 --output shard1        (and 2/4, 3/4, 4/4)
    python tools/evaluate.py merge shard1 shard2 shard3 shard4 --output output/mine
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    from d2_smallobj.metrics import parse_size_bins
    from d2_smallobj.metrics.image_means import WORST_PERCENT, check_worst
    from d2_smallobj.metrics.image_runs import MODES
    from d2_smallobj.report.comparison_tables import format_comparison
    from d2_smallobj.scoring import (
        Inputs,
        ScoredRun,
        Settings,
        check_writable,
        load_runs,
        merge,
        prepare,
        save_run,
        score,
    )
    from d2_smallobj.scoring.inputs import PREDICTION_IDS, import_registrations
    from d2_smallobj.scoring.plan import parse_shard
    from d2_smallobj.scoring.run_figures import warnings
    from d2_smallobj.scoring.tables import format_run
    from d2_smallobj.statistics.comparison import compare_runs
    from d2_smallobj.utils.opencv import cv2
except (ValueError, ImportError) as error:
    # D2_SMALLOBJ_HOST is wrong or cannot be had, or a package is missing.
    sys.exit(f"error: {error}")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a run."""
    parser = _parser("Score predictions. `evaluate.py merge --help`: put shards together.")
    parser.add_argument(
        "--predictions",
        required=True,
        metavar="PATH",
        help="folder of <image>.png (mode L, P or 16-bit grey) or <image>.npy (integer labels), "
        "or the sem_seg_predictions.json of detectron2's SemSegEvaluator (its category_id is the "
        "label; with --panoptic, and with --dataset if its metadata number categories, their id)",
    )
    truth = parser.add_argument_group("ground truth, one of")
    truth.add_argument("--semantic", metavar="DIR", help="folder of semantic maps, <image>.png")
    truth.add_argument(
        "--coco-json", metavar="FILE", help="COCO instance annotations; the rest is background"
    )
    truth.add_argument(
        "--lvis-json",
        metavar="FILE",
        help="LVIS annotations; their categories are more than the 254 labels of an 8-bit map, so "
        "--classes must choose some",
    )
    truth.add_argument(
        "--panoptic",
        nargs=2,
        metavar=("JSON", "DIR"),
        help="COCO panoptic file and the folder of its PNGs; label = place of the category in the "
        "order of ids",
    )
    truth.add_argument(
        "--cityscapes",
        metavar="DIR",
        help="gtFine, or a split of it; predictions are called <city>_<sequence>_<frame>.png, "
        "with or without the suffix of the picture or the label map",
    )
    truth.add_argument(
        "--dataset",
        metavar="NAME",
        help="data set registered with detectron2, or by this package (python -m d2_smallobj.data "
        "lists those); docs/evaluator.md tells its classes and instances",
    )
    truth.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="with --dataset: Python module of a project that registers the data set (repeated)",
    )
    more = parser.add_argument_group("more about the ground truth")
    more.add_argument(
        "--instances",
        metavar="DIR",
        help="with --semantic: folder of instance maps; without it, the connected components of "
        "the semantic maps are the instances",
    )
    more.add_argument(
        "--classes",
        metavar="voc|coco|FILE|N",
        help="class names: built in, one a line in a file, or just their number, background "
        "included (default: voc with --semantic, else the ground truth's own)",
    )
    stuff = more.add_mutually_exclusive_group()
    stuff.add_argument(
        "--stuff",
        action="append",
        metavar="NAME",
        help="a class whose pixels are no objects, such as sky; repeat it for each (default: what "
        "the ground truth says, else the class background)",
    )
    stuff.add_argument(
        "--no-stuff", action="store_true", help="all classes are objects, there is no background"
    )
    more.add_argument(
        "--missing-instances",
        choices=("error", "components", "void"),
        help="with --dataset: what to do with an image without instances where others have them: "
        "refuse it (default), take its connected components, or leave its objects out of all "
        "instance figures",
    )
    more.add_argument(
        "--unannotated",
        metavar="CLASS|void",
        help="with --dataset: paint the label maps of a detection set (coco_2017_val) from its "
        "annotations; pixels without one are this class (background), or void: left out",
    )
    more.add_argument(
        "--prediction-ids",
        choices=PREDICTION_IDS,
        help="what predictions hold, with --cityscapes: train ids (default) or label ids",
    )
    more.add_argument(
        "--category-map",
        metavar="FILE",
        help="with --coco-json or --lvis-json and --classes: JSON object from category name or "
        "id to class name or label; other categories are background",
    )
    more.add_argument(
        "--ignore-label",
        type=int,
        metavar="N",
        help="label of pixels that are left out (default: the ground truth's own, else 255)",
    )
    more.add_argument(
        "--list",
        dest="image_list",
        metavar="FILE",
        help="text file of the images to score, one a line (default: all)",
    )
    more.add_argument("--images", metavar="DIR", help="folder of the pictures, shown in the report")
    how = parser.add_argument_group("how to score")
    how.add_argument(
        "--mode",
        choices=MODES,
        default="exact",
        help="official: as the code of the paper's authors rounds (default: %(default)s)",
    )
    how.add_argument(
        "--size-bins",
        type=_checked(parse_size_bins),
        default="coco",
        metavar="BINS",
        help="upper bounds of the sizes: in pixels, S:1024,M:9216,L:inf (coco, the default), or as "
        "shares of the image, relative:S:0.01,M:0.1,L:1",
    )
    how.add_argument(
        "--worst",
        type=_checked(_percent),
        default=WORST_PERCENT,
        metavar="PERCENT",
        help="mIoU_I@PERCENT and mIoU_C@PERCENT are means over the worst PERCENT of the images, or "
        "of each class's images: 1 to 100 (default: %(default)s)",
    )
    how.add_argument(
        "--bootstrap",
        type=_at_least(0),
        default=1000,
        metavar="N",
        help="resamples for the intervals, 0 = none (default: %(default)s)",
    )
    how.add_argument(
        "--seed",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="of the resamples (default: %(default)s)",
    )
    how.add_argument(
        "--jobs",
        type=_at_least(1),
        default=1,
        metavar="N",
        help="processes that score at once; the figures are the same (default: %(default)s)",
    )
    how.add_argument(
        "--shard",
        type=_checked(parse_shard),
        default="1/1",
        metavar="I/N",
        help="score the I-th of N parts only, to be merged",
    )
    _add_output(parser)
    args = parser.parse_args(arguments)
    if args.modules and args.dataset is None:
        parser.error("--import goes with --dataset")
    if args.shard[1] > 1 and (args.compare or args.report):
        parser.error("--compare and --report need the whole run: give them to merge")
    return args


def parse_merge_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a merge."""
    parser = _parser("Put the shards of a run together, to the bit as if it had been one.")
    parser.prog += " merge"
    parser.add_argument("shards", nargs="+", metavar="SHARD_DIR", help="folders of all shards")
    _add_output(parser)
    return parser.parse_args(arguments)


def evaluate(args: argparse.Namespace) -> ScoredRun:
    """Check, then score."""
    # The processes share the processors; inside one, threads would not be faster.
    cv2.setNumThreads(1)
    import_registrations(args.modules)
    panoptic, panoptic_maps = args.panoptic or (None, None)
    inputs = Inputs(
        predictions=args.predictions,
        semantic=args.semantic,
        instances=args.instances,
        coco_json=args.coco_json,
        lvis_json=args.lvis_json,
        panoptic=panoptic,
        panoptic_maps=panoptic_maps,
        cityscapes=args.cityscapes,
        dataset=args.dataset,
        stuff=() if args.no_stuff else args.stuff and tuple(args.stuff),
        missing_instances=args.missing_instances,
        unannotated=args.unannotated,
        prediction_ids=args.prediction_ids,
        classes=args.classes,
        category_map=args.category_map,
        image_list=args.image_list,
        pictures=args.images,
    )
    settings = Settings(
        mode=args.mode,
        ignore_label=args.ignore_label,
        size_bins=args.size_bins,
        worst=args.worst,
        samples=args.bootstrap,
        seed=args.seed,
        shard=args.shard,
    )
    prepared = prepare(inputs, settings, defer=True)
    return score(prepared, jobs=args.jobs, progress=not args.quiet)


def main() -> None:
    """Score or merge, write the files, print a table."""
    arguments = sys.argv[1:]
    merging = arguments[:1] == ["merge"]
    args = parse_merge_arguments(arguments[1:]) if merging else parse_arguments(arguments)
    made = not os.path.isdir(args.output)
    try:
        check_writable(args.output)
        if args.report is not None:
            check_writable(args.report.parent)
        # Read before the work: a wrong folder should not cost a run.
        others = load_runs(args.compare)
        run = merge(args.shards) if merging else evaluate(args)
        save_run(args.output, run)
        for line in warnings(run):
            print(f"warning: {line}", file=sys.stderr)
        if not args.quiet:
            print(format_run(run))
        _compare_and_report(args, run, others)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        _remove_empty(args.output, made)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        _remove_empty(args.output, made)
        sys.exit(130)


def _compare_and_report(
    args: argparse.Namespace, run: ScoredRun, others: Sequence[ScoredRun]
) -> None:
    """Print the comparison and write the report, as asked for."""
    names = {other.name for other in others}
    # This one's folder is a name of its own unless another run has it.
    own = Path(args.output).resolve()
    run = dataclasses.replace(run, name=own.name if own.name not in names else str(own))
    comparison = compare_runs([*others, run]) if others else None
    if comparison is not None:
        print(format_comparison(comparison))
    if args.report is not None:
        from d2_smallobj.report.html import write_report

        write_report(args.report, [run, *others], comparison=comparison)


def _parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=f"{__doc__}\n{description}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    """The options that every command has."""
    output = parser.add_argument_group("output")
    output.add_argument("--output", required=True, metavar="DIR", help="folder of the result")
    output.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="RUN_DIR",
        help="also compare with these runs: paired differences, p-values, ranks",
    )
    output.add_argument(
        "--report", type=Path, metavar="FILE.html", help="also write an HTML report"
    )
    output.add_argument("--quiet", action="store_true", help="no progress bar, no table")


def _checked(parse: Callable[[str], object]) -> Callable[[str], object]:
    """An argparse type that keeps the parser's own message."""

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _percent(text: str) -> int:
    return check_worst(int(text) if text.strip().isdecimal() else text)


def _at_least(lowest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be an integer >= {lowest}, got {text!r}")
        return value

    return convert


def _remove_empty(folder: str, made: bool) -> None:
    """Leave no empty folder behind that was made for a result that did not come."""
    if made:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


if __name__ == "__main__":
    main()
