import logging
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.models.undisturbed import (
    keep_generators,
    keep_modes,
    keep_quiet,
    keep_tensors,
    undo_on_error,
    use_plain_kernels,
)


def numbers():
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


class StoppedError(Exception):
    pass


@pytest.fixture(params=[False, True], ids=["completed", "raised"])
def inside(request):
    """Run a function inside a context that it then leaves in either way."""

    def run(context, function=lambda: None):
        try:
            with context:
                function()
                if request.param:
                    raise StoppedError
        except StoppedError:
            pass

    return run


def test_generators_go_on_as_if_nothing_had_been_drawn(inside):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    expected = numbers()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    inside(keep_generators(), numbers)
    assert numbers() == expected


def test_a_seed_makes_the_block_draw_the_same(inside):
    drawn = []
    for _ in range(2):
        inside(keep_generators(seed=3), lambda: drawn.append(numbers()))
    assert drawn[0] == drawn[1] != numbers()


def test_each_part_gets_its_mode_back(inside):
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    module[1].eval()
    inside(keep_modes(module), module.eval)
    assert [part.training for part in module.modules()] == [True, True, False]
    inside(keep_modes(module), module.train)
    assert [part.training for part in module.modules()] == [True, True, False]


class Cache(nn.Module):
    """It writes into buffers, replaces them, lets them grow, adds and deletes them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        for name in ("written", "replaced", "grown", "deleted"):
            self.register_buffer(name, torch.ones(2))
        self.register_buffer("empty", None)

    def change(self):
        with torch.no_grad():
            self.weight.mul_(2)
        self.written += 1
        self.replaced = self.replaced + 1
        self.grown = torch.cat([self.grown, self.grown])
        del self.deleted
        self.register_buffer("added", torch.ones(1))
        self.empty = torch.ones(1)


@pytest.mark.parametrize("parameters", [True, False])
def test_buffers_and_parameters_get_their_values_back(inside, parameters):
    module = Cache()
    weight, state = module.weight, {n: t.clone() for n, t in module.state_dict().items()}
    inside(keep_tensors(module, parameters=parameters), module.change)
    if not parameters:
        state["weight"] *= 2
    assert module.state_dict().keys() == state.keys()
    torch.testing.assert_close(dict(module.state_dict()), state, rtol=0, atol=0)
    assert module.weight is weight
    assert module.empty is None


def test_an_error_alone_undoes_the_changes_of_a_block():
    module = Cache()
    state = {n: t.clone() for n, t in module.state_dict().items()}

    def change_and_fail():
        with undo_on_error(module):
            module.change()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change_and_fail()
    torch.testing.assert_close(dict(module.state_dict()), state, rtol=0, atol=0)
    with undo_on_error(module):
        module.change()
    assert module.weight.tolist() == [2, 2]
    assert module.written.tolist() == [2, 2]


def test_a_buffer_that_inference_mode_has_made_is_put_back():
    module = Cache()
    with keep_tensors(module), torch.inference_mode():
        module.replaced = module.replaced + 1
    assert module.replaced.tolist() == [1, 1]
    assert not module.replaced.is_inference()


def test_tied_tensors_stay_tied(inside):
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    before = module[0].weight.detach().clone()
    inside(keep_tensors(module), lambda: module[0].weight.data.zero_())
    assert module[1].weight is module[0].weight
    assert torch.equal(module[0].weight, before)


def test_loggers_and_warnings_are_quiet_inside_only(inside, caplog):
    logger = logging.getLogger("tests.undisturbed")
    logger.setLevel(logging.INFO)

    def speak():
        logger.warning("inside")
        warnings.warn("about the inside", stacklevel=1)

    inside(keep_quiet("tests.undisturbed", warned=["about the inside"]), speak)
    assert logger.level == logging.INFO
    logger.info("outside")
    assert [record.message for record in caplog.records] == ["outside"]
    with pytest.warns(UserWarning, match="about the inside"):
        speak()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_fast_path_of_attention_is_off_inside_only(inside, enabled):
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        inside(
            use_plain_kernels(),
            lambda: pytest.fail("on") if torch.backends.mha.get_fastpath_enabled() else None,
        )
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_tensors_that_nobody_writes_into_are_not_copied(inside):
    module = nn.Linear(64, 64)
    addresses = [parameter.data_ptr() for parameter in module.parameters()]
    sizes = Sizes()

    def run_and_write_bias():
        module(torch.ones(1, 64)).sum().backward()
        with torch.no_grad():
            module.bias.mul_(2)

    bias = module.bias.detach().clone()
    with sizes:
        inside(keep_tensors(module), run_and_write_bias)
    assert sizes.copied.count(64) == 1
    assert 64 * 64 not in sizes.copied
    assert module.weight.data_ptr() == addresses[0]
    assert torch.equal(module.bias, bias)


def test_views_of_numpy_see_what_a_block_writes_that_may_be_undone():
    module = nn.Linear(3, 2)
    view = module.weight.detach().numpy()
    with undo_on_error(module), torch.no_grad():
        module.weight.fill_(2)
    assert view.tolist() == [[2, 2, 2], [2, 2, 2]]


class Sizes(TorchDispatchMode):
    """Notes the number of entries of each tensor that is copied."""

    def __init__(self):
        super().__init__()
        self.copied = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() in {"aten::clone", "aten::copy_", "aten::_to_copy"}:
            self.copied.append(args[0].numel())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("write", [lambda weight: weight.data.zero_(), lambda weight: weight.t_()])
def test_any_way_of_writing_is_undone(inside, write):
    module = nn.Linear(3, 3, bias=False)
    weight = module.weight.detach().clone()
    inside(keep_tensors(module), lambda: write(module.weight.data))
    assert torch.equal(module.weight, weight)


def test_tensors_in_memory_of_numpy_or_of_another_layout_are_put_back(inside):
    module = nn.Module()
    module.register_buffer("shared", torch.from_numpy(np.ones(3)))
    module.register_buffer("sparse", torch.eye(3).to_sparse())

    def change():
        module.shared.zero_()
        module.sparse.mul_(2)

    inside(keep_tensors(module), change)
    assert module.shared.tolist() == [1, 1, 1]
    assert torch.equal(module.sparse.to_dense(), torch.eye(3))
