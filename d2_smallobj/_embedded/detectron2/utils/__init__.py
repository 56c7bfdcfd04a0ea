"""Utilities: processes, events, logging, files, seeds."""
