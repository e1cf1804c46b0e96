import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset

from lightning_prune import DistillationCallback, PruningCallback, cli
from tests.callbacks.conftest import Classifier
from tests.callbacks.replicas import Net, assert_equal, make_trainer
from tests.callbacks.replicas import loader as shared_loader
from tests.callbacks.runs import STEPS, Save, fit, frozen
from tests.hooks import hooks

SECTION = "Distillation"
HIDDEN = 32


class Forwarding(Classifier):
    """Calls itself, as many modules do."""

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return {"loss": nn.functional.cross_entropy(self(batch[0]), batch[1])}


class Noisy(Classifier):
    """Draws random numbers in training and in evaluation, and has statistics of its batches."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(HIDDEN))
        self.net.insert(2, nn.Dropout(0.5))
        self.net.insert(3, Noise())


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


def make(kind=Classifier, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


@pytest.fixture
def teacher(tmp_path):
    """A checkpoint of other weights than those that `make` begins with."""
    path = tmp_path / "teacher.pt"
    torch.save(make(seed=7).state_dict(), path)
    return path


def soft_loss(student, teacher, temperature):
    """The divergence as Hinton's paper writes it, class by class."""
    p, q = ((z / temperature).softmax(1) for z in (teacher, student))
    return temperature**2 * (p * (p.log() - q.log())).sum() / len(p)


def by_hand(loader, *, temperature=None, features=(), weight=1.0, accumulate=1, steps=20):
    """Train as the Trainer does, with a teacher in the loop; return the model and its losses."""
    model, teacher = make(), make(seed=7)
    optimizer = model.configure_optimizers()
    losses, done = [], 0
    while done < steps:
        for x, y in loader:
            hidden, taught = model.net[:2](x), teacher.net[:2](x).detach()
            logits, answers = model.net[2](hidden), teacher.net[2](taught).detach()
            loss = torch.zeros(())
            if temperature is not None:
                loss = loss + soft_loss(logits, answers, temperature)
            for factor in features:
                loss = loss + factor * ((hidden - taught) ** 2).sum() / hidden.numel()
            losses.append(loss.item())
            total = nn.functional.cross_entropy(logits, y) + weight * loss
            (total / accumulate).backward()
            done += 1
            if done % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model, losses


def close(one, other):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.works_with(
    SECTION, "soft targets, features, both; accumulated gradients: a loop by hand"
)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "by_paper"),
    [
        ({}, {"temperature": 4.0}),
        ({"temperature": 1.5, "weight": 0.3}, {"temperature": 1.5, "weight": 0.3}),
        ({"temperature": None, "features": ["net.1"]}, {"features": [1.0]}),
        (
            {"temperature": 2.0, "features": {"net.1": 0.5}, "weight": 2.0},
            {"temperature": 2.0, "features": [0.5], "weight": 2.0},
        ),
    ],
    ids=["default", "soft targets", "features", "both"],
)
def test_losses_and_weights_are_those_of_a_loop_by_hand(
    arguments, by_paper, accumulate, teacher, make_trainer, loader
):
    model, logged = make(), []
    distillation = DistillationCallback(teacher, output="net", **arguments)
    record = LambdaCallback(
        on_train_batch_end=lambda trainer, *_: logged.append(
            trainer.callback_metrics["distillation_loss"].item()
        )
    )
    make_trainer(distillation, record, accumulate_grad_batches=accumulate).fit(model, loader)
    expected, losses = by_hand(loader, accumulate=accumulate, **by_paper)
    assert logged == pytest.approx(losses, rel=1e-4)
    close(model, expected)
    untaught, _ = by_hand(loader, accumulate=accumulate)
    assert not torch.allclose(model.net[2].weight, untaught.net[2].weight, atol=1e-3)


def test_forward_is_the_output_by_default_and_a_step_may_return_a_mapping(
    teacher, make_trainer, loader
):
    model, expected = make(Forwarding), by_hand(loader, temperature=4.0)[0]
    make_trainer(DistillationCallback(teacher)).fit(model, loader)
    close(model, expected)
    features = make(Forwarding)
    distillation = DistillationCallback(teacher, temperature=None, features=["forward"])
    make_trainer(distillation, max_epochs=1).fit(features, loader)
    assert distillation.features == {"forward": 1.0}
    assert not torch.equal(features.net[2].weight, model.net[2].weight)


