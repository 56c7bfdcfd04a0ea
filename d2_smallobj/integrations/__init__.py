"""The metric inside other frameworks; each module needs its framework, this package none."""
