"""Ablations, sweeps, mixed supervision, and the paper's tables of their results."""
