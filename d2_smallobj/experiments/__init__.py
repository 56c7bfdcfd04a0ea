"""Ablations, sweeps, mixed supervision, and the paper's tables of their results."""

ABLATION_VARIANTS = ("ce", "sw", "ce_sw", "ce_sb_online", "ce_sb_empirical")
"""Rows of the ablation; here, so that a command line is read without torch."""
MIXED_VARIANTS = (
    *("full", "masks", "boxes", "uncertainty", "bootstrap", "bootstrap_sw", "bootstrap_sb"),
)
"""Ways of mixed supervision; the first is the reference of all."""
