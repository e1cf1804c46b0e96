import math

import pytest
import torch

from lightning_prune import OneShotSchedule, Pruner
from lightning_prune.tensors import masks
from lightning_prune.tensors.masks import Mask

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ODD = [math.nan, math.inf, -math.inf, -0.0, 1e-40, 2.0]


@pytest.fixture(params=["bits", "bytes"])
def form(request, monkeypatch):
    """Masks as they are on a CPU, and as they are on an accelerator."""
    if request.param == "bytes":
        monkeypatch.setattr(masks, "BITS_ON", ())
    return request.param


def layouts(dtype):
    values = torch.randn(4, 3, 2, 2).to(dtype)
    yield values
    yield values.to(memory_format=torch.channels_last)
    yield values.transpose(0, 1)
    yield torch.randn(3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_applied_it_leaves_positive_zeros_whatever_was_there(dtype, form):
    for values in layouts(dtype):
        for odd in ODD:
            kept = torch.rand(values.shape) < 0.5
            mask = Mask(kept, values)
            spoilt = values.clone().masked_fill_(~kept, odd)
            mask.apply(spoilt)
            assert torch.equal(spoilt, torch.where(kept, values, 0.0))
            assert not spoilt[~kept].signbit().any()
            assert torch.equal(mask.kept, kept)
            assert int(mask.count()) == int(kept.sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_it_applies_to_statistics_of_another_width(dtype, other, form):
    kept = torch.rand(5, 4) < 0.5
    statistics = torch.full((5, 4), math.nan, dtype=other)
    Mask(kept, torch.zeros(5, 4, dtype=dtype)).apply(statistics)
    assert torch.equal(statistics.isnan(), kept)
    assert not statistics[~kept].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scored", [torch.float32, torch.float64])
def test_what_is_pruned_is_lowered_and_nothing_else(dtype, scored, form):
    kept = torch.rand(40) < 0.5
    scores = torch.tensor([0.0, -0.0, 1e-40, -3.0, 3e38] * 8, dtype=scored)
    lowered = Mask(kept, torch.zeros(40, dtype=dtype)).lower(scores)
    assert lowered.dtype == scored
    assert torch.equal(lowered, torch.where(kept, scores, -math.inf))


def test_it_shrinks_row_by_row(form):
    kept, other = torch.rand(6, 4) < 0.7, torch.rand(6, 4) < 0.7
    mask = Mask(kept, torch.zeros(6, 4))
    for rows in (slice(0, 2), slice(2, 6)):
        mask[rows].intersect(other[rows])
    assert torch.equal(mask.kept, kept & other)
    assert torch.equal(mask.transpose(0, 1).kept, (kept & other).T)
    assert torch.equal(mask.flatten(3).kept, (kept & other).flatten()[::3])


def test_it_counts_before_it_changes_what_will_be_kept_and_changed(form):
    for kept, other in [(torch.rand(6, 4) < 0.7, torch.rand(6, 4) < 0.7) for _ in range(9)]:
        mask = Mask(kept, torch.zeros(6, 4))
        assert int(mask.count_with(other)) == int((kept & other).sum())
        assert int(mask.count_with(other[:, :1])) == int((kept & other[:, :1]).sum())
        assert mask.compare(other).tolist() == [int(other.sum()), int((kept ^ other).sum())]
        weights = torch.randint(2, (6, 4)).float()
        assert int(mask.count_revived(weights)) == int((weights != 0)[~kept].sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width_of", DTYPES)
def test_it_counts_revived_weights_whatever_their_bits(dtype, width_of, form):
    odd = torch.tensor([*ODD, 0.0, -math.nan, torch.finfo(dtype).smallest_normal / 2]).to(dtype)
    for like in layouts(dtype):
        kept = torch.rand(like.shape) < 0.5
        mask = Mask(kept, like.to(width_of))
        for weights in (odd[torch.randint(len(odd), like.shape)], torch.zeros_like(like).neg_()):
            assert int(mask.count_revived(weights)) == int((weights != 0)[~kept].sum())
            laid_out = torch.empty_like(like).copy_(weights)
            assert int(mask.count_revived(laid_out)) == int((weights != 0)[~kept].sum())


def test_it_counts_revived_weights_in_every_piece(form):
    kept = torch.rand(500, 1000) < 0.5
    weights = torch.zeros(500, 1000)
    mask = Mask(kept, weights)
    assert int(mask.count_revived(weights)) == 0
    for row in (0, 250, 499):
        weights[row] = 1.0
    assert int(mask.count_revived(weights)) == int((~kept[[0, 250, 499]]).sum())
    with torch.inference_mode():
        assert int(mask.count_revived(weights.clone())) == int((~kept[[0, 250, 499]]).sum())


def test_the_version_changes_with_the_mask_also_by_a_view(form):
    mask = Mask(torch.rand(6, 4) < 0.7, torch.zeros(6, 4))
    versions = [mask.version]
    for change in (mask.set, mask.intersect, mask[2:].intersect, mask.transpose(0, 1).set):
        change(torch.tensor(True))
        versions.append(mask.version)
    assert len(set(versions)) == len(versions)
    with torch.inference_mode():
        assert Mask(torch.tensor(True), torch.zeros(6, 4)).version is None


@pytest.mark.parametrize(("dtype", "width"), [(torch.float64, 8), (torch.float32, 4)])
def test_a_mask_is_as_wide_as_a_weight_or_one_byte(dtype, width, form):
    mask = Mask(torch.tensor(True), torch.zeros(10, 10, dtype=dtype))
    held = sum(v.nbytes for v in vars(mask).values() if isinstance(v, torch.Tensor))
    assert held == 100 * (width if form == "bits" else 1)


def test_training_is_the_same_whatever_the_form(monkeypatch):
    def trained():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ConvTranspose2d(4, 3, 2))
        optimizer = torch.optim.AdamW(model.parameters())
        pruner = Pruner(sparsity=0.7, schedule=OneShotSchedule(end=2, unit="step"))
        pruner.attach(model, optimizer, steps=5)
        for _ in range(5):
            model(torch.randn(2, 2, 5, 5)).square().sum().backward()
            pruner.before_step(optimizer)
            optimizer.step()
        pruner.detach()
        return [parameter.detach() for parameter in model.parameters()]

    by_bits = trained()
    monkeypatch.setattr(masks, "BITS_ON", ())
    for one, other in zip(by_bits, trained(), strict=True):
        assert torch.equal(one, other)
