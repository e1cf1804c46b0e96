"""The search in many tensors at once equals a stable sort of each, and never waits."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lightning_prune.tensors import ranking
from lightning_prune.tensors.batches import mark_best
from lightning_prune.tensors.parts import Part, Sizes
from tests.accelerators import as_on_an_accelerator, waits_of_the_host
from tests.tensors.test_ranking import DTYPES, alone_in_a_shard, lists, twin

SIZES = [Sizes(), Sizes(piece=4, launch=7), Sizes(piece=3, launch=1)]
"""Whole tensors in a chunk; pieces and chunks that cut tensors; a piece in each chunk."""


pools = st.lists(lists, min_size=1, max_size=4)
kinds = {"dtype": st.sampled_from(DTYPES), "sizes": st.sampled_from(SIZES)}


@settings(max_examples=60)
@given(pool=pools, **kinds, data=st.data())
def test_the_best_of_each_tensor_are_the_top_of_a_stable_sort(dtype, sizes, pool, data):
    tensors = [torch.tensor(numbers, dtype=dtype) for numbers in pool]
    keeps = [data.draw(st.integers(0, len(scores))) for scores in tensors]
    masks = mark_best([Part.of(scores, sizes=sizes) for scores in tensors], keeps, sizes=sizes)
    for scores, keep, mask in zip(tensors, keeps, masks, strict=True):
        assert torch.equal(mask, twin(scores, keep))


@settings(max_examples=60)
@given(pool=pools, **kinds, data=st.data())
def test_a_pool_is_ranked_as_if_it_were_one_tensor(dtype, sizes, pool, data):
    tensors = [torch.tensor(numbers, dtype=dtype) for numbers in pool]
    lengths = [len(numbers) for numbers in pool]
    keep = data.draw(st.integers(0, sum(lengths)))
    best = twin(torch.cat(tensors), keep).split(lengths)
    with as_on_an_accelerator():
        parts = [Part.of(scores, sizes=sizes) for scores in tensors]
        shares = ranking.share_out(parts, keep, sizes)
        keeps = [share.keep for share in shares]
        masks = mark_best(parts, keeps, [share.threshold for share in shares], sizes)
    assert keeps == [int(part.sum()) for part in best]
    for mask, part in zip(masks, best, strict=True):
        assert torch.equal(mask, part)


@pytest.mark.parametrize("kind", ["normal", "few values", "zeros", "sorted", "half -inf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_values_of_random_shapes_are_marked_as_by_a_stable_sort(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 2000, (9,), generator=generator).tolist()
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    for index, values in enumerate(tensors):
        if kind == "few values":
            values.round_()
        elif kind == "zeros":
            values *= torch.rand(len(values), generator=generator) < 0.1
        elif kind == "sorted":
            tensors[index] = values.sort().values
        elif kind == "half -inf":
            values[torch.rand(len(values), generator=generator) < 0.5] = -math.inf
    tensors = [values.to(dtype) for values in tensors]
    small = Sizes(piece=700, launch=1500)
    parts = [Part.of(scores, sizes=small) for scores in tensors]
    for share in (1e-3, 0.1, 0.9):
        keeps = [math.ceil(share * size) for size in sizes]
        for scores, keep, mask in zip(
            tensors, keeps, mark_best(parts, keeps, sizes=small), strict=True
        ):
            assert torch.equal(mask, twin(scores, keep))


def test_a_search_waits_for_nothing_and_a_pool_once_for_each_digit():
    waits = []
    with as_on_an_accelerator():
        for tensors in (2, 20):
            parts = [Part.of(torch.rand(300)) for _ in range(tensors)]
            with waits_of_the_host() as seen:
                mark_best(parts, [100] * tensors)
            assert not seen
            with waits_of_the_host() as seen:
                ranking.share_out(parts, 50 * tensors)
            waits.append(len(seen))
    assert waits[0] == waits[1] <= 10


def test_the_histograms_of_shards_are_counted_without_a_wait_for_each_tensor():
    waits = []
    for tensors in (2, 8):
        scores = [torch.randn(40).round(decimals=1) for _ in range(tensors)]
        parts = [Part.of(each, alone_in_a_shard(each)) for each in scores]
        expected = ranking.share_out(parts, 15 * tensors)
        with as_on_an_accelerator(), waits_of_the_host() as seen:
            found = ranking.share_out(parts, 15 * tensors)
        assert found == expected
        waits.append(len(seen))
    assert waits[0] == waits[1]


def test_the_least_of_a_tensor_is_kept_in_a_batch():
    low, high = torch.full((4,), 0.1), torch.full((6,), 0.9)
    with as_on_an_accelerator():
        parts = [dataclasses.replace(Part.of(low), least=1), Part.of(high)]
        shares = ranking.share_out(parts, 4)
        masks = mark_best(parts, [1, 3], [share.threshold for share in shares])
    assert [share.keep for share in shares] == [1, 3]
    assert [mask.tolist() for mask in masks] == [[True] + 3 * [False], 3 * [True] + 3 * [False]]
