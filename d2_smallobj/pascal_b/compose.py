"""Compose one image of PASCAL-B from its LVIS and COCO annotations.

From the bottom to the top lie: what COCO labels (255: LVIS labels it otherwise, or not exactly so),
then objects, larger ones first: LVIS's instances of the 20 classes, and as 255 its ambiguous ones
and those that only COCO knows. So every pixel that only COCO labels is 255, without covering a
smaller object. Nothing is painted here: layers are run lengths, and areas are counted on them;
painting a mask costs twenty times as much.

Legend: N annotations of the image, LVIS's before COCO's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.pascal_b.candidates import Candidate, Outcome
from d2_smallobj.pascal_b.index import AMBIGUOUS, CORE, PART, UNCERTAIN

Mask = dict[str, Any]
"""Compressed run lengths: ``size`` (height, width) and ``counts`` (bytes)."""


def area_of(mask: Mask) -> int:
    """Number of pixels of a mask."""
    return int(coco_mask.area(mask))


def union(masks: Sequence[Mask]) -> Mask:
    """Union of one mask or more."""
    return masks[0] if len(masks) == 1 else coco_mask.merge(list(masks))


def common_area(one: Mask, other: Mask) -> int:
    """Number of pixels that two masks share."""
    return area_of(coco_mask.merge([one, other], intersect=True))


def boxes_meet(masks: Sequence[Mask]) -> np.ndarray:
    """Find pairs of masks whose bounding boxes overlap: bool (masks, masks)."""
    x, y, w, h = coco_mask.toBbox(list(masks)).T if masks else np.zeros((4, 0))
    apart = (x[:, None] + w[:, None] <= x) | (y[:, None] + h[:, None] <= y)
    return ~(apart | apart.T)


def overlaps(rows: Sequence[Mask], columns: Sequence[Mask]) -> np.ndarray:
    """Intersection over union of masks: float64 (rows, columns)."""
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    return np.asarray(coco_mask.iou(list(rows), list(columns), [0] * len(columns)))


DUPLICATE_OVERLAP = 0.8
"""Two annotations of a class with this intersection over union are one object."""
_SAME_OBJECT = 0.5
_OBJECTS = frozenset(
    {*(Outcome.USED, Outcome.VOID_AMBIGUOUS), *(Outcome.VOID_COCO_ONLY, Outcome.VOID_CONFLICT)}
)
_NOT_PAINTED = frozenset({Outcome.EMPTY, Outcome.IN_TRAIN})


class Layer(NamedTuple):
    """A mask among the others of its image."""

    piece: int  # number of the annotation, 0..N−1
    mask: Mask
    class_id: int  # 1..20; of a void layer, the class that it could be
    void: bool  # its pixels are 255
    visible: int  # number of pixels that no layer above hides


@dataclasses.dataclass(frozen=True)
class Composition:
    """An image, ready to be judged or painted; shares are in 0..1."""

    layers: tuple[Layer, ...]  # from the bottom to the top; those that are not void are instances
    outcomes: tuple[Outcome, ...]  # of the N annotations
    # Share of pixels on which LVIS and COCO differ, of those that either labels as a class that
    # both looked for; counted by class.
    disagreement: float
    overlap: float  # largest intersection over union of two instances, before one hides another
    void_share: float  # of the image
    complete: bool  # COCO fills in wherever LVIS says that it labelled some instances only

    @property
    def instances(self) -> list[Layer]:
        """The layers of instances, in the order of their annotations."""
        return sorted((layer for layer in self.layers if not layer.void), key=lambda la: la.piece)

    @property
    def instance_ids(self) -> dict[int, int]:
        """Id of every instance in the instance map, by its annotation: 1.., but never 255."""
        pieces = (layer.piece for layer in self.instances)
        return {piece: n if n < 255 else n + 1 for n, piece in enumerate(pieces, start=1)}


def compose(
    candidate: Candidate, masks: Sequence[Mask], *, from_coco: Collection[int], min_area: int
) -> Composition:
    """Decide what becomes of every annotation of an image with its N masks.

    COCO provides the instances of ``from_coco`` where LVIS has none; instances with fewer than
    ``min_area`` visible pixels become void.
    """
    scene = _Scene(candidate, masks, from_coco)
    scene.paint_parts_into_trains()
    scene.drop_duplicates()
    scene.resolve_uncertain()
    scene.match_coco()
    scene.find_conflicts()
    layers = scene.stack(min_area)
    objects = [layer.mask for layer in layers if not layer.void]
    pairs = np.triu(overlaps(objects, objects), 1)
    void = sum(layer.visible for layer in layers if layer.void)
    return Composition(
        layers=tuple(layers),
        outcomes=tuple(scene.outcomes),
        disagreement=scene.disagreement(),
        overlap=float(pairs.max(initial=0.0)),
        void_share=void / (candidate.height * candidate.width),
        complete=scene.is_complete(),
    )


class _Scene:
    """The annotations of an image while their outcomes are decided."""

    def __init__(
        self, candidate: Candidate, masks: Sequence[Mask], from_coco: Collection[int]
    ) -> None:
        self._candidate = candidate
        self._pieces = candidate.pieces
        self._masks = list(masks)
        self._areas = [area_of(mask) for mask in masks]
        self._unions: dict[tuple[int, ...], Mask] = {}
        self._from_coco = frozenset(from_coco)
        self._crowds: list[int] = []
        self._coco: list[int] = []
        self._uncertain: list[int] = []
        self._lvis: list[int] = []
        self.outcomes = [Outcome.USED] * len(masks)
        for number, piece in enumerate(self._pieces):
            if not self._areas[number]:
                self.outcomes[number] = Outcome.EMPTY
            elif piece.crowd:
                self.outcomes[number] = Outcome.CROWD
                self._crowds.append(number)
            elif number >= len(candidate.lvis):
                self._coco.append(number)
            elif piece.role in UNCERTAIN:
                self.outcomes[number] = Outcome.VOID_AMBIGUOUS
                self._uncertain.append(number)
            else:
                self._lvis.append(number)

    def paint_parts_into_trains(self) -> None:
        """Join railway cars to the train that they overlap most; without one, they are trains."""
        parts = [n for n in self._lvis if self._pieces[n].role == PART]
        trains = [
            n for n in self._lvis if n not in parts and self._class(n) in self._classes(parts)
        ]
        whole = {n: [self._masks[n]] for n in trains}
        for part in parts:
            shared = [common_area(self._masks[part], self._masks[train]) for train in trains]
            if any(shared):
                whole[trains[int(np.argmax(shared))]].append(self._masks[part])
                self._drop(part, Outcome.IN_TRAIN)
        for train, masks in whole.items():
            self._masks[train] = union(masks)
            self._areas[train] = area_of(self._masks[train])

    def drop_duplicates(self) -> None:
        """Keep one of several annotations of an object (a chair, an armchair): the class's own."""
        for class_id in self._classes(self._lvis):
            group = sorted(self._of_class(self._lvis, class_id), key=self._precedence)
            masks = [self._masks[n] for n in group]
            same = overlaps(masks, masks) >= DUPLICATE_OVERLAP
            kept: list[int] = []
            for position, number in enumerate(group):
                if same[position, kept].any():
                    self._drop(number, Outcome.DUPLICATE)
                else:
                    kept.append(position)

    def resolve_uncertain(self) -> None:
        """Keep the narrower name where LVIS gives an object a certain and an uncertain one."""
        for class_id in self._classes(self._uncertain):
            certain = self._of_class(self._lvis, class_id)
            uncertain = self._of_class(self._uncertain, class_id)
            masks = ([self._masks[n] for n in group] for group in (uncertain, certain))
            for first, second in np.argwhere(overlaps(*masks) >= DUPLICATE_OVERLAP):
                number = uncertain[first]
                if self._pieces[number].role == AMBIGUOUS:
                    self.outcomes[certain[second]] = Outcome.VOID_AMBIGUOUS
                elif number in self._uncertain:
                    self.outcomes[number] = Outcome.DUPLICATE
                    self._uncertain.remove(number)

    def match_coco(self) -> None:
        """Decide what COCO adds: instances of the classes that it provides, else void."""
        for number in self._coco:
            class_id = self._class(number)
            known = self._covered(number, self._of_class(self._lvis, class_id))
            if known >= _SAME_OBJECT:
                self.outcomes[number] = Outcome.SAME_IN_LVIS
            elif class_id not in self._from_coco:
                self.outcomes[number] = Outcome.VOID_COCO_ONLY
        added = [self._masks[n] for n in self._coco if self.outcomes[n] is Outcome.USED]
        uncertain = [self._masks[n] for n in self._uncertain]
        resolved = overlaps(uncertain, added).max(axis=1, initial=0.0) >= _SAME_OBJECT
        for number, certain in zip(list(self._uncertain), resolved):
            if certain:
                self.outcomes[number] = Outcome.SAME_IN_COCO
                self._uncertain.remove(number)

    def find_conflicts(self) -> None:
        """Mark objects void to which LVIS and COCO give different classes."""
        shared = overlaps(
            [self._masks[n] for n in self._lvis], [self._masks[n] for n in self._coco]
        )
        for ours, theirs in np.argwhere(shared >= _SAME_OBJECT):
            number, other = self._lvis[ours], self._coco[theirs]
            class_id = self._class(number)
            same = self._of_class(self._coco, class_id)
            if self._class(other) != class_id and self._covered(number, same) < _SAME_OBJECT:
                self.outcomes[number] = Outcome.VOID_CONFLICT
                if self.outcomes[other] is Outcome.USED:
                    self.outcomes[other] = Outcome.VOID_CONFLICT

    def stack(self, min_area: int) -> list[Layer]:
        """Order the layers, bottom first, and count what is visible of each."""
        order = sorted(
            (n for n, outcome in enumerate(self.outcomes) if outcome not in _NOT_PAINTED),
            key=lambda n: (self.outcomes[n] in _OBJECTS, -self._areas[n], n),
        )
        near = boxes_meet(self._masks)
        layers: list[Layer] = []
        above: list[int] = []
        for number in reversed(order):
            mask, area = self._masks[number], self._areas[number]
            hiding = [self._masks[n] for n in above if near[number, n]]
            visible = area - (common_area(mask, union(hiding)) if hiding else 0)
            above.append(number)
            if self.outcomes[number] is Outcome.USED and visible < min_area:
                self.outcomes[number] = Outcome.VOID_TINY if visible else Outcome.HIDDEN
            void = self.outcomes[number] is not Outcome.USED
            if visible:
                layers.append(Layer(number, mask, self._class(number), void, visible))
        return layers[::-1]

    def disagreement(self) -> float:
        """See :class:`Composition`. Crowds and uncertain regions take no side."""
        agreed = disputed = 0
        for class_id in self._classes([*self._lvis, *self._coco]) - self._from_coco:
            lvis, coco, crowds, uncertain = (
                self._of_class(group, class_id)
                for group in (self._lvis, self._coco, self._crowds, self._uncertain)
            )
            agreed += self._common(lvis, coco)
            disputed += self._common(lvis) - self._common(lvis, [*coco, *crowds])
            if class_id in self._candidate.verified:
                disputed += self._common(coco) - self._common(coco, [*lvis, *uncertain])
        return disputed / (agreed + disputed) if disputed else 0.0

    def is_complete(self) -> bool:
        """See :class:`Composition`."""
        filled = {Outcome.CROWD, Outcome.VOID_COCO_ONLY}
        helped = {self._class(n) for n, outcome in enumerate(self.outcomes) if outcome in filled}
        return self._candidate.not_exhaustive <= helped | self._from_coco

    def _drop(self, number: int, outcome: Outcome) -> None:
        """Drop an LVIS annotation."""
        self.outcomes[number] = outcome
        self._lvis.remove(number)

    def _covered(self, number: int, by: Sequence[int]) -> float:
        """Share of a mask that others cover together."""
        return self._common([number], by) / self._areas[number]

    def _common(self, one: Sequence[int], other: Sequence[int] | None = None) -> int:
        """Pixels of a union of masks, or those that it shares with another one."""
        if not one or other == []:
            return 0
        if other is None:
            return self._areas[one[0]] if len(one) == 1 else area_of(self._union(one))
        return common_area(self._union(one), self._union(other))

    def _union(self, numbers: Sequence[int]) -> Mask:
        """Union of masks, made once."""
        key = tuple(numbers)
        if key not in self._unions:
            self._unions[key] = union([self._masks[n] for n in numbers])
        return self._unions[key]

    def _precedence(self, number: int) -> tuple[bool, int]:
        """Categories that are a class itself before kinds of it, then by annotation id."""
        return self._pieces[number].role != CORE, number

    def _class(self, number: int) -> int:
        return self._pieces[number].class_id

    def _classes(self, numbers: Iterable[int]) -> set[int]:
        return {self._class(n) for n in numbers}

    def _of_class(self, numbers: Iterable[int], class_id: int) -> list[int]:
        return [n for n in numbers if self._class(n) == class_id]
