"""Measure the accuracy of each recipe: `python benchmarks/mnist.py --root <folder of MNIST>`.

The folder holds the four IDX files of MNIST, as they are distributed
(``train-images-idx3-ubyte.gz`` and so on). Trains LeNet-300-100 for each recipe, sparsity and seed
with the same budget: all 60,000 training images without augmentation, 6 epochs of batch 128, and
Adam at 1.2e-3 along a cosine to 0. The weights of all three layers are pruned (266,200), the biases
stay dense. The accuracy is that on the 10,000 test images after the last step. No model is
selected.

Prints the mean and the standard deviation over the seeds, a row for each recipe. A second table has
the accuracy of each seed, the least mean that is wanted, and the median seconds of a run.
Exits with 1 if a mean is too low, or if a run misses the exact sparsity. It also does if the
callback at sparsity 0 does not train bit for bit as without the callback.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.data import Data, flatten_images, read_standardized_mnist
from benchmarks.kit.judging import finish
from benchmarks.kit.recording import append_run, read_runs, silence_libraries
from benchmarks.kit.training import Classifier, measure_accuracy
from benchmarks.parts.mnist.recipes import DENSE, ROWS
from benchmarks.parts.mnist.results import Run, draw_runs, print_means, print_runs
from benchmarks.parts.mnist.training import EPOCHS, build_model, fit
from lightning_prune import PruningCallback


def check_landing(name: str, sparsity: float, model: Classifier, pruning: PruningCallback) -> None:
    """End the script if a model does not keep exactly the number of weights that is due."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    kept = sum(int(mask.sum()) for mask in pruning.masks.values())
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    due = round(sum(weight.numel() for weight in weights) * (1 - sparsity))
    # A weight that grew at a pixel which is always black is kept, and still 0.
    if kept != due or nonzero > kept:
        sys.exit(f"{name}: {kept} weights are left instead of {due}")


def check_same_as_without(model: Classifier, seed: int, epochs: int, data: Data) -> None:
    """End the script if training without the callback gives another model."""
    alone = build_model(seed)
    fit(alone, data, seed, epochs)
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    if not all(torch.equal(*pair) for pair in pairs):
        sys.exit("the callback at sparsity 0 is not bit for bit the run without it")


def train(name: str, sparsity: float, seed: int, epochs: int, data: Data) -> Run:
    """Return a run of a recipe, after the checks that no luck can change."""
    model = build_model(seed)
    start = time.perf_counter()
    pruning = PruningCallback(sparsity=sparsity, **ROWS[name].arguments(seed))
    fit(model, data, seed, epochs, pruning)
    seconds = time.perf_counter() - start
    if name == DENSE:
        check_same_as_without(model, seed, epochs, data)
    else:
        check_landing(name, sparsity, model, pruning)
    return Run(
        recipe=name,
        sparsity=sparsity,
        seed=seed,
        epochs=epochs,
        accuracy=measure_accuracy(model.net, *data.test.tensors),
        seconds=seconds,
    )


def train_all(arguments: argparse.Namespace) -> list[Run]:
    """Return all runs; those in the file of runs are not repeated."""
    data = flatten_images(read_standardized_mnist(arguments.root))
    known = {run[:4]: run for run in read_runs(arguments.csv, Run)} if arguments.csv else {}
    runs = []
    for name in arguments.recipes:
        for sparsity in [0.0] if name == DENSE else arguments.sparsities:
            for seed in range(arguments.seeds):
                run = known.get((name, sparsity, seed, arguments.epochs))
                if run is None:
                    run = train(name, sparsity, seed, arguments.epochs, data)
                    if arguments.csv:
                        append_run(arguments.csv, run)
                runs.append(run)
    return runs


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument(
        "--recipes", nargs="+", choices=[*ROWS], default=[*ROWS], metavar="NAME", help="rows"
    )
    parser.add_argument(
        "--sparsities", nargs="+", type=float, default=[0.95, 0.98], help="targets of each recipe"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of each training")
    parser.add_argument("--csv", type=Path, help="file of runs; a run in it is not repeated")
    parser.add_argument("--plot", type=Path, help="picture of the accuracy over the sparsity")
    return parser.parse_args()


def main() -> None:
    """Train all, print both tables, and judge."""
    arguments = read_arguments()
    silence_libraries()
    runs = train_all(arguments)
    if arguments.plot:
        draw_runs(runs, arguments.plot)
    print_means(runs)
    print()
    finish(print_runs(runs))


if __name__ == "__main__":
    main()
