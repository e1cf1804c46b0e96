import pytest
import torch
from torch import nn

from lightning_prune import adopt, shrink, shrunk_state
from tests.coupled_models import MODELS, example, plain
from tests.zero_channels import assert_same, outputs, size, zeroed


@pytest.mark.parametrize("name", ["attention", "gated", "norm groups", "torch attention"])
def test_a_fresh_instance_adopts_what_was_saved(name, tmp_path):
    module = shrink(zeroed(MODELS[name](), example()), example())
    torch.save(shrunk_state(module), tmp_path / "shrunk.pt")
    fresh = MODELS[name]()
    adopt(fresh, torch.load(tmp_path / "shrunk.pt", weights_only=True))
    assert torch.equal(outputs(fresh, example()), outputs(module, example()))
    assert fresh.state_dict().keys() == module.state_dict().keys()


def compiled(module):
    """Compile each child of a module."""
    for name, child in module.named_children():
        setattr(module, name, torch.compile(child, backend="eager"))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "torch attention"])
@pytest.mark.parametrize("make", [lambda module: module, compiled], ids=["plain", "compiled"])
def test_a_module_with_compiled_parts_is_shrunk_and_adopted(name, make):
    module = zeroed(compiled(MODELS[name]()), example())
    smaller = shrink(module, example())
    assert size(smaller) == size(shrink(zeroed(MODELS[name](), example()), example()))
    fresh = make(MODELS[name]())
    adopt(fresh, shrunk_state(smaller))
    assert_same(module, fresh, example())
    assert torch.equal(outputs(fresh, example()), outputs(smaller, example()))


def test_a_plain_module_adopts_the_state_of_a_compiled_part():
    smaller = shrink(zeroed(compiled(plain()), example()), example())
    fresh = plain()
    adopt(fresh, shrunk_state(smaller))
    assert type(fresh[0]) is nn.Conv2d
    assert torch.equal(outputs(fresh, example()), outputs(smaller, example()))


def test_adopting_another_architecture_is_refused():
    with pytest.raises(
        ValueError, match=r"need the state of a module of the same class.*'0\.bias'"
    ):
        adopt(nn.Linear(2, 2), shrunk_state(plain()))
