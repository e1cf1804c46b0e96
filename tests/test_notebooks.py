"""A notebook shows the facts that a terminal shows."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_prune import (
    ChannelPattern,
    Criterion,
    MacsBudget,
    OneShotSchedule,
    Pruner,
    PruningCallback,
    Recipe,
    Sensitivity,
    SparsityCheckpoint,
    SparsityMonitor,
    measure_sensitivity,
    prune_once,
    report,
    search_sparsities,
)
from lightning_prune.engine.overview import pruning_table
from tests.notebook_tables import cells_of, draw, texts_of
from tests.post_training.models import Model, trainer_with


def test_a_recipe_shows_each_answer_and_the_defaults():
    texts = texts_of(Recipe(sparsity={"*": 0.8, "head": None}))
    assert texts[:5] == ["Recipe", "question", "answer", "sparsity", "*: 0.8, head: null"]
    answers = dict(zip(texts[3::2], texts[4::2], strict=True))
    assert answers["allocation"] == "ERKAllocation(scale=1.0)"
    assert answers["criterion"] == "MagnitudeCriterion()"
    assert "regrow" not in answers


def test_a_recipe_of_a_budget_shows_no_sparsity_that_nobody_wrote():
    texts = texts_of(Recipe(budget=MacsBudget(keep=0.5), pattern=ChannelPattern()))
    assert "sparsity" not in texts
    assert "budget" in texts
    assert "*: 0.0" in texts_of(Recipe(sparsity=0.0))


@dataclass(frozen=True, kw_only=True)
class Tagged(Criterion):
    tag: str = "<b>&amp;</b>"

    def score(self, tensor, state):
        return tensor.weights.abs()


def test_text_of_users_is_escaped():
    assert "Tagged(tag='<b>&amp;</b>')" in texts_of(Recipe(criterion=Tagged()))
    sensitivity = Sensitivity(monitor="<i>", mode="max", dense=1.0, metrics={"<u>": {0.5: 0.9}})
    for tag in ("<i>", "<u>"):
        assert tag not in draw(sensitivity)
        assert any(tag in text for text in texts_of(sensitivity))


@pytest.mark.parametrize("pattern", [None, ChannelPattern()], ids=["weights", "channels"])
def test_a_pruner_shows_recipe_and_tensors_before_while_and_after_it_runs(pattern):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0), pattern=pattern)
    recipe = cells_of(pruner.recipe.table())
    assert texts_of(pruner) == [*recipe, "The tensors are chosen when training starts."]
    pruner.attach(model, optimizer, steps=2, example=torch.ones(1, 8))
    dense = texts_of(pruner)
    assert dense == recipe + cells_of(pruning_table(pruner, "Sparsity", is_short=True))
    model(torch.ones(2, 8)).sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach(completed=False)
    assert texts_of(pruner) != dense
    assert "0.5000" in texts_of(pruner)


def test_a_report_shows_its_tables_and_its_findings():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[0].weight[:2])
    found = report(model, torch.ones(1, 8), latency=False)
    parts = found.table().parts
    tables = [cells_of(part) for part in parts if hasattr(part, "rows")]
    texts = texts_of(found)
    assert texts == texts_of(found.table())
    assert sum(map(len, tables)) + len(parts) - len(tables) == len(texts)
    assert "Sequential on 1 x 8 float32" in texts
    assert any(text.startswith("0.4000 of the prunable weights are zero") for text in texts)


@pytest.mark.slow
def test_pruning_without_training_shows_its_results():
    trainer, model = trainer_with(PruningCallback(sparsity=0.5)), Model()
    arguments = {"monitor": "val_acc", "mode": "max", "sparsities": (0.5,)}
    sensitivity = measure_sensitivity(trainer, model, **arguments)
    assert texts_of(sensitivity) == cells_of(sensitivity.table())
    found = search_sparsities(trainer, model, tolerance=0.5, trials=2, **arguments)
    assert texts_of(found) == cells_of(found.table())
    pruned = prune_once(trainer, model)
    assert texts_of(pruned) == cells_of(pruned.table())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:training ended with an update")
def test_callbacks_show_what_they_have_done(tmp_path):
    pruning = PruningCallback(sparsity=0.5, schedule=OneShotSchedule(end=0))
    monitor = SparsityMonitor(quality="val_acc", histograms_every=None)
    best = SparsityCheckpoint(dirpath=tmp_path, monitor="val_acc", mode="max", save_top_k=2)
    callbacks = (pruning, monitor, best)
    assert [texts_of(each)[-1] for each in callbacks] == [
        "The tensors are chosen when training starts.",
        "No quality was recorded.",
        "val_acc",
    ]
    trainer_with(*callbacks, enable_checkpointing=True).fit(Model())
    assert texts_of(pruning) == texts_of(pruning.pruner)
    qualities = [f"{value:.4f}" for _, value in monitor.quality_curve]
    assert texts_of(monitor)[3:] == [text for each in qualities for text in ("0.5000", each)]
    files = texts_of(best)[3::2]
    assert files[0] == best.best_model_path
    assert sorted(files) == sorted(map(str, tmp_path.glob("*.ckpt")))


def test_a_sensitivity_shows_the_tolerance_of_the_command_by_default():
    metrics = {"a.weight": {0.5: 0.985, 0.9: 0.975}}
    sensitivity = Sensitivity(monitor="val_acc", mode="max", dense=0.98, metrics=metrics)
    assert sensitivity.targets() == sensitivity.targets(0.01) == {"a.weight": 0.9}
    assert "within 0.01" in texts_of(sensitivity)
