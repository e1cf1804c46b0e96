import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lightning_prune.tensors import ranking
from lightning_prune.tensors.parts import Part, Sizes
from lightning_prune.tensors.shards import Shard

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TINY = 1e-40  # a denormal in single precision
values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, TINY, -TINY, 3.0, math.inf, -math.inf]) | (
    st.floats(-10, 10, width=16)
)
lists = st.lists(values, min_size=1, max_size=40)


def twin(scores, keep):
    """The k best by a full stable sort."""
    order = scores.double().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.view(scores.shape)


# So small that a few values take every turn of the search: pieces, samples, brackets.
TINY_SIZES = Sizes(piece=4, sorted=2, held=2, spread=0.3)
SMALL = [
    TINY_SIZES,
    dataclasses.replace(TINY_SIZES, held=1000),
    dataclasses.replace(TINY_SIZES, spread=0.0),
    dataclasses.replace(TINY_SIZES, uses_numpy=False),  # as on an accelerator
]
SIZED = [(dtype, Sizes()) for dtype in DTYPES] + [(torch.float32, sizes) for sizes in SMALL]


def shares(parts, keep, **sizes):
    """Return how many of the best are in each part; the thresholds must divide there."""
    return checked(ranking.share_out(parts, keep, **sizes))


def checked(shares):
    """Return the numbers to keep, where the thresholds must divide."""
    assert all(s.threshold is None or s.threshold.divides_at(s.keep) for s in shares)
    return [share.keep for share in shares]


def test_ranking_meets_the_reference(vectors):
    for case in vectors["ranking"]["cases"]:
        mask = ranking.choose_best(torch.tensor(case["scores"], dtype=torch.float32), case["keep"])
        assert mask.int().tolist() == case["mask"]


@pytest.mark.parametrize(("dtype", "sizes"), SIZED)
@given(numbers=lists, data=st.data())
def test_best_is_the_top_of_a_stable_sort(dtype, sizes, numbers, data):
    scores = torch.tensor(numbers, dtype=dtype)
    keep = data.draw(st.integers(0, len(numbers)))
    assert torch.equal(ranking.choose_best(scores, keep, sizes), twin(scores, keep))


@pytest.mark.parametrize(("dtype", "sizes"), SIZED)
@given(pool=st.lists(lists, min_size=1, max_size=4), data=st.data())
def test_a_pool_is_ranked_as_if_it_were_one_tensor(dtype, sizes, pool, data):
    tensors = [torch.tensor(numbers, dtype=dtype) for numbers in pool]
    lengths = [len(numbers) for numbers in pool]
    keep = data.draw(st.integers(0, sum(lengths)))
    expected = [int(part.sum()) for part in twin(torch.cat(tensors), keep).split(lengths)]
    parts = [Part.of(scores, sizes=sizes) for scores in tensors]
    assert shares(parts, keep, sizes=sizes) == expected


