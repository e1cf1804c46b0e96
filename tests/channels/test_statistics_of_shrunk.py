"""New running statistics in a shrunk module."""

import pytest
import torch
from torch import nn

from lightning_prune import shrink
from tests.processes import processes


class Net(nn.Module):
    """A network with two inputs, of whose 6 channels 2 are zero."""

    def __init__(self, norm=None):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), norm or nn.BatchNorm1d(6)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(6, 3)
        with torch.no_grad():
            for rows in (self.first.weight, self.first.bias, self.last.weight.T):
                rows[4:] = 0.0
            for rows in self.norm.parameters():
                rows[4:] = 0.0

    def forward(self, images, shift=None):
        images = images if shift is None else images + shift
        return self.last(self.drop(self.norm(self.first(images))))


def make_batches(count=3):
    generator = torch.Generator(device="cpu").manual_seed(1)
    return [torch.randn(8, 4, generator=generator) for _ in range(count)]


def expect(net, inputs):
    """Return the mean over batches of the mean and variance of the channels that remain."""
    with torch.no_grad():
        made = [net.first(each)[:, :4] for each in inputs]
    return (
        torch.stack([each.mean(0) for each in made]).mean(0),
        torch.stack([each.var(0) for each in made]).mean(0),
    )


EXAMPLE = torch.zeros(2, 4) + torch.arange(4)
LABELS = torch.zeros(8)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda images: images,
        lambda images: (images, LABELS),
        lambda images: [images, LABELS],
        lambda images: {"labels": LABELS, "images": images},
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_a_batch_gives_the_arguments_that_the_example_has(wrap):
    net, batches = Net(), make_batches()
    smaller = shrink(net, EXAMPLE, statistics=map(wrap, batches))
    mean, variance = expect(net, batches)
    assert smaller.norm.num_features == 4
    torch.testing.assert_close(smaller.norm.running_mean, mean)
    torch.testing.assert_close(smaller.norm.running_var, variance)
    assert smaller.norm.num_batches_tracked == 3


def test_several_arguments_are_taken_by_place_or_by_name():
    net, batches = Net(), make_batches()
    shift = torch.ones(4)
    mean, _ = expect(net, [each + shift for each in batches])
    for example in ((EXAMPLE, shift), {"images": EXAMPLE, "shift": shift}):
        for batch in (
            [(each, shift, LABELS) for each in batches],
            [{"shift": shift, "labels": LABELS, "images": each} for each in batches],
        ):
            smaller = shrink(net, example, statistics=batch)
            torch.testing.assert_close(smaller.norm.running_mean, mean)


def test_only_statistics_differ_and_nothing_is_disturbed():
    net = Net().train()
    net.drop.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = shrink(net, EXAMPLE)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    loader = torch.utils.data.DataLoader(torch.stack(make_batches()).flatten(0, 1), 8, shuffle=True)
    smaller = shrink(net, EXAMPLE, statistics=loader)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in smaller.modules()] == [m.training for m in plain.modules()]
    assert smaller.norm.momentum == 0.1
    assert not smaller.norm._forward_hooks
    for name, value in smaller.state_dict().items():
        is_statistic = name.rpartition(".")[2] in {*nn.BatchNorm1d(1).state_dict()} - {
            *("weight", "bias")
        }
        assert torch.equal(value, plain.state_dict()[name]) != is_statistic, name


def test_no_batch_is_read_where_there_are_no_running_statistics():
    def fail():
        raise AssertionError
        yield

    net = Net(nn.BatchNorm1d(6, track_running_stats=False))
    assert shrink(net, EXAMPLE, statistics=fail()).first.out_features == 4


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ([], "need at least one batch, got statistics without a batch"),
        ([{"image": EXAMPLE}], "the 1 arguments of forward that the example has, got .* 0 in a b"),
        ([()], "the 1 arguments of forward that the example has, got statistics with 0 in a batch"),
    ],
)
def test_what_gives_no_arguments_is_refused(statistics, message):
    with pytest.raises(ValueError, match=message):
        shrink(Net(), EXAMPLE, statistics=statistics)


def shrink_with_own_batches():
    own = make_batches(5)[torch.distributed.get_rank() :: 2]
    torch.manual_seed(0)
    return dict(shrink(Net(), EXAMPLE, statistics=own).norm.named_buffers())


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_replicas_get_the_mean_over_the_batches_of_all():
    with processes(2) as run:
        first, second = run(shrink_with_own_batches)
    torch.manual_seed(0)
    alone = shrink(Net(), EXAMPLE, statistics=make_batches(5)).norm
    for name, value in alone.named_buffers():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)
