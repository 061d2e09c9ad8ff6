"""Masks of every kind that there may be."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def any_masks(draw):
    """Random, nested, disjoint, empty, full and equal masks, mixed; P from 0, H != W."""
    size = draw(st.tuples(st.integers(1, 13), st.integers(1, 17)))
    seed = draw(st.integers(0, 2**32 - 1))
    kinds = draw(st.lists(st.sampled_from(["random", "nested", "cell", "0", "1", "copy"])))
    rng = np.random.default_rng(seed)
    height = rng.integers(0, 6, size)
    masks = []
    for kind in kinds * draw(st.sampled_from([1, 1, 9])):
        if kind == "random":
            masks.append(rng.random(size) < rng.random())
        elif kind == "nested":
            masks.append(height >= rng.integers(0, 7))
        elif kind == "cell":
            masks.append(height == rng.integers(0, 7))
        elif kind == "copy" and masks:
            masks.append(masks[rng.integers(len(masks))])
        else:
            masks.append(np.full(size, kind == "1"))
    return np.array(masks, bool).reshape(len(masks), *size)
