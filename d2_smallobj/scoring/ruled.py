"""Ground truth whose stored values are no class ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2_smallobj.annotations.label_rules import LabelRule
from d2_smallobj.scoring.truth import GroundTruth, TruthImage


class RuledTruth:
    """Ground truth that a rule translates when it is read.

    Args:
        stored: the ground truth with the values that its files hold.
        rule: how they become classes and instances.
        class_names: names of the classes, background first.
    """

    def __init__(self, stored: GroundTruth, rule: LabelRule, class_names: Sequence[str]) -> None:
        self._stored = stored
        self._rule = rule
        self.images = stored.images
        self.class_names = tuple(class_names)
        self.ignore_label = stored.ignore_label

    def size(self, image: TruthImage) -> tuple[int, int]:
        """See :meth:`.truth.GroundTruth.size`."""
        return self._stored.size(image)

    def read(self, image: TruthImage) -> tuple[np.ndarray, np.ndarray | None]:
        """See :meth:`.truth.GroundTruth.read`."""
        stored, instances = self._stored.read(image)
        semantic = self._rule.semantic(stored, image.semantic or image.image_id)
        if instances is not None:
            instances = self._rule.instances(instances, semantic)
        return semantic, instances
