"""Compare recipes fairly: `python benchmarks/recipes.py --mnist <folder> --fashion <folder>`.

The folders hold the four IDX files of MNIST and of Fashion-MNIST. Three tasks are trained on a
single thread, each in less than half a minute:

- ``LeNet``: LeNet-300-100 on MNIST, by Adam.
- ``ResNet``: three residual blocks with batch normalization on Fashion-MNIST, by SGD.
- ``bytes``: a transformer on bytes of the standard library of the running Python, by AdamW. Bits a
  byte judge, since they tell apart what the accuracy of the next byte does not.

Each arm is first tuned at sparsity 0.95, with equal effort. Three timings, each with three learning
rates, train for a third of the steps; the best three then train for all steps. The best of these on
the validation split is taken. The dense network has three learning rates, and no timings.

Then each arm is trained with 3 seeds at each sparsity, and measured on the test split after the
last step. The test split decides on nothing before. As soon as all arms are tuned with ERK, the two
arms with the best ranks on the validation split get two more seeds, and then the other allocations.

Each finished training is a row of the file of runs. A run of the script trains what is missing
there, so it can be stopped and continued at any time. ``--report`` trains nothing: it prints the
tables, the CPU hours, the verdict, and the cases that are missing.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.recording import silence_libraries
from benchmarks.parts.recipes.arms import ARMS
from benchmarks.parts.recipes.picture import draw_results
from benchmarks.parts.recipes.plan import list_cases, list_tests, tune
from benchmarks.parts.recipes.results import collect
from benchmarks.parts.recipes.runs import Find, Run, RunFile, Setting
from benchmarks.parts.recipes.tables import write_report
from benchmarks.parts.recipes.tasks import TASKS, Task
from benchmarks.parts.recipes.training import Trainings

RUNS = Path(__file__).parent / "results" / "recipes.csv"
SPARSITIES = (0.9, 0.95, 0.98, 0.99)


def make_trainer(file: RunFile, trainings: Trainings, until: float) -> Find:
    """Return a function that trains what the file has not, and ends the script when time is up."""

    def find_or_train(setting: Setting) -> Run:
        known = file.find(setting)
        if known is not None:
            return known
        if time.monotonic() > until:
            sys.exit("the time is up; start the script again to continue")
        _, data = trainings.read(setting.task)
        others = [found for found in file.find_data(setting.task) if found != data]
        if others:
            sys.exit(f"{file.path} has runs of {setting.task} with other data: take another file")
        run = trainings.train(setting)
        file.add(run)
        print(f"{run.accuracy:6.2f} points {run.bits:6.3f} bits {run.seconds:5.1f} s  {setting}")
        return run

    return find_or_train


def train_all(tasks: Sequence[Task], file: RunFile, arguments: argparse.Namespace) -> None:
    """Train all that is missing."""
    folders = {"LeNet": arguments.mnist, "ResNet": arguments.fashion, "bytes": arguments.text}
    trainings = Trainings({task.name: task for task in tasks}, folders)
    until = time.monotonic() + 60 * arguments.minutes
    find_or_train = make_trainer(file, trainings, until)
    arms = [ARMS[name] for name in arguments.arms]
    for case, seeds in list_cases(tasks, arms, arguments.seeds, file.find):
        tuned = tune(case, find_or_train)
        for setting in list_tests(case, tuned, arguments.sparsities, seeds):
            find_or_train(setting)


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, help="folder of the four files of MNIST")
    parser.add_argument("--fashion", type=Path, help="folder of the four files of Fashion-MNIST")
    parser.add_argument("--text", type=Path, help="folder of source files, for another text")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS], metavar="NAME")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="NAME")
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--scale", type=float, default=1.0, help="scales the steps of each task")
    parser.add_argument("--minutes", type=float, default=1e6, help="starts no training after that")
    parser.add_argument("--csv", type=Path, default=RUNS, help="file of runs")
    parser.add_argument("--report", action="store_true", help="train nothing, and print the report")
    parser.add_argument("--plot", type=Path, help="picture of the results over the sparsity")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, and report."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    tasks = [
        replace(TASKS[name], steps=round(TASKS[name].steps * arguments.scale))
        for name in arguments.tasks
    ]
    file = RunFile(arguments.csv)
    if not arguments.report:
        train_all(tasks, file, arguments)
    arms = [ARMS[name] for name in arguments.arms]
    results = collect(tasks, arms, arguments.sparsities, arguments.seeds, file.find)
    print(write_report(results, file.runs, tasks, arguments.sparsities))
    if arguments.plot:
        draw_results(results, tasks, arguments.plot)


if __name__ == "__main__":
    main()
