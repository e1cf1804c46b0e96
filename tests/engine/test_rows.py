"""Where the model divides by the norm of a row, each row keeps a weight."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_prune import (
    BlockPattern,
    ChannelPattern,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    LAMPAllocation,
    MagnitudeCriterion,
    NMPattern,
    OneShotSchedule,
    Pattern,
    Pruner,
    RandomCriterion,
    Regrow,
    UniformAllocation,
    UnstructuredPattern,
)
from lightning_prune.engine.overview import pruning_table

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
NORMS = [parametrizations.weight_norm, nn.utils.weight_norm]
AT_ONCE = OneShotSchedule(end=0, unit="step")
DIRECTION = "parametrizations.weight.original1"


def make_net(norm=parametrizations.weight_norm, dim=0):
    """Return a net with rows of 32 and 64 weights along axis 0, of 64 and 4 along axis 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(32, 64), nn.Linear(64, 4)]
        for row, layer in enumerate(layers):
            layer.weight.data[row::3] *= 1e-3  # rows that would go first
        return nn.Sequential(norm(layers[0], dim=dim), nn.ReLU(), norm(layers[1], dim=dim))


def train(net, pruner, steps=10):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    pruner.attach(net, optimizer, steps=steps)
    for step in range(steps):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = net(x).square().mean()
        assert loss.isfinite()
        loss.backward()
        pruner.before_step(optimizer)
        optimizer.step()
        assert net(x).isfinite().all()
    pruner.detach()
    return pruner


def effective_weights(net):
    net(torch.zeros(1, 32))
    return [net[0].weight, net[2].weight]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [0, 1, None, -1])
def test_a_weight_norm_trains_to_the_exact_sparsity_in_the_weight_that_it_makes(norm, dim):
    net = make_net(norm, dim)
    pruner = train(net, Pruner(sparsity=0.9))
    weights = effective_weights(net)
    assert sum(int((weight == 0).sum()) for weight in weights) == 2304 - round(2304 * 0.1)
    assert pruner.sparsity == 1 - round(2304 * 0.1) / 2304
    if dim in (0, 1):
        assert all((weight != 0).any(1 - dim).all() for weight in weights)


@pytest.mark.parametrize("allocation", [ERKAllocation(), GlobalAllocation(), LAMPAllocation()])
@pytest.mark.parametrize(
    "pattern",
    [
        UnstructuredPattern(),
        UnstructuredPattern(per_row=True),
        NMPattern(n=2, m=4),
        NMPattern(n=1, m=8),
        BlockPattern(shape=(4, 1)),
        BlockPattern(shape=(2, 4)),
    ],
)
def test_rows_hold_a_target_and_the_target_says_so(pattern, allocation):
    net = make_net()
    pruner = train(net, Pruner(sparsity=0.99, pattern=pattern, allocation=allocation))
    height, width = getattr(pattern, "shape", (1, 1))
    kept = (64 // height + 4 // height) * height * width
    reached = pytest.approx(1 - kept / 2304, abs=1e-12)
    assert pruner.sparsity == pruner.sparsity_target == pruner.final_sparsity == reached
    assert [*pruner.targets.values()] == [reached] * 2
    assert all((weight != 0).any(1).all() for weight in effective_weights(net))


def test_what_rows_hold_is_taken_from_another_tensor_of_the_pool():
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(32, 64)), nn.ReLU(), nn.Linear(64, 64)
    )
    pruner = train(net, Pruner(sparsity=0.98, allocation=GlobalAllocation()))
    assert pruner.sparsity_target == 0.98
    assert sum(group.kept for group in pruner.groups) == round(6144 * 0.02)
    assert pruner.groups[0].kept >= 64


def test_the_best_weight_of_each_row_stays_and_the_first_of_equal_ones():
    layer = parametrizations.weight_norm(nn.Linear(4, 3, bias=False))
    direction = layer.parametrizations.weight.original1
    direction.data = torch.tensor(
        [[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.5, 0.0]]
    )
    pruner = Pruner(sparsity=8 / 12, schedule=AT_ONCE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    pruner.attach(layer, optimizer)
    layer(torch.ones(1, 4)).sum().backward()
    pruner.before_step(optimizer)
    assert pruner.masks[DIRECTION].int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.filterwarnings("ignore:weights are 0 and no mask says why")
def test_a_row_keeps_a_weight_that_is_not_zero_at_any_score():
    layer = parametrizations.weight_norm(nn.Linear(50, 20, bias=False))
    direction = layer.parametrizations.weight.original1
    with torch.no_grad():
        direction[:, 1:].zero_()
    pruner = Pruner(sparsity=0.9, schedule=AT_ONCE, criterion=RandomCriterion())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    pruner.attach(layer, optimizer)
    layer(torch.ones(1, 50)).sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    assert pruner.masks[DIRECTION].sum() == 100
    assert pruner.masks[DIRECTION][:, 0].all()
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_regrowth_never_drops_the_last_weight_of_a_row(dim, share):
    net = make_net(dim=dim)
    regrow = Regrow(share=share, criterion=GradientCriterion())
    pruner = train(net, Pruner(sparsity=0.9, schedule=AT_ONCE, regrow=regrow), steps=12)
    assert pruner.sparsity == 1 - 230 / 2304
    if dim is not None:
        for group in pruner.groups:
            assert group.members[0].mask.kept.any(1 - dim).all()


def test_a_spectral_norm_keeps_a_weight_at_sparsity_1():
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(32, 8)))
    assert train(net, Pruner(sparsity=1.0)).sparsity == 1 - 1 / 256


