"""`PruningTrainerCallback` in the Trainer of transformers."""

from importlib.util import find_spec

import pytest
import torch

from lightning_prune import (
    ChannelPattern,
    CosineSchedule,
    GlobalAllocation,
    GradientCriterion,
    MagnitudeCriterion,
    MovementCriterion,
    MultiStepSchedule,
    PolynomialSchedule,
    Pruner,
    Recipe,
    Regrow,
    Rewind,
    StraightThrough,
    shrink,
)
from lightning_prune.integrations.transformers import FILE, PruningTrainerCallback
from tests.hooks import hooks

if not (find_spec("transformers") and find_spec("accelerate")):
    pytest.skip("needs lightning-prune[transformers]", allow_module_level=True)

from accelerate.optimizer import AcceleratedOptimizer
from transformers import BertForSequenceClassification

from tests.integrations.transformers_runs import (
    EPOCH,
    KilledError,
    Watch,
    checkpoint,
    count_zeros,
    kill_at,
    make_bert,
    make_trainer,
)

QUICK = PolynomialSchedule(begin=0.0, end=0.5)


@pytest.mark.works_with("Other trainers", "transformers: exact, saved and loaded with zeros")
def test_a_tiny_bert_lands_exactly_and_is_saved_with_zeros(tmp_path, capsys):
    pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK)
    trainer = make_trainer(tmp_path, pruning)
    trainer.train()
    assert pruning.sparsity == 0.8
    assert not hooks(trainer.optimizer.optimizer)
    trainer.save_model(tmp_path / "saved")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert count_zeros(loaded, pruning.masks) == 0.8
    parameters = dict(loaded.named_parameters())
    assert not any(parameters[name][~mask].any() for name, mask in pruning.masks.items())
    printed = capsys.readouterr().out
    assert "To be pruned" in printed
    assert "bert.encoder.layer.0.attention.self.query.weight" in pruning.masks


@pytest.mark.works_with("Other trainers", "transformers: killed and resumed, bit for bit")
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"criterion": MovementCriterion(), "allocation": GlobalAllocation()},
        {"straight_through": StraightThrough()},
        {"regrow": Regrow(criterion=GradientCriterion(), schedule=CosineSchedule(every=0.1))},
    ],
    ids=["magnitude", "movement", "straight-through", "RigL"],
)
@pytest.mark.slow
@pytest.mark.parametrize("at", [4, EPOCH + 2])
def test_a_training_that_was_killed_resumes_bit_for_bit(tmp_path, recipe, at):
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    recipe = {"sparsity": 0.8, "schedule": PolynomialSchedule(begin=0.0, end=0.8), **recipe}
    whole = make_trainer(tmp_path / "whole", PruningTrainerCallback(**recipe), **options)
    whole.train()
    killed = make_trainer(
        tmp_path / "parts", PruningTrainerCallback(**recipe), kill_at(at + 1), **options
    )
    with pytest.raises(KilledError):
        killed.train()
    pruning = PruningTrainerCallback(**recipe)
    resumed = make_trainer(tmp_path / "parts", pruning, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint(tmp_path / "parts", at)))
    assert pruning.sparsity == 0.8
    assert pruning.pruner.steps == [2 * EPOCH]
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name]), name


@pytest.mark.works_with("Other trainers", "transformers: accumulated gradients, and bfloat16")
def test_accumulated_gradients_make_one_step(tmp_path):
    pruning = PruningTrainerCallback(sparsity=0.8, criterion=MovementCriterion())
    trainer = make_trainer(tmp_path, pruning, gradient_accumulation_steps=3, num_train_epochs=3)
    trainer.train()
    assert pruning.pruner.steps == [3 * 2]  # of 3 batches each
    assert pruning.sparsity == 0.8


@pytest.mark.works_with("Other trainers", "transformers: accumulated gradients, and bfloat16")
def test_a_training_in_bfloat16_lands(tmp_path):
    pruning = PruningTrainerCallback(sparsity=0.8)
    trainer = make_trainer(tmp_path, pruning, bf16=True)
    trainer.train()
    assert pruning.sparsity == 0.8
    assert count_zeros(trainer.model, pruning.masks) == 0.8


