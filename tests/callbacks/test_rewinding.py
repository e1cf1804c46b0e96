import io
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import (
    ExponentialSchedule,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    Regrow,
    Rewind,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.models import Gan
from tests.callbacks.replicas import (
    Net,
    Sharded,
    assert_equal,
    assert_pruned,
    loader,
    make_trainer,
    outcome,
)
from tests.callbacks.runs import BATCHES, STEPS, SaliencySum, Save, dataset, fit, frozen

ROUNDS = (4, 8, 12)
in_steps = MultiStepSchedule(milestones=ROUNDS, unit="step")


class Normalised(Classifier):
    """With buffers, momentum and a learning rate that falls at each step."""

    def __init__(self, optimizer: str = "adamw", *, plateau: bool = False) -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
        self.plateau = plateau

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        if self.plateau:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return [optimizer], [{"scheduler": scheduler, "monitor": "loss", "interval": "epoch"}]
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def moment(trainer: Any, model: LightningModule) -> dict[str, Any]:
    """Everything that a rewinding touches, at this moment."""
    (optimizer,) = trainer.optimizers
    state = optimizer.state_dict()
    return {
        "tensors": {name: t.detach().clone() for name, t in model.state_dict().items()},
        "gathered": frozen(state["state"]),
        "groups": frozen(state["param_groups"]),
        "schedulers": [frozen(one.scheduler.state_dict()) for one in trainer.lr_scheduler_configs],
    }


class Watch(Callback):
    """Keeps what is there at the start of each batch, behind our callback, and at its end."""

    def __init__(self) -> None:
        self.starts: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.starts.setdefault(trainer.global_step, moment(trainer, pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.ends[trainer.global_step] = moment(trainer, pl_module)


def watched(
    rewind: Rewind | None, *callbacks: Callback, model: Any = None, schedule: Any = in_steps, **more
) -> tuple[PruningCallback, Watch, Any]:
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, rewind=rewind)
    watch = Watch()
    torch.manual_seed(0)
    run = fit(watch, *callbacks, pruning=pruning, model=model or Normalised(), **more)
    return pruning, watch, run


def under(masks: dict[str, Tensor], tensors: dict[str, Tensor]) -> Any:
    """The tensors with +0.0 wherever these are pruned."""
    pruned = {n: t.masked_fill(~masks[n], 0.0) if n in masks else t for n, t in tensors.items()}
    return frozen(pruned)


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


# -- resumed -------------------------------------------------------------------------------------


REWINDS = {
    "weights to the start": Rewind(),
    "weights to step 3": Rewind(to=3),
    "weights to step 3, the optimizer reset": Rewind(to=3, optimizer="reset"),
    "the learning rate to step 3": Rewind(to=3, what="learning_rate"),
}


@pytest.mark.parametrize(
    "rewind",
    [
        pytest.param(
            rewind,
            id=name,
            marks=pytest.mark.works_with("Stop and resume", f"after any step, `Rewind`, {name}"),
        )
        for name, rewind in REWINDS.items()
    ],
)
def test_a_run_with_rounds_resumed_after_any_step_equals_the_uninterrupted_one(rewind, tmp_path):
    def run(*callbacks, seed=0, **more):
        torch.manual_seed(seed)
        pruning = PruningCallback(
            sparsity=0.75, criterion=SaliencySum(), schedule=in_steps, rewind=rewind
        )
        return fit(*callbacks, pruning=pruning, model=Normalised("sgd"), **more)

    whole, save = run(), Save(tmp_path)
    assert not whole.differences(run(save))
    assert save.saved == list(range(1, STEPS + 1))
    for step in save.saved:
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.works_with("Stop and resume", "exactly at a round's end, rounds at the ends of epochs")
@pytest.mark.parametrize("at", ["last batch", "epoch", "validation"])
def test_a_round_that_ends_with_an_epoch_resumes_exactly(at, tmp_path):
    in_order = DataLoader(dataset(), batch_size=8)

    def run(*callbacks, **more):
        pruning = PruningCallback(
            sparsity=0.75,
            schedule=MultiStepSchedule(milestones=(1, 2), unit="epoch"),
            rewind=Rewind(),
        )
        torch.manual_seed(0)
        model = Normalised(plateau=True)
        return fit(*callbacks, pruning=pruning, model=model, loader=in_order, validate=True, **more)

    whole = run()
    run(Save(tmp_path, at={at}))
    for step in (BATCHES, 2 * BATCHES):
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


def size(value: Any) -> int:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell()


@pytest.mark.works_with(
    "Stop and resume", "what `Rewind` keeps: plain, and loads with `weights_only=True`"
)
def test_what_is_kept_is_on_the_cpu_loads_with_weights_only_and_is_as_large_as_the_model(tmp_path):
    torch.manual_seed(0)
    pruning, _, run = watched(Rewind(to=3), Save(tmp_path), model=Normalised("sgd"))
    state = torch.load(tmp_path / "9.ckpt", weights_only=True)["callbacks"]["PruningCallback"]
    kept = state["rewind"]
    assert {t.device.type for t in kept["tensors"].values()} == {"cpu"}
    model = size(dict(run.model.state_dict()))
    momentum = size(run.trainer.optimizers[0].state_dict())
    assert size(kept) < model + momentum + 2048
    pruning, _, _ = watched(Rewind(), Save(tmp_path), model=Normalised("sgd"))
    assert size(pruning.state_dict()["rewind"]) < model + 2048  # it had gathered nothing yet
    pruning, _, _ = watched(Rewind(what="learning_rate"), Save(tmp_path), model=Normalised("sgd"))
    assert size(pruning.state_dict()["rewind"]) < 3072


@pytest.mark.works_with(
    "Stop and resume", "a checkpoint written without `Rewind`, before step `to`"
)
def test_a_checkpoint_from_before_the_step_may_lack_the_rewind(tmp_path):
    def run(rewind, *callbacks, **more):
        torch.manual_seed(0)
        pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=rewind)
        return fit(*callbacks, pruning=pruning, model=Normalised(), **more)

    run(None, Save(tmp_path))
    resumed = run(Rewind(to=3), resume=tmp_path / "3.ckpt")
    assert not run(Rewind(to=3)).after(3).differences(resumed)


@pytest.mark.works_with(
    "Stop and resume", "a checkpoint whose `Rewind` is another, after step `to`", refused=True
)
@pytest.mark.parametrize(
    "other",
    [None, Rewind(to=2), Rewind(to=3, what="learning_rate"), Rewind(to=3, optimizer="reset")],
)
def test_a_checkpoint_that_cannot_be_gone_back_from_is_refused(other, tmp_path):
    watched(other, Save(tmp_path))
    with pytest.raises(ValueError, match=r"written with the same rewind.* got one of step 9 with"):
        watched(Rewind(to=3), resume=tmp_path / "9.ckpt")


def test_a_reset_needs_what_the_optimizer_began_with(tmp_path):
    watched(None, Save(tmp_path))
    with pytest.raises(ValueError, match=r"got one of step 2 with none"):
        watched(Rewind(to=3, optimizer="reset"), resume=tmp_path / "2.ckpt")


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": -1}, "need a whole number of steps to >= 0, got to=-1"),
        ({"to": 0.5}, "got to=0.5"),
        ({"what": "mask"}, "need what 'weights' or 'learning_rate', got what='mask'"),
        ({"optimizer": "keep"}, "need optimizer 'rewind' or 'reset', got optimizer='keep'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rewind(**arguments)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (None, r"with rounds .* got PolynomialSchedule; use MultiStepSchedule"),
        (PolynomialSchedule(end=0.5), "got PolynomialSchedule"),
        (MultiStepSchedule(milestones=(0.5, 1)), "need training after the last round"),
    ],
)
def test_schedules_without_rounds_or_training_behind_them_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        PruningCallback(schedule=schedule, rewind=Rewind())


