import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import (
    BlockPattern,
    CosineSchedule,
    ERKAllocation,
    ExponentialSchedule,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    MultiStepSchedule,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    RandomCriterion,
    SparsityMonitor,
    UniformAllocation,
    UnstructuredPattern,
)
from tests.callbacks.conftest import Classifier
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
from tests.callbacks.test_pruning import Gan

ROOT = Path(__file__).parents[2]
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
]
plain = {"loader": DataLoader(dataset(), batch_size=8)}


class Scheduled(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


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
    }
    return recipe, accumulate


# -- interrupted ---------------------------------------------------------------------------------


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


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for pair in value.items() for part in pair for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


# -- another recipe ------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int = STEPS, **recipe: Any) -> Path:
    fit(Save(folder), pruning=PruningCallback(**recipe) if recipe else None)
    return folder / f"{step}.ckpt"


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
    "schedule",
    [
        OneShotSchedule(end=10, unit="step"),
        OneShotSchedule(end=2, unit="epoch"),
        OneShotSchedule(end=2 / 3),
    ],
)
def test_a_dense_checkpoint_goes_on_as_if_the_callback_had_been_there(schedule, tmp_path):
    path = checkpoint(tmp_path, 7)

    def pruning():
        return PruningCallback(sparsity=0.75, schedule=schedule, criterion=RandomCriterion())

    whole, resumed = fit(pruning=pruning()), fit(pruning=pruning(), resume=path, seed=1)
    assert [logged["sparsity"] for logged in resumed.curve.values()] == [0] * 3 + [0.75] * 5
    assert not whole.after(7).differences(resumed)


@pytest.mark.works_with(
    "Stop and resume",
    "a checkpoint without the callback, two optimizers, a schedule in steps",
    refused=True,
)
def test_steps_of_several_optimizers_that_nobody_counted_are_refused(tmp_path):
    fit(Save(tmp_path, at={"epoch"}), model=Gan())
    path = tmp_path / f"{2 * BATCHES}.ckpt"
    pruning = PruningCallback(schedule=OneShotSchedule(end=10, unit="step"))
    with pytest.raises(ValueError, match=r"steps of each of the 2 optimizers.*unit='fraction'"):
        fit(pruning=pruning, model=Gan(), resume=path)
    by_epoch = PruningCallback(sparsity=0.5, schedule=OneShotSchedule(end=2, unit="epoch"))
    fit(pruning=by_epoch, model=Gan(), resume=path)
    assert by_epoch.sparsity == 0.5


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
