r"""Show how mIoU and IA-mIoU respond to object size and to the metric's conventions.

Needs neither torch nor detectron2, except for --dataset. Writes a PNG and a CSV each:
  corner       a prediction grows over a small and a large instance (Fig. 4 of the paper)
  removal      a class's instances are deleted from the perfect prediction, the smallest first
               (Fig. 5)
  conventions  --predictions, or else the ground truth, perturbed, under every convention of the
               metric (CSV and Markdown)

Examples:
    smallobj sensitivity --output output/sensitivity
    smallobj sensitivity --output output/sensitivity --dataset smallobj_demo_val
    smallobj sensitivity --output output/sensitivity --class dog \
        --semantic VOC2012/SegmentationClass --instances VOC2012/SegmentationObject
    smallobj sensitivity --output output/sensitivity --dataset smallobj_demo_val \
        --experiments conventions --predictions CE=output/predictions
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from d2_smallobj.utils.cli import add_shared, checked, make_parser, positive_int, readable_errors

with readable_errors():
    import numpy as np

    from d2_smallobj.annotations.truth import GroundTruth
    from d2_smallobj.commands.evaluate import open_dataset
    from d2_smallobj.metrics import parse_size_bins
    from d2_smallobj.report import conventions, sensitivity
    from d2_smallobj.report import labelled_images as labelled
    from d2_smallobj.report.labelled_images import IGNORE, LabelledImage
    from d2_smallobj.scoring.inputs import Inputs, choose_ignore_label
    from d2_smallobj.scoring.predictions import open_predictions, read_prediction
    from d2_smallobj.utils.files import atomic_write_text
    from d2_smallobj.utils.messages import UsageError

EXPERIMENTS = ("corner", "removal", "conventions")
_TRUTHS = ("semantic", "coco_json", "lvis_json", "dataset")
_OPTIONS = ("instances", "classes", "category_map", "list")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    text = "of those above (default: corner removal)"
    choice: dict[str, Any] = {
        "nargs": "+",
        "choices": EXPERIMENTS,
        "default": ["corner", "removal"],
    }
    parser.add_argument("--experiments", metavar="EXPERIMENT", help=text, **choice)
    data = parser.add_argument_group("ground truth, one of (default: scenes drawn here)")
    add_shared(data, "--semantic", "--coco-json", "--lvis-json", "--dataset")
    more = parser.add_argument_group("more about the ground truth")
    add_shared(more, "--instances", "--classes", "--category-map", "--list")
    how = parser.add_argument_group("how to experiment, and output")
    text = "class to look at (default: corner, any; removal, the most frequent)"
    how.add_argument("--class", dest="class_name", metavar="NAME", help=text)
    add_shared(how, "--size-bins", type=checked(parse_size_bins))
    number: dict[str, Any] = {"type": positive_int, "metavar": "N"}
    how.add_argument("--steps", default=20, help="steps of a stage of the corner cases", **number)
    how.add_argument("--points", default=200, help="most points of the removal curve", **number)
    add_shared(how, "--predictions", nargs="+", default=[], metavar="NAME=PATH")
    add_shared(how, "--output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiments."""
    args = parse_arguments(arguments)
    with readable_errors():
        truth = open_truth(args)
        if truth is None:
            class_names: tuple[str, ...] = ("background", "disc")
            sources = {"corner": [labelled.drawn_pair()], "removal": labelled.drawn_sizes()}
            sources["conventions"] = [*sources["corner"], *sources["removal"]]
        else:
            class_names = truth.class_names
            sources = dict.fromkeys(EXPERIMENTS, labelled.truth_images(truth, len(class_names)))
        impossible = {}
        for experiment in args.experiments:
            images = sources[experiment]
            try:
                if experiment == "corner":
                    run_corner(args, images, class_names)
                elif experiment == "removal":
                    run_removal(args, images, class_names)
                else:
                    run_conventions(args, images, class_names, truth)
            except labelled.ImpossibleExperimentError as error:
                impossible[experiment] = str(error)
        reasons = [f"{name} is left out: {why}" for name, why in impossible.items()]
        if len(impossible) == len(set(args.experiments)):
            raise labelled.ImpossibleExperimentError("; ".join(reasons))
        for line in reasons:
            print(f"note: {line}", file=sys.stderr)


