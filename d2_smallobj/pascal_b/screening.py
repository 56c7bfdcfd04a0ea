"""Which candidates are fit for PASCAL-B, judged without painting them.

A stand-in for the weeks that the paper's authors spent on removing wrong annotations by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from d2_smallobj.pascal_b.candidates import Candidate
from d2_smallobj.pascal_b.categories import COCO_CLASS_OPTIONS, class_id
from d2_smallobj.pascal_b.compose import Composition, compose
from d2_smallobj.pascal_b.masks import DegeneratePolygonError, MaskError, read_masks
from d2_smallobj.pascal_b.outcomes import Outcome
from d2_smallobj.utils.options import look_up_option


@dataclasses.dataclass(frozen=True)
class ScreeningOptions:
    """What is asked of an image.

    Attributes:
        from_coco: classes whose instances COCO provides where LVIS has none; the paper's set
            takes potted plants only.
        min_area: instances with fewer visible pixels become void, >= 1.
        max_overlap: an image with two instances of a larger intersection over union is dropped.
        max_disagreement: an image is dropped if LVIS and COCO differ on a larger share of the
            pixels that either labels; 0.5 means that their intersection over union is under 0.5.
        max_void: an image with a larger share of void pixels is dropped.

    Raises:
        ValueError: an option is out of its range.
    """

    from_coco: tuple[str, ...] = ("pottedplant",)
    min_area: int = 16
    max_overlap: float = 0.5
    max_disagreement: float = 0.5
    max_void: float = 0.5

    def __post_init__(self) -> None:
        for name in self.from_coco:
            look_up_option("from_coco", name, COCO_CLASS_OPTIONS)
        if type(self.min_area) is not int or self.min_area < 1:
            raise ValueError(f"min_area: expected a number of pixels >= 1, got {self.min_area!r}")
        for name in ("max_overlap", "max_disagreement", "max_void"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a share in 0..1, got {value!r}")

    @property
    def coco_class_ids(self) -> frozenset[int]:
        """Ids of ``from_coco``."""
        return frozenset(class_id(name) for name in self.from_coco)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What screening found out about an image.

    Attributes:
        image_id: COCO's id.
        outcome: why it is dropped; None: it is fit.
        instances: (class id, visible pixels) of its instances.
        disagreement: see :class:`Composition`; NaN if its masks cannot be read.
        void_share: likewise.
        message: what exactly is wrong with a mask.
    """

    image_id: int
    outcome: Outcome | None
    instances: tuple[tuple[int, int], ...] = ()
    disagreement: float = float("nan")
    void_share: float = float("nan")
    message: str = ""


def screen(candidate: Candidate, paths: Sequence[str], options: ScreeningOptions) -> Verdict:
    """Judge a candidate.

    Args:
        candidate: the image.
        paths: the annotation files, in the order of :attr:`Sources.files`, for messages.
        options: what is asked of it.

    Returns:
        The verdict. Bad masks are a reason to drop the image, not an error.
    """
    try:
        composition = compose_candidate(candidate, paths, options)
    except MaskError as error:
        return Verdict(candidate.image_id, Outcome.MALFORMED, message=str(error))
    except DegeneratePolygonError as error:
        return Verdict(candidate.image_id, Outcome.DEGENERATE, message=str(error))
    return Verdict(
        candidate.image_id,
        judge(composition, options),
        tuple((layer.class_id, layer.visible) for layer in composition.instances),
        composition.disagreement,
        composition.void_share,
    )


def compose_candidate(
    candidate: Candidate, paths: Sequence[str], options: ScreeningOptions
) -> Composition:
    """Read an image's masks and compose it; errors as of :func:`read_masks`."""
    return compose(
        candidate,
        read_masks(candidate, paths),
        from_coco=options.coco_class_ids,
        min_area=options.min_area,
    )


def judge(composition: Composition, options: ScreeningOptions) -> Outcome | None:
    """The first reason to drop an image; None: there is none."""
    if composition.overlap > options.max_overlap:
        return Outcome.OVERLAP
    if not composition.complete:
        return Outcome.NOT_EXHAUSTIVE
    if composition.disagreement > options.max_disagreement:
        return Outcome.DISAGREEMENT
    if composition.void_share > options.max_void:
        return Outcome.MOSTLY_VOID
    if not composition.instances:
        return Outcome.NOTHING_LEFT
    return None
