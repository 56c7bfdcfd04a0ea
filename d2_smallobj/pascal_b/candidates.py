"""Join LVIS and COCO: the images that could be in PASCAL-B, and why the others cannot."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from d2_smallobj.pascal_b.index import (
    COCO_RULES,
    CORE,
    LVIS_RULES,
    UNCERTAIN,
    AnnotationIndex,
    CategoryRule,
    Image,
    missing_lvis_names,
)
from d2_smallobj.utils.files import read_text
from d2_smallobj.utils.messages import itemized, listed

_MOST_DIGITS = 18  # of an image id


class Outcome(enum.Enum):
    """Outcome of an annotation: ``"status"`` or ``"status: reason"``.

    An outcome of a whole image is that of all its annotations of the 20 classes.
    """

    USED = "used"
    BACKGROUND = "background"
    CROWD = "crowd"

    VOID_AMBIGUOUS = "void: ambiguous category"
    VOID_COCO_ONLY = "void: labelled by COCO only"
    VOID_CONFLICT = "void: LVIS and COCO name different classes"
    VOID_TINY = "void: too few visible pixels"

    IN_TRAIN = "dropped: part of a train, painted into it"
    SAME_IN_LVIS = "dropped: same object in LVIS, whose mask is used"
    SAME_IN_COCO = "dropped: same object in COCO, whose mask is used"
    DUPLICATE = "dropped: second annotation of an object"
    EMPTY = "dropped: mask without a pixel"
    HIDDEN = "dropped: hidden by smaller objects"

    NO_OBJECT = "dropped: image without an object of the 20 classes in LVIS"
    NOT_IN_LVIS = "dropped: image not in LVIS"
    NOT_IN_COCO = "dropped: image not in COCO, no cross-check"
    OTHER_SIZE = "dropped: image of another size in LVIS than in COCO"
    REJECTED = "dropped: image rejected by hand"
    MALFORMED = "dropped: image with a malformed mask"
    DEGENERATE = "dropped: image with a polygon that crosses itself or leaves the image"
    OVERLAP = "dropped: image with heavily overlapping instances"
    NOT_EXHAUSTIVE = "dropped: image not exhaustively labelled"
    DISAGREEMENT = "dropped: image on which LVIS and COCO disagree"
    MOSTLY_VOID = "dropped: image mostly void"
    NOTHING_LEFT = "dropped: image without an instance left"
    NEAR_DUPLICATE = "dropped: near-duplicate of a VOC image"
    NOT_SAMPLED = "dropped: image not sampled"


class Piece(NamedTuple):
    """An annotation of one of the 20 classes."""

    source: int  # position of its file in AnnotationSources.files
    row: int  # its position in that file's index
    annotation_id: int
    class_id: int
    role: str
    crowd: bool
    segmentation: bytes  # JSON text


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image that could be in PASCAL-B, with its annotations of the 20 classes by their ids."""

    image_id: int  # COCO's
    file_name: str  # path below the folder of train2017 and val2017
    height: int  # pixels, as width
    width: int
    lvis: tuple[Piece, ...]
    coco: tuple[Piece, ...]
    # Classes that LVIS looked for everywhere in the image: found and labelled exhaustively, or
    # found to be absent; and those of which it says that it labelled some instances only.
    verified: frozenset[int]
    not_exhaustive: frozenset[int]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All annotations of the 20 classes, LVIS's before COCO's."""
        return (*self.lvis, *self.coco)


class AnnotationSources:
    """The LVIS files of one version and the COCO 2017 files together.

    ``files`` are all of them, LVIS first; ``missing`` tells the classes' own categories that the
    LVIS files lack. Raises ValueError if an image is in two files of a kind, no image is in a file
    of each, a COCO file lacks a category of the 20 classes, or the LVIS files have none at all.
    """

    def __init__(self, lvis: Sequence[AnnotationIndex], coco: Sequence[AnnotationIndex]) -> None:
        # Sorted by content: the order of the command line must not change the set.
        lvis, coco = (sorted(files, key=lambda file: file.sha256) for files in (lvis, coco))
        self.files = (*lvis, *coco)
        self.paths = [os.fspath(file.path) for file in self.files]
        self._rules = [_rules_by_id(file) for file in self.files]
        self._lvis_home = _file_of_images(lvis, 0)
        self._coco_home = _file_of_images(coco, len(lvis))
        if not self._lvis_home.keys() & self._coco_home.keys():
            mine, other = listed(self.paths[: len(lvis)]), listed(self.paths[len(lvis) :])
            raise ValueError(
                f"{mine} and {other} share no image ({len(self._lvis_home)} and "
                f"{len(self._coco_home)} images): LVIS draws the images of both its files from "
                "COCO's train2017, val2017 or both, so give COCO's two files"
            )
        self._own = [_own_categories(rules) for rules in self._rules]
        self.missing = sorted(
            {line for file in lvis for line in missing_lvis_names(file.categories.values())}
        )
        for file in coco:
            lacking = sorted(set(COCO_RULES) - set(file.categories.values()))
            if lacking:
                raise ValueError(f"{file.path}: COCO's categories {lacking} are missing")
        if not any(self._rules[: len(lvis)]):
            raise ValueError(
                f"{', '.join(self.paths[: len(lvis)])}: no category has the name of one of "
                "the 20 classes; is this an LVIS file?"
            )

    def rule(self, source: int, category_id: int) -> CategoryRule | None:
        """Rule of a category of a file; None: background."""
        return self._rules[source].get(category_id)

    def image_ids(self) -> list[int]:
        """Ids of all images of all files, ascending."""
        return sorted({*self._lvis_home, *self._coco_home})

    def candidate(self, image_id: int, *, from_coco: Collection[int]) -> Candidate | Outcome:
        """Collect an image's annotations, or the reason why it is no candidate.

        ``from_coco`` are the classes whose instances are taken from COCO.
        """
        lvis_home, coco_home = self._lvis_home.get(image_id), self._coco_home.get(image_id)
        if lvis_home is None:
            return Outcome.NOT_IN_LVIS
        lvis = tuple(self._pieces(lvis_home, image_id))
        coco = () if coco_home is None else tuple(self._pieces(coco_home, image_id))
        if not any(piece.role not in UNCERTAIN for piece in lvis) and not any(
            piece.class_id in from_coco and not piece.crowd for piece in coco
        ):
            return Outcome.NO_OBJECT
        if coco_home is None:
            return Outcome.NOT_IN_COCO
        entry, other = (self.files[home].images[image_id] for home in (lvis_home, coco_home))
        size = (entry.height, entry.width)
        if size != (other.height, other.width):
            return Outcome.OTHER_SIZE
        name = entry.file_name if "/" in entry.file_name else other.file_name
        labelled = self._labelled_classes(lvis_home, entry, lvis)
        return Candidate(image_id, name, *size, lvis, coco, *labelled)

    def _pieces(self, source: int, image_id: int) -> Iterator[Piece]:
        """Annotations of the 20 classes of an image in a file."""
        file = self.files[source]
        for row in file.rows_of(image_id):
            rule = self.rule(source, int(file.category_ids[row]))
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

    def _labelled_classes(
        self, source: int, image: Image, pieces: Sequence[Piece]
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Classes that LVIS labelled everywhere in an image, and those that it did not."""
        rules, used = self._rules[source], self.files[source].category_ids
        partial = {
            rules[category].class_id
            for category in image.not_exhaustive
            if category in rules and rules[category].role not in UNCERTAIN
        }
        looked_for = {*image.negative, *(int(used[piece.row]) for piece in pieces)}
        verified = {c for c, categories in self._own[source].items() if categories <= looked_for}
        return frozenset(verified - partial), frozenset(partial)


