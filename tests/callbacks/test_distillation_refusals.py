"""What cannot be taught, and is refused."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn

from lightning_prune import DistillationCallback
from tests.callbacks.conftest import Classifier
from tests.callbacks.teaching import Forwarding, make
from tests.hooks import hooks

SECTION = "Distillation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "need temperature > 0, or null .*, got temperature=0"),
        ({"temperature": float("inf")}, "need temperature > 0, .*, got temperature=inf"),
        ({"weight": -1}, "need weight >= 0, got weight=-1"),
        ({"weight": float("nan")}, "need weight >= 0, got weight=nan"),
        ({"features": {"net": -2.0}}, r"need features\['net'\] >= 0, got features\['net'\]=-2.0"),
        ({"temperature": None}, "need a temperature or features, got temperature=None, features"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationCallback(**arguments)


class Manual(Classifier):
    automatic_optimization = False


class Compiled(Classifier):
    def __init__(self):
        super().__init__()
        self.net[1].compile()


class Deep(Classifier):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net[2](self.net[:2](batch[0])), batch[1])


class Changing(Classifier):
    def __init__(self):
        super().__init__()
        self.net.insert(0, nn.ReLU(inplace=True))


class Moody(Classifier):
    def forward(self, x):
        x = self.net[1](self.net[0](x))
        return self.net[2](self.net[1](x) if self.training == self.more else x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class More(Moody):
    more = True


class Fewer(Moody):
    more = False


class Tupled(Forwarding):
    def forward(self, x):
        return [self.net(x)]

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0])[0], batch[1])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        pytest.param(
            Manual,
            {},
            "need a training_step that returns its loss, got automatic_optimization=False",
            marks=pytest.mark.works_with(SECTION, "manual optimization", refused=True),
        ),
        pytest.param(
            Compiled,
            {},
            "need modules that are not compiled, got 'net.1'",
            marks=pytest.mark.slow,  # it loads the compiler
        ),
        (Classifier, {}, r"calls self.forward \(output='forward'\) .*: 'net'$"),
        (Classifier, {"output": "head"}, "need 'forward' or a module's name, got 'head': 'net', "),
        (Classifier, {"features": ["x"]}, "need 'forward' or a module's name, got 'x': 'net', "),
        (Deep, {"output": "net.2"}, "need 'net.2' .* to be given data, got the output of layers"),
        (Deep, {"output": "net.0", "features": ["net.2"]}, "need features .* got 'net.2'"),
        (Changing, {"output": "net"}, "to leave its inputs as they are, got an"),
        (More, {"features": ["net.1"]}, "got 'net.1', which the student called more than 1 times"),
        (Fewer, {"features": ["net.1"]}, "got 'net.1', which the student called 1 of 2 times"),
        (Tupled, {}, "need a tensor of logits, .* got list"),
        (
            Tupled,
            {"features": ["forward"], "temperature": None},
            "need a tensor, or a tuple .* got list",
        ),
        (Classifier, {"teacher": "other.pt"}, "need a checkpoint of this module, got teacher="),
    ],
)
def test_what_cannot_be_taught_is_refused(
    kind, arguments, message, make_trainer, loader, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({"net.0.weight": torch.zeros(32, 16)}, "other.pt")
    model = make(kind)
    with pytest.raises(ValueError, match=message):
        make_trainer(DistillationCallback(**arguments)).fit(model, loader)
    assert not hooks(model)


@pytest.mark.works_with(SECTION, "compiled modules", refused=True)
def test_a_compiled_module_is_refused(make_trainer, loader):
    model = torch.compile(make())
    with pytest.raises(ValueError, match="need modules that are not compiled, got 'Classifier'"):
        make_trainer(DistillationCallback(output="net")).fit(model, loader)


@pytest.mark.works_with(SECTION, "FSDP1 (`FSDPStrategy`), DeepSpeed", refused=True)
@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_flattened_parameters_are_refused(strategy):
    trainer = SimpleNamespace(callbacks=[], strategy=strategy.__new__(strategy))
    with pytest.raises(ValueError, match=f"shards each of them, got {strategy.__name__}; use DDP"):
        DistillationCallback().setup(trainer, make(), "fit")


def test_a_second_one_is_refused(make_trainer, loader):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Distill"):
        make_trainer(DistillationCallback(), DistillationCallback()).fit(make(), loader)
