"""The search over bins gives the numbers that ranking all LAMP scores gives."""

import math

import torch
from hypothesis import given, strategies as st

from lightning_prune import LAMPAllocation
from lightning_prune.recipe.atoms import TensorAtoms
from lightning_prune.tensors.shards import Shard

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def alone(shape):
    """Return the shard of a tensor that a single process holds whole."""
    return Shard(
        shape=shape,
        positions=tuple(map(torch.arange, shape)),
        starts=((0,),) * len(shape),
        groups=(),
    )


@st.composite
def pools(draw):
    """Draw tensors of eighths, whose squares add up exactly in any order, with their bounds."""
    pool = {}
    for index in range(draw(st.integers(1, 4))):
        most = draw(st.sampled_from([0, 1, 3, 100]))
        numbers = draw(st.lists(st.integers(0, most), min_size=1, max_size=30))
        scale = 2.0 ** draw(st.sampled_from([-60, -3, 0, 30]))
        scores = torch.tensor(numbers).to(draw(DTYPES)) * scale
        seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        allowed = torch.rand(len(numbers), generator=seed) < draw(st.sampled_from([0.5, 1.0]))
        allowed[0] = True
        protected = allowed & (torch.rand(len(numbers), generator=seed) < 0.2)
        pool[str(index)] = {"scores": scores, "allowed": allowed, "protected": protected}
    return pool


@given(pools(), st.floats(0, 1))
def test_shards_keep_as_many_as_whole_tensors(pool, share):
    whole, parts = (
        {
            name: TensorAtoms(shape=tuple(each["scores"].shape), shard=shard, **each)
            for name, each in pool.items()
            for shard in [alone(tuple(each["scores"].shape)) if is_sharded else None]
        }
        for is_sharded in (False, True)
    )
    floor = sum(atoms.floor for atoms in whole.values())
    cap = sum(atoms.cap for atoms in whole.values())
    due = math.floor(floor + share * (cap - floor))
    assert LAMPAllocation()(parts, due) == LAMPAllocation()(whole, due)
