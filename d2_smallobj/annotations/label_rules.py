"""How the values stored in a data set's label files become classes.

Most data sets store class ids and need no rule. Cityscapes stores the ids of its 34 labels, and a
binary task keeps one class of a data set that has more. Legend: H, W height and width of a map.
"""

from __future__ import annotations

import dataclasses

import numpy as np

IGNORE_LABEL = 255


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """Translates semantic and instance maps when they are read; picklable.

    Attributes:
        classes: class of every stored value from 0 on: 0 background, 1.., 255 ignored. Values
            beyond its end are no labels of the data set.
        groups_below: stored instance values below it name a label, not an instance: regions of
            objects that nobody told apart, void (255) in the instance map. 0: there are none.
    """

    classes: tuple[int, ...]
    groups_below: int = 0

    def __post_init__(self) -> None:
        wrong = [value for value in self.classes if not 0 <= value <= IGNORE_LABEL]
        if wrong:
            raise ValueError(f"classes: must be in 0..{IGNORE_LABEL}, got {wrong[:10]}")

    def semantic(self, stored: np.ndarray, path: object) -> np.ndarray:
        """Classes of a semantic map.

        Args:
            stored: (H, W) non-negative integers; 255 stays ignored.
            path: the file it comes from, for the message.

        Returns:
            uint8 (H, W): 0 background, 1.. classes, 255 ignored.

        Raises:
            ValueError: a value has no class; names the file and up to ten of them.
        """
        table = np.full(max(int(stored.max(initial=0)), IGNORE_LABEL) + 1, -1, np.int16)
        table[: len(self.classes)] = self.classes
        table[IGNORE_LABEL] = IGNORE_LABEL
        classes = table[stored]
        if (classes < 0).any():
            values = np.unique(stored[classes < 0])[:10].tolist()
            raise ValueError(
                f"{path}: label values must be 0..{len(self.classes) - 1} or {IGNORE_LABEL}, "
                f"found {', '.join(map(str, values))}"
            )
        return classes.astype(np.uint8)

    def instances(self, stored: np.ndarray, semantic: np.ndarray) -> np.ndarray:
        """Instance map that fits a translated semantic map.

        Args:
            stored: (H, W) instance ids as the file has them.
            semantic: (H, W) from :meth:`semantic`.

        Returns:
            int32 (H, W): 0 on background; ids on objects; 255 on ignored pixels and on groups.
        """
        objects = (semantic != 0) & (semantic != IGNORE_LABEL)
        identities = np.where(objects, stored, 0).astype(np.int32)
        void = semantic == IGNORE_LABEL
        if self.groups_below:
            void |= objects & (identities < self.groups_below)
        identities[void] = IGNORE_LABEL
        return identities

    def only(self, class_id: int | None) -> LabelRule:
        """The rule of a binary task: one class becomes 1, all others background.

        Args:
            class_id: the class; ``None``: any object of whatever class.
        """
        table = {0: 0, IGNORE_LABEL: IGNORE_LABEL}
        kept = 1 if class_id is None else 0
        if class_id is not None:
            table[class_id] = 1
        return dataclasses.replace(self, classes=tuple(table.get(c, kept) for c in self.classes))


def identity_rule(num_classes: int) -> LabelRule:
    """The rule of files that store class ids 0..num_classes-1."""
    return LabelRule(tuple(range(num_classes)))
