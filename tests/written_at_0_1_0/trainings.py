"""The small trainings that wrote the files of this folder, and that go on from them.

`make.py` runs them at commit c871c24; `tests/test_written_at_0_1_0.py` repeats them with the
package of today. So a name of a training, its network and its data must stay as they are.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    BlockPattern,
    ChannelPattern,
    CosineSchedule,
    DistillationCallback,
    ERKAllocation,
    ExponentialSchedule,
    FisherCriterion,
    GlobalAllocation,
    GradientCriterion,
    LAMPAllocation,
    MagnitudeCriterion,
    MovementCriterion,
    MultiStepSchedule,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    PruningCallback,
    RandomCriterion,
    Regrow,
    Rewind,
    SparsityCheckpoint,
    SparsityMonitor,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)

STEPS, SAVED_AFTER = 12, 6  # optimizer steps of a plain loop; the due points 2 and 4 are passed
BATCHES, EPOCHS, SAVED_IN_FIT = 5, 4, 8  # of a Trainer; the eighth step is within an epoch
RAMP = {"begin": 2, "end": 10, "every": 2, "unit": "step"}


def numbers(*shape: int, shift: int = 0) -> Tensor:
    """Return multiples of 1/8 in [-1, 1], the same on every machine."""
    count = torch.Size(shape).numel()
    places = torch.arange(count) + shift
    return ((places * places * 7 + places * 3) % 17 - 8).view(shape) / 8.0


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def make_sparse_net() -> nn.Sequential:
    net = make_net()
    with torch.no_grad():
        net[0].weight[::2, ::3] = 0.0
    return net


def make_convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


# -- plain loops -----------------------------------------------------------------------------------


def all_in_one(net: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)]


def one_a_layer(net: nn.Module) -> list[torch.optim.Optimizer]:
    layers = [net[0], net[2]]
    return [torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9) for layer in layers]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training in a plain loop.

    Args:
        recipe: The arguments of `Pruner`.
        make: What makes the network.
        example: An input of the network.
        optimize: What makes the optimizers.
    """

    recipe: dict[str, Any]
    make: Callable[[], nn.Module] = make_net
    example: Tensor = field(default_factory=lambda: numbers(16, 8))
    optimize: Callable[[nn.Module], list[torch.optim.Optimizer]] = all_in_one

    def attach(self, pruner: Pruner, net: nn.Module, optimizers: Any) -> None:
        """Begin, or go on with the state that the pruner was given."""
        pruner.attach(net, optimizers, steps=STEPS, steps_per_epoch=4, example=self.example)

    def train(self, net: nn.Module, optimizers: Any, pruner: Pruner, steps: range) -> None:
        """Make these steps."""
        for step in steps:
            inputs = self.example + numbers(*self.example.shape, shift=step)
            loss = nn.functional.cross_entropy(net(inputs), torch.arange(len(inputs)) % 4)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                pruner.before_step(optimizer)
                optimizer.step()


