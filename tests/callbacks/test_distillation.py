"""What a teacher adds to the loss, and what it leaves alone."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

from lightning_prune import DistillationCallback, PruningCallback
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import fit, frozen
from tests.callbacks.teaching import Forwarding, Noisy, by_hand, close, make, soft_loss, teach_by
from tests.hooks import hooks

SECTION = "Distillation"


@pytest.mark.works_with(
    SECTION, "soft targets, features, both, accumulated gradients: equal to a loop by hand"
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
    SECTION, "dropout, noise, batch norm: random numbers and statistics stay the same"
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

    observe.__module__ = "lightning_prune.recipe.criteria"
    model, calls = make(), []
    model.net[0].register_forward_hook(observe)
    make_trainer(DistillationCallback(output="net"), max_epochs=1).fit(model, loader)
    assert len(calls) == len(loader)
    assert hooks(model) == [observe]


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
def test_yaml_says_it_all(features, tmp_path, monkeypatch, prune_cli):
    from examples.digits import DigitsClassifier

    torch.save(DigitsClassifier().state_dict(), tmp_path / "dense.pt")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(teacher=tmp_path / "dense.pt", features=features))
    taught = []
    monkeypatch.setattr(
        DistillationCallback,
        "on_train_end",
        lambda self, trainer, module: taught.append((self, dict(trainer.callback_metrics))),
    )
    prune_cli("fit", "--config", config)
    ((distillation, metrics),) = taught
    assert distillation.temperature == 2
    assert distillation.features.get("net.2") == {"{": 0.5, "[": 1.0, "n": None}[features[0]]
    assert metrics["distillation_loss"] > 0
