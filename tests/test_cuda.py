"""What can only be seen on a GPU; each test takes its device from `DEVICE`."""

import contextlib
import gc
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lightning_prune import (
    BlockPattern,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    PruningCallback,
    RandomCriterion,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from lightning_prune.tensors.batches import mark_best
from lightning_prune.tensors.parts import Part
from tests.callbacks.conftest import PRUNABLE, zeros
from tests.callbacks.runs import STEPS, fit
from tests.tensors.scores import KINDS, draw
from tests.tensors.test_ranking import DTYPES, twin

DEVICE = "cuda"
RAMP = PolynomialSchedule(begin=2, end=8, unit="step", every=3)  # updates at 2, 5 and 8
DUE = {2, 5, 8}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]


@contextlib.contextmanager
def no_synchronisation():
    """Let whatever makes the host wait for the GPU raise an error."""
    if DEVICE != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def make_model(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        return net.to(DEVICE, dtype)


def assert_zeros(pruner):
    for tensor in pruner.tensors:
        pruned = tensor.parameter.detach()[~tensor.mask.kept]
        assert not pruned.any()
        assert not pruned.signbit().any()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    ],
    ids=["AdamW fused", "AdamW foreach", "SGD fused"],
)
def test_a_step_without_update_makes_the_host_wait_for_nothing(make):
    model = make_model()
    optimizer = make(model.parameters())
    pruner = Pruner(sparsity=0.75, schedule=RAMP)
    pruner.attach(model, optimizer, steps=12)
    x = torch.randn(16, 32).to(DEVICE)
    for step in range(12):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        waits = step == 0 or step in DUE
        with contextlib.nullcontext() if waits else no_synchronisation():
            pruner.before_step(optimizer)
            optimizer.step()
    assert pruner.updates == len(DUE)
    assert pruner.sparsity == 0.75
    assert_zeros(pruner)


def test_nor_does_a_step_with_a_gradient_scaler():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler(DEVICE)
    pruner = Pruner(sparsity=0.75, schedule=RAMP)
    pruner.attach(model, optimizer, steps=12)
    x = torch.randn(16, 32).to(DEVICE)
    for step in range(12):
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        if step == 4:  # a step that the scaler skips
            model[0].weight.grad[0, 0] = torch.inf
        # At 5 an update seems due; then the host reads that the scaler has skipped a step.
        waits = step in {0, 2, 5, 6, 9}
        with contextlib.nullcontext() if waits else no_synchronisation():
            pruner.before_step(optimizer)
            scaler.step(optimizer)
        scaler.update()
    assert pruner.steps == [11]
    assert pruner.updates == len(DUE)
    assert_zeros(pruner)


@pytest.mark.parametrize(
    ("allocation", "waits"),
    [(UniformAllocation(), 1), (ERKAllocation(), 1), (GlobalAllocation(), 2)],
    ids=["uniform", "ERK", "global"],
)
def test_an_update_waits_as_often_for_many_tensors_as_for_few(allocation, waits):
    for tensors in (3, 30):
        model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(tensors))).to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        pruner = Pruner(sparsity=0.75, schedule=RAMP, allocation=allocation)
        pruner.attach(model, optimizer, steps=12)
        for step in range(6):
            optimizer.zero_grad()
            model(torch.randn(16, 32).to(DEVICE)).square().mean().backward()
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                if DEVICE == "cuda" and step == 5:  # an update of weights that are pruned already
                    torch.cuda.set_sync_debug_mode("warn")
                pruner.before_step(optimizer)
                if DEVICE == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            optimizer.step()
        found = [each for each in seen if "called a synchronizing" in str(each.message)]
        assert DEVICE != "cuda" or len(found) == waits
        assert pruner.updates == 2


