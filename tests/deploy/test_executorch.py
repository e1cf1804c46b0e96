import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_prune import export_executorch, shrink


@pytest.fixture
def library():
    return pytest.importorskip("executorch", reason="needs lightning-prune[executorch]")


def convolutional():
    """A network with three zeros in each four weights, and statistics as after a training."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    for part in module:
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.data.view(-1)[torch.arange(part.weight.numel()) % 4 > 0] = 0.0
    module[1].running_var.uniform_(0.5, 2.0)
    module[1].running_mean.uniform_(-1.0, 1.0)
    return module


ENTRIES = 8 * 3 * 9 + 8 * 9 + 8 * 4
ZEROS = ENTRIES * 3 // 4


def answers(path, *inputs):
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path.read_bytes())
    return program.load_method("forward").execute(inputs)


@pytest.mark.slow
def test_the_file_answers_as_the_module_in_eval_mode_and_keeps_zeros(library, tmp_path):
    module = convolutional().train()
    before = deepcopy(module.state_dict())
    state = torch.get_rng_state()
    images = torch.rand(2, 3, 8, 8)
    file = export_executorch(module, tmp_path / "new" / "net.pte", example=images, inputs=[images])
    assert module.training
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    torch.random.set_rng_state(state)
    assert torch.equal(images, torch.rand(2, 3, 8, 8))
    (found,) = answers(file.path, images)
    torch.testing.assert_close(found, module.eval()(images), rtol=1e-4, atol=1e-5)
    assert file.difference < 1e-5
    assert (file.zeros, file.entries, file.batch_size) == (ZEROS, ENTRIES, 2)
    assert file.size == file.path.stat().st_size
    assert list(file.path.parent.iterdir()) == [file.path]


class TwoTowers(nn.Module):
    """Takes tokens and features by keyword, a nest and a switch, and answers in a mapping."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 20)
        self.left = nn.Linear(20, 20, bias=False)
        self.right = nn.Linear(20, 20)
        self.right.weight = self.left.weight
        self.teacher = nn.Linear(20, 20)
        for parameter in self.parameters():
            parameter.data.view(-1)[::2] = 0.0

    def forward(self, ids, *, more, times=2, nothing=None):
        features = self.right(more["features"])
        logits = self.left(self.tokens(ids).mean(1)) * features * times
        return {"logits": logits, "none": None, "best": (logits.argmax(1),)}


@pytest.mark.slow
def test_nested_arguments_constants_and_an_embedding_are_exported(library, tmp_path):
    example = {
        "ids": torch.randint(0, 7, (3, 5)),
        "more": {"features": torch.rand(3, 20)},
        "times": 3,
        "nothing": None,
    }
    others = {"ids": example["ids"], "more": {"features": torch.rand(3, 20)}, "times": 3}
    module = TwoTowers()
    file = export_executorch(module, tmp_path / "net.pte", example=example, inputs=[others])
    assert (file.zeros, file.entries) == (200 + 70, 400 + 140)  # the tied weight once


@pytest.mark.slow
def test_recurrent_weights_and_equal_weights_keep_their_zeros(library, tmp_path):
    lstm = nn.LSTM(4, 4, batch_first=True)
    for weight in lstm.parameters():
        weight.data.view(-1)[::2] = 0.0
    file = export_executorch(lstm, tmp_path / "lstm.pte", example=torch.rand(1, 2, 4))
    assert file.zeros >= 64
    first = nn.Linear(8, 8)
    nn.init.zeros_(first.weight[:4])
    twins = nn.Sequential(first, nn.ReLU(), deepcopy(first))
    assert export_executorch(twins, tmp_path / "net.pte", example=torch.rand(2, 8)).zeros >= 32


@pytest.mark.slow
def test_removed_channels_make_the_file_smaller(library, tmp_path):
    module = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 4))
    module[0].weight.data[10:] = 0.0
    module[0].bias.data[10:] = 0.0
    module[2].weight.data[:, 10:] = 0.0
    images = torch.rand(1, 16)
    dense = export_executorch(module, tmp_path / "dense.pte", example=images)
    small = export_executorch(shrink(module, images), tmp_path / "small.pte", example=images)
    assert (small.entries, dense.entries) == (10 * 20, 40 * 20)
    assert dense.size - small.size >= 4 * 30 * 20
    (here,), (there,) = answers(dense.path, images), answers(small.path, images)
    torch.testing.assert_close(here, there)


CALLS = []


class Counting(nn.Module):
    def forward(self, inputs):
        CALLS.append(1)
        return inputs * len(CALLS)


class Undecided(nn.Module):
    def forward(self, inputs):
        return inputs if inputs.sum() > 0 else -inputs


class Eigenvalues(nn.Module):
    def forward(self, inputs):
        return torch.linalg.eigh(inputs @ inputs.mT)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Counting(), r"need answers within tolerance=0\.0001 .* got a difference=.* in output 0"),
        (Undecided(), r"need a module that torch.export can trace, got a Undecided: \w+: Could"),
        (Eigenvalues(), r"need operators that ExecuTorch has, got a module of others"),
    ],
)
def test_what_cannot_be_exported_rightly_leaves_the_older_file(library, module, message, tmp_path):
    (tmp_path / "net.pte").write_text("older")
    with pytest.raises(ValueError, match=message):
        export_executorch(module, tmp_path / "net.pte", example=torch.rand(2, 4, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["net.pte"]
    assert (tmp_path / "net.pte").read_text() == "older"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example": (torch.rand(1, 2), 3)}, "need an example that forward takes, got too many"),
        ({}, r"got example=None; set self\.example_input_array"),
        ({"example": torch.rand(1, 2), "tolerance": -1.0}, "need tolerance >= 0, got tolerance=-1"),
        (
            {"example": torch.rand(1, 2), "inputs": [torch.rand(5, 2)]},
            r"need inputs of the example's shapes, \[\[1, 2\]\], got \[\[5, 2\]\]",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_the_file_is_written(
    library, options, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        export_executorch(nn.Linear(2, 2), tmp_path / "net.pte", **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    message = r"need executorch for files to deploy, got none; .*lightning-prune\[executorch\]"
    with pytest.raises(ModuleNotFoundError, match=message):
        export_executorch(nn.Linear(2, 2), tmp_path / "net.pte", example=torch.rand(1, 2))