@pytest.mark.parametrize("unit", ["epoch", "step", "fraction"])
def test_each_unit_of_a_schedule_is_read_from_the_trainer(tmp_path, unit):
    end = {"epoch": 1.0, "step": EPOCH, "fraction": 0.5}[unit]
    schedule = PolynomialSchedule(begin=0.0, end=end, unit=unit)
    pruning = PruningTrainerCallback(sparsity=0.8, schedule=schedule)
    trainer = make_trainer(tmp_path, pruning)
    trainer.train()
    logged = {
        entry["step"]: entry["sparsity"] for entry in trainer.state.log_history if "loss" in entry
    }
    assert logged[EPOCH] < 0.8  # the update comes before the next step
    assert round(logged[EPOCH + 1], 4) == 0.8
    assert sorted(logged.values()) == list(logged.values())


def test_a_schedule_beyond_the_plan_is_refused(tmp_path):
    for end, unit, plan in ((3.0, "epoch", "2 planned epochs"), (99, "step", "12 planned steps")):
        schedule = PolynomialSchedule(begin=0, end=end, unit=unit)
        pruning = PruningTrainerCallback(sparsity=0.8, schedule=schedule)
        with pytest.raises(ValueError, match=f"need end within the {plan}"):
            make_trainer(tmp_path, pruning).train()


def test_sparsity_is_logged_beside_the_loss_and_loggers_see_it(tmp_path):
    seen = []

    def on_log(args, state, control, logs, **others):
        seen.append(dict(logs))

    pruning = PruningTrainerCallback(sparsity=0.8)
    trainer = make_trainer(tmp_path, Watch(on_log=on_log), logging_steps=3)
    pruning.add_to(trainer)
    trainer.train()
    losses = [logs for logs in seen if "loss" in logs]
    assert [round(logs["sparsity_target"], 4) for logs in losses][-1] == 0.8
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["sparsity"] for entry in entries] == [logs["sparsity"] for logs in losses]


def test_loggers_that_will_not_show_the_sparsity_are_warned_of(tmp_path):
    pytest.importorskip("tensorboard")
    options = {"report_to": ["tensorboard"], "max_steps": 1}
    with pytest.warns(UserWarning, match=r"tensorboard will not show .* pruning.add_to\(trainer\)"):
        make_trainer(tmp_path, PruningTrainerCallback(), **options).train()


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_score",
    "greater_is_better": True,
}


def score_by(function):
    """Return a callback that adds a metric of the step to each evaluation."""

    def on_evaluate(args, state, control, metrics, **others):
        metrics["eval_score"] = function(state.global_step)

    return Watch(on_evaluate=on_evaluate)


@pytest.mark.works_with("Other trainers", "transformers: only a sparse model is loaded as the best")
def test_only_a_sparse_model_is_loaded_as_the_best(tmp_path):
    pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK)
    trainer = make_trainer(tmp_path, pruning, score_by(lambda step: -abs(step - 1)), **BEST)
    trainer.train()
    # The dense model of step 2 has the best score, but pruning ends in step 7.
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-8")
    assert count_zeros(trainer.model, pruning.masks) == 0.8


def test_the_best_model_keeps_its_own_zeros_where_masks_have_changed_since(tmp_path):
    regrow = Regrow(criterion=GradientCriterion(), schedule=CosineSchedule(every=0.05))
    pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK, regrow=regrow)
    trainer = make_trainer(tmp_path, pruning, score_by(lambda step: -step), **BEST)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-8")
    best = BertForSequenceClassification.from_pretrained(checkpoint(tmp_path, 8))
    assert count_zeros(trainer.model, pruning.masks) == 0.8
    for name, weights in best.state_dict().items():
        assert torch.equal(weights, trainer.model.state_dict()[name]), name


def test_a_resumed_training_forgets_a_dense_best_model(tmp_path):
    recipe = {"sparsity": 0.8, "schedule": QUICK}
    score = score_by(lambda step: -step)
    killed = make_trainer(tmp_path, PruningTrainerCallback(**recipe), score, kill_at(4), **BEST)
    with pytest.raises(KilledError):
        killed.train()
    resumed = make_trainer(tmp_path, PruningTrainerCallback(**recipe), score, **BEST)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_model_checkpoint.endswith("checkpoint-8")


def test_training_that_ends_before_pruning_loads_no_dense_model(tmp_path):
    def on_step_end(args, state, control, **others):
        control.should_training_stop = state.global_step == 4

    pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK)
    stop = Watch(on_step_end=on_step_end)
    trainer = make_trainer(tmp_path, pruning, stop, score_by(lambda step: -step), **BEST)
    with pytest.warns(UserWarning, match="training stopped before"):
        trainer.train()
    assert trainer.state.best_model_checkpoint is None
    assert count_zeros(trainer.model, pruning.masks) == pruning.sparsity


