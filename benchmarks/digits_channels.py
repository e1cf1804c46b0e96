"""Measure the worth of removing half of the channels: `python benchmarks/digits_channels.py`.

For each seed, trains a small convolutional network twice with the same budget: dense, and with half
of the channels pruned on the way. Removes the pruned channels, and writes three ONNX files: the
dense network, the smaller network, and the smaller network in 8 bits. Measures the accuracy and the
latency of the files in ONNX Runtime, on a single thread and in turns. The latency is that of a
single image, with the first seed.

The data are the digits of scikit-learn, or MNIST with ``--root <folder of the four IDX files>``. An
image of the test set is worth 0.28 points of the digits, and 0.01 points of MNIST.

Exits with 1 in four cases:

- The smaller network is less than 1.8 times as fast as the dense network.
- The smaller network is more than 0.5 points less accurate.
- 8 bits cost more than another 0.5 points.
- The file in 8 bits is larger than a sixth of the dense file.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.data import (
    Data,
    keep_first,
    make_loader,
    read_all_digits,
    read_standardized_mnist,
)
from benchmarks.kit.judging import Bar, finish_with_all, summarize
from benchmarks.kit.networks.small import build_convolutions
from benchmarks.kit.onnx_files import answer, time_files
from benchmarks.kit.recording import hide_output, list_points, print_table, silence_libraries
from benchmarks.kit.training import Classifier, count_points, make_quiet_trainer
from benchmarks.kit.turns import PairedTimes
from lightning_prune import ChannelPattern, PruningCallback, export_onnx, quantize_onnx, shrink

LEAST_SPEEDUP = 1.8
ALLOWED_POINTS = 0.5
LARGEST_FILE = 1 / 6
BATCH = 128
CALIBRATION = 512  # images
DENSE, SHRUNK, INTEGERS = "dense", "shrunk", "shrunk, int8"


def train(data: Data, seed: int, epochs: int, sparsity: float) -> Classifier:
    """Return the network after training, with the pruned channels still in place."""
    seed_everything(seed, verbose=False)
    side = data.train.tensors[0].shape[-1]
    model = Classifier(build_convolutions(side), partial(torch.optim.AdamW, lr=2e-3))
    model.example_input_array = torch.zeros(1, 1, side, side)
    pruning = PruningCallback(sparsity=sparsity, pattern=ChannelPattern(round_to=8))
    with hide_output():
        trainer = make_quiet_trainer(pruning, max_epochs=epochs)
        trainer.fit(model, make_loader(data.train, BATCH, seed))
    if pruning.sparsity != sparsity:
        sys.exit(f"landed on {pruning.sparsity:.6f} instead of {sparsity}")
    return model.eval()


def write_files(dense: Classifier, pruned: Classifier, data: Data, folder: Path) -> dict[str, Path]:
    """Write the three files, and return them by name."""
    files = {name: folder / f"{name}.onnx" for name in (DENSE, SHRUNK, INTEGERS)}
    export_onnx(dense, files[DENSE])
    export_onnx(shrink(pruned), files[SHRUNK])
    calibration = data.train.tensors[0][:CALIBRATION].split(BATCH)
    quantize_onnx(files[SHRUNK], files[INTEGERS], calibration)
    return files


def measure_accuracy(file: Path, split: TensorDataset) -> float:
    """Return the accuracy of a file in points."""
    images, labels = split.tensors
    return count_points(answer(file, images), labels)


def print_files(
    accuracies: Mapping[str, list[float]],
    sizes: Mapping[str, int],
    latencies: Mapping[str, PairedTimes],
) -> None:
    """Print a row for each file."""
    times = {DENSE: (latencies[SHRUNK].first, "1")}
    times |= {name: (latency.second, latency.interval) for name, latency in latencies.items()}
    print_table(
        ("file", "bytes", "test accuracy of each seed", "mean", "sd", "ms", "times as fast"),
        (
            (
                name,
                f"{sizes[name]:,}",
                list_points(points),
                *summarize(points).cells,
                f"{1000 * times[name][0]:.3f}",
                times[name][1],
            )
            for name, points in accuracies.items()
        ),
    )


def set_bars(
    accuracies: Mapping[str, list[float]],
    sizes: Mapping[str, int],
    latencies: Mapping[str, PairedTimes],
) -> list[Bar]:
    """Return the four bars of the smaller files."""
    dense, shrunk, integers = (
        summarize(accuracies[name]).mean for name in (DENSE, SHRUNK, INTEGERS)
    )
    return [
        Bar(
            name="the smaller network, times as fast",
            value=latencies[SHRUNK].speedup,
            least=LEAST_SPEEDUP,
        ),
        Bar(name="price of removal, in points", value=dense - shrunk, most=ALLOWED_POINTS),
        Bar(name="price of 8 bits, points more", value=shrunk - integers, most=ALLOWED_POINTS),
        Bar(
            name="size of the file in 8 bits over the dense one",
            value=sizes[INTEGERS] / sizes[DENSE],
            most=LARGEST_FILE,
        ),
    ]


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of MNIST; by default the digits are used")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, help="by default 4 on MNIST and 30 on the digits")
    parser.add_argument("--images", type=int, help="number of training images; by default all")
    parser.add_argument("--blocks", type=int, default=51, help="pairs of blocks of calls to time")
    return parser.parse_args()


def main() -> None:
    """Train, write, measure, and judge."""
    arguments = read_arguments()
    silence_libraries()
    data = read_standardized_mnist(arguments.root) if arguments.root else read_all_digits()
    data = keep_first(data, arguments.images)
    epochs = arguments.epochs or (4 if arguments.root else 30)
    accuracies: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    latencies: dict[str, PairedTimes] = {}
    for seed in range(arguments.seeds):
        dense, pruned = (train(data, seed, epochs, sparsity) for sparsity in (0.0, 0.5))
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(dense, pruned, data, Path(folder))
            for name, file in files.items():
                accuracies.setdefault(name, []).append(measure_accuracy(file, data.test))
                sizes.setdefault(name, file.stat().st_size)
                if name != DENSE and name not in latencies:
                    image = data.test.tensors[0][:1]
                    latencies[name] = time_files(files[DENSE], file, image, arguments.blocks)
        reached = ", ".join(f"{name} {points[-1]:.2f}" for name, points in accuracies.items())
        print(f"seed {seed}: {reached}", flush=True)
    print_files(accuracies, sizes, latencies)
    finish_with_all(set_bars(accuracies, sizes, latencies))


if __name__ == "__main__":
    main()
