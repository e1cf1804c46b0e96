"""A stand-in for the trainer of Ultralytics: the names and calls that callbacks see."""

from collections import defaultdict
from copy import deepcopy
from types import SimpleNamespace

import torch
from torch import nn

from tests.engine.training import OPTIMIZERS, Net

BATCHES = 6  # in an epoch


class Model:
    """A model that takes callbacks, and a trainer that calls them.

    Args:
        folder: Where the weights are saved.
    """

    def __init__(self, folder):
        self.folder, self.callbacks = folder, defaultdict(list)
        self.trainer = None

    def add_callback(self, event, function):
        self.callbacks[event].append(function)

    def train(self, **options):
        self.trainer = Trainer(self, **options)
        try:
            self.trainer.train()
        finally:
            self.trainer.run("teardown")


class Average:
    """A moving average of the weights.

    Args:
        model: The model.
    """

    def __init__(self, model):
        self.ema, self.updates = deepcopy(model), 0

    @torch.no_grad()
    def update(self, model):
        self.updates += 1
        for average, weights in zip(self.ema.parameters(), model.parameters(), strict=True):
            average.lerp_(weights, 0.1)


class Trainer:
    """Trains in batches; each step may need several of them.

    Args:
        model: The model with the callbacks.
        epochs: Number of epochs.
        accumulate: Batches for a step, after a warm-up of an epoch that starts from 1.
        time: A limit in hours, which leaves the number of epochs unknown.
        resume: A file of weights.
        fitness: The fitness of each epoch.
        infinite: The number of each batch that has infinite gradients.
        broken: The epoch that has a loss of NaN at the first try.
    """

    def __init__(
        self,
        model,
        epochs=4,
        accumulate=1,
        time=None,
        resume=None,
        fitness=(0.0,) * 9,
        infinite=(),
        broken=None,
    ):
        self.owner, self.epochs, self.fitnesses = model, epochs, fitness
        self.infinite, self.broken = infinite, broken
        self.args = SimpleNamespace(time=time, imgsz=32, resume=resume and str(resume))
        self.data, self.device = {}, torch.device("cpu")
        self.resume, self.wdir = resume is not None, model.folder
        self.last, self.best = self.wdir / "last.pt", self.wdir / "best.pt"
        self.train_loader, self.accumulate, self.nominal = range(BATCHES), accumulate, accumulate
        self.model = Net()
        self.optimizer = OPTIMIZERS["sgd"](self.model.parameters())
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.ema, self.start_epoch, self.nan_recovery_attempts = Average(self.model), 0, 0
        self.best_fitness = None
        self.stopper, self.lr = SimpleNamespace(best_fitness=0.0), {}
        if self.resume:
            self.load(resume)
            self.start_epoch += 1

    def run(self, event):
        for callback in self.owner.callbacks[event]:
            callback(self)

    def train(self):
        self.run("on_train_start")
        self.epoch = self.start_epoch
        while self.epoch < self.epochs:
            self.run("on_train_epoch_start")
            self.train_batches()
            self.lr = {"lr/pg0": 0.1}
            self.run("on_train_epoch_end")
            fitness = self.fitnesses[self.epoch]
            if self.best_fitness is None or self.best_fitness < fitness:
                self.best_fitness = fitness
            if self.broken == self.epoch:
                self.nan_recovery_attempts, self.broken = 1, None
                self.load(self.last)
                self.epoch += 1
                continue
            self.nan_recovery_attempts = 0
            self.save(fitness)
            self.run("on_model_save")
            self.epoch += 1
        self.run("on_train_end")

    def train_batches(self):
        last = -1
        for batch in range(BATCHES):
            number = self.epoch * BATCHES + batch
            if number <= BATCHES:
                self.accumulate = round(1 + (self.nominal - 1) * number / BATCHES)
            loss = self.model(torch.randn(8, 4, 8)).square().mean()
            self.scaler.scale(loss).backward()
            if number - last >= self.accumulate:
                self.step(number in self.infinite)
                last = number
            self.run("on_train_batch_end")

    def step(self, is_infinite):
        if is_infinite:
            self.model[0].weight.grad[0, 0, 0] = float("inf")
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update(self.model)

    def save(self, fitness):
        state = {"epoch": self.epoch, "ema": deepcopy(self.ema.ema).half().state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "best_fitness": self.best_fitness}
        torch.save(state, self.last)
        if self.best_fitness == fitness:
            torch.save(state, self.best)

    def load(self, path):
        state = torch.load(path)
        for model in (self.model, self.ema.ema):
            model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_fitness, self.start_epoch = state["best_fitness"], state["epoch"]
        self.epoch = self.start_epoch
