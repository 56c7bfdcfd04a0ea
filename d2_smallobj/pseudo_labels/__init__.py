"""Pseudo labels: what methods write, as label maps; and what those miss."""
