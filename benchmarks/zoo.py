"""Prune models of other libraries: `python benchmarks/zoo.py`, after `pip install -e '.[zoo]'`.

Takes models of timm, transformers, diffusers, MONAI, segmentation_models_pytorch and PyTorch
Geometric, at small sizes and with random weights. Prunes each of them in four ways, three training
steps long, with nothing but the example of an input:

- unstructured, to a sparsity of 0.9, where the pruned weights that are zero are counted;
- 2:4, where the lines that an error gives go into the recipe;
- half of the channels, inside blocks and everywhere, which are then removed.

Prints a row for each model as Markdown. A cell with a dash says that the library refused, and the
reason stands below the table. Exits with 1 if a model shows a fault:

- The zeros are not exactly as many as the target asks for.
- The smaller model answers differently, by more than 1e-5 of the largest answer.
- `shrink` refuses channels that `attach` accepted.
- An error is not a clear refusal, which is a ``ValueError``.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.recording import (
    describe_machine,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from benchmarks.parts.zoo.catalogue import LIBRARIES
from benchmarks.parts.zoo.torchvision_operators import declare_missing_operators
from benchmarks.parts.zoo.trial import Trial, try_model


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(LIBRARIES)
    parser.add_argument(
        "--libraries", nargs="+", choices=names, default=names, metavar="NAME", help="libraries"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="models; by default all")
    return parser.parse_args()


def main() -> None:
    """Try all models, print a row for each, and judge."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    try:
        declare_missing_operators()
    except ImportError:
        sys.exit("need the models of other libraries; write: pip install -e '.[zoo]'")
    print(describe_machine(*LIBRARIES), "\n")
    print(write_markdown_header("model", *Trial.headings()))
    trials: dict[str, Trial] = {}
    for library in arguments.libraries:
        for name, build in LIBRARIES[library]().items():
            if arguments.models and name not in arguments.models:
                continue
            trials[f"{library} {name}"] = trial = try_model(build)
            print(write_markdown_row(f"{library} {name}", *trial.cells()), flush=True)
    _print_reasons(trials)
    faults = [f"{name}: {fault}" for name, trial in trials.items() for fault in trial.faults]
    print("\n".join(["", *faults]) if faults else f"\n{len(trials)} models, no fault")
    sys.exit(int(bool(faults)))


def _print_reasons(trials: dict[str, Trial]) -> None:
    """Print the reason of each refusal once, with the models that met it."""
    models: dict[str, list[str]] = {}
    for name, trial in trials.items():
        for reason in trial.refusals:
            models.setdefault(reason, []).append(name)
    print()
    for reason, names in models.items():
        print(f"- {reason}: {', '.join(names)}")


if __name__ == "__main__":
    main()
