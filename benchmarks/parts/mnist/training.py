"""LeNet-300-100 under the budget that `mnist.py` and `lottery_ticket.py` share."""

from functools import partial

import torch
from lightning.pytorch import Callback, seed_everything

from benchmarks.kit.data import Data, make_loader
from benchmarks.kit.networks.small import build_glorot_lenet
from benchmarks.kit.recording import hide_output
from benchmarks.kit.training import Classifier, make_quiet_trainer

EPOCHS = 6
BATCH = 128
LEARNING_RATE = 1.2e-3


def build_model(seed: int, *, cosine_epochs: int | None = None) -> Classifier:
    """Return the classifier of a seed.

    Args:
        seed: Decides the weights; the generators of all libraries start from it.
        cosine_epochs: Epochs after which the cosine reaches 0; by default the whole training.
    """
    seed_everything(seed, verbose=False)
    adam = partial(torch.optim.Adam, lr=LEARNING_RATE, fused=True)
    return Classifier(build_glorot_lenet(), adam, cosine_epochs=cosine_epochs)


def fit(model: Classifier, data: Data, seed: int, epochs: int, *callbacks: Callback) -> None:
    """Train with these callbacks alone, and print nothing."""
    with hide_output():
        trainer = make_quiet_trainer(*callbacks, max_epochs=epochs)
        trainer.fit(model, make_loader(data.train, BATCH, seed))
