"""Joining LVIS and COCO: the images that could be in PASCAL-B, and why the others cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from d2_smallobj.pascal_b.categories import (
    COCO_RULES,
    CORE,
    DOUBTFUL,
    LVIS_RULES,
    CategoryRule,
    missing_coco_names,
    missing_lvis_names,
)
from d2_smallobj.pascal_b.index import AnnotationIndex, Image
from d2_smallobj.pascal_b.outcomes import Outcome
from d2_smallobj.utils.messages import itemized


class Piece(NamedTuple):
    """An annotation of one of the 20 classes.

    Attributes:
        source: position of its file in :attr:`Sources.files`.
        row: its position in that file's index.
        annotation_id: its id there.
        class_id: 1..20.
        role: its category's, see :class:`CategoryRule`.
        crowd: whether it is a COCO crowd region.
        segmentation: its mask, as JSON text.
    """

    source: int
    row: int
    annotation_id: int
    class_id: int
    role: str
    crowd: bool
    segmentation: bytes


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image that could be in PASCAL-B.

    Attributes:
        image_id: COCO's id.
        file_name: path below the folder of ``train2017`` and ``val2017``.
        height: pixels.
        width: pixels.
        lvis: its LVIS annotations of the 20 classes, by annotation id.
        coco: its COCO annotations of the 20 classes, by annotation id.
        verified: classes that LVIS looked for everywhere in the image: found and labelled
            exhaustively, or found to be absent.
        not_exhaustive: classes of which LVIS says that it labelled some instances only.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    lvis: tuple[Piece, ...]
    coco: tuple[Piece, ...]
    verified: frozenset[int]
    not_exhaustive: frozenset[int]


class Sources:
    """The annotation files together.

    Args:
        lvis: LVIS files of one version, e.g. train and val.
        coco: COCO 2017 files, e.g. train and val.

    Attributes:
        files: all of them, LVIS first.
        missing: names of the classes' own categories that the LVIS files lack; sentences.

    Raises:
        ValueError: an image is in two files of a kind, a COCO file lacks a category of the 20
            classes, or the LVIS files have none at all.
    """

    def __init__(self, lvis: Sequence[AnnotationIndex], coco: Sequence[AnnotationIndex]) -> None:
        # By content, so that the order of the command line leaves no trace.
        lvis, coco = (sorted(files, key=lambda file: file.sha256) for files in (lvis, coco))
        self.files = (*lvis, *coco)
        self._rules = [_rules_by_id(file) for file in self.files]
        self._lvis_home = _home_of_images(lvis, 0)
        self._coco_home = _home_of_images(coco, len(lvis))
        self._own = [_own_categories(rules) for rules in self._rules]
        self.missing = sorted(
            {line for file in lvis for line in missing_lvis_names(file.categories.values())}
        )
        for file in coco:
            lacking = missing_coco_names(file.categories.values())
            if lacking:
                raise ValueError(f"{file.path}: a COCO file has categories {lacking}; not this one")
        if not any(self._rules[: len(lvis)]):
            raise ValueError(
                f"{', '.join(str(file.path) for file in lvis)}: no category has the name of one of "
                "the 20 classes; is this an LVIS file?"
            )

    def rule(self, source: int, category_id: int) -> CategoryRule | None:
        """Rule of a category of a file; None: background."""
        return self._rules[source].get(category_id)

    def image_ids(self) -> list[int]:
        """Ids of all images of all files, ascending."""
        return sorted({*self._lvis_home, *self._coco_home})

    def candidate(self, image_id: int, *, from_coco: Collection[int]) -> Candidate | Outcome:
        """Collect an image's annotations.

        Args:
            image_id: one of :meth:`image_ids`.
            from_coco: classes whose instances are taken from COCO.

        Returns:
            The candidate, or the reason why the image is none.
        """
        homes = [home.get(image_id) for home in (self._lvis_home, self._coco_home)]
        if homes[0] is None:
            return Outcome.NOT_IN_LVIS
        lvis = tuple(self._pieces(homes[0], image_id))
        coco = () if homes[1] is None else tuple(self._pieces(homes[1], image_id))
        if not any(piece.role not in DOUBTFUL for piece in lvis) and not any(
            piece.class_id in from_coco and not piece.crowd for piece in coco
        ):
            return Outcome.NO_OBJECT
        if homes[1] is None:
            return Outcome.NOT_IN_COCO
        entry, other = (self.files[home].images[image_id] for home in homes)
        if (entry.height, entry.width) != (other.height, other.width):
            return Outcome.OTHER_SIZE
        name = entry.file_name if "/" in entry.file_name else other.file_name
        size = (entry.height, entry.width)
        return Candidate(
            image_id, name, *size, lvis, coco, *self._federation(homes[0], entry, lvis)
        )

    def _pieces(self, source: int, image_id: int) -> Iterator[Piece]:
        """Annotations of the 20 classes of an image in a file."""
        file = self.files[source]
        for row in file.rows_of(image_id):
            rule = self._rules[source].get(int(file.category_ids[row]))
            if rule is not None:
                yield Piece(
                    source,
                    row,
                    int(file.annotation_ids[row]),
                    rule.class_id,
                    rule.role,
                    bool(file.crowd[row]),
                    file.segmentations[row],
                )

    def _federation(
        self, source: int, image: Image, pieces: Sequence[Piece]
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Classes that LVIS labelled everywhere in an image, and those that it did not."""
        rules, used = self._rules[source], self.files[source].category_ids
        partial = {
            rules[category].class_id
            for category in image.not_exhaustive
            if category in rules and rules[category].role not in DOUBTFUL
        }
        looked_for = {*image.negative, *(int(used[piece.row]) for piece in pieces)}
        verified = {c for c, categories in self._own[source].items() if categories <= looked_for}
        return frozenset(verified - partial), frozenset(partial)


def _rules_by_id(file: AnnotationIndex) -> dict[int, CategoryRule]:
    """Rule by category id, background left out."""
    rules = LVIS_RULES if file.kind == "lvis" else COCO_RULES
    return {c: rules[name] for c, name in file.categories.items() if name in rules}


def _own_categories(rules: Mapping[int, CategoryRule]) -> dict[int, set[int]]:
    """Ids of the categories that are a class itself, by class; television sets and monitors."""
    own: dict[int, set[int]] = {}
    for category, rule in rules.items():
        if rule.role == CORE:
            own.setdefault(rule.class_id, set()).add(category)
    return own


def _home_of_images(files: Sequence[AnnotationIndex], first: int) -> dict[int, int]:
    """Position of the file of every image; ``first`` is the first file's."""
    home: dict[int, int] = {}
    for number, file in enumerate(files, start=first):
        twice = [image_id for image_id in file.images if image_id in home]
        if twice:
            raise ValueError(
                f"{files[home[twice[0]] - first].path} and {file.path}: give the train and val "
                f"files of one version; {itemized('image(s) in both', list(map(str, twice)))}"
            )
        home.update(dict.fromkeys(file.images, number))
    return home