def test_regrowth_is_refused():
    with pytest.raises(ValueError, match="need either rewind or regrow, got both"):
        PruningCallback(schedule=in_steps, rewind=Rewind(), regrow=Regrow())


@pytest.mark.parametrize(
    ("to", "schedule"),
    [
        (0, OneShotSchedule(end=0)),
        (4, OneShotSchedule(end=4, unit="step")),
        (5, MultiStepSchedule(milestones=(1, 2), unit="epoch")),
        (8, OneShotSchedule(end=0.5)),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_at_or_behind_the_first_round_is_refused_when_training_starts(
    to, schedule, accumulate
):
    class Never(Callback):
        def on_train_batch_start(self, *_):
            raise AssertionError

    with pytest.raises(ValueError, match=f"before the first update .* got to={to}"):
        watched(Rewind(to=to), Never(), schedule=schedule, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize(
    ("to", "schedule"),
    [
        (3, in_steps),
        (4, MultiStepSchedule(milestones=(1, 2), unit="epoch")),
        (7, OneShotSchedule(end=0.5)),
    ],
)
def test_the_last_step_before_the_first_round_will_do(to, schedule):
    assert watched(Rewind(to=to), schedule=schedule)[0].sparsity == 0.75


@pytest.mark.parametrize(
    "plan",
    [
        {"to": 3, "schedule": OneShotSchedule(end=1, unit="epoch"), "accumulate_grad_batches": 2},
        {"to": 4, "schedule": OneShotSchedule(end=0.5), "max_steps": 8, "max_epochs": -1},
    ],
)
def test_the_step_is_compared_by_what_is_planned(plan):
    to = plan.pop("to")
    with pytest.raises(ValueError, match=f"before the first update .* got to={to}"):
        watched(Rewind(to=to), **plan)
    assert watched(Rewind(to=to - 1), **plan)[0].sparsity == 0.75


def test_a_dense_checkpoint_from_behind_the_first_round_is_refused(tmp_path):
    torch.manual_seed(0)
    fit(Save(tmp_path), model=Normalised())
    schedule = MultiStepSchedule(milestones=(1, 2), unit="epoch")
    pruning, _, _ = watched(Rewind(), schedule=schedule, resume=tmp_path / "4.ckpt")
    assert pruning.sparsity == 0.75
    with pytest.raises(ValueError, match=r"before the first update .* got to=0"):
        watched(Rewind(), schedule=schedule, resume=tmp_path / "5.ckpt")


def test_several_optimizers_are_refused():
    pruning = PruningCallback(schedule=in_steps, rewind=Rewind())
    with pytest.raises(ValueError, match="need one optimizer with rewind, got 2"):
        fit(pruning=pruning, model=Gan())


def test_averaged_weights_are_refused():
    with pytest.raises(ValueError, match=r"without averaged weights .* got EMAWeightAveraging"):
        watched(Rewind(), EMAWeightAveraging())


def test_weights_that_are_not_there_yet_are_refused_unless_step_1_will_do():
    class Lazy(Classifier):
        def __init__(self):
            super().__init__()
            self.net[2] = nn.LazyLinear(4)

    with pytest.raises(ValueError, match=r"need initialised parameters .*'net.2.weight'; set to=1"):
        watched(Rewind(), model=Lazy())
    pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=Rewind(to=1))
    fit(pruning=pruning, model=Lazy())
    assert set(pruning.masks) == {"net.0.weight", "net.2.weight"}
    assert pruning.sparsity == 0.75


def test_an_optimizer_that_has_gained_parameters_is_refused():
    class Growing(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[0].parameters(), lr=0.1)

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.optimizers().add_param_group({"params": list(self.net[2].parameters())})

    with pytest.raises(RuntimeError, match="the optimizer's parameters of step 0"):
        watched(Rewind(), model=Growing())


def test_tensors_that_have_changed_are_refused():
    class Growing(Classifier):
        def on_train_epoch_start(self):
            self.register_buffer("seen", torch.zeros(1 + self.current_epoch))
            if self.current_epoch == 1:
                self.late = nn.Linear(2, 2)

    with pytest.raises(RuntimeError, match=r"others by now: late.bias, late.weight, seen$"):
        watched(Rewind(), model=Growing(), schedule=OneShotSchedule(end=8, unit="step"))


# -- several processes ---------------------------------------------------------------------------


def fit_replicas_in_rounds(folder):
    pruning = PruningCallback(
        sparsity=0.75, schedule=MultiStepSchedule(milestones=(0.3, 0.6)), rewind=Rewind(to=1)
    )
    model = Net()
    make_trainer(folder, DDPStrategy(), pruning).fit(model, loader())
    return *outcome(pruning, model), pruning.state_dict()["rewind"]["tensors"]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.works_with("Replicas and shards", "DDP with `Rewind`: the same on all processes")
def test_replicas_go_back_to_the_same_weights(two, tmp_path):
    (masks, weights, kept), (other_masks, other_weights, other_kept) = two(
        fit_replicas_in_rounds, tmp_path
    )
    assert_equal(masks, other_masks)
    assert_equal(weights, other_weights)
    assert_equal(kept, other_kept)
    assert_pruned(masks, weights)


def fit_shards_in_rounds(folder):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(), rewind=Rewind())
    with pytest.raises(ValueError, match="need parameters in one piece with rewind, got 'net"):
        make_trainer(folder, strategy, pruning).fit(Sharded(), loader())


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.works_with("Replicas and shards", "FSDP2 with `Rewind`", refused=True)
def test_shards_are_refused(two, tmp_path):
    two(fit_shards_in_rounds, tmp_path)
