"""Random label maps for tests, and how many of them a test sees."""

from __future__ import annotations

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

# Hypothesis draws a seed, anew in every run, for several maps: drawing costs more than a map.
EACH = 10


def on_random_maps(number):
    """Run a test with a generator ``rng`` until it has seen so many maps, EACH at a time."""

    def decorate(test):
        phases = (Phase.explicit, Phase.reuse, Phase.generate)
        some = settings(max_examples=number // EACH, deadline=None, phases=phases)
        return some(given(rng=st.integers(0, 2**32 - 1).map(np.random.default_rng))(test))

    return decorate


def blobs(rng, shape, coarse, values):
    """A map of these values in rectangles of coarse[0] x coarse[1] pixels."""
    small = rng.integers(0, len(values), [-(-n // c) for n, c in zip(shape, coarse)])
    large = small.repeat(coarse[0], 0).repeat(coarse[1], 1)
    return np.asarray(values)[large[: shape[0], : shape[1]]]


def label_maps(rng, size=24, labels=4):
    """EACH maps, uint8: noise, blobs or stripes of the labels, of any shape up to the size."""
    for _ in range(EACH):
        shape, coarse = rng.integers(1, size + 1, 2), rng.integers(1, 6, 2)
        yield blobs(rng, shape, coarse, np.arange(labels, dtype=np.uint8))
