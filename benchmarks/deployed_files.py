"""Measure the size of a pruned network in each file: `python -m benchmarks.deployed_files`.

Trains the digits demo at sparsity 0.9 for each seed, and writes every kind of file. Prints the
bytes of each file with the first seed, raw and compressed. Reads each file again, and prints the
test accuracy of each seed. ONNX files run in ONNX Runtime.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import summarize
from benchmarks.kit.onnx_files import answer
from benchmarks.kit.recording import list_points, print_table, silence_libraries
from benchmarks.kit.training import count_points, make_quiet_trainer
from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_prune import (
    FileSize,
    PolynomialSchedule,
    PruningCallback,
    export_onnx,
    file_size,
    load_sparse,
    quantize_onnx,
    save_sparse,
)


def train(seed: int, epochs: int) -> tuple[DigitsClassifier, DigitsDataModule]:
    """Return the network of the demo at sparsity 0.9, and the data."""
    seed_everything(seed, verbose=False)
    pruning = PruningCallback(sparsity=0.9, schedule=PolynomialSchedule(begin=0.1, end=0.75))
    model, data = DigitsClassifier(), DigitsDataModule()
    make_quiet_trainer(pruning, max_epochs=epochs).fit(model, data)
    return model.eval(), data


def write_files(
    model: DigitsClassifier, calibration: list[Tensor], folder: Path
) -> dict[str, Path]:
    """Write all files, and return them by kind."""
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
def measure_accuracy(file: Path, model: DigitsClassifier, split: TensorDataset) -> float:
    """Return the accuracy of a file in points."""
    images, labels = split.tensors
    if file.suffix == ".onnx":
        return count_points(answer(file, images), labels)
    state = torch.load(file) if file.suffix == ".pt" else load_sparse(file)
    model.load_state_dict(state)
    return count_points(model(images), labels)


def print_files(sizes: dict[str, FileSize], accuracies: dict[str, list[float]], dense: int) -> None:
    """Print a row for each file.

    Args:
        sizes: The bytes of each file.
        accuracies: The accuracies of each file, by seed.
        dense: Bytes of the dense weights in float32.
    """
    print_table(
        ("file", "bytes", "of dense", "compressed", "of dense", "test accuracy", "mean"),
        (
            (
                name,
                f"{size.raw:,}",
                f"{size.raw / dense:.3f}",
                f"{size.zstd:,}",
                f"{size.zstd / dense:.3f}",
                list_points(accuracies[name]),
                f"{summarize(accuracies[name]).mean:.2f}",
            )
            for name, size in sizes.items()
        ),
    )
    print(f"dense: {dense:,} bytes of float32")


def main() -> None:
    """Train, write, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each training")
    arguments = parser.parse_args()
    silence_libraries()
    sizes: dict[str, FileSize] = {}
    accuracies: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        model, data = train(seed, arguments.epochs)
        calibration = [images for images, _ in data.val_dataloader()]
        with tempfile.TemporaryDirectory() as folder:
            for name, file in write_files(model, calibration, Path(folder)).items():
                sizes.setdefault(name, file_size(file))
                accuracies.setdefault(name, []).append(measure_accuracy(file, model, data.test))
    dense = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    print_files(sizes, accuracies, dense)


if __name__ == "__main__":
    main()
