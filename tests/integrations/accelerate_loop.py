"""A loop of Accelerate that is saved, killed and resumed; with torchrun, in several processes."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import GlobalAllocation, PolynomialSchedule, Pruner, TaylorCriterion
from tests.engine.training import OPTIMIZERS, Net

STEPS, ACCUMULATED, BATCH = 12, 2, 4
RECIPE = {
    "sparsity": 0.75,
    "schedule": PolynomialSchedule(begin=0.0, end=0.8),
    "criterion": TaylorCriterion(),
    "allocation": GlobalAllocation(),
}


def train(folder, *, save_at=None, resume_at=None):
    """Return the model and the pruner; stop after the save, or begin from the saved state."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    batches = STEPS * ACCUMULATED
    size = batches * BATCH * accelerator.num_processes
    inputs = torch.randn(size, 4, 8, generator=torch.Generator().manual_seed(0))
    net = Net()
    model, optimizer, loader = accelerator.prepare(
        net,
        OPTIMIZERS["adamw"](net.parameters()),
        DataLoader(TensorDataset(inputs), batch_size=BATCH),
    )
    pruner = Pruner(**RECIPE)
    accelerator.register_for_checkpointing(pruner)
    if resume_at is not None:
        accelerator.load_state(folder)
        loader = accelerator.skip_first_batches(loader, resume_at * ACCUMULATED)
    pruner.attach(model, optimizer, steps=STEPS, hook=True)
    for (batch,) in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        if pruner.steps == [save_at]:
            accelerator.save_state(folder)
            pruner.detach(completed=False)
            break
    else:
        pruner.detach()
    return net, pruner


def compare_resumed(folder):
    """Train without a stop, and with a stop and a resume; both must be the same."""
    whole, pruner = train(folder)
    at_stop = train(folder / "state", save_at=5)[1].sparsity
    resumed, other = train(folder / "state", resume_at=5)
    assert 0 < at_stop < 0.75 == pruner.sparsity == other.sparsity
    assert pruner.steps == other.steps == [STEPS]
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, other.masks[name]), name
    return {"masks": pruner.masks, "weights": whole.state_dict()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = compare_resumed(folder)
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
