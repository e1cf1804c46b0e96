"""Atoms with scores that tie, protected and forbidden ones among them."""

import dataclasses

import torch
from hypothesis import strategies as st

from lightning_prune import Allocation
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


def assert_finds_the_most(allocation, pool, data):
    """Compare the most that fits a drawn cost with the default, which tries numbers in turn."""
    weights = {name: data.draw(st.sampled_from([0.0, 1.0, 7.0, 1000.0])) for name in pool}
    highest = sum(weights[name] * atoms.cap for name, atoms in pool.items())
    limit = data.draw(st.floats(-1.0, highest + 1.0))

    def fits(keep):
        assert keep.keys() == pool.keys()
        return sum(weights[name] * number for name, number in keep.items()) <= limit

    shares = allocation.share_out_most(pool, fits)
    keep = {name: share.keep for name, share in shares.items()}
    floor, cap = (sum(getattr(a, side) for a in pool.values()) for side in ("floor", "cap"))
    due = sum(keep.values())
    assert list(keep) == list(pool)
    assert keep == allocation(pool, due)
    assert fits(keep) or due == floor
    assert due == cap or not fits(allocation(pool, due + 1))
    assert shares == {
        name: dataclasses.replace(share, threshold=shares[name].threshold)
        for name, share in Allocation.share_out_most(allocation, pool, fits).items()
    }
