"""MiniLM with fewer heads and feed-forward channels, taught by the dense network."""

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.kit.judging import Bar
from benchmarks.kit.onnx_files import time_files
from benchmarks.kit.recording import hide_output, write_markdown_header, write_markdown_row
from benchmarks.kit.training import make_quiet_trainer
from benchmarks.kit.turns import PairedTimes
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
    ChannelPattern,
    DistillationCallback,
    PolynomialSchedule,
    PruningCallback,
    export_onnx,
    prune_once,
    shrink,
)

BATCH = 32  # sentences
TOKENS = 32  # of the sentence that is timed
BLOCKS = 51  # pairs of blocks of calls
LEARNING_RATE = 1e-4
LARGEST_DIFFERENCE = 1e-5  # of embeddings of length 1
SCHEDULE = PolynomialSchedule(begin=0.0, end=0.5)
HEADINGS = (
    "sparsity of heads and channels",
    "cosine, one-shot",
    "cosine, taught",
    "rank correlation, one-shot",
    "rank correlation, taught",
    "parameters of the layers left",
    "ms dense",
    "ms pruned",
    "times as fast",
    "minutes of training",
)


@dataclass(frozen=True, kw_only=True)
class Narrower:
    """A network with removed heads and channels.

    Args:
        sparsity: The fraction of the heads and of the feed-forward channels that is gone.
        one_shot: The embeddings after pruning without training.
        taught: The embeddings after training, by the network with removed channels.
        left: The fraction of the weights of all transformer layers that is left.
        difference: The largest change of an embedding by the removal.
        times: The latencies of the two ONNX files.
        seconds: Seconds of the training.
    """

    sparsity: float
    one_shot: Fidelity
    taught: Fidelity
    left: float
    difference: float
    times: PairedTimes
    seconds: float

    def write_row(self) -> str:
        """Return a row of the table."""
        return write_markdown_row(
            self.sparsity,
            f"{self.one_shot.cosine:.4f}",
            f"{self.taught.cosine:.4f}",
            f"{self.one_shot.ranks:.4f}",
            f"{self.taught.ranks:.4f}",
            f"{self.left:.3f}",
            f"{1000 * self.times.first:.2f}",
            f"{1000 * self.times.second:.2f}",
            self.times.interval,
            f"{self.seconds / 60:.1f}",
        )

    def list_bars(self) -> list[Bar]:
        """Return the bars: training helps, removal changes nothing, and the file is faster."""
        name = f"channels at {self.sparsity}"
        return [
            Bar(
                name=f"{name}, error after training over error before",
                value=self.taught.error / self.one_shot.error,
                most=0.5,
            ),
            Bar(
                name=f"{name}, change of an embedding by the removal",
                value=self.difference,
                most=LARGEST_DIFFERENCE,
            ),
            Bar(name=f"{name}, lower end of the speedup", value=self.times.low, least=1.0),
        ]


def run(sentences: int, tests: int, epochs: int, sparsities: list[float]) -> list[Bar]:
    """Prune and teach at each sparsity, print a table, and return the bars.

    Args:
        sentences: Number of sentences to learn from.
        tests: Number of sentences that are embedded.
        epochs: Epochs of each training.
        sparsities: Fractions of the heads and of the feed-forward channels.
    """
    text, dense = read_text(sentences, tests), load_network()
    train, test = (make_batches(dense, each, BATCH) for each in text)
    print(
        f"\nMiniLM, heads and feed-forward channels: {len(text.train)} sentences for training, "
        f"{epochs} epochs, {len(text.test)} of other files for tests; ONNX Runtime, 1 thread, "
        f"a sentence of {TOKENS} tokens\n"
    )
    print(write_markdown_header(*HEADINGS))
    bars = []
    for sparsity in sparsities:
        found = measure(dense, train, test, epochs, sparsity)
        print(found.write_row(), flush=True)
        bars += found.list_bars()
    return bars


def measure(
    dense: nn.Module, train: list[Batch], test: list[Batch], epochs: int, sparsity: float
) -> Narrower:
    """Return what a sparsity costs, and what it buys."""
    start = time.perf_counter()
    model = teach(dense, train, epochs, sparsity)
    seconds = time.perf_counter() - start
    ids, mask, _ = train[len(train) // 2]
    small = shrink(model, (ids, mask))
    with torch.no_grad():
        gaps = [(small(ids, mask) - model(ids, mask)).abs().max() for ids, mask, _ in test]
    layers = [net.net.encoder.parameters() for net in (small, model)]
    left, whole = (sum(each.numel() for each in parameters) for parameters in layers)
    return Narrower(
        sparsity=sparsity,
        one_shot=compare(prune_at_once(dense, train, sparsity), test),
        taught=compare(small.net, test),
        left=left / whole,
        difference=float(torch.stack(gaps).max()),
        times=time_both(SentenceEncoder(dense, []), small),
        seconds=seconds,
    )


def prune_at_once(dense: nn.Module, train: list[Batch], sparsity: float) -> nn.Module:
    """Return the network pruned without training."""
    model = make_encoder(dense, train)
    pruning = PruningCallback(sparsity=sparsity, pattern=ChannelPattern())
    with hide_output():
        prune_once(make_quiet_trainer(pruning, limit_val_batches=0), model)
    return model.net


def teach(dense: nn.Module, train: list[Batch], epochs: int, sparsity: float) -> SentenceEncoder:
    """Return the network pruned while it learns the embeddings and the layers of the dense one."""
    model = make_encoder(dense, train)
    pruning = PruningCallback(sparsity=sparsity, pattern=ChannelPattern(), schedule=SCHEDULE)
    layers = [f"net.encoder.layer.{index}" for index in range(len(model.net.encoder.layer))]
    teacher = DistillationCallback(temperature=None, features=layers)
    with hide_output():
        make_quiet_trainer(pruning, teacher, max_epochs=epochs).fit(model)
    return model.eval()


def make_encoder(dense: nn.Module, train: list[Batch]) -> SentenceEncoder:
    """Return a copy of the network that can be trained, with an example for the trace."""
    model = SentenceEncoder(copy.deepcopy(dense), train, LEARNING_RATE)
    model.example_input_array = train[len(train) // 2][:2]
    return model


def time_both(dense: nn.Module, small: nn.Module) -> PairedTimes:
    """Export both to ONNX, and let them take turns."""
    example = torch.randint(1000, 20_000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, hide_output():
        files = [Path(folder) / "dense.onnx", Path(folder) / "small.onnx"]
        for net, file in zip((dense, small), files, strict=True):
            export_onnx(net, file, example=example)
        return time_files(*files, example, BLOCKS)
