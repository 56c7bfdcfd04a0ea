"""What can become of an annotation or an image; every one of the inputs ends as one of these."""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """What became of an annotation: a status, and the reason where there are several.

    The value is ``"status"`` or ``"status: reason"``. An outcome of a whole image is that of all
    its annotations of the 20 classes.
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
    BAD_FILE = "dropped: image file unreadable or of another size"
    NEAR_DUPLICATE = "dropped: near-duplicate of a VOC image"
    NOT_SAMPLED = "dropped: image not sampled"
