"""What a criterion that looks at the inputs of layers sees, and where it cannot."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from lightning_prune import (
    NMPattern,
    Pruner,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.hooks import hooks
from tests.recipe.watched import attached, scores, squares, step


class Conv1D(nn.Module):
    """As Hugging Face's: the weight is input first."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))

    def forward(self, x):
        return (x.view(-1, x.size(-1)) @ self.weight).view(*x.size()[:-1], self.nf)


@pytest.mark.filterwarnings("ignore:weights are 0 and no mask says why")
def test_scores_are_the_weights_times_the_norms_of_their_inputs():
    model = nn.Linear(3, 2)
    model.weight.data = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 0.5, 0.0]])
    optimizer, pruner = attached(model)
    step(model, optimizer, pruner, torch.tensor([[3.0, 0.0, 1.0], [4.0, 0.0, -1.0]]))
    step(model, optimizer, pruner, torch.tensor([[[0.0, 2.0, 1.0], [0.0, 0.0, 1.0]]]))
    assert squares(pruner).tolist() == [[25.0, 4.0, 4.0]]
    assert scores(pruner).tolist() == [[5.0, 4.0, 6.0], [5.0, 1.0, 0.0]]


def test_rows_are_pruned_by_what_is_large_in_the_output():
    model = nn.Linear(4, 2, bias=False)
    model.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 0.1, 0.1]])
    x = torch.tensor([[1.0, 1.0, 8.0, 8.0]])
    for recipe in (
        {"pattern": UnstructuredPattern(per_row=True), "allocation": UniformAllocation()},
        {"pattern": NMPattern()},
    ):
        optimizer, pruner = attached(copy.deepcopy(model), steps=1, end=0, **recipe)
        step(pruner.tensors[0].owner, optimizer, pruner, x)
        first, second = pruner.masks["weight"].tolist()
        assert first == [False, False, True, True]
        assert second == [True, True, False, False]


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (5, 4, 11)),
    (nn.Conv1d(4, 6, 4, padding="same"), (5, 4, 11)),
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), groups=2), (5, 4, 7, 8)),
    (nn.Conv2d(4, 8, 3, padding=1, groups=4, padding_mode="reflect"), (5, 4, 7, 8)),
    (nn.Conv2d(4, 8, 3, padding=(1, 2), padding_mode="circular"), (4, 7, 8)),
    (nn.Conv3d(2, 4, 2, stride=2, padding=1), (2, 2, 5, 4, 3)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("model", "shape"), CONVOLUTIONS, ids=str)
def test_of_a_convolution_each_weight_has_the_inputs_that_it_meets(model, shape):
    model = copy.deepcopy(model)
    x = torch.randn(shape)
    # The convolution is linear in its weights, so this adds up what each is multiplied with.
    weights = torch.zeros_like(model.weight, requires_grad=True)
    alone = {"weight": weights, "bias": torch.zeros_like(model.bias)}
    functional_call(model, alone, x.square()).sum().backward()
    optimizer, pruner = attached(model)
    step(model, optimizer, pruner, x)
    by_hand = model.weight.detach().abs() * weights.grad.sqrt()
    assert torch.allclose(scores(pruner), by_hand, rtol=1e-5)


def test_squares_are_summed_in_a_precision_that_holds_them():
    model = nn.Linear(1, 4, dtype=torch.float16)
    optimizer, pruner = attached(model)
    step(model, optimizer, pruner, torch.full((2, 1), 300.0, dtype=torch.float16))
    assert squares(pruner).item() == 180000  # beyond float16


def test_a_layer_of_hugging_face_is_input_first():
    model, x = Conv1D(4, 6), torch.randn(2, 3, 6)
    optimizer, pruner = attached(model)
    step(model, optimizer, pruner, x)
    norms = x.reshape(-1, 6).norm(dim=0)
    assert torch.allclose(scores(pruner), model.weight.detach().abs() * norms[:, None])


def test_of_a_weight_norm_the_direction_is_scored():
    model, x = weight_norm(nn.Linear(4, 3)), torch.randn(5, 4)
    optimizer, pruner = attached(model)
    step(model, optimizer, pruner, x)
    assert [t.name for t in pruner.tensors] == ["parametrizations.weight.original1"]
    direction = model.parametrizations.weight.original1.detach()
    assert torch.allclose(scores(pruner), direction.abs() * x.norm(dim=0))


