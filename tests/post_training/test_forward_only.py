"""Pruning without training by a criterion that reads inputs only: no gradients, no copies."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_prune import (
    NMPattern,
    PruningCallback,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
    prune_once,
)
from tests.post_training.models import Model, WeightTimesGradient, state_of, trainer_with

BATCHES = 3


class Trained(WandaCriterion):
    """The same scores, with gradients."""

    reads_inputs_only = False


def prune(model, criterion=None, pattern=None, **options):
    """Return the report of pruning to 0.5 in one shot."""
    callback = PruningCallback(
        sparsity=0.5,
        criterion=criterion or WandaCriterion(),
        pattern=pattern or UnstructuredPattern(per_row=True),
        allocation=UniformAllocation(),
    )
    return prune_once(trainer_with(callback), model, batches=BATCHES, statistics=0, **options)


def find_masks(model, criterion=None, **options):
    """Return the masks of a fresh model of this kind, with fixed weights."""
    torch.manual_seed(0)
    return prune(model(), criterion, **options).pruner.masks


def assert_same(masks, others):
    assert masks.keys() == others.keys()
    assert all(torch.equal(mask, others[name]) for name, mask in masks.items())


def test_masks_are_those_of_a_plain_loop_without_gradients():
    model = Model().eval()
    squares, hooks = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            squares[name] = torch.zeros(layer.in_features)

            def add(layer, inputs, name=name):
                squares[name] += inputs[0].square().sum(0)

            hooks.append(layer.register_forward_pre_hook(add))
    with torch.no_grad():
        for batch in list(model.train_dataloader())[:BATCHES]:
            model.net(batch[0])
    for hook in hooks:
        hook.remove()

    scores = {n: (model.get_submodule(n).weight * s.sqrt()).abs() for n, s in squares.items()}
    masks = prune(model).pruner.masks
    for name, score in scores.items():
        order = score.sort(dim=1, descending=True).indices[:, : score.shape[1] // 2]
        expected = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)
        assert torch.equal(masks[f"{name}.weight"], expected)


@pytest.mark.parametrize("criterion", [WandaCriterion(), WeightTimesGradient()])
def test_only_a_criterion_that_reads_gradients_gets_a_graph(criterion):
    class Noted(Model):
        def training_step(self, batch, batch_idx):
            graphs.append(torch.is_grad_enabled())
            loss = super().training_step(batch, batch_idx)
            graphs.append(loss.requires_grad)
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            graphs.append(outputs["loss"].isfinite().item())

        def backward(self, loss):
            passes.append(loss)
            super().backward(loss)

    graphs, passes = [], []
    prune(Noted(), criterion)
    reads = not criterion.reads_inputs_only
    assert graphs == [reads, reads, True] * BATCHES
    assert len(passes) == reads * BATCHES


class Copies(TorchDispatchMode):
    """Notes the names of the parameters that are copied, or that take a copy."""

    def __init__(self, model):
        super().__init__()
        self.addresses = {torch._C._data_address(p): n for n, p in model.named_parameters()}
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() in {"aten::clone", "aten::copy_", "aten::_to_copy"}:
            found = [self.addresses.get(torch._C._data_address(each)) for each in args[:2]]
            self.names += [name for name in found if name]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("pattern", [NMPattern(), UnstructuredPattern(per_row=True)])
def test_no_parameter_is_copied_or_moved(pattern, monkeypatch):
    moves = []
    monkeypatch.setattr(LightningModule, "cpu", lambda model: moves.append(model) or model)
    model = Model()
    addresses = [torch._C._data_address(parameter) for parameter in model.parameters()]
    with Copies(model) as copies:
        report = prune(model, pattern=pattern)
    assert report.pruner.sparsity == 0.5
    assert copies.names == []
    assert [torch._C._data_address(parameter) for parameter in model.parameters()] == addresses
    assert moves == []
    assert "cpu" not in vars(model)


class Physical(Model):
    """A training step that computes gradients by itself."""

    def training_step(self, batch, batch_idx):
        images = batch[0].requires_grad_()
        (slope,) = torch.autograd.grad(self.net(images).square().sum(), images, create_graph=True)
        return slope.square().sum()


class Manual(Model):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


class Late(Model):
    """Only the second training step computes gradients."""

    def training_step(self, batch, batch_idx):
        kind = Physical if batch_idx == 1 else Model
        return kind.training_step(self, batch, batch_idx)


@pytest.mark.parametrize("model", [Physical, Manual, Late])
def test_a_step_that_computes_gradients_itself_gives_the_same_masks(model):
    assert_same(find_masks(model), find_masks(model, Trained()))


def test_an_error_of_a_training_step_is_raised_once():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("this step is broken")

    model = Broken()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="this step is broken") as raised:
        prune(model)
    assert raised.value.__context__ is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_call_under_activation_checkpointing_counts_once(use_reentrant):
    class Checkpointed(Model):
        def training_step(self, batch, batch_idx):
            images = self.net[0](batch[0])
            hidden = checkpoint(self.net[1:4], images, use_reentrant=use_reentrant)
            return checkpoint(self.net[4], hidden, use_reentrant=use_reentrant).square().mean()

    masks = find_masks(Checkpointed, train_mode=True)
    assert_same(masks, find_masks(Checkpointed, Trained(), train_mode=True))


def test_what_a_training_step_writes_into_weights_is_undone():
    class Writing(Model):
        def training_step(self, batch, batch_idx):
            self.net[4].weight.data.mul_(1.5)
            return super().training_step(batch, batch_idx)

        def on_train_end(self):
            with torch.no_grad():
                self.net[0].bias.zero_()

    model = Writing()
    before = state_of(model)
    masks = prune(model).pruner.masks
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * masks.get(name, 1))


@pytest.mark.parametrize("pattern", [NMPattern(), UnstructuredPattern(per_row=True)])
def test_masks_take_a_byte_a_weight_also_on_a_cpu(pattern):
    class Wide(Model):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(512, 512)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0].repeat(1, 64)).square().mean()

        def validation_step(self, batch, batch_idx):
            pass

    model = Wide()
    report = prune(model, pattern=pattern)
    (mask,) = (tensor.mask for tensor in report.pruner.tensors)
    held = sum(v.nbytes for v in vars(mask).values() if isinstance(v, torch.Tensor))
    assert held == model.net.weight.numel()
    assert torch.equal(mask.kept, model.net.weight != 0)
