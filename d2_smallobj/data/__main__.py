"""List the registered data sets and check their files.

The list says which files exist, which are missing, and which command makes them; "24 of 10,582"
images are those of a list that is shorter than the published one. Without names it has all sets.
A training set with another folder of label maps is named as in a config
(voc_2012_trainaug@FOLDER). The data sets lie in $DETECTRON2_DATASETS, or in --root.
The exit status is 1 if a named set cannot be used, or if --check or --account finds an error.

Examples:
    smallobj data
    smallobj data voc_2012_trainaug_irn voc_2012_seg_val --check --jobs 8
    smallobj data --account instances_val2017.json
    smallobj data --account lvis_v1_val.json --kind lvis --csv fates.csv
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d2_smallobj.annotations.classes import choose_categories, read_class_names
from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations
from d2_smallobj.annotations.coco_file import KINDS
from d2_smallobj.annotations.coco_maps import account, image_fates
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.data.specs import IGNORE_LABEL, DatasetSpec
from d2_smallobj.metrics.matching import match_image
from d2_smallobj.pseudo_labels.targets import TargetImage
from d2_smallobj.report.dataset_summary import format_accounting, write_accounting
from d2_smallobj.utils.cli import add_shared, make_parser, readable_errors
from d2_smallobj.utils.messages import itemized, look_up_option
from d2_smallobj.utils.parallel import parallel_map
from d2_smallobj.utils.tables import markdown_table

_SHOWN = 4


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, prog="smallobj data")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    add_shared(parser, "--root", type=Path)
    add_shared(parser, "--check", "--jobs")
    fates = parser.add_argument_group("annotations of a file instead of data sets")
    add = fates.add_argument
    text = "count used and unused annotations by category"
    add("--account", type=Path, metavar="FILE", help=text)
    add("--kind", choices=KINDS, default="coco", metavar="KIND", help="coco or lvis")
    add_shared(fates, "--classes", "--category-map")
    text = "categories that are ignored"
    add("--void", nargs="+", default=[], metavar="CATEGORY", help=text)
    add("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    args = parser.parse_args(arguments)
    if args.account is not None and (args.names or args.check):
        parser.error("--account reads an annotation file: give no data sets and no --check with it")
    if args.account is not None and args.category_map is not None and args.classes is None:
        parser.error("--category-map needs --classes: the classes that it maps to")
    return args


def show_data_sets(args: argparse.Namespace) -> bool:
    """Print the state of the data sets; returns whether no problem was found."""
    # These import torch, which takes seconds: after the command line has been read.
    from d2_smallobj.data.catalog import ALIASES, canonical_name, register_all, registered

    register_all(args.root)
    names = [canonical_name(name) for name in args.names]
    known = {name: spec for name, spec in registered().items() if name not in ALIASES}
    chosen = {name: known[look_up_option("data set", name, known)] for name in names or known}
    found = {name: find_files(spec) for name, spec in chosen.items()}
    rows = [[name, *files[:3]] for name, files in found.items()]
    _say(markdown_table(["data set", "state", "images", "missing"], rows, text_columns=2))
    unusable = {name: files.what_to_do for name, files in found.items() if files.what_to_do}
    if unusable:
        width = max(map(len, unusable))
        _say("\nTo prepare them (where the files come from: datasets/README.md):")
        for name, text in unusable.items():
            _say(f"  {name.ljust(width)}  {text}")
    good = not (names and unusable)
    for name, files in found.items():
        if args.check and files.state == "ready":
            problems = check_files(chosen[name], args.jobs)
            good = good and not problems
            shown = itemized("bad image(s)", problems) if problems else "all files are good"
            _say(f"{name}: {shown}")
    return good


class DatasetFiles(NamedTuple):
    """State of a data set's files, as the list shows it."""

    state: str  # "ready", "on first use" (made when needed), "missing", "unusable" (a bad list)
    images: str = ""  # their number, and that of the published set if it is another
    missing: str = ""  # the missing paths, or their number and the first one
    what_to_do: str = ""  # what is wrong, or the command or page that helps to get the files