def test_all_batches_of_a_step_count_and_what_is_not_trained_on_does_not():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.Linear(3, 2))
    optimizer, pruner = attached(model)
    x, y, other = torch.randn(4, 3), torch.randn(2, 3), torch.full((9, 3), 100.0)
    model.eval()(other).sum()
    with torch.no_grad():
        model.train()(other)
    step(model, optimizer, pruner, x, y)
    model(other)
    pruner.skip_step(optimizer)
    model[0](input=x)
    step(model, optimizer, pruner, y)
    expected = 2 * (x.square().sum(0) + y.square().sum(0))
    assert torch.allclose(squares(pruner), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_count_once(reentrant):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer, pruner = attached(model)
    x = torch.randn(4, 3, requires_grad=True)

    def run(x):
        return checkpoint(model, x, use_reentrant=reentrant)

    step(model, optimizer, pruner, x, 2 * x, run=run)
    assert torch.allclose(squares(pruner), 5 * x.detach().square().sum(0))


class Functional(nn.Module):
    """Uses the weights of its layer, which it never calls."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight)


@pytest.mark.parametrize("frozen_in_eval", [False, True])
def test_a_layer_that_is_not_called_is_named_when_an_update_is_due(frozen_in_eval):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) if frozen_in_eval else Functional()
    optimizer, pruner = attached(model, steps=2)
    if frozen_in_eval:
        model[1].eval()
    step(model, optimizer, pruner, torch.randn(2, 4))
    name = "1.weight" if frozen_in_eval else "layer.weight"
    with pytest.raises(ValueError, match=f"need inputs .* got none for '{name}' by step 1"):
        step(model, optimizer, pruner, torch.randn(2, 4))
    pruner.detach(completed=False)
    assert not hooks(model)


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def compiled_in_place():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    model[0].compile()
    return model


def compiled_forward():
    model = nn.Sequential(nn.Linear(4, 4))
    model.forward = torch.compile(model.forward)
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nn.LSTM(4, 4), "got a LSTM, not the weight of .* in 'weight_ih_l0' of shape"),
        (lambda: nn.MultiheadAttention(4, 2), "got a MultiheadAttention, not .*'in_proj_weight'"),
        (
            lambda: nn.MultiheadAttention(4, 2),
            r"got a MultiheadAttention, which does not call its projection, in 'out_proj\.weight'",
        ),
        (lambda: nn.ConvTranspose1d(4, 4, 3), "got a ConvTranspose1d, not"),
        (lambda: nn.Bilinear(4, 4, 4), "got a Bilinear, not"),
        (lambda: Scaled(4, 4), "got a Scaled, not"),
        (tied, r"got a Linear that shares the weight with 1 more, in '0\.weight'"),
        pytest.param(
            lambda: nn.Sequential(torch.compile(nn.Linear(4, 4))),
            "Linear in a compiled Optimized",
            marks=pytest.mark.slow,  # it imports the compiler
        ),
        pytest.param(compiled_in_place, "Linear in a compiled Sequential", marks=pytest.mark.slow),
        pytest.param(compiled_forward, "Linear in a compiled Sequential", marks=pytest.mark.slow),
    ],
)
def test_what_hides_its_inputs_is_refused_by_name(make, why):
    with pytest.raises(
        ValueError, match=f'(?s)need an owner .*{why}.*sparsity:\n  "\\*": 0.5\n  "'
    ):
        attached(make())


def test_a_bias_has_no_inputs():
    with pytest.raises(ValueError, match=r"got a Linear, not the weight .* in 'bias' of shape"):
        attached(nn.Linear(4, 4), sparsity={"bias": 0.5})


def test_the_evaluations_of_one_step_of_lbfgs_count_once():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    pruner = Pruner(criterion=WandaCriterion())
    pruner.attach(model, optimizer, steps=100)
    x = torch.randn(4, 3)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 1).square().sum()
        loss.backward()
        pruner.before_step(optimizer)
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert torch.allclose(squares(pruner), 2 * x.square().sum(0))


def sums_of_a_part(parts):
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(4, 2, 2))
    model.load_state_dict({k: torch.ones_like(v) for k, v in model.state_dict().items()})
    optimizer, pruner = attached(model)
    step(model, optimizer, pruner, parts[torch.distributed.get_rank()])
    return squares(pruner, 0), squares(pruner, 1)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_sums_are_those_of_all_replicas(two):
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(4, 2, 2))
    model.load_state_dict({k: torch.ones_like(v) for k, v in model.state_dict().items()})
    optimizer, pruner = attached(model)
    x = torch.randn(6, 4, 3)
    step(model, optimizer, pruner, x)
    for sums in two(sums_of_a_part, (x[:4], x[4:])):
        for index, its_sums in enumerate(sums):
            assert torch.allclose(its_sums, squares(pruner, index))
