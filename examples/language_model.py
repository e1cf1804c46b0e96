"""Train, prune and fine-tune a small language model: `python -m examples.language_model`.

The script follows the page `docs/language_models.md`. It trains a dense model, and models that are
pruned while they train. It prunes the dense model in one update, by several rules. Then it trains
each model a little longer, with its zeros kept. At the end a table compares the bits per byte.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from examples.byte_decoder import ByteDecoder, SourcesDataModule
from lightning_prune import (
    Criterion,
    MagnitudeCriterion,
    NMPattern,
    Pattern,
    PolynomialSchedule,
    PruningCallback,
    Repair,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
    prune_once,
)

TARGETS = {"*": 0.5, "head": None}  # the head stays dense, as the embedding does by default
PATTERNS = {"0.5": UnstructuredPattern(per_row=True), "2:4": NMPattern(n=2, m=4)}
RULES: dict[str, tuple[Criterion | None, Repair | None]] = {
    "magnitude": (MagnitudeCriterion(), None),
    "Wanda": (WandaCriterion(), None),
    "Wanda, repaired": (WandaCriterion(), Repair()),
    "repair": (None, Repair()),
}


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The three stages of the page.

    Args:
        dense: The checkpoint of the dense model, which the first stage writes.
        data: The text.
        size: The arguments of the model.
        epochs: Number of epochs of the training, dense or with a ramp.
        tuning_epochs: Number of epochs of the fine-tuning.
    """

    dense: Path
    data: SourcesDataModule
    size: dict[str, int]
    epochs: int
    tuning_epochs: int

    def train(self) -> ByteDecoder:
        """Train a dense model, and save it."""
        model, trainer = ByteDecoder(**self.size), make_trainer(self.epochs)
        trainer.fit(model, self.data)
        trainer.save_checkpoint(self.dense)
        return model

    def train_with_ramp(self, pattern: Pattern) -> ByteDecoder:
        """Train a model that is pruned between 25 % and 75 % of the steps."""
        pruning = PruningCallback(
            sparsity=TARGETS,
            schedule=PolynomialSchedule(begin=0.25, end=0.75),
            allocation=UniformAllocation(),
            pattern=pattern,
        )
        model = ByteDecoder(**self.size)
        make_trainer(self.epochs, pruning).fit(model, self.data)
        return model

    def prune_dense(
        self, pattern: Pattern, criterion: Criterion | None, repair: Repair | None
    ) -> ByteDecoder:
        """Prune the dense model in one update, without training.

        Args:
            pattern: Where zeros may lie.
            criterion: Which weights go; None if the repair chooses.
            repair: How the weights that are left make up for those that went; None for no repair.
        """
        pruning = PruningCallback(
            sparsity=TARGETS, allocation=UniformAllocation(), pattern=pattern, criterion=criterion
        )
        model = ByteDecoder.load_from_checkpoint(self.dense)
        prune_once(make_trainer(1, pruning), model, self.data, repair=repair)
        return model

    def fine_tune(self, model: ByteDecoder, learning_rate: float = 1e-3) -> None:
        """Train a little longer; the zeros stay, and no more weights are pruned."""
        model.learning_rate = learning_rate
        pruning = PruningCallback(sparsity=0.0, keep_zeros=True)
        make_trainer(self.tuning_epochs, pruning).fit(model, self.data)

    def validate(self, model: ByteDecoder) -> float:
        """Return the bits per byte."""
        (metrics,) = make_trainer(1).validate(model, self.data, verbose=False)
        return metrics["bits_per_byte"]


def make_trainer(epochs: int, *callbacks: Callback) -> Trainer:
    """Return a Trainer that runs on the CPU and writes nothing."""
    return Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def make_models(stages: Stages) -> Iterator[tuple[str, str, ByteDecoder]]:
    """Make one model after the other: the dense model first, which others begin from.

    Yields:
        The name of the model, the name of the pattern, and the model.
    """
    yield "dense", "", stages.train()
    for shape, pattern in PATTERNS.items():
        yield "pruned while it trains", shape, stages.train_with_ramp(pattern)
        for rule, (criterion, repair) in RULES.items():
            yield f"pruned at once by {rule}", shape, stages.prune_dense(pattern, criterion, repair)


def measure(stages: Stages) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    """Measure each model before and after fine-tuning.

    Yields:
        The names of model and pattern, and the bits per byte before and after.
    """
    for name, shape, model in make_models(stages):
        before = stages.validate(model)
        stages.fine_tune(model)
        after = stages.validate(model)
        print(f"{name} {shape}: {before:.3f} bits per byte, fine-tuned {after:.3f}", flush=True)
        yield (name, shape), (before, after)


def summarize(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation if there are several values."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def main() -> None:
    """Run all stages for each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=16, help="of the first training")
    parser.add_argument("--tuning-epochs", type=int, default=4, help="of the fine-tuning")
    parser.add_argument("--fast", action="store_true", help="a tiny model and few steps: a test")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    size = {"width": 32, "depth": 1} if arguments.fast else {}
    data = SourcesDataModule(batches=16) if arguments.fast else SourcesDataModule()
    found = defaultdict(list)
    for seed in range(arguments.seeds):
        seed_everything(seed)
        with tempfile.TemporaryDirectory() as folder:
            stages = Stages(
                dense=Path(folder) / "dense.ckpt",
                data=data,
                size=size,
                epochs=2 if arguments.fast else arguments.epochs,
                tuning_epochs=1 if arguments.fast else arguments.tuning_epochs,
            )
            for key, bits in measure(stages):
                found[key].append(bits)
    print("| model | zeros | bits per byte | after fine-tuning |\n|---|---|---|---|")
    for (name, shape), bits in found.items():
        before, after = (summarize(values) for values in zip(*bits, strict=True))
        print(f"| {name} | {shape} | {before} | {after} |")


if __name__ == "__main__":
    main()