def find_files(spec: DatasetSpec) -> DatasetFiles:
    """Look which files of a data set exist; opens only lists and annotation files."""
    check = FileCheck(spec.name, spec.prepare_command)
    try:
        number = len(spec.list_files(check))
        expected = spec.published or number
        images = f"{number:,}" + (f" of {expected:,}" if number != expected else "")
        return DatasetFiles("ready", images)
    except ValueError as error:
        return DatasetFiles("unusable", what_to_do=str(error))
    except FileNotFoundError:
        if spec.ensure is not None:
            return DatasetFiles("on first use")
    shown = [
        os.path.relpath(path, spec.folder) + os.sep * path.endswith(os.sep)
        for path in check.missing[:_SHOWN]
    ]
    missing = ", ".join(shown)
    if len(check.missing) > _SHOWN:
        missing = f"{len(check.missing):,} of {check.required:,} files, e.g. {shown[0]}"
    return DatasetFiles("missing", "", missing, spec.command or spec.see)


def check_files(spec: DatasetSpec, jobs: int) -> list[str]:
    """Read all label maps, or annotations, and the headers of all images of a data set.

    Returns one sentence for every bad image.
    """
    annotations = None
    if spec.instances_json is not None:
        annotations = InstanceAnnotations(spec.instances_json)
    tasks = [
        (record, [] if annotations is None else annotations.annotations(record["image_id"]))
        for record in spec.list_files()
    ]
    check = functools.partial(
        check_image, num_classes=len(spec.class_names), source=str(spec.instances_json)
    )
    results = parallel_map(check, tasks, jobs=jobs, description=spec.name, progress=True)
    return [problem for problem in results if problem is not None]


def check_image(
    task: tuple[Mapping[str, Any], list[Annotation]], *, num_classes: int, source: str
) -> str | None:
    """Check that an image, its label maps and its annotations are valid and belong together.

    ``task`` is the image's dataset dict and its annotations, ``source`` their file. Returns a
    sentence that names the bad file; ``None`` if all are good.
    """
    record, annotations = task
    try:
        size = TargetImage((), record["file_name"]).read_size()
        expected = (record.get("height", size[0]), record.get("width", size[1]))
        if size != expected:
            return f"{record['file_name']}: height x width is {size}, {source} says {expected}"
        if "sem_seg_file_name" in record:
            _check_maps({**record, "height": size[0], "width": size[1]}, num_classes)
        _, problems = image_fates((annotations, *size), source=source)
    except (OSError, TypeError, ValueError) as error:
        return str(error)
    return "; ".join(problems) or None


def _check_maps(record: Mapping[str, Any], num_classes: int) -> None:
    """Check sizes and values of an image's label maps, and that they belong together."""
    from d2_smallobj.data.supervision import read_instances, read_labels

    semantic = read_labels(record, num_classes, IGNORE_LABEL)
    if "ins_seg_file_name" in record:
        instances = read_instances(record, semantic)
        try:
            match_image(semantic, semantic, instances, num_classes=num_classes)
        except ValueError as error:
            raise ValueError(f"{record['ins_seg_file_name']}: {error}") from error


def account_file(args: argparse.Namespace) -> bool:
    """Print how many annotations of a file are used; returns whether all are well-formed."""
    class_names = None if args.classes is None else read_class_names(args.classes)
    category_map = None
    if class_names is not None:
        category_map = choose_categories(args.account, class_names, args.category_map)
    annotations = InstanceAnnotations(
        args.account,
        kind=args.kind,
        category_map=category_map,
        class_names=class_names,
        void_categories=args.void,
        label_maps=False,
    )
    result = account(annotations, jobs=args.jobs, progress=True)
    _say(format_accounting(result))
    if args.csv is not None:
        write_accounting(args.csv, result)
    return not result.malformed


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_arguments(arguments)
    with readable_errors():
        good = show_data_sets(args) if args.account is None else account_file(args)
        sys.exit(os.EX_OK if good else 1)


if __name__ == "__main__":
    # Worker processes (--jobs) find a function of this module under the module's own name only.
    from d2_smallobj.data.__main__ import main as command

    command()
