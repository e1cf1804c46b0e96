import shutil
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_prune import (
    Criterion,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
)
from tests.callbacks.conftest import PRUNABLE, Classifier, Record, zeros
from tests.callbacks.models import half_precision

SECTION = "Precision and compilation"


@pytest.mark.works_with(SECTION, "`bf16-true`, `bf16-mixed`, `64-true`")
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.float32),
        ("64-true", torch.float64),
        ("32-true", torch.float32),
    ],
)
def test_every_precision_lands_exactly_and_holds_its_zeros(
    precision, dtype, make_model, make_trainer, loader
):
    model, pruning = make_model(), PruningCallback(sparsity=0.75)
    record = Record(pruning)
    make_trainer(pruning, record, precision=precision).fit(model, loader)
    assert model.net[0].weight.dtype == dtype
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert record.sparsities == sorted(record.sparsities)


@dataclass(frozen=True, kw_only=True)
class Watching(Criterion):
    """Magnitude, which also remembers how often it looked and the largest gradient it saw."""

    def observe(self, tensor, state):
        largest = tensor.parameter.grad.abs().max()
        if not state:
            return {"looks": torch.tensor(1, device="cpu"), "largest": largest}
        return {
            "looks": state["looks"] + 1,
            "largest": torch.maximum(state["largest"], largest),
        }

    def score(self, tensor, state):
        return tensor.parameter.detach().abs()


OPTIMIZERS = {
    "plain": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True),
    "fused adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
}


