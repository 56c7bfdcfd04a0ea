"""Intervals, paired tests, rankings and balance of instances (numpy only)."""
