"""The contract of every pattern."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, strategies as st

from lightning_prune import Pattern, UnstructuredPattern
from lightning_prune.tensors.ranking import choose_best, choose_best_of_slices
from lightning_prune.tensors.shards import Shard
from tests.conftest import answers_under_contract

SHAPES = [(8, 8), (4, 8, 3, 3), (8, 4, 3)]
PATTERNS = answers_under_contract(Pattern)
if UnstructuredPattern in PATTERNS:
    PATTERNS = [*PATTERNS, lambda: UnstructuredPattern(per_row=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
def test_a_mask_keeps_exactly_what_was_asked_between_what_must_and_what_may(pattern, shape, data):
    pattern = pattern()
    pattern.check_shape(shape)
    seed = data.draw(st.integers(0, 1000))
    scores = pattern.to_atoms(
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)).abs().mul(3).round()
    )
    alive = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.8
    due = data.draw(st.integers(0, scores.numel()))
    protected, allowed = pattern.bounds(scores, alive, due)
    assert not (protected & ~allowed).any()
    assert not (allowed & ~alive).any()
    keep = data.draw(st.integers(int(protected.sum()), int(allowed.sum())))
    ranked = scores.masked_fill(protected, math.inf).masked_fill(~allowed, -math.inf)
    mask = pattern(ranked, keep)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == keep
    assert mask[protected].all()
    assert not mask[~allowed].any()
    entries = pattern.to_entries(mask, shape)
    assert entries.shape == shape
    assert torch.equal(pattern.to_atoms(entries.float()) > 0, mask)
    assert int(entries.sum()) == keep * entries.numel() // mask.numel()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), left=st.sampled_from([0.2, 0.8, 1.0]))
def test_numbers_that_are_told_beforehand_are_those_of_the_masks(pattern, shape, seed, share, left):
    pattern = pattern()
    generator = torch.Generator().manual_seed(seed)
    scores = pattern.to_atoms(torch.rand(shape, generator=generator).mul(3).round())
    alive = torch.rand(scores.shape, generator=generator) < left
    total, kept, fitting = alive.numel(), int(alive.sum()), int(pattern.count_fitting(alive))
    for due in (round(share * total), total // 2):
        told = pattern.count_bounds(total, kept, fitting, due)
        if told is not None:
            assert told == tuple(int(mask.sum()) for mask in pattern.bounds(scores, alive, due))
            assert (told[1] == kept) == pattern.is_satisfied(alive, due)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_a_pattern_that_promises_slices_can_keep_a_weight_of_each(pattern, shape, seed, share):
    pattern = pattern()
    for axis in range(len(shape)):
        if not pattern.keeps_slices(axis):
            continue
        generator = torch.Generator().manual_seed(seed)
        scores = pattern.to_atoms(torch.rand(shape, generator=generator).mul(3).round())
        alive = torch.rand(scores.shape, generator=generator) < 0.5
        _, allowed = pattern.bounds(scores, alive, round(share * scores.numel()))
        best = choose_best_of_slices(scores.masked_fill(~allowed, -math.inf), [axis])
        rest = [other for other in range(scores.ndim) if other != axis]
        assert torch.equal(best.sum(rest), alive.sum(rest).clamp(max=1))
        if alive.sum(rest).all():
            entries = pattern.to_entries(best, shape)
            assert entries.sum([other for other in range(len(shape)) if other != axis]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 5), share=st.floats(0, 1))
def test_parts_of_a_tensor_have_the_parts_of_its_mask(pattern, shape, seed, parts, share):
    pattern = pattern()
    if not pattern.works_on_shards:
        return
    generator = torch.Generator().manual_seed(seed)
    entries = torch.rand(shape, generator=generator).mul(3).round()
    scores = pattern.to_atoms(entries)
    alive = torch.rand(scores.shape, generator=generator) < 0.8
    due = round(share * scores.numel())
    protected, allowed = pattern.bounds(scores, alive, due)
    ranked = scores.masked_fill(protected, math.inf).masked_fill(~allowed, -math.inf)
    keep = int(protected.sum() + (allowed.sum() - protected.sum()) * share)
    assert torch.equal(pattern(ranked, keep), choose_best(pattern.to_ranking(ranked), keep))
    for shard in cut_rows(shape, parts):
        try:
            place = pattern.find_atoms(shard)
        except ValueError:  # it cuts atoms
            assert shard.is_cut(0)
            return
        assert place.shape == scores.shape
        here = pattern.to_atoms(shard.cut(entries))
        assert torch.equal(here, place.cut(scores))
        of_part = pattern.bounds(here, place.cut(alive), due * here.numel() / scores.numel())
        assert torch.equal(of_part[0], place.cut(protected))
        assert torch.equal(of_part[1], place.cut(allowed))
        ranking = pattern.to_ranking(place.cut(ranked))
        assert torch.equal(ranking, place.cut(pattern.to_ranking(ranked)))


def cut_rows(shape, parts):
    """Return the shards of a tensor whose first axis is cut as FSDP2 cuts; some can be empty."""
    places = [torch.arange(size) for size in shape]
    chunks = places[0].chunk(parts)
    starts = (tuple(int(rows[0]) for rows in chunks), *((0,) for _ in shape[1:]))
    chunks += (places[0][:0],) * (parts - len(chunks))
    return [
        Shard(shape=shape, positions=(rows, *places[1:]), starts=starts, groups=())
        for rows in chunks
    ]


@pytest.mark.parametrize("kind", answers_under_contract(Pattern))
def test_a_pattern_is_a_value(kind):
    assert kind() == kind()
    assert dataclasses.is_dataclass(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().anything = 1
