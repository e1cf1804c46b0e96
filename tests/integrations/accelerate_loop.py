"""A loop of Accelerate that is saved, killed and resumed.

With torchrun, it runs in several processes, as replicas or, by the argument ``shards``, by FSDP2.
The argument ``channels`` prunes channels.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    ChannelPattern,
    GlobalAllocation,
    PolynomialSchedule,
    Pruner,
    TaylorCriterion,
)
from tests.engine.training import EXAMPLE, OPTIMIZERS, Net
from tests.integrations.cpu_shards import allow_shards_on_cpu, cut_each, whole

STEPS, ACCUMULATED, BATCH = 12, 2, 4
RECIPE = {
    "sparsity": 0.75,
    "schedule": PolynomialSchedule(begin=0.0, end=0.8),
    "criterion": TaylorCriterion(),
    "allocation": GlobalAllocation(),
}
CHANNELS = {**RECIPE, "sparsity": 0.5, "pattern": ChannelPattern(round_to=1)}


def train(folder, *, recipe=RECIPE, batch=BATCH, shards=None, save_at=None, resume_at=None):
    """Return the model and the pruner; stop after the save, or begin from the saved state.

    Args:
        folder: The folder of the saved state.
        recipe: The arguments of the Pruner.
        batch: The samples that a process reads for each backward pass.
        shards: A plugin that cuts the model.
        save_at: The step to save after.
        resume_at: The step to begin from.
    """
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED, fsdp_plugin=shards)
    batches = STEPS * ACCUMULATED
    size = batches * batch * accelerator.num_processes
    inputs = torch.randn(size, 4, 8, generator=torch.Generator().manual_seed(0))
    net = Net()
    model, optimizer, loader = accelerator.prepare(
        net,
        OPTIMIZERS["adamw"](net.parameters()),
        DataLoader(TensorDataset(inputs), batch_size=batch),
    )
    pruner = Pruner(**recipe)
    accelerator.register_for_checkpointing(pruner)
    if resume_at is not None:
        accelerator.load_state(folder)
        loader = accelerator.skip_first_batches(loader, resume_at * ACCUMULATED)
    pruner.attach(model, optimizer, steps=STEPS, hook=True, example=EXAMPLE)
    for (inputs,) in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(inputs).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        if pruner.steps == [save_at]:
            accelerator.save_state(folder)
            pruner.detach(completed=False)
            break
    else:
        pruner.detach()
    return net, pruner


def compare_resumed(folder, recipe=RECIPE, shards=None):
    """Train without a stop, and with a stop and a resume; both must be the same."""
    net, pruner = train(folder, recipe=recipe, shards=shards)
    saved = {"recipe": recipe, "shards": shards}
    at_stop = train(folder / "state", **saved, save_at=5)[1].sparsity
    resumed, other = train(folder / "state", **saved, resume_at=5)
    assert 0 < at_stop < pruner.sparsity == other.sparsity
    assert pruner.steps == other.steps == [STEPS]
    assert isinstance(net[0].weight, DTensor) == (shards is not None)
    weights, masks = whole(net.state_dict()), whole(pruner.masks)
    for name, values in whole(resumed.state_dict()).items():
        assert torch.equal(values, weights[name]), name
    for name, mask in whole(other.masks).items():
        assert torch.equal(mask, masks[name]), name
    return {"masks": masks, "weights": weights}


if __name__ == "__main__":
    folder, plugin = Path(sys.argv[1]), None
    if "shards" in sys.argv:
        allow_shards_on_cpu()
        plugin = cut_each("Linear")
    found = compare_resumed(folder, CHANNELS if "channels" in sys.argv else RECIPE, plugin)
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