def _rules_by_id(file: AnnotationIndex) -> dict[int, CategoryRule]:
    """Rule by category id, background left out."""
    rules = LVIS_RULES if file.kind == "lvis" else COCO_RULES
    return {c: rules[name] for c, name in file.categories.items() if name in rules}


def _own_categories(rules: Mapping[int, CategoryRule]) -> dict[int, set[int]]:
    """Ids of the categories that are a class itself, by class (two for tvmonitor)."""
    own: dict[int, set[int]] = {}
    for category, rule in rules.items():
        if rule.role == CORE:
            own.setdefault(rule.class_id, set()).add(category)
    return own


def _file_of_images(files: Sequence[AnnotationIndex], first: int) -> dict[int, int]:
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


class _Rejected(msgspec.Struct):
    image_id: int
    reason: str = ""


class _RejectList(msgspec.Struct):
    version: Literal[1]
    rejected: list[_Rejected]


def read_reject_list(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read a list of images that were rejected by eye.

    Either what the review sheet exports, ``{"version": 1, "rejected": [{"image_id": 123,
    "reason": "..."}]}`` (a reason is optional), or plain text: one image id a line, the rest of
    a line after ``#`` being the reason.

    Returns the reason by image id, empty where none is given. Raises FileNotFoundError if there is
    no such file, ValueError if it has another form or names an image twice; says where.
    """
    text = read_text(path, "a reject list")
    if text.lstrip().startswith("{"):
        try:
            entries = msgspec.json.decode(text, type=_RejectList).rejected
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"{path}: not a reject list of the review sheet ({error})") from error
    else:
        entries = list(_parse_lines(path, text))
    rejected: dict[int, str] = {}
    for entry in entries:
        if entry.image_id in rejected:
            raise ValueError(f"{path}: image {entry.image_id} is listed twice")
        rejected[entry.image_id] = entry.reason
    return rejected


def _parse_lines(path: str | os.PathLike[str], text: str) -> Iterator[_Rejected]:
    """Entries of a plain list."""
    for number, line in enumerate(text.splitlines(), start=1):
        image_id, _, reason = (part.strip() for part in line.partition("#"))
        if image_id.isascii() and image_id.isdigit() and len(image_id) <= _MOST_DIGITS:
            yield _Rejected(int(image_id), reason)
        elif image_id:
            raise ValueError(f"{path}, line {number}: expected an image id, got {image_id!r}")


def find_candidates(
    sources: AnnotationSources, from_coco: Collection[int], rejected: Collection[int]
) -> tuple[dict[int, Candidate], dict[int, Outcome]]:
    """Candidates by image id, ascending, and why the other images are none."""
    candidates: dict[int, Candidate] = {}
    dropped: dict[int, Outcome] = {}
    for image_id in sources.image_ids():
        found = sources.candidate(image_id, from_coco=from_coco)
        if isinstance(found, Outcome):
            dropped[image_id] = found
        elif image_id in rejected:
            dropped[image_id] = Outcome.REJECTED
        else:
            candidates[image_id] = found
    return candidates, dropped