def test_a_sparsity_that_rows_forbid_a_single_tensor_is_refused_with_the_lines_to_write():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(sparsity={"*": 0.98, "2": 0.5}, allocation=UniformAllocation())
    with pytest.raises(
        ValueError, match=r"need a sparsity that leaves an atom in each row"
    ) as error:
        pruner.attach(net, optimizer, steps=10)
    assert str(error.value).endswith(
        'write\nsparsity:\n  "*": 0.98\n  "2": 0.5\n  "0.parametrizations.weight.original1": 0.9687'
    )
    targets = {"*": 0.98, "2": 0.5, "0.parametrizations.weight.original1": 0.9687}
    pruner = train(make_net(), Pruner(sparsity=targets, allocation=UniformAllocation()))
    assert [group.kept for group in pruner.groups] == [64, 128]


@dataclass(frozen=True, kw_only=True)
class OwnPattern(Pattern):
    """Single weights, by a class of the user."""

    def __call__(self, scores, keep):
        return UnstructuredPattern()(scores, keep)


@dataclass(frozen=True, kw_only=True)
class OwnPatternOfSlices(Pattern):
    """The same, and the class promises a weight at each index."""

    def keeps_slices(self, axis):
        return True

    def __call__(self, scores, keep):
        return UnstructuredPattern()(scores, keep)


def test_a_pattern_that_cannot_keep_a_weight_of_each_row_is_refused():
    for pattern, dim in ((NMPattern(), 1), (BlockPattern(shape=(1, 2)), 1), (OwnPattern(), 0)):
        net = make_net(dim=dim)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        message = rf"at each index of axis {dim}.*0\.parametrizations\.weight\.original1\": null"
        with pytest.raises(ValueError, match=f"(?s){message}"):
            Pruner(sparsity=0.9, pattern=pattern).attach(net, optimizer, steps=10)
    pruner = train(make_net(), Pruner(sparsity=0.99, pattern=OwnPatternOfSlices()))
    assert pruner.sparsity == 1 - 68 / 2304


def test_a_transposed_convolution_has_rows_along_its_inputs():
    layer = parametrizations.weight_norm(nn.ConvTranspose1d(6, 4, 3))
    pruner = Pruner(sparsity=0.95, schedule=AT_ONCE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    pruner.attach(layer, optimizer)
    layer(torch.ones(1, 6, 5)).sum().backward()
    pruner.before_step(optimizer)
    assert pruner.masks[DIRECTION].flatten(1).sum(1).tolist() == [1] * 6
    with pytest.raises(ValueError, match="axis 1"):
        Pruner(sparsity=0.5, pattern=NMPattern(n=1, m=2)).attach(layer, optimizer, steps=10)


def test_channels_of_a_weight_norm_stay_dense():
    net = nn.Sequential(
        *(parametrizations.weight_norm(nn.Linear(6, 16)), nn.ReLU()),
        *(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern(round_to=1))
    pruner.attach(net, optimizer, steps=10, example=torch.randn(2, 6))
    assert [group.name for group in pruner.groups] == ["2.weight"]
    assert f"0.{DIRECTION}" in pruner.dense


def test_channels_beside_an_old_weight_norm_that_has_run_are_pruned():
    net = nn.Sequential(
        *(nn.utils.weight_norm(nn.Linear(6, 16)), nn.ReLU()),
        *(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)),
    )
    net(torch.randn(2, 6))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern(round_to=1))
    pruner.attach(net, optimizer, steps=10, example=torch.randn(2, 6))
    assert [group.name for group in pruner.groups] == ["2.weight"]


def test_keep_zeros_and_a_saved_mask_without_a_row_are_refused():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.no_grad():
        net[0].parametrizations.weight.original1[3].zero_()
    message = r"in each row of '0\.parametrizations\.weight\.original1'.*got 1 rows without any"
    with pytest.raises(ValueError, match=message):
        Pruner(sparsity=0.9, keep_zeros=True).attach(net, optimizer, steps=10)

    dense = nn.Sequential(nn.Linear(32, 64))
    with torch.no_grad():
        dense[0].weight[5].zero_()
    pruner = Pruner(sparsity=0.9, keep_zeros=True)
    pruner.attach(dense, torch.optim.SGD(dense.parameters(), lr=0.1), steps=10)
    state = pruner.state_dict()
    for kind in ("masks", "checksums", "shapes", "observed"):
        state[kind] = {f"0.{DIRECTION}": state[kind]["0.weight"]}
    fresh = make_net()
    later = Pruner(sparsity=0.9)
    later.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        later.attach(fresh, torch.optim.SGD(fresh.parameters(), lr=0.1), steps=10)


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_run():
    whole = train(make_net(), Pruner(sparsity=0.99))
    net, first = make_net(), Pruner(sparsity=0.99, schedule=OneShotSchedule(end=0, unit="step"))
    train(net, first, steps=3)
    again = Pruner(sparsity=0.99)
    again.load_state_dict(first.state_dict())
    train(net, again)
    assert again.sparsity == whole.sparsity == 1 - 68 / 2304


def test_the_table_names_the_rows_and_the_sparsity_that_they_allow():
    net = make_net()
    pruner = Pruner(sparsity=0.99, criterion=MagnitudeCriterion())
    pruner.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), steps=10)
    table = pruning_table(pruner)
    assert table.rows[0][-1] == "0.9688"
    assert table.rows[-1][-1] == "0.9705"
    assert table.notes[1:3] == [
        "each row keeps an atom, since the model divides by the norm: "
        f"0.{DIRECTION}, 2.{DIRECTION}",
        "atoms that must stay hold the final sparsity at 0.9705, not 0.9900",
    ]