class Guarded(PruningCallback):
    """Refuses synchronisation in its hooks, but at updates and where metrics are logged."""

    batch, guarded = 0, 0

    def guard(self):
        if self.batch == 0 or self.pruner.steps[0] in DUE or self.pruner.steps[0] - 1 in DUE:
            return contextlib.nullcontext()
        self.guarded += 1
        return no_synchronisation()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch_idx
        with self.guard():
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        with self.guard():
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        is_logged = (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0
        with contextlib.nullcontext() if is_logged else self.guard():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def test_nor_do_the_hooks_of_the_callback():
    pruning = Guarded(sparsity=0.75, schedule=RAMP)
    accelerator = "gpu" if DEVICE == "cuda" else "cpu"
    run = fit(pruning=pruning, accelerator=accelerator, devices=1, log_every_n_steps=4)
    assert pruning.pruner.steps == [STEPS]
    assert pruning.guarded > STEPS
    assert zeros(run.model) == round(PRUNABLE * 0.75)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # torch's own, of its first capture
def test_a_model_in_cuda_graphs_is_not_compiled_again_by_updates():
    torch._dynamo.reset()
    counters.clear()
    model = make_model()
    compiled = torch.compile(model, mode="reduce-overhead")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    pruner = Pruner(sparsity=0.75, schedule=RAMP)
    pruner.attach(compiled, optimizer, steps=12)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    x = torch.randn(16, 32).to(DEVICE)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(12):
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            compiled(x).square().mean().backward()
            pruner.before_step(optimizer)
            optimizer.step()
            assert_zeros(pruner)
    assert pruner.updates == len(DUE)
    assert pruner.sparsity == 0.75
    assert counters["stats"]["unique_graphs"] == 1
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    if DEVICE == "cuda":
        assert counters["inductor"]["cudagraph_skips"] == 0
    with torch.no_grad():
        seen, plain = compiled(x).clone(), model(x)
    assert torch.allclose(seen, plain, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_take_one_byte_an_entry(dtype):
    model = nn.Linear(1024, 1024, bias=False).to(DEVICE, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()  # what other tests have left must not be freed in between
    before = torch.cuda.memory_allocated()
    pruner = Pruner(sparsity=0.5)
    pruner.attach(model, optimizer, steps=10)
    assert torch.cuda.memory_allocated() - before == 1024 * 1024


@pytest.mark.parametrize(
    "recipe",
    [
        {"allocation": UniformAllocation()},
        {"allocation": ERKAllocation()},
        {"allocation": GlobalAllocation()},
        {"allocation": LAMPAllocation()},
        {"pattern": NMPattern(n=2, m=4), "sparsity": 0.5},
        {"pattern": NMPattern(n=2, m=4), "sparsity": 0.6},
        {"pattern": UnstructuredPattern(per_row=True)},
        {"pattern": BlockPattern(shape=(4, 4))},
        {"criterion": RandomCriterion()},
    ],
    ids=["uniform", "ERK", "global", "LAMP", "N:M", "N:M and more", "rows", "blocks", "random"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the latter has many ties
def test_masks_are_those_of_a_cpu(dtype, recipe):
    masks = []
    for device in ("cpu", DEVICE):
        model = make_model(dtype).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = OneShotSchedule(end=0, unit="step")
        pruner = Pruner(**{"sparsity": 0.75, "schedule": schedule, **recipe})
        pruner.attach(model, optimizer, steps=5)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        pruner.before_step(optimizer)
        masks.append({name: mask.cpu() for name, mask in pruner.masks.items()})
    assert masks[0].keys() == masks[1].keys()
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])


@pytest.mark.parametrize("sizes", [(1, 5, 700, 90_001), (16, 4096, 160_000)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_of_many_tensors_are_those_of_a_stable_sort(dtype, kind, sizes):
    tensors = draw(kind, dtype, sizes)
    for share in (0.0, 0.1, 0.5, 1.0):
        keeps = [round(share * len(scores)) for scores in tensors]
        masks = mark_best([Part.of(scores.to(DEVICE)) for scores in tensors], keeps)
        for scores, keep, mask in zip(tensors, keeps, masks, strict=True):
            assert torch.equal(mask.cpu(), twin(scores, keep))


@pytest.mark.parametrize("criterion", [MagnitudeCriterion(), TaylorCriterion(), WandaCriterion()])
def test_masks_follow_a_model_from_device_to_device(criterion):
    model = make_model().to("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.75, schedule=RAMP, criterion=criterion)
    pruner.attach(model, optimizer, steps=12)
    for step in range(12):
        device = "cpu" if step % 2 else DEVICE
        model.to(device)
        optimizer.zero_grad()
        model(torch.randn(16, 32).to(device)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        assert_zeros(pruner)
    model.to(DEVICE)
    pruner.detach()
    assert pruner.sparsity == 0.75
    for device in (DEVICE, "cpu"):
        model.to(device)
        parameters = dict(model.named_parameters())
        for name, mask in pruner.masks.items():
            assert not parameters[name].detach()[~mask].any()


def test_masks_are_on_the_cpu_after_a_fit_as_the_model_is():
    pruning = PruningCallback(sparsity=0.75, schedule=RAMP)
    accelerator = "gpu" if DEVICE == "cuda" else "cpu"
    run = fit(pruning=pruning, accelerator=accelerator, devices=1)
    parameters = dict(run.model.named_parameters())
    for name, mask in pruning.masks.items():
        assert not parameters[name].detach()[~mask].any()
