"""MiniLM pruned in one shot, by magnitude, by Wanda, and with repair."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from benchmarks.kit.judging import Bar
from benchmarks.kit.recording import hide_output, write_markdown_header, write_markdown_row
from benchmarks.kit.training import make_quiet_trainer
from benchmarks.parts.pretrained.encoder import (
    Batch,
    Fidelity,
    SentenceEncoder,
    compare,
    load_network,
    make_batches,
)
from benchmarks.parts.pretrained.text import read_text
from lightning_prune import (
    MagnitudeCriterion,
    NMPattern,
    Pattern,
    PruningCallback,
    Repair,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
    prune_once,
)

BATCH = 32  # sentences
TWO_FOUR = "2:4"
TARGETS = ("0.5", TWO_FOUR, "0.6", "0.7")
JUDGED = ("0.5", TWO_FOUR)
MOST = 0.75  # error with repair over the error by Wanda
MAGNITUDE, WANDA, REPAIR = "magnitude", "Wanda", "repair"
CRITERIA = {MAGNITUDE: MagnitudeCriterion(), WANDA: WandaCriterion(), REPAIR: None}
HEADINGS = (
    "sparsity",
    "way",
    "cosine to dense",
    "rank correlation of pairs",
    "output error",
    "zeros",
    "seconds per million weights",
)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A network that was pruned in one shot.

    Args:
        fidelity: How near the embeddings stayed.
        sparsity: The zeros over the weights that could be pruned.
        seconds: Seconds per million of these weights, with the passes of the batches.
    """

    fidelity: Fidelity
    sparsity: float
    seconds: float

    def write_row(self, target: str, way: str) -> str:
        """Return a row of the table."""
        cells = *self.fidelity.cells(), f"{self.sparsity:.4f}", f"{self.seconds:.2f}"
        return write_markdown_row(target, way, *cells)


def choose_pattern(target: str, *, per_row: bool) -> Pattern:
    """Return 2:4, or weights anywhere, or anywhere within each row."""
    return NMPattern(n=2, m=4) if target == TWO_FOUR else UnstructuredPattern(per_row=per_row)


def make_recipe(way: str, target: str) -> PruningCallback:
    """Return a recipe that prunes the same fraction of each layer; a repair needs no criterion."""
    return PruningCallback(
        sparsity=read_sparsity(target),
        pattern=choose_pattern(target, per_row=way != MAGNITUDE),
        allocation=UniformAllocation(),
        criterion=CRITERIA[way],
    )


def read_sparsity(target: str) -> float:
    """Return the sparsity of a target."""
    return 0.5 if target == TWO_FOUR else float(target)


def run(batches: int, tests: int, targets: Sequence[str]) -> list[Bar]:
    """Prune to each target in each way, print a table, and return the bars.

    Args:
        batches: Number of batches for calibration.
        tests: Number of sentences that are embedded.
        targets: The sparsities, and ``"2:4"``.
    """
    text, dense = read_text(batches * BATCH, tests), load_network()
    calibration, test = (make_batches(dense, each, BATCH) for each in text)
    print(
        f"\nMiniLM in one shot: {len(calibration)} batches of {BATCH} sentences for calibration, "
        f"{len(text.test)} sentences of other files for tests\n"
    )
    print(write_markdown_header(*HEADINGS))
    bars = []
    for target in targets:
        shots = {}
        for way in CRITERIA:
            shots[way] = prune(dense, calibration, test, way, target)
            print(shots[way].write_row(target, way), flush=True)
        if target in JUDGED:
            errors = [shots[way].fidelity.error for way in (REPAIR, WANDA)]
            name = f"{target}, error with repair over the error by Wanda"
            bars.append(Bar(name=name, value=errors[0] / errors[1], most=MOST))
    return bars


def prune(
    dense: nn.Module, calibration: list[Batch], test: list[Batch], way: str, target: str
) -> Shot:
    """Prune a copy of the network, and embed the test sentences."""
    model = SentenceEncoder(copy.deepcopy(dense), calibration)
    trainer = make_quiet_trainer(make_recipe(way, target), limit_val_batches=0)
    repair = Repair() if way == REPAIR else None
    start = time.perf_counter()
    with hide_output():
        found = prune_once(trainer, model, batches=len(calibration), repair=repair)
    seconds = time.perf_counter() - start
    weights = sum(tensor.total for tensor in found.pruner.tensors)
    return Shot(
        fidelity=compare(model.net, test),
        sparsity=found.pruner.sparsity,
        seconds=seconds / weights * 1e6,
    )
