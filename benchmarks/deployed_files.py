"""What a pruned network weighs in each file: `python -m benchmarks.deployed_files`.

Trains the digits demo at sparsity 0.9 for each seed and writes every file that it can be deployed
as. Prints their bytes, raw and compressed, those of the first seed, and the test accuracy of each
seed as the file has it (ONNX files in ONNX Runtime).
"""

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path

import onnxruntime
import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import TensorDataset

from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_prune import (
    PolynomialSchedule,
    PruningCallback,
    export_onnx,
    file_size,
    load_sparse,
    quantize_onnx,
    save_sparse,
)


def train(seed: int, epochs: int) -> tuple[DigitsClassifier, DigitsDataModule]:
    """Return the demo's network at sparsity 0.9, and the data."""
    seed_everything(seed)
    pruning = PruningCallback(sparsity=0.9, schedule=PolynomialSchedule(begin=0.1, end=0.75))
    model, data = DigitsClassifier(), DigitsDataModule()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return model.eval(), data


def write(model: DigitsClassifier, calibration: list[Tensor], folder: Path) -> dict[str, Path]:
    """Write all files and return them by what they are."""
    files = {
        "`state_dict`, `torch.save`": folder / "net.pt",
        "sparse": folder / "sparse",
        "sparse, fp16 values": folder / "half",
        "ONNX": folder / "net.onnx",
        "ONNX, fp16": folder / "half.onnx",
        "ONNX, int8, 7 bits": folder / "seven.onnx",
        "ONNX, int8, 8 bits": folder / "eight.onnx",
    }
    plain, sparse, half, floats, half_floats, seven, eight = files.values()
    torch.save(model.state_dict(), plain)
    save_sparse(model, sparse)
    save_sparse(model, half, dtype=torch.float16)
    export_onnx(model, floats, example=calibration[0])
    export_onnx(model, half_floats, example=calibration[0], precision="fp16")
    quantize_onnx(floats, seven, calibration, reduce_range=True)
    quantize_onnx(floats, eight, calibration, reduce_range=False)
    return files


@torch.no_grad()
def points(file: Path, model: DigitsClassifier, data: TensorDataset) -> float:
    """Return the accuracy of a file in points."""
    images, labels = data.tensors
    if file.suffix == ".onnx":
        (logits,) = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
        answers = torch.from_numpy(logits)
    else:
        state = torch.load(file) if file.suffix == ".pt" else load_sparse(file)
        model.load_state_dict(state)
        answers = model(images)
    return 100 * float((answers.argmax(1) == labels).double().mean())


def main() -> None:
    """Train, write, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    sizes, accuracies = {}, {}
    for seed in range(arguments.seeds):
        model, data = train(seed, arguments.epochs)
        calibration = [images for images, _ in data.val_dataloader()]
        with tempfile.TemporaryDirectory() as folder:
            files = write(model, calibration, Path(folder))
            for name, file in files.items():
                sizes.setdefault(name, file_size(file))
                accuracies.setdefault(name, []).append(points(file, model, data.test))
    dense = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    table = Table("file", "bytes", "of dense", "compressed", "of dense", "test accuracy", "mean")
    for name, size in sizes.items():
        each = accuracies[name]
        table.add_row(
            name,
            f"{size.raw:,}",
            f"{size.raw / dense:.3f}",
            f"{size.zstd:,}",
            f"{size.zstd / dense:.3f}",
            ", ".join(f"{one:.2f}" for one in each),
            f"{statistics.mean(each):.2f}",
        )
    Console(width=120).print(table)
    print(f"dense: {dense:,} bytes of float32")


if __name__ == "__main__":
    main()
