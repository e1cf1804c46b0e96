import math

import pytest
import torch

from lightning_prune import BlockPattern, NMPattern, UnstructuredPattern

SHAPES = [(8, 8), (4, 8, 3, 3), (8, 4, 3)]


def test_nm_meets_the_reference(vectors):
    for case in vectors["nm"]["cases"]:
        scores = torch.tensor(case["scores"], dtype=torch.float32)
        due = scores.numel() * case["n"] // case["m"]
        pattern = NMPattern(n=case["n"], m=case["m"])
        protected, _ = pattern.bounds(scores, torch.ones_like(scores, dtype=torch.bool), due)
        assert protected.int().tolist() == case["mask"]


def test_nm_counts_input_channels_at_each_kernel_position():
    scores = torch.rand(6, 8, 3, 3)
    protected, _ = NMPattern(n=2, m=4).bounds(scores, torch.ones_like(scores) > 0, due=216)
    groups = protected.movedim(1, -1).reshape(-1, 4)
    assert (groups.sum(1) == 2).all()
    best_of_group = scores[0, :4, 1, 2].topk(2).indices.sort().values
    assert torch.equal(protected[0, :4, 1, 2].nonzero().flatten(), best_of_group)


def test_nm_allows_at_most_n_where_fewer_are_due():
    scores, pattern = torch.rand(4, 8), NMPattern(n=2, m=4)
    protected, allowed = pattern.bounds(scores, torch.ones(4, 8, dtype=torch.bool), due=15)
    assert not protected.any()
    assert (allowed.view(-1, 4).sum(1) == 2).all()


def test_rows_keep_the_same_number_give_or_take_one():
    mask = UnstructuredPattern(per_row=True)(torch.rand(5, 7, 2), keep=23)
    assert mask.flatten(1).sum(1).tolist() == [5, 5, 5, 4, 4]


def test_a_poor_row_leaves_its_share_to_the_others():
    scores = torch.rand(3, 4)
    scores[0, 1:] = -math.inf
    mask = UnstructuredPattern(per_row=True)(scores, keep=8)
    assert mask.sum(1).tolist() == [1, 4, 3]


def test_a_vector_is_one_row():
    scores = torch.tensor([1.0, 3.0, 2.0])
    assert UnstructuredPattern(per_row=True)(scores, 2).tolist() == [False, True, True]


def test_blocks_share_their_fate_and_score_by_their_mean():
    pattern = BlockPattern(shape=(2, 3))
    scores = torch.arange(24.0).view(4, 2, 3)
    atoms = pattern.to_atoms(scores)
    assert atoms.tolist() == [[4.0, 7.0], [16.0, 19.0]]
    mask = pattern.to_entries(pattern(atoms, keep=1), (4, 2, 3))
    assert mask.nonzero()[:, 0].unique().tolist() == [2, 3]
    assert int(mask[2:, 1].sum()) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NMPattern(n=4, m=4), "need 1 <= n < m, got n=4, m=4"),
        (lambda: NMPattern(n=0, m=4), "need 1 <= n < m"),
        (lambda: BlockPattern(shape=(0, 1)), "need both sides of a block >= 1"),
        (lambda: NMPattern().check_sparsity(0.3), r"at least 1 - n/m = 0.5 for 2:4, got .*=0.3"),
        (lambda: NMPattern().check_shape((8, 3, 3, 3)), "multiples of m=4 for 2:4, got 3 input"),
        (lambda: NMPattern().check_shape((8,)), "got no input channels"),
        (lambda: BlockPattern().check_shape((10, 4)), r"blocks of \(4, 1\), got \(10, 4\)"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nm_takes_the_sparsities_it_can_hold():
    for sparsity in (0.0, 2 / 3, 0.6666666666, 0.9, 1.0):
        NMPattern(n=1, m=3).check_sparsity(sparsity)