def open_truth(args: argparse.Namespace) -> GroundTruth | None:
    """Open the ground truth that is given; return ``None`` if there is none."""
    if not any(getattr(args, name) for name in _TRUTHS):
        without = [f"--{name.replace('_', '-')}" for name in _OPTIONS if getattr(args, name)]
        if without:
            raise UsageError(f"{' and '.join(without)}: of which ground truth?")
        return None
    given = {name: getattr(args, name) for name in (*_TRUTHS, *_OPTIONS[:-1])}
    inputs = Inputs(predictions="", image_list=args.list, **given, open_dataset=open_dataset)
    truth = inputs.open_truth()
    if choose_ignore_label(None, truth) != IGNORE:
        raise ValueError(f"the ground truth must ignore label {IGNORE}, got {truth.ignore_label}")
    return truth


def run_corner(
    args: argparse.Namespace, images: Sequence[LabelledImage], class_names: Sequence[str]
) -> None:
    """Draw Fig. 4 of the paper."""
    pair = labelled.find_pair(images, class_names, class_name=args.class_name)
    curves = sensitivity.corner_cases(pair, steps=args.steps)
    sensitivity.write_curves(args.output / "corner_cases.csv", curves)
    sensitivity.draw_corner_cases(args.output / "corner_cases.png", pair, curves)
    print(f"wrote {args.output / 'corner_cases.png'} and .csv ({pair.class_name})")


def run_removal(
    args: argparse.Namespace, images: Sequence[LabelledImage], class_names: Sequence[str]
) -> None:
    """Draw Fig. 5 of the paper."""
    name = args.class_name or most_instances(images, class_names)
    options = {"points": args.points, "size_bins": args.size_bins}
    curve = sensitivity.removal_curve(images, class_names, name, **options)
    sensitivity.write_curves(args.output / "removal.csv", [curve])
    sensitivity.draw_removal(args.output / "removal.png", curve)
    print(f"wrote {args.output / 'removal.png'} and .csv ({name})")


def most_instances(images: Sequence[LabelledImage], class_names: Sequence[str]) -> str:
    """Return the class with the most instances; the first of several."""
    count: Counter[int] = Counter()
    for image in images:
        semantic, instances = image.load()
        chosen = (semantic != IGNORE) & (instances != 0) & (instances != IGNORE)
        pairs = np.unique(np.stack([instances[chosen], semantic[chosen]]), axis=1)
        count.update(pairs[1].tolist())
    if not count:
        raise labelled.ImpossibleExperimentError(
            f"there is no instance in these {len(images)} images"
        )
    return class_names[max(sorted(count), key=count.__getitem__)]


def run_conventions(
    args: argparse.Namespace,
    images: Sequence[LabelledImage],
    class_names: Sequence[str],
    truth: GroundTruth | None,
) -> None:
    """Compute the figures under every convention."""
    predictors = dict(conventions.PERTURBATIONS)
    if args.predictions:
        if truth is None:
            truths = "--semantic, --dataset or a JSON file"
            raise UsageError(f"--predictions: of which ground truth? Give {truths}")
        predictors = dict(file_predictor(entry, truth) for entry in args.predictions)
    rows = conventions.compare_conventions(images, predictors, class_names)
    conventions.write_conventions(args.output / "conventions.csv", rows)
    atomic_write_text(args.output / "conventions.md", conventions.convention_table(rows) + "\n")
    print(conventions.convention_table(rows))


def file_predictor(entry: str, truth: GroundTruth) -> tuple[str, conventions.Predictor]:
    """Return name and reader of predictions given as NAME=PATH."""
    name, separator, path = entry.partition("=")
    if not separator:
        raise UsageError(f"--predictions takes NAME=PATH, got {entry!r}")
    predictions = open_predictions(path, truth.json_classes)
    images = {image.image_id: image for image in truth.images}

    def predict(image_id: str, semantic: np.ndarray, instances: np.ndarray) -> np.ndarray:
        found = predictions.find(images[image_id])
        if found is None:
            raise FileNotFoundError(f"{path}: no prediction for image {image_id}")
        return read_prediction(found[1], semantic.shape, f"{path}, image {image_id}")

    return name, predict
