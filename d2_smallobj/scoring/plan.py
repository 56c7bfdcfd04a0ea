"""From ground truth and predictions to a list of images to score, all of it checked cheaply."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

from d2_smallobj.annotations.truth import GroundTruth, TruthImage
from d2_smallobj.annotations.voc import read_image_list
from d2_smallobj.scoring.predictions import Entry, Predictions, check_prediction
from d2_smallobj.utils.messages import LIMIT, listed
from d2_smallobj.utils.problems import Problems

_SHARD = re.compile(r"(\d+)/(\d+)")


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to score.

    Attributes:
        truth: its ground truth.
        prediction: its prediction.
        size: its height and width.
    """

    truth: TruthImage
    prediction: Entry
    size: tuple[int, int]

    @property
    def where(self) -> str:
        """What messages call the prediction."""
        if isinstance(self.prediction, str):
            return self.prediction
        return f"prediction of {self.truth.stems[0]}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be scored.

    Attributes:
        tasks: the images, by id.
        unused: names of predictions for which there is no ground truth, sorted.
        problems: what is wrong with images and predictions that are not among the tasks.
    """

    tasks: list[Task]
    unused: list[str]
    problems: Problems

    @property
    def remark(self) -> str | None:
        """A sentence about unused predictions, if there are any."""
        if not self.unused:
            return None
        return (
            f"{len(self.unused)} prediction(s) are not scored, since their images are not wanted or"
            f" have no ground truth: {listed(self.unused)}"
        )


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, i from 1 to n.

    Raises:
        ValueError: it has another form, or i is not in 1..n.
    """
    match = _SHARD.fullmatch(text.strip())
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"--shard must be i/n with i in 1..n, e.g. 1/4, got {text!r}")
    return part, parts


def read_list(path: str | os.PathLike[str]) -> list[str]:
    """Names of the images of a list: one a line, or VOC's lines of two paths.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the list is malformed; names file and line.
    """
    return [image.image_id for image in read_image_list(path)]


def make_plan(
    truth: GroundTruth, predictions: Predictions, *, shard: tuple[int, int] = (1, 1)
) -> Plan:
    """Find the prediction of every image and compare sizes and modes, from headers alone.

    Args:
        truth: the ground truth; its images are the ones to score.
        predictions: the predictions; those of other images are left unused.
        shard: (i, n): every n-th image from the i-th on, in the order of ids. Missing
            predictions are found for all images, headers looked at for these only.

    Returns:
        The plan. Its problems are predictions that are missing, ambiguous, of another size, or no
        label maps, and ground-truth maps that are missing or disagree in size.

    Raises:
        ValueError: there is no image.
    """
    if not truth.images:
        raise ValueError("the ground truth has no images")
    problems = Problems()
    found: list[tuple[TruthImage, Entry]] = []
    used: dict[str, str] = {}
    for image in sorted(truth.images, key=lambda image: image.image_id):
        try:
            hit = predictions.find(image)
        except ValueError as error:
            problems.add("prediction(s) in two files each", str(error))
            continue
        if hit is None:
            problems.add("image(s) without a prediction", " or ".join(image.stems))
            continue
        name, entry = hit
        if name in used:
            both = f"{name}: {used[name]} and {image.image_id}"
            problems.add("prediction(s) that two images claim", both)
        used[name] = image.image_id
        found.append((image, entry))
    _check_names(truth.images, problems)
    if len(problems) == len(truth.images):
        problems.add(
            "prediction name(s) found instead; do they belong to this data set?",
            ", ".join(sorted(predictions.names())[:LIMIT]),
        )
    part, parts = shard
    tasks = [_check(image, entry, truth, problems) for image, entry in found[part - 1 :: parts]]
    return Plan(
        [task for task in tasks if task is not None],
        sorted(set(predictions.names()) - set(used)),
        problems,
    )


def _check_names(images: Sequence[TruthImage], problems: Problems) -> None:
    """Refuse ids that could not be written or told apart."""
    seen: set[str] = set()
    for image in images:
        if image.image_id in seen:
            problems.add("image id(s) used twice in the ground truth", image.image_id)
        seen.add(image.image_id)
        if not image.image_id.isprintable():
            # Surrogates of a file name that is no UTF-8, control characters.
            problems.add("image name(s) with unprintable characters", repr(image.image_id))


def _check(image: TruthImage, entry: Entry, truth: GroundTruth, problems: Problems) -> Task | None:
    """Compare the headers of one image."""
    try:
        size = truth.size(image)
    except (OSError, ValueError) as error:
        problems.add("unusable ground-truth map(s)", _reason(error))
        return None
    task = Task(image, entry, size)
    try:
        fault = check_prediction(entry, size)
    except (OSError, ValueError) as error:
        problems.add("unusable prediction(s)", _reason(error))
        return None
    if fault:
        problems.add(
            "prediction(s) of another height x width than the ground truth",
            f"{task.where}: {fault}",
        )
        return None
    return task


def _reason(error: Exception) -> str:
    """An error's text, with the file that an OSError names."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
