"""The search over bins gives the numbers that ranking all LAMP scores gives."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from lightning_prune import LAMPAllocation
from lightning_prune.recipe.atoms import TensorAtoms
from lightning_prune.tensors.shards import Shard
from tests.accelerators import as_on_an_accelerator, waits_of_the_host
from tests.recipe.lamp import keep_by_lamp

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
TINY = 1e-40  # a denormal in single precision
numbers = st.sampled_from([0.0, -0.0, TINY, 3 * TINY, 1e-30, 0.5, 3.0, 1e30]) | st.floats(
    0, 10, width=16
)


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
    """Draw tensors with ties, zeros, denormals and wide ranges, with their bounds."""
    pool = {}
    for index in range(draw(st.integers(1, 4))):
        scores = torch.tensor(draw(st.lists(numbers, min_size=1, max_size=30)))
        scores = scores.nan_to_num(posinf=1.0).to(draw(DTYPES)).nan_to_num(posinf=1.0)
        seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        allowed = torch.rand(len(scores), generator=seed) < draw(st.sampled_from([0.5, 1.0]))
        allowed[0] = True
        share = draw(st.sampled_from([0.0, 0.2]))
        protected = allowed & (torch.rand(len(scores), generator=seed) < share)
        pool[str(index)] = {"scores": scores, "allowed": allowed, "protected": protected}
    return pool


def make_atoms(pool, *, is_sharded=False):
    return {
        name: TensorAtoms(
            shape=tuple(each["scores"].shape),
            shard=alone(tuple(each["scores"].shape)) if is_sharded else None,
            **each,
        )
        for name, each in pool.items()
    }


@given(pools(), st.floats(0, 1))
def test_as_many_are_kept_as_by_a_sort_of_exact_scores_on_all_devices_and_shards(pool, share):
    whole = make_atoms(pool)
    floor = sum(atoms.floor for atoms in whole.values())
    cap = sum(atoms.cap for atoms in whole.values())
    due = math.floor(floor + share * (cap - floor))
    expected = keep_by_lamp(whole, due)
    assert LAMPAllocation()(whole, due) == expected
    assert LAMPAllocation()(make_atoms(pool, is_sharded=True), due) == expected
    with as_on_an_accelerator():
        assert LAMPAllocation()(whole, due) == expected


@pytest.mark.parametrize("kind", ["normal", "few values", "wide", "bfloat16"])
def test_many_weights_of_random_shapes_are_divided_as_by_a_sort(kind):
    generator = torch.Generator().manual_seed(0)
    pool = {}
    for size in torch.randint(1, 900, (6,), generator=generator).tolist():
        scores = torch.randn(size, generator=generator).abs() * 10 ** len(pool)
        if kind == "few values":
            scores.round_()
        elif kind == "wide":
            scores = (scores.log() * 3).exp()
        elif kind == "bfloat16":
            scores = scores.bfloat16()
        chance = torch.rand(size, generator=generator)
        bounds = {"protected": chance < 0.1, "allowed": chance < 0.8}
        pool[str(len(pool))] = {"scores": scores, **bounds}
    whole = make_atoms(pool)
    floor = sum(atoms.floor for atoms in whole.values())
    cap = sum(atoms.cap for atoms in whole.values())
    for due in (floor, floor + 1, (3 * floor + cap) // 4, (floor + cap) // 2, cap - 1, cap):
        expected = keep_by_lamp(whole, due)
        assert LAMPAllocation()(whole, due) == expected
        with as_on_an_accelerator():
            assert LAMPAllocation()(whole, due) == expected


def test_the_host_waits_once_a_pass_whatever_the_number_of_tensors():
    generator = torch.Generator().manual_seed(0)
    waits = []
    for tensors in (2, 12):
        pool = {
            str(index): {
                "scores": torch.rand(500, generator=generator),
                "allowed": torch.ones(500, dtype=torch.bool),
                "protected": torch.zeros(500, dtype=torch.bool),
            }
            for index in range(tensors)
        }
        atoms = make_atoms(pool)
        with as_on_an_accelerator(), waits_of_the_host() as seen:
            LAMPAllocation()(atoms, 200 * tensors)
        waits.append(len(seen))
    assert max(waits) <= 5