class With(Classifier):
    """A classifier with the optimizer that a function makes."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


@pytest.mark.works_with(SECTION, "optimizers that are fused, foreach, with momentum or amsgrad")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_holds_the_zeros(name, make_trainer, loader):
    model, pruning = With(OPTIMIZERS[name]), PruningCallback(sparsity=0.75)
    make_trainer(pruning, Record(pruning)).fit(model, loader)
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(
    SECTION, "`16-mixed`: a step that the scaler skips is not observed, not counted and stays due"
)
@pytest.mark.parametrize("name", ["plain", "fused adamw", "fused sgd"])
def test_a_step_that_the_scaler_skips_stays_due(name, make_trainer, loader):
    schedule = OneShotSchedule(end=0, unit="step")
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, criterion=Watching())
    record, model, plugin = Record(pruning), With(OPTIMIZERS[name]), half_precision()
    scales = []
    take = LambdaCallback(on_train_batch_end=lambda *_: scales.append(plugin.scaler.get_scale()))
    make_trainer(pruning, record, take, plugins=plugin, max_epochs=16).fit(model, loader)
    skipped = [b < a for a, b in zip([2.0**127, *scales], scales, strict=False)]
    first = skipped.index(False)
    assert first > 50
    state = pruning.pruner.state_dict()
    assert state["steps"] == [skipped.count(False)]
    assert record.sparsities == [0.0] * first + [0.75] * (160 - first)
    for seen in state["observed"].values():
        assert seen["looks"] == skipped.count(False)
        assert 0 < seen["largest"] < 100  # neither infinite nor scaled


@pytest.mark.works_with(
    SECTION, "`16-mixed`: a step that the scaler skips is not observed, not counted and stays due"
)
@pytest.mark.parametrize("unit", ["step", "fraction"])
def test_a_run_with_skipped_steps_ends_on_target(unit, make_model, make_trainer, loader):
    end = {"step": 160, "fraction": 1.0}[unit]
    schedule = PolynomialSchedule(begin=0, end=end, unit=unit)
    pruning = PruningCallback(sparsity=0.75, schedule=schedule)
    model = make_model()
    make_trainer(pruning, plugins=half_precision(), max_epochs=16).fit(model, loader)
    assert pruning.pruner.state_dict()["steps"][0] < 160
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(SECTION, "`16-mixed`: a batch without a loss")
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_a_loss_is_not_counted_under_a_scaler(make_trainer, loader):
    class Sometimes(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx % 2 else None

    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=3, unit="step"))
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))
    record = Record(pruning)
    make_trainer(pruning, record, plugins=plugin).fit(Sometimes(), loader)
    assert pruning.pruner.state_dict()["steps"] == [10]
    assert record.sparsities == [0] * 7 + [0.75] * 13


@pytest.mark.works_with(SECTION, "gradient clipping sees the norm of the pruned network")
@pytest.mark.parametrize("plugins", [None, half_precision], ids=["32-true", "16-mixed"])
def test_clipping_sees_the_norm_of_the_pruned_network(plugins, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.9, schedule=OneShotSchedule(end=0))
    norms = []

    def make(parameters):
        parameters = list(parameters)
        optimizer = torch.optim.SGD(parameters, lr=1e-3)

        def look(*_):
            masks = {id(parameter): mask for parameter, mask in kept()}
            gradients = [p.grad * masks.get(id(p), 1) for p in parameters]
            norms.append(float(nn.utils.get_total_norm(gradients)))

        optimizer.register_step_post_hook(look)  # which a skipped step does not call
        return optimizer

    def kept():
        return [(model.get_parameter(name), mask) for name, mask in pruning.masks.items()]

    model = With(make)
    kwargs = {"plugins": plugins(), "max_epochs": 16} if plugins else {}
    make_trainer(pruning, gradient_clip_val=0.01, **kwargs).fit(model, loader)
    assert len(norms) >= 20
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


class Evaluated(Classifier):
    """Trained by LBFGS; remembers the sparsity of the network at each evaluation."""

    def __init__(self, pruning, line_search):
        super().__init__()
        self.pruning, self.line_search, self.revived, self.evaluations = pruning, line_search, 0, 0

    def training_step(self, batch, batch_idx):
        parameters = dict(self.named_parameters())
        for name, mask in self.pruning.masks.items():
            self.revived += int((parameters[name].detach()[~mask] != 0).sum())
        self.evaluations += 1
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.LBFGS(
            self.parameters(), lr=0.1, max_iter=4, line_search_fn=self.line_search
        )


@pytest.mark.works_with(
    SECTION, "LBFGS: all evaluations count as one step, and see only the pruned network"
)
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_evaluates_only_the_pruned_network(line_search, make_trainer, loader):
    pruning = PruningCallback(sparsity=0.75)
    model = Evaluated(pruning, line_search)
    record = Record(pruning)
    make_trainer(pruning, record).fit(model, loader)
    assert pruning.pruner.state_dict()["steps"] == [20]
    assert model.evaluations > 40
    assert model.revived == 0
    assert len(set(record.sparsities)) > 5
    assert zeros(model) == round(PRUNABLE * 0.75)


class Counting:
    """A backend of torch.compile that keeps the graphs it was given and runs them as they are."""

    def __init__(self):
        torch.compiler.reset()
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def whole(model, backend):
    return torch.compile(model, backend=backend)


def part(model, backend):
    model.net[0] = torch.compile(model.net[0], backend=backend)
    return model


@pytest.mark.works_with(
    SECTION, "`torch.compile` of a part or the whole: updates compile nothing again, as counted"
)
@pytest.mark.parametrize("compiled", [whole, part])
def test_updates_of_masks_compile_nothing_again(compiled, make_model, make_trainer, loader):
    graphs = []
    for sparsity in (None, 0.75):
        backend, model = Counting(), make_model()
        seen = []
        take = LambdaCallback(on_train_batch_end=lambda *_, s=seen, b=backend: s.append(b.graphs))
        callbacks = [] if sparsity is None else [PruningCallback(sparsity=sparsity)]
        make_trainer(*callbacks, take).fit(compiled(model, backend), loader)
        graphs.append(seen)
    assert graphs[1] == graphs[0]
    assert graphs[1][-1] > 0
    assert callbacks[0].pruner.updates > 5
    assert list(callbacks[0].masks) == ["net.0.weight", "net.2.weight"]
    assert sum(int((p == 0).sum()) for p in model.parameters()) == round(PRUNABLE * 0.75)


@pytest.mark.slow
@pytest.mark.works_with(SECTION, "a compiled `optimizer.step`: updates compile nothing again")
def test_a_compiled_step_is_not_compiled_again(make_trainer, loader):
    graphs = []

    class Manual(With):
        def __init__(self, make):
            super().__init__(make)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    for callbacks in ([], [PruningCallback(sparsity=0.75)]):
        backend = Counting()

        def make(parameters, backend=backend):
            optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
            optimizer.step = torch.compile(optimizer.step, backend=backend)
            return optimizer

        model = Manual(make)
        make_trainer(*callbacks).fit(model, loader)
        graphs.append(backend.graphs)
    assert graphs[1] == graphs[0] > 0
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.slow
@pytest.mark.works_with(SECTION, "`torch.compile` with torch's default backend, inductor")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor_trains_the_pruned_network(
    make_model, make_trainer, loader, tmp_path, monkeypatch
):
    # What a run for another instruction set has left in the shared folder computes nonsense.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled, eager = make_model(), make_model()
    for model in (torch.compile(compiled), eager):
        pruning = PruningCallback(sparsity=0.75)
        make_trainer(pruning, Record(pruning)).fit(model, loader)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert zeros(compiled) == zeros(eager) == round(PRUNABLE * 0.75)
    for one, other in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-3)
