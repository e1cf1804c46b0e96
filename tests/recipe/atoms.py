"""Atoms with scores that tie, protected and forbidden ones among them."""

import torch
from hypothesis import strategies as st

from lightning_prune.recipe.atoms import TensorAtoms
from lightning_prune.tensors import ranking


@st.composite
def make_pools(draw):
    pool = {}
    for index in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 6)), draw(st.integers(1, 8)))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
        scores = torch.rand(shape, generator=generator).mul(5).round().div(5)
        allowed = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.9, 1.1]))
        count = draw(st.integers(0, int(allowed.sum())))
        protected = ranking.choose_best(scores.masked_fill(~allowed, -1), count) & allowed
        pool[f"t{index}"] = TensorAtoms(
            shape=shape, scores=scores, protected=protected, allowed=allowed
        )
    return pool
