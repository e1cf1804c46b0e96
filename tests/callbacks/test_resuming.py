import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from lightning_prune import (
    BlockPattern,
    CosineSchedule,
    ERKAllocation,
    ExponentialSchedule,
    FisherCriterion,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    MovementCriterion,
    MultiStepSchedule,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    RandomCriterion,
    Regrow,
    SparsityMonitor,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.models import Gan
from tests.callbacks.runs import (
    BATCHES,
    EPOCHS,
    STEPS,
    SaliencySum,
    Save,
    dataset,
    fit,
    frozen,
)
from tests.commands import ROOT

CRITERIA = {
    "magnitude": MagnitudeCriterion(),
    "random": RandomCriterion(),
    "a criterion with state": SaliencySum(),
}
ALL_CRITERIA = [
    pytest.param(
        criterion,
        id=name,
        marks=pytest.mark.works_with("Stop and resume", f"after any step, {name}"),
    )
    for name, criterion in CRITERIA.items()
] + [
    pytest.param(
        criterion(),
        id=criterion.__name__,
        marks=pytest.mark.works_with("Stop and resume", "after any step, a criterion with state"),
    )
    for criterion in (TaylorCriterion, FisherCriterion, MovementCriterion, WandaCriterion)
]
plain = {"loader": DataLoader(dataset(), batch_size=8)}


@pytest.mark.parametrize("criterion", ALL_CRITERIA)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(criterion, tmp_path):
    def pruning():
        every = 0.2 if criterion.forgets else None  # so that there is something to forget
        return PruningCallback(criterion=criterion, schedule=PolynomialSchedule(every=every))

    whole, save = fit(pruning=pruning()), Save(tmp_path)
    assert not whole.differences(fit(save, pruning=pruning()))
    assert save.saved == list(range(1, STEPS + 1))
    for step in save.saved:
        resumed = fit(pruning=pruning(), resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.parametrize("at", ["last batch", "epoch", "validation"])
@pytest.mark.works_with("Stop and resume", "at the end of an epoch, plain `DataLoader` in order")
def test_a_plain_loader_resumes_exactly_at_the_end_of_an_epoch(at, tmp_path):
    def pruning():
        return PruningCallback(criterion=SaliencySum())

    whole, save = fit(pruning=pruning(), validate=True, **plain), Save(tmp_path, at={at})
    fit(save, pruning=pruning(), validate=True, **plain)
    for step in (BATCHES, 2 * BATCHES):
        assert step in save.saved
        path = tmp_path / f"{step}.ckpt"
        resumed = fit(pruning=pruning(), resume=path, seed=1, validate=True, **plain)
        assert not whole.after(step).differences(resumed)


@pytest.mark.works_with(
    "Stop and resume", "at the end of an epoch, plain `DataLoader` shuffled by `DistributedSampler`"
)
def test_a_sampler_that_is_told_the_epoch_shuffles_alike_after_the_resume(tmp_path):
    def again(*callbacks, **options):
        sampler = DistributedSampler(dataset(), num_replicas=1, rank=0, shuffle=True)
        loader = DataLoader(dataset(), batch_size=8, sampler=sampler)
        return fit(*callbacks, pruning=PruningCallback(), loader=loader, **options)

    whole = again()
    assert fit(pruning=PruningCallback(), **plain).weights != whole.weights
    again(Save(tmp_path, at={"epoch"}))
    for step in (BATCHES, 2 * BATCHES):
        resumed = again(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 on torch 2.13
@pytest.mark.works_with(
    "Stop and resume", "within an epoch, torchdata's `StatefulDataLoader`, shuffled"
)
def test_a_stateful_loader_resumes_exactly_within_an_epoch(tmp_path):
    def again(*callbacks, **options):
        sampler = StatefulDistributedSampler(dataset(), num_replicas=1, rank=0, shuffle=True)
        loader = StatefulDataLoader(dataset(), batch_size=8, sampler=sampler)
        pruning = PruningCallback(criterion=SaliencySum())
        return fit(*callbacks, pruning=pruning, loader=loader, **options)

    whole, save = again(), Save(tmp_path)
    again(save)
    within = [step for step in save.saved if step % BATCHES]
    assert len(within) == EPOCHS * (BATCHES - 1)
    for step in within:
        resumed = again(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.works_with(
    "Stop and resume", "within an epoch, plain `DataLoader`: curve and sparsities, not the weights"
)
def test_a_plain_loader_repeats_data_within_an_epoch_but_the_curve_is_the_same(tmp_path):
    def run(*callbacks, pruning, **options):
        return fit(*callbacks, pruning=pruning, **plain, **options)

    for make_pruning in (PruningCallback, lambda: None):
        whole = run(pruning=make_pruning())
        run(Save(tmp_path), pruning=make_pruning())
        resumed = run(pruning=make_pruning(), resume=tmp_path / "7.ckpt", seed=1)
        assert resumed.weights != whole.weights  # also without us
        assert resumed.curve == whole.after(7).curve


class Scheduled(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@pytest.mark.parametrize(
    ("make_model", "options"),
    [
        pytest.param(
            *case, id=name, marks=pytest.mark.works_with("Stop and resume", f"after a step, {name}")
        )
        for name, case in {
            "accumulated gradients": (Classifier, {"accumulate_grad_batches": 2}),
            "clipped gradients": (Classifier, {"gradient_clip_val": 0.1}),
            "a learning rate per step": (Scheduled, {}),
            "`max_steps` alone": (Classifier, {"max_steps": 12, "max_epochs": -1}),
            "validation within the epoch": (
                Classifier,
                {"validate": True, "val_check_interval": 2},
            ),
            "two optimizers by hand": (Gan, {}),
        }.items()
    ],
)
def test_whatever_else_the_trainer_does_resumes_exactly(make_model, options, tmp_path):
    def run(*callbacks, seed=0, **more):
        torch.manual_seed(seed)
        pruning = PruningCallback(criterion=SaliencySum())
        return fit(*callbacks, pruning=pruning, model=make_model(), **options, **more)

    whole, save = run(), Save(tmp_path)
    run(save)
    for step in save.saved[1:-1:2]:
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        first = min(resumed.curve, default=STEPS)  # loggers count batches
        assert not whole.after(first).differences(resumed), step


@pytest.mark.works_with("Stop and resume", "the curves of `SparsityMonitor`")
def test_the_monitor_logs_the_same_points_after_a_resume(tmp_path):
    schedule = PolynomialSchedule(begin=2, end=10, every=4, unit="step")

    def run(*callbacks, **options):
        pruning = PruningCallback(schedule=schedule, criterion=RandomCriterion())
        return fit(SparsityMonitor(), *callbacks, pruning=pruning, **options)

    whole = run()
    assert [step for step, logged in whole.curve.items() if "sparsity/overall" in logged] == [
        2,
        6,
        10,
    ]
    run(Save(tmp_path))
    for step in (1, 4, 6, 8, 13):
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert resumed.curve == whole.after(step).curve, step


@st.composite
def recipes(draw: Any) -> tuple[dict[str, Any], int]:
    """Draw the five answers, but for what is refused by name, and a number of batches a step."""
    accumulate = draw(st.sampled_from([1, 2]))
    steps = EPOCHS * -(-BATCHES // accumulate)
    unit, step = draw(
        st.sampled_from([("fraction", 1 / steps), ("epoch", EPOCHS / steps), ("step", 1)])
    )
    begin, end = sorted(draw(st.lists(st.integers(0, steps), min_size=2, max_size=2, unique=True)))
    every = draw(st.sampled_from([None, 2 * step]))
    ramp = {"begin": begin * step, "end": end * step, "every": every, "unit": unit}
    pattern = draw(
        st.sampled_from(
            [
                UnstructuredPattern(),
                UnstructuredPattern(per_row=True),
                NMPattern(n=1, m=4),
                NMPattern(n=2, m=4),
                BlockPattern(shape=(4, 4)),
                BlockPattern(shape=(1, 2)),
            ]
        )
    )
    recipe = {
        "sparsity": draw(
            st.sampled_from([0.75, 0.9, 1.0, {"*": 0.9, "net.2": 0.75}, {"net.0": 0.8}])
        ),
        "schedule": draw(
            st.sampled_from(
                [
                    PolynomialSchedule(**ramp),
                    PolynomialSchedule(**ramp, initial=0.3, power=1),
                    CosineSchedule(**ramp),
                    ExponentialSchedule(**ramp),
                    OneShotSchedule(end=end * step, unit=unit),
                    MultiStepSchedule(milestones=(begin * step, end * step), unit=unit),
                ]
            )
        ),
        "allocation": draw(
            st.sampled_from(
                [
                    None,
                    UniformAllocation(),
                    GlobalAllocation(),
                    ERKAllocation(scale=0.5),
                    LAMPAllocation(),
                ]
            )
        ),
        "criterion": draw(
            st.sampled_from([MagnitudeCriterion(), RandomCriterion(seed=3), SaliencySum()])
        ),
        "pattern": pattern,
        "regrow": draw(
            st.sampled_from(
                [
                    None,
                    Regrow(schedule=CosineSchedule(**ramp)),
                    Regrow(schedule=CosineSchedule(**ramp), criterion=RandomCriterion()),
                    Regrow(schedule=PolynomialSchedule(**ramp), share=1.0, first=None),
                ]
            )
        ),
    }
    return recipe, accumulate


@pytest.mark.slow
@pytest.mark.works_with("Stop and resume", "any recipe, interrupted twice at random (hypothesis)")
@settings(
    max_examples=40,
    phases=[Phase.generate],  # to shrink a failure would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    drawn=recipes(),
    optimizer=st.sampled_from(["adamw", "sgd", "adagrad"]),
    stops=st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
)
def test_any_recipe_resumes_exactly_from_any_step(drawn, optimizer, stops):
    recipe, accumulate = drawn

    def run(*callbacks, seed=0, **options):
        torch.manual_seed(seed)
        return fit(
            *callbacks,
            pruning=PruningCallback(**recipe),
            model=Classifier(optimizer),
            accumulate_grad_batches=accumulate,
            **options,
        )

    whole = run()
    with tempfile.TemporaryDirectory() as folder:
        resume = None
        for life in range(2):
            save = Save(Path(folder))
            run(save, resume=resume, seed=life)
            if save.saved:  # else the first stop was the last step
                step = save.saved[int(stops[life] * len(save.saved))]
                resume = Path(folder) / f"{step}.ckpt"
        resumed = run(resume=resume, seed=2)
    first = min(resumed.curve, default=STEPS)
    assert not whole.after(first).differences(resumed)


# -- interrupted ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint
@pytest.mark.parametrize("exception", [KeyError, KeyboardInterrupt])
@pytest.mark.works_with("Stop and resume", "after an exception or Ctrl-C, `save_on_exception`")
def test_an_exception_in_the_ramp_resumes_exactly(exception, tmp_path):
    def pruning():
        return PruningCallback(criterion=SaliencySum())

    def fail(trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 8:
            raise exception

    whole = fit(pruning=pruning())
    keep = ModelCheckpoint(dirpath=tmp_path, filename="left", save_on_exception=True)
    with pytest.raises((KeyError, KeyboardInterrupt, SystemExit)):
        fit(LambdaCallback(on_train_batch_end=fail), keep, pruning=pruning())
    (left,) = tmp_path.glob("*left*.ckpt")
    assert torch.load(left, weights_only=True)["callbacks"]["PruningCallback"]["steps"] == [8]
    resumed = fit(pruning=pruning(), resume=left, seed=1)
    assert not whole.after(8).differences(resumed)


KILLED = """
import sys, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_prune import PruningCallback
from tests.callbacks.runs import SaliencySum, fit
torch.set_num_threads(1)
keep = ModelCheckpoint(
    dirpath=sys.argv[1], filename="{step}", every_n_train_steps=1, save_top_k=-1
)
fit(keep, pruning=PruningCallback(criterion=SaliencySum()), max_epochs=100)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint
@pytest.mark.works_with("Stop and resume", "after SIGKILL in the ramp, from the last checkpoint")
def test_a_killed_run_resumes_exactly_from_its_last_checkpoint(tmp_path):
    def pruning():
        return PruningCallback(criterion=SaliencySum())

    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what the victim leaves behind
    folder = tmp_path / "checkpoints"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, folder], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    ) as victim:
        try:
            deadline = time.monotonic() + 120
            while len(list(folder.glob("*.ckpt"))) < 100:
                assert victim.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            victim.kill()
    assert victim.returncode == -signal.SIGKILL
    left = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    last = int(left[-1].stem.split("=")[1])
    reached = torch.load(left[-1], weights_only=True)["callbacks"]["PruningCallback"]
    assert 0 < reached["due"]["0"] < 0.75
    whole = fit(pruning=pruning(), max_epochs=100)
    resumed = fit(pruning=pruning(), resume=left[-1], seed=1, max_epochs=100)
    assert not whole.after(last).differences(resumed)


# -- the state -----------------------------------------------------------------------------------


class Wide(LightningModule):
    """A large and many small tensors."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1024, 512), *[nn.Linear(16, 3) for _ in range(30)])

    def training_step(self, batch, batch_idx):
        return sum(p.square().mean() for p in self.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def size(value: Any) -> int:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell()


@pytest.mark.works_with("Stop and resume", "masks and counters in 1/30 of the weights + 1 KiB each")
def test_masks_and_counters_take_a_thirtieth_of_the_weights_and_a_kibibyte_a_tensor(tmp_path):
    sizes = {}
    for name, criterion in (("none", None), ("masks", RandomCriterion()), ("sums", SaliencySum())):
        pruning = PruningCallback(criterion=criterion) if criterion else None
        model = Wide()
        fit(Save(tmp_path, at={"epoch"}), pruning=pruning, model=model, max_epochs=1)
        sizes[name] = (tmp_path / f"{BATCHES}.ckpt").stat().st_size
    weights = [p for p in model.parameters() if p.ndim == 2]
    in_fp32 = 4 * sum(p.numel() for p in weights)
    assert len(weights) == 31
    assert sizes["masks"] - sizes["none"] <= in_fp32 / 30 + 1024 * len(weights)
    assert sizes["masks"] - sizes["none"] >= in_fp32 / 32
    # An accumulator of a criterion comes on top, here one in fp32.
    assert in_fp32 <= sizes["sums"] - sizes["masks"] <= in_fp32 + 1024 * len(weights)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for pair in value.items() for part in pair for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


@pytest.mark.works_with("Stop and resume", "`weights_only=True`")
def test_the_state_is_plain_and_loads_with_weights_only(tmp_path):
    pruning = PruningCallback(criterion=SaliencySum())
    fit(Save(tmp_path), pruning=pruning)
    state = torch.load(tmp_path / "9.ckpt", weights_only=True)["callbacks"]["PruningCallback"]
    assert {type(leaf) for leaf in leaves(state)} <= {Tensor, int, float, str}
    assert set(state["observed"]) == set(pruning.masks)


# -- another recipe ------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int = STEPS, **recipe: Any) -> Path:
    fit(Save(folder), pruning=PruningCallback(**recipe) if recipe else None)
    return folder / f"{step}.ckpt"


@pytest.mark.works_with("Stop and resume", "with a higher target: goes on from the present masks")
def test_a_higher_target_goes_on_from_the_present_masks(tmp_path):
    path = checkpoint(tmp_path, 9, sparsity=0.5, schedule=OneShotSchedule(end=0))
    before = torch.load(path, weights_only=True)["state_dict"]
    second = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=12, unit="step"))
    resumed = fit(pruning=second, resume=path)
    curve = [round(logged["sparsity"], 6) for logged in resumed.curve.values()]
    assert curve == [0.5] * 3 + [0.75] * 3
    for name, mask in second.masks.items():
        assert not (mask & (before[name] == 0)).any()


@pytest.mark.works_with("Stop and resume", "with a lower target: nothing comes back")
def test_a_lower_target_brings_nothing_back(tmp_path):
    path = checkpoint(tmp_path, 9, sparsity=0.75, schedule=OneShotSchedule(end=0))
    second = PruningCallback(sparsity=0.5, schedule=OneShotSchedule(end=0))
    resumed = fit(pruning=second, resume=path)
    assert second.sparsity == 0.75
    assert [logged["sparsity_target"] for logged in resumed.curve.values()] == [0.5] * 6


@pytest.mark.works_with("Stop and resume", "for longer: keeps the sparsity reached")
def test_a_finished_run_goes_on_for_longer_at_its_sparsity(tmp_path):
    first = PruningCallback(sparsity=0.75)
    run = fit(pruning=first)
    run.trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = PruningCallback(sparsity=0.75)
    resumed = fit(pruning=second, resume=tmp_path / "last.ckpt", max_epochs=2 * EPOCHS)
    assert {logged["sparsity"] for logged in resumed.curve.values()} == {0.75}
    assert all(torch.equal(mask, first.masks[name]) for name, mask in second.masks.items())


@pytest.mark.works_with("Stop and resume", "when nothing is left to train: quiet, and masks kept")
@pytest.mark.parametrize("at", ["last batch", "end"])
def test_resuming_a_finished_run_says_nothing_and_loses_nothing(at, tmp_path):
    save, first = Save(tmp_path, at={"last batch"}), PruningCallback(criterion=SaliencySum())
    run = fit(save, pruning=first)
    run.trainer.save_checkpoint(tmp_path / "end.ckpt")
    path = tmp_path / ("end.ckpt" if at == "end" else f"{STEPS}.ckpt")
    again = fit(pruning=PruningCallback(criterion=SaliencySum()), resume=path, seed=1)
    assert again.state == run.state
    again.trainer.save_checkpoint(tmp_path / "copy.ckpt")
    copy = torch.load(tmp_path / "copy.ckpt", weights_only=True)["callbacks"]["PruningCallback"]
    assert frozen(copy) == run.state


class Counting(SaliencySum):
    """Keeps any weight, and counts its observations."""

    def observe(self, tensor, state):
        counts = state["counts"] + 1 if state else torch.ones_like(tensor.parameter).detach()
        return {"counts": counts}

    def score(self, tensor, state):
        return state["counts"]


@pytest.mark.works_with("Stop and resume", "with another criterion: it gathers afresh")
def test_another_criterion_does_not_inherit_what_the_first_has_gathered(tmp_path):
    path = checkpoint(tmp_path, 9, criterion=SaliencySum())
    pruning = PruningCallback(criterion=Counting())
    fit(pruning=pruning, resume=path)
    state = pruning.state_dict()
    assert all(set(gathered) == {"counts"} for gathered in state["observed"].values())
    assert all(gathered["counts"].max() == STEPS - 9 for gathered in state["observed"].values())


# -- without us ----------------------------------------------------------------------------------


@pytest.mark.works_with("Stop and resume", "a checkpoint written without the callback")
@pytest.mark.parametrize(
    "schedule", [OneShotSchedule(end=2, unit="epoch"), OneShotSchedule(end=2 / 3)]
)
def test_a_dense_checkpoint_goes_on_as_if_the_callback_had_been_there(schedule, tmp_path):
    path = checkpoint(tmp_path, 7)

    def pruning():
        return PruningCallback(sparsity=0.75, schedule=schedule)

    whole, resumed = fit(pruning=pruning()), fit(pruning=pruning(), resume=path, seed=1)
    assert [logged["sparsity"] for logged in resumed.curve.values()] == [0] * 3 + [0.75] * 5
    assert whole.weights == resumed.weights
    assert whole.after(7).curve == resumed.curve


@pytest.mark.works_with("Stop and resume", "a checkpoint written without the callback")
def test_a_schedule_in_steps_counts_from_where_a_dense_checkpoint_ended(tmp_path):
    path = checkpoint(tmp_path, 7)
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=5, unit="step"))
    resumed = fit(pruning=pruning, resume=path)
    assert [logged["sparsity"] for logged in resumed.curve.values()] == [0] * 5 + [0.75] * 3
    beyond = PruningCallback(schedule=OneShotSchedule(end=9, unit="step"))
    with pytest.raises(ValueError, match="within the 8 planned steps"):
        fit(pruning=beyond, resume=path)


@pytest.mark.works_with("Stop and resume", "a checkpoint with the callback, continued without it")
def test_a_pruned_checkpoint_goes_on_without_the_callback(tmp_path):
    path = checkpoint(tmp_path, 9, sparsity=0.75, schedule=OneShotSchedule(end=0))
    with pytest.warns(UserWarning, match="PruningCallback"):  # Lightning says what is missing
        resumed = fit(resume=path)
    assert len(resumed.curve) == 0
    assert resumed.trainer.global_step == STEPS


# -- what does not fit ---------------------------------------------------------------------------


class Renamed(Classifier):
    """The same net with another width and another name for the last layer."""

    strict_loading = False

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])


@pytest.mark.works_with(
    "Stop and resume",
    "a state that does not fit the model: the differences are listed",
    refused=True,
)
def test_a_state_that_does_not_fit_is_refused_with_the_differences_and_forgotten(tmp_path):
    path = checkpoint(tmp_path, 9, sparsity=0.75)
    pruning, model = PruningCallback(sparsity=0.75), Renamed()
    with pytest.raises(ValueError, match=r"'net.2.weight' is \[4, 32\] in the state and absent"):
        fit(pruning=pruning, model=model, resume=path)
    fit(pruning=pruning, model=model)  # the refused state does not stick
    assert pruning.sparsity == 0.75
