"""Pruning on replicas, without Lightning: `torchrun --nproc-per-node 2 -m examples.replicas`.

Each process trains on a part of the data, and averages gradients with the others (DDP). So all
processes choose the same masks. The example runs on CPUs, with the backend gloo.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from examples.digits_data import accuracy, convolutional_net, load_digits_splits
from lightning_prune import Pruner


def main() -> None:
    """Train, prune nine weights of ten meanwhile, test, and compare the masks of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    train, _, test = load_digits_splits()
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=16, sampler=sampler)
    net = convolutional_net()
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)

    pruner = Pruner(sparsity=0.9)
    pruner.attach(net, optimizer, steps=epochs * len(loader))
    for epoch in range(epochs):
        model.train()
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            pruner.before_step(optimizer)
            optimizer.step()
    pruner.detach()

    masks = torch.cat([mask.flatten() for mask in pruner.masks.values()]).byte()
    gathered = [torch.empty_like(masks) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, masks)
    if dist.get_rank() == 0:
        same = all(torch.equal(masks, others) for others in gathered)
        print(f"{len(gathered)} processes have {'the same' if same else 'different'} masks")
        reached = accuracy(net, test)
        print(f"test accuracy {reached:.4f} at sparsity {pruner.sparsity:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
