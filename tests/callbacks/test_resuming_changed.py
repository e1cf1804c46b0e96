"""Checkpoints resumed with another recipe or model, or written or read without the callback."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import OneShotSchedule, PruningCallback
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import EPOCHS, STEPS, SaliencySum, Save, fit, frozen

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


@pytest.mark.works_with("Stop and resume", "with a lower target: no pruned weight comes back")
def test_a_lower_target_brings_nothing_back(tmp_path):
    path = checkpoint(tmp_path, 9, sparsity=0.75, schedule=OneShotSchedule(end=0))
    second = PruningCallback(sparsity=0.5, schedule=OneShotSchedule(end=0))
    resumed = fit(pruning=second, resume=path)
    assert second.sparsity == 0.75
    assert [logged["sparsity_target"] for logged in resumed.curve.values()] == [0.5] * 6


@pytest.mark.works_with("Stop and resume", "for more epochs: the reached sparsity stays")
def test_a_finished_run_goes_on_for_longer_at_its_sparsity(tmp_path):
    first = PruningCallback(sparsity=0.75)
    run = fit(pruning=first)
    run.trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = PruningCallback(sparsity=0.75)
    resumed = fit(pruning=second, resume=tmp_path / "last.ckpt", max_epochs=2 * EPOCHS)
    assert {logged["sparsity"] for logged in resumed.curve.values()} == {0.75}
    assert all(torch.equal(mask, first.masks[name]) for name, mask in second.masks.items())


@pytest.mark.works_with("Stop and resume", "when no step is left: no warning, and the masks stay")
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


@pytest.mark.works_with("Stop and resume", "with another criterion: it starts to gather anew")
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
    "a state that does not fit the model: the error lists the differences",
    refused=True,
)
def test_a_state_that_does_not_fit_is_refused_with_the_differences_and_forgotten(tmp_path):
    path = checkpoint(tmp_path, 9, sparsity=0.75)
    pruning, model = PruningCallback(sparsity=0.75), Renamed()
    with pytest.raises(ValueError, match=r"'net.2.weight' is \[4, 32\] in the state and absent"):
        fit(pruning=pruning, model=model, resume=path)
    with pytest.warns(UserWarning, match="weights are 0 and no mask says why"):
        fit(pruning=pruning, model=model)  # the refused state does not stick
    assert pruning.sparsity == 0.75
