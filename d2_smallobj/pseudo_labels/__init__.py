"""Pseudo labels: convert the methods' files to label maps, and measure the missed instances."""