IMAGES = {"make": make_convolutions, "example": numbers(16, 4, 2, 2)}
TRAININGS = {
    "magnitude_erk": Training(
        recipe={
            "sparsity": 0.8,
            "schedule": PolynomialSchedule(**RAMP),
            "allocation": ERKAllocation(),
            "criterion": MagnitudeCriterion(),
            "pattern": UnstructuredPattern(),
        }
    ),
    "global": Training(
        recipe={
            "sparsity": {"*": 0.8, "2.bias": 0.25},
            "schedule": CosineSchedule(begin=0.2, end=0.8, every=0.2),
            "allocation": GlobalAllocation(),
        }
    ),
    "lamp": Training(
        recipe={
            "sparsity": 0.8,
            "schedule": ExponentialSchedule(begin=0, end=2, every=1, unit="epoch"),
            "allocation": LAMPAllocation(),
        }
    ),
    "taylor": Training(
        recipe={"schedule": PolynomialSchedule(**RAMP), "criterion": TaylorCriterion()}
    ),
    "movement": Training(
        recipe={
            "schedule": PolynomialSchedule(**RAMP),
            "allocation": GlobalAllocation(),
            "criterion": MovementCriterion(),
        }
    ),
    "fisher": Training(
        recipe={"schedule": PolynomialSchedule(**RAMP), "criterion": FisherCriterion()}
    ),
    "wanda_per_row": Training(
        recipe={
            "sparsity": 0.5,
            "schedule": PolynomialSchedule(**RAMP),
            "allocation": UniformAllocation(),
            "criterion": WandaCriterion(),
            "pattern": UnstructuredPattern(per_row=True),
        }
    ),
    "two_of_four": Training(
        recipe={
            "sparsity": {"*": 0.5, "5": None},
            "schedule": PolynomialSchedule(**RAMP),
            "pattern": NMPattern(n=2, m=4),
        },
        **IMAGES,
    ),
    "block": Training(
        recipe={
            "sparsity": 0.5,
            "schedule": PolynomialSchedule(**RAMP),
            "pattern": BlockPattern(shape=(4, 2)),
        }
    ),
    "rigl": Training(
        recipe={
            "sparsity": 0.75,
            "schedule": OneShotSchedule(end=0, unit="step"),
            "regrow": Regrow(schedule=CosineSchedule(begin=0, end=10, every=2, unit="step")),
        }
    ),
    "set": Training(
        recipe={
            "sparsity": 0.75,
            "schedule": OneShotSchedule(end=0, unit="step"),
            "regrow": Regrow(
                criterion=RandomCriterion(seed=3),
                schedule=CosineSchedule(begin=0, end=10, every=2, unit="step"),
            ),
        }
    ),
    "channel": Training(
        recipe={
            "sparsity": 0.5,
            "schedule": PolynomialSchedule(**RAMP),
            "pattern": ChannelPattern(round_to=2),
        },
        **IMAGES,
    ),
    "keep_zeros": Training(
        recipe={"sparsity": 0.75, "schedule": PolynomialSchedule(**RAMP), "keep_zeros": True},
        make=make_sparse_net,
    ),
    "two_optimizers": Training(
        recipe={
            "schedule": MultiStepSchedule(milestones=[2, 6, 10], share=0.3, unit="step"),
            "sparsity": 0.657,
            "allocation": UniformAllocation(),
            "criterion": GradientCriterion(),
        },
        optimize=one_a_layer,
    ),
}


# -- Lightning -------------------------------------------------------------------------------------


class Classifier(LightningModule):
    """A module whose constructor a config can fill in."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4)
        )
        self.example_input_array = numbers(16, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        self.log("val_acc", (self(inputs).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Batches(LightningDataModule):
    """All batches are equal, so a resume within an epoch finds the data of the first run."""

    def train_dataloader(self) -> DataLoader:
        inputs, labels = numbers(16, 8), torch.arange(16) % 4
        dataset = TensorDataset(inputs.repeat(BATCHES, 1), labels.repeat(BATCHES))
        return DataLoader(dataset, batch_size=16)

    val_dataloader = train_dataloader


def callbacks(name: str, folder: Any) -> Iterator[Callback]:
    """Yield the callbacks of the run that wrote ``fits/<name>.ckpt``.

    Args:
        name: The stem of the file.
        folder: Where a callback may write.
    """
    if name == "rewind":
        schedule = MultiStepSchedule(milestones=[0.25, 0.5, 0.75], share=0.3)
        rewind = Rewind(to=2)
        yield PruningCallback(
            sparsity=0.657, schedule=schedule, allocation=GlobalAllocation(), rewind=rewind
        )
    else:
        yield PruningCallback()
    if name == "distillation":
        yield DistillationCallback(temperature=2.0, features=["net.0"], output="net")
    if name == "watched":
        yield SparsityMonitor(quality="val_acc")
        yield SparsityCheckpoint(monitor="val_acc", mode="max", dirpath=folder, save_last=True)
        yield EMAWeightAveraging(decay=0.9)


FITS = ("default", "rewind", "watched", "distillation")


# -- what is compared ------------------------------------------------------------------------------


def unpacked(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the masks of a state of 0.1.0: one bit an entry, the first in the highest bit."""
    masks = {}
    for name, shape in state["shapes"].items():
        bits = state["masks"][name].unsqueeze(1) >> torch.arange(7, -1, -1) & 1
        masks[name] = bits.flatten()[: torch.Size(shape).numel()].view(shape).bool()
    return masks


def counts(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def digests(weights: dict[str, Tensor]) -> dict[str, str]:
    """Return a short digest of the bytes of each tensor."""
    return {
        name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
        for name, tensor in weights.items()
    }
