"""Which small objects the methods segmented worst."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from d2_smallobj.metrics.outcomes import OUTCOMES, classify
from d2_smallobj.report.methods import Method


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A small object that was badly segmented.

    Attributes:
        image_id: its image.
        category: its class.
        instance: its id.
        area: its pixels.
        ious: IoU in 0..1 by method position; methods that did not score it are absent.
        outcomes: what happened to it, by method position.
    """

    image_id: str
    category: int
    instance: int
    area: int
    ious: dict[int, float]
    outcomes: dict[int, str]


def worst_small(methods: Sequence[Method]) -> list[Candidate]:
    """Order the objects of the smallest size that no method or not every one segmented well.

    Those missed by the most methods come first, then those of the smallest mean IoU (in steps
    of 0.1). Among equals, images and classes take turns and the larger object is shown first:
    it was the easier one to see.

    Args:
        methods: of one data set.

    Returns:
        Every object of the first size bin whose mean IoU is below 0.5.
    """
    found: dict[tuple[str, int, int], Candidate] = {}
    for method in methods:
        table = method.run.table
        small = (table.size_of(method.bins) == 0) & table.things
        chosen = table.select(small)
        rows = zip(
            chosen.image_id.tolist(),
            chosen.category_id.tolist(),
            chosen.instance_id.tolist(),
            chosen.area.tolist(),
            chosen.iou.tolist(),
            classify(chosen).tolist(),
        )
        for image_id, category, instance, area, iou, outcome in rows:
            key = (image_id, category, instance)
            candidate = found.setdefault(key, Candidate(*key, area, {}, {}))
            candidate.ious[method.position] = iou
            candidate.outcomes[method.position] = OUTCOMES[outcome]
    return _ordered([one for one in found.values() if _mean_iou(one) < 0.5])


def _mean_iou(candidate: Candidate) -> float:
    return sum(candidate.ious.values()) / len(candidate.ious)


def _ordered(candidates: list[Candidate]) -> list[Candidate]:
    """The order that :func:`worst_small` describes."""

    def badness(one: Candidate) -> tuple[int, float]:
        missed = sum(outcome == "missed" for outcome in one.outcomes.values())
        return -missed, round(_mean_iou(one), 1)

    def place(one: Candidate) -> tuple:
        return badness(one), -one.area, one.image_id, one.category, one.instance

    turns: list[tuple] = []
    seen: Counter[object] = Counter()
    for one in sorted(candidates, key=place):
        keys = (badness(one), one.image_id), (badness(one), one.category)
        turns.append((badness(one), seen[keys[0]], seen[keys[1]], place(one)))
        seen.update(keys)
    paired = sorted(zip(turns, sorted(candidates, key=place)), key=lambda pair: pair[0])
    return [one for _, one in paired]
