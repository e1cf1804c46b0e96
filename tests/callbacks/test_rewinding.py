"""What goes back at a round of pruning, and when."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from lightning_prune import (
    ExponentialSchedule,
    MultiStepSchedule,
    OneShotSchedule,
    PruningCallback,
    Rewind,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.rounds import ROUNDS, Normalised, Watch, in_steps, under, watched
from tests.callbacks.runs import BATCHES, STEPS, SaliencySum, fit, frozen

# -- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("adamw", "32"), ("adamw", "bf16-mixed"), ("sgd", "64"), ("adagrad", "32")],
)
@pytest.mark.parametrize("to", [0, 3])
def test_weights_and_buffers_are_bit_equal_to_those_of_step_k_under_the_mask(
    to, optimizer, precision
):
    masks = []

    class Masks(Callback):
        def on_train_batch_start(self, trainer, *_):
            masks.append({name: mask.clone() for name, mask in pruning.masks.items()})

    pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=Rewind(to=to))
    watch = Watch()
    fit(watch, Masks(), pruning=pruning, model=Normalised(optimizer), precision=precision)
    for number, step in enumerate(ROUNDS, start=1):
        assert sum(int(mask.sum()) for mask in masks[step].values()) == 640 - number * 160
        assert frozen(watch.starts[step]["tensors"]) == under(
            masks[step], watch.starts[to]["tensors"]
        )
        assert frozen(watch.ends[step]["tensors"]) != frozen(watch.starts[step]["tensors"])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_go_back_as_plain_ones():
    def run(*, compiled):
        pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=Rewind(to=3))
        torch.manual_seed(0)
        model = Normalised()
        if compiled:
            model.net[0].compile(backend="eager")
            model.net[3] = torch.compile(model.net[3], backend="eager")
        return fit(pruning=pruning, model=model)

    plain, compiled = run(compiled=False), run(compiled=True)
    assert list(plain.weights.values()) == list(compiled.weights.values())
    assert plain.state == compiled.state


def test_momentum_learning_rate_and_schedulers_go_back_with_the_weights():
    _, watch, _ = watched(Rewind(to=3), model=Normalised("sgd"))
    for step in ROUNDS:
        for part in ("groups", "schedulers"):
            assert watch.starts[step][part] == watch.starts[3][part]
            assert watch.ends[step][part] != watch.starts[3][part]
    assert watch.starts[2]["groups"] != watch.starts[3]["groups"]


class Momenta(Callback):
    """Keeps the momentum of each tensor at the start of each batch."""

    def __init__(self) -> None:
        self.starts: dict[int, dict[str, Tensor | None]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        (optimizer,) = trainer.optimizers
        self.starts[trainer.global_step] = {
            name: (optimizer.state[p]["momentum_buffer"].clone() if p in optimizer.state else None)
            for name, p in pl_module.named_parameters()
        }


def test_the_momentum_goes_back_to_that_of_step_k_and_is_zero_where_pruned():
    momenta = Momenta()
    pruning, _, _ = watched(
        Rewind(to=3), momenta, model=Normalised("sgd"), schedule=OneShotSchedule(end=8, unit="step")
    )
    assert frozen(momenta.starts[8]) == under(pruning.masks, momenta.starts[3])
    assert any((momenta.starts[3][name][~mask] != 0).any() for name, mask in pruning.masks.items())


@pytest.mark.parametrize("what", ["weights", "learning_rate"])
def test_a_reset_optimizer_is_as_at_the_start(what):
    momenta = Momenta()
    _, watch, _ = watched(
        Rewind(to=3, what=what, optimizer="reset"), momenta, model=Normalised("sgd")
    )
    for step in ROUNDS:
        assert set(momenta.starts[step].values()) == {None}
        assert watch.starts[step]["groups"] == watch.starts[3]["groups"]


def test_adagrad_is_reset_to_what_it_starts_with():
    _, watch, _ = watched(Rewind(to=3, optimizer="reset"), model=Normalised("adagrad"))
    assert watch.starts[8]["gathered"] == watch.starts[0]["gathered"] != {}


# -- the learning rate alone ---------------------------------------------------------------------


@pytest.mark.parametrize("to", [0, 3])
def test_the_learning_rate_alone_goes_back_and_the_weights_stay_as_trained(to):
    schedule = OneShotSchedule(end=8, unit="step")
    pruning, watch, _ = watched(Rewind(to=to, what="learning_rate"), schedule=schedule)
    assert frozen(watch.starts[8]["tensors"]) == under(pruning.masks, watch.ends[8]["tensors"])
    for part in ("groups", "schedulers"):
        assert watch.starts[8][part] == watch.starts[to][part] != watch.ends[8][part]


def test_a_plateau_is_forgotten():
    _, watch, _ = watched(
        Rewind(),
        model=Normalised(plateau=True),
        schedule=OneShotSchedule(end=2, unit="epoch"),
        max_epochs=4,
    )
    assert watch.starts[2 * BATCHES]["schedulers"] == watch.starts[0]["schedulers"]
    assert watch.ends[2 * BATCHES]["schedulers"] != watch.starts[0]["schedulers"]


def test_a_learning_rate_in_a_tensor_goes_back_in_place():
    class Capturable(Classifier):
        def configure_optimizers(self):
            self.rate = torch.tensor(0.1)
            optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
            decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": decay, "interval": "step"}]

    model = Capturable()
    _, _, run = watched(Rewind(), model=model)
    assert run.trainer.optimizers[0].param_groups[0]["lr"] is model.rate
    assert float(model.rate) == pytest.approx(0.1 * 0.5 ** (STEPS - ROUNDS[-1]))


def test_a_scheduler_that_notes_things_down_goes_back_each_time():
    class Noting(torch.optim.lr_scheduler.ExponentialLR):
        def __init__(self, optimizer):
            self.notes = []
            super().__init__(optimizer, 0.9)

        def step(self, *arguments):
            self.notes.append("a step")
            super().step(*arguments)

    class Noted(Classifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [{"scheduler": Noting(optimizer), "interval": "step"}]

    _, watch, _ = watched(Rewind(), model=Noted())
    for step in ROUNDS:
        assert watch.starts[step]["schedulers"] == watch.starts[0]["schedulers"]


def test_lbfgs_forgets_directions_that_pruned_weights_had():
    class Evaluating(Classifier):
        def training_step(self, batch, batch_idx):
            for name, mask in pruning.masks.items():
                assert not self.get_parameter(name).detach()[~mask].any()
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=Rewind(to=3))
    fit(pruning=pruning, model=Evaluating())
    assert pruning.sparsity == 0.75


def test_an_optimizer_that_is_replaced_goes_back_too():
    class Replacing(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.trainer.strategy.optimizers = [self.configure_optimizers()]

    _, watch, _ = watched(
        Rewind(to=3), model=Replacing(), schedule=OneShotSchedule(end=1, unit="epoch")
    )
    assert frozen(watch.starts[5]["groups"]) == frozen(watch.starts[3]["groups"])
    assert watch.starts[5]["gathered"] != {}


# -- when ----------------------------------------------------------------------------------------


def test_masks_change_at_the_first_batch_start_and_the_curve_is_that_without_rewinding():
    def curve(rewind):
        run = watched(rewind)[2]
        names = ("sparsity", "sparsity_target")
        return {at: [logged[name] for name in names] for at, logged in run.curve.items()}

    assert curve(Rewind()) == curve(None)
    assert [one for one, _ in curve(Rewind()).values()] == [0] * 4 + [0.25] * 4 + [0.5] * 4 + [
        0.75
    ] * 3


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [
        (MultiStepSchedule(milestones=(1, 2), unit="epoch"), (5, 10)),
        (MultiStepSchedule(milestones=(0.2, 0.6)), (3, 9)),
        (ExponentialSchedule(begin=2, end=14, every=6, unit="step"), (8, 14)),
        (OneShotSchedule(end=0.5), (8,)),
    ],
)
def test_rounds_are_due_in_any_unit(schedule, rounds):
    _, watch, _ = watched(Rewind(), schedule=schedule)
    start = watch.starts[0]["groups"]
    assert [step for step in range(1, STEPS) if watch.starts[step]["groups"] == start] == [*rounds]


def test_masks_do_not_change_while_gradients_accumulate():
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            gradient = pl_module.net[0].weight.grad
            seen.append((trainer.global_step, pruning.sparsity, gradient is None))

    schedule = MultiStepSchedule(milestones=(3, 6), unit="step")
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, rewind=Rewind())
    fit(Look(), pruning=pruning, model=Normalised(), accumulate_grad_batches=2)
    # Three steps an epoch of five batches; no gradient is left of the weights before a round.
    assert [sparsity for _, sparsity, _ in seen] == [0] * 5 + [0.375] * 5 + [0.75] * 5
    assert [batch for batch, (*_, none) in enumerate(seen) if none] == [0, 5, 10]


def test_an_end_with_the_last_step_cannot_be_served_while_gradients_accumulate():
    schedule = MultiStepSchedule(milestones=(1, 3), unit="epoch")
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, rewind=Rewind())
    with pytest.warns(UserWarning, match="stopped before the schedule's end=3"):
        fit(
            pruning=pruning,
            model=Normalised(),
            accumulate_grad_batches=2,
            limit_train_batches=4,
        )
    assert pruning.sparsity == 0.375


def test_a_round_that_prunes_nothing_goes_back_nowhere():
    def run(pruning):
        torch.manual_seed(0)
        return fit(pruning=pruning, model=Normalised())

    dense = run(None)
    run = run(PruningCallback(sparsity=0.0, schedule=in_steps, rewind=Rewind()))
    assert (run.weights, run.optimizers) == (dense.weights, dense.optimizers)


def test_a_criterion_scores_what_it_gathered_before_the_weights_go_back():
    def masks(end, rewind):
        schedule = OneShotSchedule(end=end, unit="step")
        pruning = PruningCallback(
            sparsity=0.75, criterion=SaliencySum(), schedule=schedule, rewind=rewind
        )
        torch.manual_seed(0)
        fit(pruning=pruning, model=Normalised())
        return frozen(pruning.masks)

    # Without rewinding, the eighth step is observed before the masks are made.
    assert masks(8, Rewind()) == masks(7, None)


def test_a_trial_run_goes_back_to_its_start():
    pruning, watch, _ = watched(
        Rewind(to=3), schedule=MultiStepSchedule(milestones=(0.2, 0.5)), fast_dev_run=4
    )
    assert pruning.sparsity == 0.75
    assert watch.starts[2]["groups"] == watch.starts[0]["groups"] != watch.starts[1]["groups"]


def test_manual_optimization_goes_back_between_its_batches():
    class ByHand(Normalised):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    pruning, watch, _ = watched(
        Rewind(to=2), model=ByHand(), schedule=MultiStepSchedule(milestones=(5, 12), unit="step")
    )
    assert pruning.sparsity == 0.75
    back = [
        s
        for s in watch.starts
        if watch.starts[s]["gathered"] != watch.ends.get(s, {}).get("gathered")
    ]
    assert back == [0, 6, 12]  # the fifth step is in the middle of a batch