def test_the_mean_of_several_calls_counts(teacher, make_trainer, loader):
    class Twice(Classifier):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.net(torch.zeros(3, 16))  # what has no gradient is not taught
            loss = super().training_step(batch, batch_idx)
            return (loss + super().training_step(batch, batch_idx)) / 2

    model = make(Twice)
    make_trainer(DistillationCallback(teacher, output="net")).fit(model, loader)
    close(model, by_hand(loader, temperature=4.0)[0])


@pytest.mark.parametrize("wrap", [lambda z: {"logits": z}, lambda z: SimpleNamespace(logits=z)])
def test_logits_may_be_inside_something(wrap, teacher, make_trainer, loader):
    class Wrapped(Classifier):
        def forward(self, x):
            return wrap(self.net(x))

        def training_step(self, batch, batch_idx):
            output = self(batch[0])
            logits = output["logits"] if isinstance(output, dict) else output.logits
            return nn.functional.cross_entropy(logits, batch[1])

    model = make(Wrapped)
    make_trainer(DistillationCallback(teacher)).fit(model, loader)
    close(model, by_hand(loader, temperature=4.0)[0])


class Recurrent(Classifier):
    """Labels every position; (N, ..., C), and a feature that is a tuple."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"lstm": nn.LSTM(4, 8, batch_first=True), "head": nn.Linear(8, 4)})

    def forward(self, x):
        return self.net["head"](self.net["lstm"](x)[0])

    def training_step(self, batch, batch_idx):
        return self(batch[0].reshape(-1, 4, 4)).square().mean()

    def validation_step(self, batch, batch_idx): ...


@pytest.mark.parametrize("class_dim", [1, -1])
def test_classes_may_be_in_any_dimension(class_dim, make_trainer, loader):
    model, teacher = make(Recurrent), make(Recurrent)
    with torch.no_grad():
        teacher.net["head"].bias.add_(torch.arange(4.0))
    before = deepcopy(model)
    x = loader.dataset.tensors[0][:8].reshape(-1, 4, 4)
    z, t = model(x).detach().flatten(0, 0), teacher(x).detach()
    if class_dim == -1:
        expected = soft_loss(z.reshape(-1, 4), t.reshape(-1, 4), 4.0)
    else:
        expected = soft_loss(*(o.transpose(1, 2).reshape(-1, 4) for o in (z, t)), 4.0)
    expected += ((model.net["lstm"](x)[0] - teacher.net["lstm"](x)[0]) ** 2).mean()
    distillation = DistillationCallback(class_dim=class_dim, features=["net.lstm"])
    trainer = make_trainer(distillation, max_steps=1)
    teach_by(distillation, teacher)
    trainer.fit(model, loader)
    logged = trainer.callback_metrics["distillation_loss"]
    torch.testing.assert_close(logged, expected.detach(), rtol=1e-4, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"need class_dim for logits of more .* got class_dim=None"
    ):
        make_trainer(DistillationCallback(), max_steps=1).fit(before, loader)


def teach_by(distillation, model):
    """Let a fit start from a snapshot of these weights."""
    take_up = distillation.setup

    def setup(trainer, module, stage):
        take_up(trainer, module, stage)
        distillation.load_state_dict({"teacher": model.state_dict()})

    distillation.setup = setup


def test_what_is_changed_in_place_later_is_matched_as_it_was(make_trainer, loader):
    def first_loss(inplace):
        class Changing(Classifier):
            def __init__(self):
                super().__init__()
                self.net[1] = nn.ReLU(inplace=inplace)

            def training_step(self, batch, batch_idx):
                logits = self.net(batch[0])
                logits *= 0.5
                return nn.functional.cross_entropy(logits, batch[1])

        model, distillation = make(Changing), DistillationCallback(output="net", features=["net.0"])
        teach_by(distillation, make(seed=7))
        trainer = make_trainer(distillation, max_steps=1)
        trainer.fit(model, loader)
        return trainer.callback_metrics["distillation_loss"], model.net[0].weight

    for plain, inplace in zip(first_loss(inplace=False), first_loss(inplace=True), strict=True):
        assert torch.equal(plain, inplace)


# -- what is left alone ------------------------------------------------


@pytest.mark.works_with(
    SECTION, "dropout, noise, batch norm: random numbers and statistics untouched"
)
def test_without_weight_a_run_is_bit_for_bit_the_run_without_a_teacher():
    def run(*callbacks):
        return fit(*callbacks, pruning=PruningCallback(), model=make(Noisy)), torch.get_rng_state()

    alone, random = run()
    distillation = DistillationCallback(weight=0.0, output="net", features=["net.0"])
    taught, other_random = run(distillation)
    assert alone.differences(taught) == ["curve"]
    assert torch.equal(random, other_random)
    assert {"distillation_loss"} == {
        name for logged in taught.curve.values() for name in logged
    } - {name for logged in alone.curve.values() for name in logged}


def test_the_teacher_stays_as_it_was_and_outside_of_the_module():
    model, distillation = make(Noisy), DistillationCallback(output="net", features=["net.0"])
    before, names = frozen(dict(model.state_dict())), list(dict(model.named_modules()))
    run = fit(distillation, pruning=PruningCallback(), model=model)
    assert frozen(distillation.state_dict()["teacher"]) == before != run.weights
    assert list(dict(model.named_modules())) == names
    owned = [p for group in run.trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()}
    assert run.weights.keys() == before.keys()


def test_hooks_are_there_only_during_a_training_step(make_trainer, loader):
    model, seen = make(), []
    look = LambdaCallback(
        on_before_backward=lambda *_: seen.append(hooks(model)),
        on_train_epoch_end=lambda *_: seen.append(vars(model).get("training_step", [])),
    )
    make_trainer(DistillationCallback(output="net", features=["net.0"]), look).fit(model, loader)
    assert seen == [[]] * len(seen) != []
    assert not hooks(model)
    assert "training_step" not in vars(model)


@pytest.mark.parametrize("fails", ["in the step", "in the net"])
def test_nothing_is_left_on_the_module_after_an_exception(fails, make_trainer, loader):
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3 and fails == "in the net":
                self.net(torch.zeros(1, 3))
            loss = super().training_step(batch, batch_idx)
            assert batch_idx < 3
            return loss

    model = make(Failing)
    with pytest.raises((AssertionError, RuntimeError)):
        make_trainer(DistillationCallback(output="net", features=["net.0"])).fit(model, loader)
    assert not hooks(model)
    assert "training_step" not in vars(model)


def test_a_training_step_of_the_instance_is_put_back(make_trainer, loader):
    model = make()
    own = model.training_step
    model.training_step = own
    make_trainer(DistillationCallback(output="net"), max_epochs=1).fit(model, loader)
    assert vars(model)["training_step"] is own


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_is_skipped(make_trainer, loader):
    class Skipping(Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    model = make(Skipping)
    trainer = make_trainer(DistillationCallback(output="net"), max_epochs=1)
    trainer.fit(model, loader)
    assert "distillation_loss" in trainer.callback_metrics


def test_hooks_of_this_package_are_not_copied_to_the_teacher(make_trainer, loader):
    def observe(*_):
        calls.append(1)

    observe.__module__ = "lightning_prune.criteria"
    model, calls = make(), []
    model.net[0].register_forward_hook(observe)
    make_trainer(DistillationCallback(output="net"), max_epochs=1).fit(model, loader)
    assert len(calls) == len(loader)
    assert hooks(model) == [observe]


# -- beside others ------------------------------------------------


@pytest.mark.works_with(
    SECTION, "`PruningCallback` and `EMAWeightAveraging`, in any order: exact masks"
)
@pytest.mark.parametrize("average", [False, True])
def test_masks_are_exact_and_the_order_of_callbacks_does_not_matter(average, make_trainer, loader):
    ends = []
    for turn in (1, -1):
        pruning, distillation = PruningCallback(sparsity=0.75), DistillationCallback(output="net")
        teach_by(distillation, make(seed=7))
        callbacks = [pruning, distillation, *([EMAWeightAveraging(decay=0.9)] * average)][::turn]
        model = make()
        make_trainer(*callbacks).fit(model, loader, loader)
        parameters = dict(model.named_parameters())
        assert pruning.sparsity == 0.75
        for name, mask in pruning.masks.items():
            assert torch.equal(parameters[name] != 0, mask)
        ends.append(frozen(dict(model.state_dict())))
    assert ends[0] == ends[1]


@pytest.mark.works_with(SECTION, "`bf16-mixed`")
def test_bf16_mixed_is_taught_alike(teacher, make_trainer, loader):
    model = make()
    trainer = make_trainer(DistillationCallback(teacher, output="net"), precision="bf16-mixed")
    trainer.fit(model, loader)
    expected, losses = by_hand(loader, temperature=4.0)
    assert trainer.callback_metrics["distillation_loss"].dtype == torch.float32
    assert trainer.callback_metrics["distillation_loss"].item() == pytest.approx(losses[-1], 0.1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=0.1, atol=0.05)


@pytest.mark.works_with(SECTION, "a gradient scaler")
def test_scaled_gradients_are_those_of_both_losses(teacher, make_trainer, loader):
    """Under a scale of 2**10 in single precision all is as without it."""

    class Single(MixedPrecision):
        def forward_context(self):
            return torch.autocast("cpu", enabled=False)

    model = make()
    plugin = Single("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    make_trainer(DistillationCallback(teacher, output="net"), plugins=[plugin]).fit(model, loader)
    close(model, by_hand(loader, temperature=4.0)[0])


@pytest.mark.works_with(SECTION, "`bf16-true`")
def test_bf16_true_teaches_in_its_precision(teacher, make_trainer, loader):
    model = make()
    distillation = DistillationCallback(teacher, output="net")
    make_trainer(distillation, precision="bf16-true").fit(model, loader)
    assert {p.dtype for p in distillation._model.parameters()} == {torch.bfloat16}
    assert model.net[0].weight.isfinite().all()


def fit_replica(folder, teacher):
    model = Net()
    distillation = DistillationCallback(teacher, output="net", features=["net.0"])
    data = shared_loader().dataset
    shared = DataLoader(data, batch_size=8, sampler=DistributedSampler(data, shuffle=False))
    make_trainer(folder, DDPStrategy(), distillation).fit(model, shared)
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.works_with(SECTION, "DDP: as one process with the batches of both")
@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_replicas_are_taught_alike_and_as_one_process_with_their_batches(two, tmp_path):
    torch.save({n: v + 0.1 for n, v in Net().state_dict().items()}, tmp_path / "teacher.pt")
    one, other = two(fit_replica, tmp_path, tmp_path / "teacher.pt")
    assert_equal(one, other)
    model = Net()
    distillation = DistillationCallback(tmp_path / "teacher.pt", output="net", features=["net.0"])
    halves = torch.arange(64).reshape(-1, 2).T  # what each process is given
    order = torch.cat([half.reshape(4, 8) for half in halves], dim=1).flatten().tolist()
    batches = DataLoader(Subset(shared_loader().dataset, order), batch_size=16)
    make_trainer(tmp_path, "auto", distillation).fit(model, batches)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-4)


# -- stop and resume ------------------------------------------------


@pytest.mark.works_with(SECTION, "stop and resume after any step, snapshot or file: bit for bit")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["snapshot", "file"])
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(kind, teacher, tmp_path):
    def run(*callbacks, **options):
        distillation = DistillationCallback(
            teacher if kind == "file" else None, output="net", features=["net.1"]
        )
        return fit(distillation, *callbacks, pruning=PruningCallback(), **options)

    whole, save = run(model=make()), Save(tmp_path)
    assert not whole.differences(run(save, model=make()))
    for step in save.saved:
        # Another start, which a new snapshot would teach.
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1, model=make(seed=3))
        assert not whole.after(step).differences(resumed), step
    assert len(save.saved) == STEPS


def test_a_snapshot_is_of_the_weights_when_training_starts(make_trainer, loader, tmp_path):
    model, distillation = make(), DistillationCallback(output="net")
    make_trainer(PruningCallback(), distillation).fit(model, loader)
    first = distillation.state_dict()["teacher"]
    assert frozen(dict(first)) == frozen(dict(make().state_dict()))
    trained = frozen(dict(model.state_dict()))
    make_trainer(distillation).fit(model, loader)
    assert frozen(dict(distillation.state_dict()["teacher"])) == trained
    trainer = make_trainer()
    trainer.fit(make(seed=5), loader)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    dense = torch.load(tmp_path / "dense.ckpt", weights_only=True)["state_dict"]
    trainer = make_trainer(distillation, max_epochs=3)
    trainer.fit(make(), loader, ckpt_path=tmp_path / "dense.ckpt", weights_only=True)
    assert frozen(dict(distillation.state_dict()["teacher"])) == frozen(dict(dense))


def test_a_checkpoint_of_lightning_teaches(teacher, make_trainer, loader, tmp_path):
    torch.save({"state_dict": torch.load(teacher), "epoch": 3}, tmp_path / "teacher.ckpt")
    distillation, model = DistillationCallback(str(tmp_path / "teacher.ckpt"), output="net"), make()
    make_trainer(distillation).fit(model, loader)
    close(model, by_hand(loader, temperature=4.0)[0])


def test_a_file_is_not_saved_but_another_one_in_its_place_is_refused(teacher, tmp_path):
    save = Save(tmp_path)
    distillation = DistillationCallback(teacher, output="net")
    fit(distillation, save, model=make())
    assert distillation.state_dict().keys() == {"path", "digest"}
    path = tmp_path / f"{save.saved[2]}.ckpt"
    with pytest.raises(ValueError, match=r"need the teacher of the run .* got teacher=None; write"):
        fit(DistillationCallback(output="net"), resume=path)
    elsewhere = tmp_path / "elsewhere.pt"
    torch.save(make(seed=8).state_dict(), elsewhere)
    fit(DistillationCallback(elsewhere, output="net"), resume=path)
    torch.save(make(seed=8).state_dict(), teacher)
    with pytest.raises(ValueError, match="need the teacher that the run was started with, got ano"):
        fit(DistillationCallback(teacher, output="net"), resume=path)


def test_resuming_a_finished_run_keeps_the_teacher(tmp_path):
    save, distillation = Save(tmp_path), DistillationCallback(output="net")
    fit(distillation, save, model=make())
    again = DistillationCallback(output="net")
    fit(again, resume=tmp_path / f"{save.saved[-1]}.ckpt")
    assert frozen(again.state_dict()) == frozen(distillation.state_dict())


@pytest.mark.filterwarnings("ignore:.*max_epochs=0")
def test_a_fit_with_nothing_to_train_keeps_the_teacher(make_trainer, loader):
    distillation = DistillationCallback(output="net")
    make_trainer(distillation, max_epochs=1).fit(make(), loader)
    before = frozen(distillation.state_dict())
    make_trainer(distillation, max_epochs=0).fit(make(seed=2), loader)
    assert frozen(distillation.state_dict()) == before


# -- refusals ------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "need temperature > 0, or null .*, got temperature=0"),
        ({"temperature": float("inf")}, "need temperature > 0, .*, got temperature=inf"),
        ({"weight": -1}, "need weight >= 0, got weight=-1"),
        ({"weight": float("nan")}, "need weight >= 0, got weight=nan"),
        ({"features": {"net": -2.0}}, r"need features\['net'\] >= 0, got features\['net'\]=-2.0"),
        ({"temperature": None}, "need a temperature or features, got temperature=None, features"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationCallback(**arguments)


class Manual(Classifier):
    automatic_optimization = False


class Compiled(Classifier):
    def __init__(self):
        super().__init__()
        self.net[1].compile()


class Deep(Classifier):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net[2](self.net[:2](batch[0])), batch[1])


class Changing(Classifier):
    def __init__(self):
        super().__init__()
        self.net.insert(0, nn.ReLU(inplace=True))


class Moody(Classifier):
    def forward(self, x):
        x = self.net[1](self.net[0](x))
        return self.net[2](self.net[1](x) if self.training == self.more else x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class More(Moody):
    more = True


class Fewer(Moody):
    more = False


class Tupled(Forwarding):
    def forward(self, x):
        return [self.net(x)]

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0])[0], batch[1])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        pytest.param(
            Manual,
            {},
            "need a training_step that returns its loss, got automatic_optimization=False",
            marks=pytest.mark.works_with(SECTION, "manual optimization", refused=True),
        ),
        pytest.param(
            Compiled,
            {},
            "need modules that are not compiled, got 'net.1'",
            marks=pytest.mark.slow,  # it loads the compiler
        ),
        (Classifier, {}, r"calls self.forward \(output='forward'\) .*: 'net'$"),
        (Classifier, {"output": "head"}, "need 'forward' or a module's name, got 'head': 'net', "),
        (Classifier, {"features": ["x"]}, "need 'forward' or a module's name, got 'x': 'net', "),
        (Deep, {"output": "net.2"}, "need 'net.2' .* to be given data, got the output of layers"),
        (Deep, {"output": "net.0", "features": ["net.2"]}, "need features .* got 'net.2'"),
        (Changing, {"output": "net"}, "to leave its inputs as they are, got one"),
        (More, {"features": ["net.1"]}, "got 'net.1', which the student called more than 1 times"),
        (Fewer, {"features": ["net.1"]}, "got 'net.1', which the student called 1 of 2 times"),
        (Tupled, {}, "need a tensor of logits, .* got list"),
        (
            Tupled,
            {"features": ["forward"], "temperature": None},
            "need a tensor, or a tuple .* got list",
        ),
        (Classifier, {"teacher": "other.pt"}, "need a checkpoint of this module, got teacher="),
    ],
)
def test_what_cannot_be_taught_is_refused(
    kind, arguments, message, make_trainer, loader, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({"net.0.weight": torch.zeros(32, 16)}, "other.pt")
    model = make(kind)
    with pytest.raises(ValueError, match=message):
        make_trainer(DistillationCallback(**arguments)).fit(model, loader)
    assert not hooks(model)


@pytest.mark.works_with(SECTION, "compiled modules", refused=True)
def test_a_compiled_module_is_refused(make_trainer, loader):
    model = torch.compile(make())
    with pytest.raises(ValueError, match="need modules that are not compiled, got 'Classifier'"):
        make_trainer(DistillationCallback(output="net")).fit(model, loader)


@pytest.mark.works_with(SECTION, "FSDP, `ModelParallelStrategy`, DeepSpeed", refused=True)
@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_shards_are_refused(strategy):
    trainer = SimpleNamespace(callbacks=[], strategy=strategy.__new__(strategy))
    with pytest.raises(ValueError, match=f"leaves parameters whole, got {strategy.__name__}"):
        DistillationCallback().setup(trainer, make(), "fit")


def test_a_second_one_is_refused(make_trainer, loader):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Distill"):
        make_trainer(DistillationCallback(), DistillationCallback()).fit(make(), loader)


# -- YAML ------------------------------------------------

CONFIG = """
seed_everything: 0
trainer:
  fast_dev_run: 2
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - class_path: lightning_prune.PruningCallback
      init_args: {{sparsity: 0.95}}
    - class_path: lightning_prune.DistillationCallback
      init_args:
        teacher: {teacher}
        temperature: 2
        features: {features}
model: examples.digits.DigitsClassifier
data: examples.digits.DigitsDataModule
"""


@pytest.mark.slow
@pytest.mark.parametrize("features", ["{net.2: 0.5}", "[net.2, net.5]", "null"])
def test_yaml_says_it_all(features, tmp_path, monkeypatch):
    from examples.digits import DigitsClassifier

    torch.save(DigitsClassifier().state_dict(), tmp_path / "dense.pt")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(teacher=tmp_path / "dense.pt", features=features))
    monkeypatch.setattr(sys, "argv", ["lightning-prune", "fit", "--config", str(config)])
    taught = []
    monkeypatch.setattr(
        DistillationCallback,
        "on_train_end",
        lambda self, trainer, module: taught.append((self, dict(trainer.callback_metrics))),
    )
    cli.main()
    ((distillation, metrics),) = taught
    assert distillation.temperature == 2
    assert distillation.features.get("net.2") == {"{": 0.5, "[": 1.0, "n": None}[features[0]]
    assert metrics["distillation_loss"] > 0
