import copy

import pytest
import torch
from torch import nn

from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.examples import CallRecorder, make_random_calls


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, *, scale=1.0):
        return self.layer(x) * scale


def test_the_first_calls_are_recorded_as_they_were_made():
    module, x = Scaled(), torch.randn(3, 2)
    with CallRecorder(module, limit=2) as recorder:
        outputs = [module(x, scale=2.0), module.forward(x), module(x)]
    assert torch.equal(outputs[0], 2 * outputs[1])
    assert recorder.calls[0].keywords == {"scale": 2.0}
    assert len(recorder.calls) == 2
    x.zero_()
    assert recorder.calls[0].tensors[0].count_nonzero()
    again = make_call(module, recorder.calls[0])
    assert torch.equal(module(*again.arguments, **again.keywords), outputs[0])


def test_the_recorder_keeps_some_samples_and_steps_aside():
    module = Scaled()
    recorder = CallRecorder(module, limit=1, samples=2)
    module(torch.randn(3, 2))
    assert "forward" not in vars(module)
    assert len(recorder.calls[0].tensors[0]) == 2
    recorder.stop()
    assert "forward" not in vars(module)


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_of_the_instance_comes_back(fails):
    module = Scaled()
    own = module.forward = module.layer.forward
    try:
        with CallRecorder(module, limit=5):
            module(torch.randn(1, 3 if fails else 2))
    except RuntimeError:
        assert fails
    assert module.forward == own


def test_a_copy_made_meanwhile_works_by_its_own_weights():
    module, x = Scaled(), torch.randn(3, 2)
    recorder = CallRecorder(module, limit=1)
    copied = copy.deepcopy(module)
    nn.init.zeros_(copied.layer.weight)
    nn.init.zeros_(copied.layer.bias)
    assert not copied(x).any()
    recorder.stop()
    assert module(x).all()


def test_a_compiled_model_is_recorded():
    module, x = Scaled(), torch.randn(3, 2)
    module.compile(backend="eager")
    expected = module(x, scale=2.0)
    with CallRecorder(module, limit=1) as recorder:
        assert torch.equal(module(x, scale=2.0), expected)
        assert torch.equal(module(x, scale=2.0), expected)
    assert torch.equal(recorder.calls[0].tensors[0], x)


def random_tensor(tensor, sizes=(None,)):
    return [call.tensors[0] for call in make_random_calls(Call((tensor,), {}), sizes)]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[-2.0, 3.0]] * 50),
        torch.tensor([[-2.0, 3.0]] * 50, dtype=torch.double),
        torch.tensor([[-2.0, 3.0]] * 50).half(),
        torch.tensor([[3, 9]] * 50),
        torch.tensor([[3, 9]] * 50, dtype=torch.uint8),
        torch.tensor([[True, False]] * 50),
    ],
)
def test_random_entries_are_of_the_same_type_and_range(tensor):
    (drawn,) = random_tensor(tensor)
    assert (drawn.dtype, drawn.shape, drawn.device) == (tensor.dtype, tensor.shape, tensor.device)
    assert tensor.min() <= drawn.min() < drawn.max() <= tensor.max()
    assert torch.equal(drawn, random_tensor(tensor)[0])


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_without_a_range_entries_are_normal(value):
    tensor = torch.full((100, 2), value)
    if value:
        tensor[0] = 0.0
    (drawn,) = random_tensor(tensor)
    assert drawn.isfinite().all()
    assert drawn.std() == pytest.approx(1, abs=0.2)


def test_only_tensors_with_samples_get_another_batch_size():
    call = Call((torch.randn(4, 3), torch.randn(1, 5)), {"on": torch.tensor(True), "n": 7})
    calls = list(make_random_calls(call, [4, 1, 5]))
    assert [c.tensors[0].shape[0] for c in calls] == [4, 1, 5]
    assert all(c.tensors[1].shape == (1, 5) and c.keywords["n"] == 7 for c in calls)
    assert not torch.equal(calls[0].tensors[1], calls[1].tensors[1])


def test_random_calls_leave_the_generators_alone():
    state = torch.get_rng_state()
    random_tensor(torch.ones(2, 2), (2, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_tensor_stays():
    assert random_tensor(torch.zeros(0, 2))[0].shape == (0, 2)