@pytest.mark.parametrize("few", [math.inf, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_few_values_that_no_sample_has_seen_are_found(sign, few):
    scores = torch.zeros(200_000)
    scores[[77_777, 123_456]] = sign * few
    for keep in (1, 2, 3, 199_997, 199_998, 199_999):
        assert torch.equal(ranking.choose_best(scores, keep), twin(scores, keep))


def least_of(scores, least):
    return dataclasses.replace(Part.of(scores), least=least)


@given(pool=st.lists(lists, min_size=1, max_size=5), data=st.data())
def test_a_tensor_keeps_its_least_as_if_its_best_were_protected(pool, data):
    tensors = [torch.tensor(numbers).clamp(-100, 100) for numbers in pool]
    sizes = [len(numbers) for numbers in pool]
    protected = [scores.clone() for scores in tensors]
    for scores in protected:
        scores[int(twin(scores, 1).nonzero())] = math.inf
    keep = data.draw(st.integers(len(pool), sum(sizes)))
    expected = [int(part.sum()) for part in twin(torch.cat(protected), keep).split(sizes)]
    assert shares([least_of(scores, 1) for scores in tensors], keep) == expected


def alone_in_a_shard(scores):
    """Return the shard of a tensor that a single process holds whole."""
    return Shard(
        shape=tuple(scores.shape),
        positions=(torch.arange(len(scores)),),
        starts=((0,),),
        groups=(),
    )


def keeps_in_order(tensors, least):
    """Return the numbers to keep of each tensor as one value after the other is kept."""
    values = [
        (not protected, -value, tensor)
        for tensor, (scores, few) in enumerate(zip(tensors, least, strict=True))
        for value, protected in zip(scores.tolist(), twin(scores, few).tolist(), strict=True)
    ]
    owners = [tensor for *_, tensor in sorted(values)]
    start = sum(least)
    return [
        [owners[:keep].count(tensor) for tensor in range(len(tensors))]
        for keep in range(start, len(owners) + 1)
    ]


@pytest.mark.parametrize(("dtype", "sizes"), SIZED)
@given(pool=st.lists(lists, min_size=1, max_size=4), data=st.data())
def test_the_most_that_fits_is_the_last_number_whose_shares_fit(dtype, sizes, pool, data):
    tensors = [torch.tensor(numbers, dtype=dtype) for numbers in pool]
    least = [data.draw(st.integers(0, min(2, len(scores)))) for scores in tensors]
    shards = [data.draw(st.sampled_from([None, alone_in_a_shard(t)])) for t in tensors]
    parts = [
        dataclasses.replace(Part.of(scores, shard, sizes=sizes), least=few)
        for scores, shard, few in zip(tensors, shards, least, strict=True)
    ]
    weights = [data.draw(st.sampled_from([0.0, 1.0, 3.0, 1000.0])) for _ in tensors]
    costs = {cost(weights, keeps): keeps for keeps in keeps_in_order(tensors, least)}
    most = data.draw(st.sampled_from(list(costs)))
    found = ranking.share_out_most(parts, lambda keeps: cost(weights, keeps) <= most, sizes)
    assert checked(found) == costs[most]


def cost(weights, keeps):
    return sum(weight * keep for weight, keep in zip(weights, keeps, strict=True))


@pytest.mark.parametrize("kind", ["normal", "few values", "half -inf"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_many_values_are_divided_as_many_as_fit(kind, share):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in (200_000, 100_000, 7, 100_000)]
    if kind == "few values":
        tensors = [values.round() for values in tensors]
    elif kind == "half -inf":
        for values in tensors:
            values[torch.rand(len(values), generator=generator) < 0.5] = -math.inf
    weights = [1.0, 500.0, 100_000.0, 0.0]
    most = share * cost(weights, map(len, tensors))
    parts = [Part.of(values) for values in tensors]

    def fits(keeps):
        return cost(weights, keeps) <= most

    keeps = checked(ranking.share_out_most(parts, fits))
    assert keeps == shares(parts, sum(keeps))
    assert fits(keeps)
    assert not fits(shares(parts, sum(keeps) + 1))


def test_no_pass_is_made_for_each_trial():
    passes, trials = [], []
    scores = torch.rand(400_000)

    def read(stride):
        passes.append(stride)
        return Part.of(scores).read(stride)

    def fits(keeps):
        trials.append(keeps)
        return 1000 * keeps[0] + keeps[1] <= 123_456_789

    pool = [Part(read=read, size=len(scores)), Part.of(torch.rand(400_000))]
    first, second = ranking.share_out_most(pool, fits)
    assert 0 <= 123_456_789 - 1000 * first.keep - second.keep < 1000
    assert len(trials) > 30
    assert sum(1 / stride for stride in passes) < 1.1  # a sample, and all values once


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["normal", "few values", "zeros", "sorted", "denormal", "half -inf"]
)
@pytest.mark.parametrize("share", [1e-5, 0.1, 0.5, 0.999])
def test_many_values_are_ranked_as_by_a_stable_sort(kind, dtype, share):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=generator, dtype=torch.float64)
    if kind == "few values":
        values = values.round()
    elif kind == "zeros":
        values = values * (torch.rand(len(values), generator=generator) < 0.1)
    elif kind == "sorted":
        values = values.sort().values
    elif kind == "denormal":
        values = values * 1e-40
    elif kind == "half -inf":
        values[torch.rand(len(values), generator=generator) < 0.5] = -math.inf
    scores = values.to(dtype).view(500, 200)
    keep = round(share * scores.numel())
    assert torch.equal(ranking.choose_best(scores, keep), twin(scores, keep))
    assert torch.equal(ranking.choose_best(scores.T, keep), twin(scores.T, keep))


def test_a_pool_may_mix_dtypes():
    pool = [torch.tensor([1.0, 3.0], dtype=torch.bfloat16), torch.tensor([2.0], dtype=torch.double)]
    assert shares([Part.of(scores) for scores in pool], 2) == [1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.lists(st.lists(values, min_size=5, max_size=5), min_size=1, max_size=5), data=st.data()
)
def test_rows_are_ranked_alone(dtype, rows, data):
    scores = torch.tensor(rows, dtype=dtype)
    keep = [data.draw(st.integers(0, 5)) for _ in rows]
    masks = ranking.choose_best_of_rows(scores, torch.tensor(keep))
    for row, mask, k in zip(scores, masks, keep, strict=True):
        assert torch.equal(mask, twin(row, k))


@settings(max_examples=40)
@given(
    rows=st.lists(st.lists(values, min_size=20, max_size=20), min_size=1, max_size=2),
    members=st.sampled_from([1, 2, 4, 5, 10, 20]),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_groups_of_any_size_are_ranked_alone(rows, members, dtype, data):
    groups = torch.tensor(rows, dtype=dtype).view(-1, members)
    keep = data.draw(st.integers(0, members))
    masks = ranking.choose_best_of_groups(groups, keep)
    for group, mask in zip(groups, masks, strict=True):
        assert torch.equal(mask, twin(group, keep))


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_the_number_kept_is_the_one_rounding_rule(atoms, sparsity):
    assert ranking.compute_keep(atoms, sparsity) == round(atoms * (1 - sparsity))


@pytest.mark.slow
def test_more_entries_than_quantile_takes_are_ranked_exactly():
    scores = torch.rand(2**24 + 5)
    keep = 12_345_678
    mask = ranking.choose_best(scores, keep)
    assert int(mask.sum()) == keep
    assert scores[mask].min() >= scores[~mask].max()
    assert shares([Part.of(scores[:1000]), Part.of(scores[1000:])], keep) == [
        int(mask[:1000].sum()),
        int(mask[1000:].sum()),
    ]
