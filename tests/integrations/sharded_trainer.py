"""Trains, kills and resumes with the Trainer of transformers, where FSDP2 cuts the model.

The argument ``channels`` prunes heads and units of feed-forward layers.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from lightning_prune import (
    ChannelPattern,
    GlobalAllocation,
    PolynomialSchedule,
    TaylorCriterion,
)
from lightning_prune.integrations.transformers import PruningTrainerCallback
from tests.integrations.cpu_shards import allow_shards_on_cpu, whole
from tests.integrations.transformers_runs import KilledError, kill_at, make_bert, make_trainer

RECIPE = {
    "sparsity": 0.8,
    "schedule": PolynomialSchedule(begin=0.0, end=0.9),
    "criterion": TaylorCriterion(),
    "allocation": GlobalAllocation(),
}
CHANNELS = {
    "sparsity": {"*.self.*": 0.5, "*.intermediate.*": 0.5},
    "schedule": PolynomialSchedule(begin=0.0, end=0.9),
    "criterion": TaylorCriterion(),
    "pattern": ChannelPattern(),
}


def make(folder, recipe, states, *callbacks):
    """Return a Trainer that cuts each layer, and its pruning."""
    pruning = PruningTrainerCallback(table="off", **recipe)
    cut = {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["BertLayer"],
        "state_dict_type": states,
    }
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 100,
        "average_tokens_across_devices": False,  # else two processes train with twice the loss
    }
    model = make_bert(dropout=0.0)
    trainer = make_trainer(
        folder, pruning, *callbacks, model=model, fsdp=True, fsdp_config=cut, **options
    )
    return trainer, pruning


def compare_resumed(folder, recipe, states):
    """Train without a stop, and with a kill and a resume; both must be the same."""
    trainer, pruning = make(folder / "whole", recipe, states)
    trainer.train()
    assert isinstance(next(trainer.model.parameters()), DTensor)
    weights, masks = whole(trainer.model.state_dict()), whole(pruning.masks)
    trainer, killed = make(folder / "killed", recipe, states, kill_at(3))
    with suppress(KilledError):
        trainer.train()
    at_kill = killed.sparsity
    trainer, resumed = make(folder / "killed", recipe, states)
    trainer.train(resume_from_checkpoint=True)
    assert 0 < at_kill < pruning.sparsity == resumed.sparsity
    for name, values in whole(trainer.model.state_dict()).items():
        assert torch.equal(values, weights[name]), name
    for name, mask in whole(resumed.masks).items():
        assert torch.equal(mask, masks[name]), name
    return {"masks": masks, "weights": weights}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    allow_shards_on_cpu()
    plan = {"FULL_STATE_DICT": RECIPE, "SHARDED_STATE_DICT": RECIPE}
    if "channels" in sys.argv:
        plan = {"SHARDED_STATE_DICT": CHANNELS}
    found = {kind: compare_resumed(folder / kind, recipe, kind) for kind, recipe in plan.items()}
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
