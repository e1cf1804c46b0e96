"""Trains in each process of `accelerate launch`, and saves the masks that the process has."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from lightning_prune import GlobalAllocation, Pruner, TaylorCriterion
from lightning_prune.integrations.transformers import PruningTrainerCallback
from tests.integrations.transformers_runs import Sentences, make_bert, make_trainer

RECIPE = {"sparsity": 0.8, "criterion": TaylorCriterion(), "allocation": GlobalAllocation()}


def train_by_trainer(folder):
    pruning = PruningTrainerCallback(**RECIPE)
    options = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 100}
    trainer = make_trainer(folder, pruning, **options)
    trainer.train()
    return {"masks": pruning.masks, "weights": trainer.model.state_dict()}


def train_by_loop():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_bert(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(Sentences(), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    pruner = Pruner(**RECIPE)
    pruner.attach(model, optimizer, steps=len(loader) // 2, hook=True)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    pruner.detach()
    weights = accelerator.unwrap_model(model).state_dict()
    return {"masks": pruner.masks, "weights": weights, "steps": pruner.steps}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {"trainer": train_by_trainer(folder), "loop": train_by_loop()}
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