def test_masks_of_another_checkpoint_are_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    for folder, seed in (("one", 0), ("other", 1)):
        pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK)
        make_trainer(tmp_path / folder, pruning, model=make_bert(seed), **options).train()
    pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK)
    trainer = make_trainer(tmp_path / "one", pruning, **options)
    other = str(checkpoint(tmp_path / "other", 4))
    with pytest.raises(ValueError, match=r"write PruningTrainerCallback\(resume_folder=...\)"):
        trainer.train(resume_from_checkpoint=other)
    assert not hooks(trainer.optimizer.optimizer)
    pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK, resume_folder=other)
    make_trainer(tmp_path / "one", pruning, **options).train(resume_from_checkpoint=other)
    assert pruning.sparsity == 0.8


def test_a_checkpoint_without_masks_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    make_trainer(tmp_path, **options).train()
    trainer = make_trainer(tmp_path, PruningTrainerCallback(), **options)
    with pytest.raises(ValueError, match=f"need an existing checkpoint, got .*{FILE}"):
        trainer.train(resume_from_checkpoint=str(checkpoint(tmp_path, 8)))


def test_a_callback_goes_on_after_an_exception(tmp_path):
    pruning = PruningTrainerCallback(sparsity=0.8)
    killed = make_trainer(tmp_path, pruning, kill_at(3))
    with pytest.raises(KilledError):
        killed.train()
    make_trainer(tmp_path, pruning).train()
    assert pruning.sparsity == 0.8
    assert not hooks(killed.optimizer.optimizer)


@pytest.mark.works_with("Other trainers", "transformers: heads and feed-forward units are removed")
@pytest.mark.slow
def test_heads_and_units_of_the_feed_forward_layers_are_removed(tmp_path):
    model = make_bert()
    targets = {"*.self.*": 0.5, "*.intermediate.*": 0.5}
    pruning = PruningTrainerCallback(targets, pattern=ChannelPattern())
    trainer = make_trainer(tmp_path, pruning, model=model)
    trainer.train()
    example = {"input_ids": torch.zeros(2, 6, dtype=torch.long)}
    small = shrink(model.eval(), example)
    layer = small.bert.encoder.layer[0]
    assert layer.intermediate.dense.weight.shape == (16, 16)
    assert layer.attention.self.query.weight.shape == (8, 16)  # 2 of 4 heads
    expected, found = model(**example).logits, small(**example).logits
    torch.testing.assert_close(found, expected)


def test_a_recipe_that_goes_back_is_refused():
    recipe = Recipe(rewind=Rewind(to=1), schedule=MultiStepSchedule(milestones=(0.5,)))
    with pytest.raises(ValueError, match="never goes back to earlier weights, got rewind=Rewind"):
        PruningTrainerCallback.from_recipe(recipe)
    assert PruningTrainerCallback.from_recipe(Recipe(sparsity=0.3)).recipe.targets == {"*": 0.3}
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsty'"):
        PruningTrainerCallback(sparsty=0.3)


def test_the_values_of_the_callback_are_those_of_the_pruner(tmp_path):
    pruning = PruningTrainerCallback(sparsity=0.8)
    make_trainer(tmp_path, pruning, max_steps=1).train()
    assert isinstance(pruning.pruner, Pruner)
    assert pruning.sparsity == pruning.pruner.sparsity
    assert pruning.masks.keys() == pruning.pruner.masks.keys()


@pytest.mark.parametrize("criterion", [MovementCriterion(), MagnitudeCriterion()])
def test_a_step_that_is_not_made_is_forgotten_if_the_criterion_gathers(
    criterion, tmp_path, monkeypatch
):
    """A gradient scaler, which needs a GPU here, would leave out the step in the same way."""
    makes, forgets = AcceleratedOptimizer.step, Pruner.skip_step
    steps, forgotten = [], []

    def step(optimizer, closure=None):
        steps.append(optimizer)
        if len(steps) != 2:
            makes(optimizer, closure)

    def forget(pruner, optimizer):
        forgotten.append(len(steps))
        forgets(pruner, optimizer)

    monkeypatch.setattr(AcceleratedOptimizer, "step", step)
    monkeypatch.setattr(Pruner, "skip_step", forget)
    pruning = PruningTrainerCallback(sparsity=0.8, schedule=QUICK, criterion=criterion)
    make_trainer(tmp_path, pruning, max_steps=4).train()
    assert forgotten == ([2] if criterion.gathers else [])
    assert pruning.pruner.steps == [3]
