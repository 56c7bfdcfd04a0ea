"""The variants of an ablation: the paper's losses, each reading of them by itself.

The released code never applies its penalty, so "with L_SB" may mean two things: a size-weighted
second task without penalty, or with one (docs/method.md#size-balanced-loss). The variants here tell
them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: short name, also of its folder.
        label: what the table calls it.
        options: config overrides.
        shares_task_a: whether its task A is the plain cross-entropy that others run too; it is
            then trained once a seed.
    """

    name: str
    label: str
    options: tuple[str, ...]
    shares_task_a: bool = True

    @property
    def needs_online_fisher(self) -> bool:
        """Whether its task A must record the online Fisher information."""
        return "online" in self.options


KINDS = ("ce", "sw", "ce_sw", "ce_sb_online", "ce_sb_empirical")
BASELINE = "CE"
"""Label of the variant that the others are compared with."""


def build_variants(
    strengths_online: Sequence[float],
    strengths_empirical: Sequence[float],
    step: str,
    kinds: Collection[str] = KINDS,
) -> list[Variant]:
    """The variants of the ablation, in the order of the table.

    Args:
        strengths_online: one variant with the online Fisher for each lambda.
        strengths_empirical: one variant with the empirical Fisher for each lambda.
        step: ``SMALLOBJ.EWC.STEP``.
        kinds: which of :data:`KINDS` to build.
    """
    no_penalty = ("SMALLOBJ.EWC.LAMBDA", "0.0")

    def penalty(fisher: str, strength: float) -> Variant:
        return Variant(
            f"ce_sb_{fisher}_{strength:g}",
            f"CE → L_SB, {fisher} Fisher, λ = {strength:g}",
            (
                *("SMALLOBJ.EWC.FISHER", fisher, "SMALLOBJ.EWC.LAMBDA", str(float(strength))),
                *("SMALLOBJ.EWC.STEP", step),
            ),
        )

    by_kind = {
        "ce": [Variant("ce", BASELINE, ("SMALLOBJ.TASK_B.LOSS", "cross_entropy", *no_penalty))],
        "sw": [
            Variant(
                "sw",
                "L_SW from the start",
                ("SMALLOBJ.TASK_A.ITERS", "0", *no_penalty),
                shares_task_a=False,
            )
        ],
        "ce_sw": [Variant("ce_sw", "CE → L_SW", no_penalty)],
        "ce_sb_online": [penalty("online", strength) for strength in strengths_online],
        "ce_sb_empirical": [penalty("empirical", strength) for strength in strengths_empirical],
    }
    return [variant for kind in KINDS if kind in kinds for variant in by_kind[kind]]
