"""Pruning in the Trainer of transformers: `python -m examples.hugging_face`.

A tiny BERT reads pieces of Python's own sources, byte by byte, and tells the file that they come
from. First 80 % of the weights become zeros, and the saved model has them, too. Then half of the
heads and of the units in the feed-forward layers are removed, and the smaller model is exported.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lightning_prune import ChannelPattern, Sparsity, export_onnx, shrink
from lightning_prune.integrations.transformers import PruningTrainerCallback

FILES = ("_pydecimal.py", "argparse.py", "tarfile.py", "typing.py")
BYTES, LENGTH = 256, 48
HEADS = "*.attention.self.*"  # queries, keys and values go together
UNITS = "*.intermediate.*"


class Pieces(Dataset[dict[str, torch.Tensor]]):
    """Pieces of Python's sources; every eighth piece is for validation.

    Args:
        number: Number of pieces of each file.
        is_validation: Whether to take the pieces for validation only, or the others.
    """

    def __init__(self, number: int, *, is_validation: bool) -> None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        self.pieces: list[tuple[bytes, int]] = []
        for label, name in enumerate(FILES):
            text = (folder / name).read_bytes()
            starts = range(0, len(text) - LENGTH, LENGTH)[:number]
            pieces = [text[start : start + LENGTH] for start in starts]
            chosen = [each for n, each in enumerate(pieces) if (n % 8 == 0) == is_validation]
            self.pieces += [(piece, label) for piece in chosen]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return the bytes of a piece as tokens, and the number of the file."""
        piece, label = self.pieces[index]
        return {"input_ids": torch.tensor(list(piece)), "labels": torch.tensor(label)}


def make_bert() -> BertForSequenceClassification:
    """Return a BERT with random weights."""
    set_seed(0)
    config = BertConfig(
        vocab_size=BYTES,
        num_labels=len(FILES),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
    )
    return BertForSequenceClassification(config)


def train(
    pruning: PruningTrainerCallback, epochs: float, pieces: int, folder: Path
) -> tuple[Trainer, float]:
    """Train a new BERT with pruning, and return the Trainer and the accuracy.

    Args:
        pruning: The callback that prunes.
        epochs: Number of epochs.
        pieces: Number of pieces of each file.
        folder: Where the Trainer writes.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        learning_rate=2e-3,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=make_bert(),
        args=arguments,
        train_dataset=Pieces(pieces, is_validation=False),
        eval_dataset=Pieces(pieces, is_validation=True),
        compute_metrics=measure_accuracy,
        callbacks=[pruning],
    )
    trainer.train()
    return trainer, trainer.evaluate()["eval_accuracy"]


def measure_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of the pieces whose file is found."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def prune_weights(epochs: float, pieces: int, folder: Path) -> None:
    """Train to 80 % zeros, save, and load without any code for pruning."""
    pruning = PruningTrainerCallback(sparsity=0.8)
    trainer, accuracy = train(pruning, epochs, pieces, folder)
    trainer.save_model(str(folder))
    zeros = Sparsity()
    zeros.update(BertForSequenceClassification.from_pretrained(folder))
    print(f"weights: accuracy {accuracy:.4f} at sparsity {pruning.sparsity:.4f}")
    print(f"weights: sparsity {float(zeros.compute()):.4f} in the saved model")


def remove_heads_and_units(epochs: float, pieces: int, file: Path) -> None:
    """Train until half of the heads and units are zeros, remove these, and export."""
    pruning = PruningTrainerCallback({HEADS: 0.5, UNITS: 0.5}, pattern=ChannelPattern())
    trainer, accuracy = train(pruning, epochs, pieces, file.parent)
    model = trainer.model.cpu().eval()
    example = {"input_ids": torch.zeros(2, LENGTH, dtype=torch.long)}
    small = shrink(model, example)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small))
    print(f"channels: accuracy {accuracy:.4f} with {after:,} of {before:,} parameters")
    exported = export_onnx(small, file, example=example)
    print(f"channels: {exported.path} answers as the model does, within {exported.difference:.1e}")


def main() -> None:
    """Prune weights, then heads and units."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--pieces", type=int, default=600, help="pieces of each file")
    parser.add_argument("--folder", type=Path, default=Path("hugging_face_runs"))
    arguments = parser.parse_args()
    epochs, pieces, folder = arguments.epochs, arguments.pieces, arguments.folder
    prune_weights(epochs, pieces, folder / "sparse")
    remove_heads_and_units(epochs, pieces, folder / "small.onnx")


if __name__ == "__main__":
    main()
