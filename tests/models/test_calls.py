from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

from lightning_prune.models.calls import Call, bind_call, make_call


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, one, other=None, *, scale=1.0):
        return self.layer(one)


ONE, OTHER = torch.ones(1, 2), torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("example", "arguments", "keywords"),
    [
        (ONE, (ONE,), {}),
        ((ONE, OTHER), (ONE, OTHER), {}),
        ([ONE, OTHER], (ONE, OTHER), {}),
        (namedtuple("Pair", "a b")(ONE, OTHER), (ONE, OTHER), {}),
        ({"other": OTHER, "one": ONE}, (ONE, OTHER), {}),
        (UserDict(one=ONE, scale=2.0), (ONE,), {"scale": 2.0}),
        (Call((ONE,), {"scale": 2.0}), (ONE,), {"scale": 2.0}),
    ],
)
def test_an_example_becomes_arguments_in_the_order_of_forward(example, arguments, keywords):
    call = make_call(Two(), example)
    torch.testing.assert_close(tuple(call), (arguments, keywords))


def test_the_call_is_a_copy_on_the_device_of_the_module():
    with torch.inference_mode():
        example = torch.ones(1, 2)
    call = make_call(Two().to("meta"), {"one": [example]})
    (tensor,) = call.tensors
    assert tensor.device.type == "meta"
    (tensor,) = make_call(Two(), (example,)).tensors
    assert not tensor.is_inference()
    assert tensor.data_ptr() != example.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_example_takes_the_dtype_of_the_parameters(dtype):
    example = {"one": ONE, "other": torch.arange(2), "scale": 2.0}
    call = make_call(Two().to(dtype), example)
    assert [tensor.dtype for tensor in call.tensors] == [dtype, torch.int64]
    assert call.keywords == {"scale": 2.0}
    assert ONE.dtype == torch.float32


def test_an_example_for_parameters_of_several_dtypes_is_left_as_it_is():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    for dtype in (torch.float32, torch.bfloat16):
        assert make_call(module, ONE.to(dtype)).tensors[0].dtype == dtype


def test_the_modules_own_example_is_the_default_also_when_compiled():
    module = Two()
    module.example_input_array = ONE
    assert torch.equal(make_call(module).tensors[0], ONE)
    compiled = torch.compile(module, backend="eager")
    assert torch.equal(make_call(compiled, None).tensors[0], ONE)
    assert bind_call(compiled, (), {"one": ONE}).arguments == (ONE,)


def test_a_missing_example_is_asked_for_by_the_name_of_the_class():
    message = (
        r"need an example of the arguments of forward, got example=None; set "
        r"self\.example_input_array = .* in the constructor of Two, or give the argument example$"
    )
    with pytest.raises(ValueError, match=message):
        make_call(Two())


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((ONE, OTHER, ONE), "need an example that forward takes, got too many positional"),
        ({"one": ONE, "three": ONE}, "need an example that forward takes, got .* 'three'"),
    ],
)
def test_an_example_that_forward_does_not_take_is_refused(example, message):
    with pytest.raises(ValueError, match=message):
        make_call(Two(), example)


def test_samples_are_those_of_the_first_tensor():
    mask, scalar = torch.ones(1, 3), torch.tensor(5.0)
    call = Call((torch.randn(4, 3), [mask, torch.arange(4)]), {"scale": scalar, "name": "x"})
    assert call.batch_size == 4
    fewer = call.take_samples(2)
    assert [list(tensor.shape) for tensor in fewer.tensors] == [[2, 3], [1, 3], [2], []]
    assert fewer.keywords["name"] == "x"
    assert call.double_single_sample() is call


def test_a_single_sample_is_doubled_with_all_that_belongs_to_it():
    call = Call((torch.randn(1, 3), torch.randn(2, 1)), {"mask": torch.ones(1, 5)})
    doubled = call.double_single_sample()
    assert [list(tensor.shape) for tensor in doubled.tensors] == [[2, 3], [2, 1], [2, 5]]


def test_a_call_without_dimensions_has_no_batch():
    call = Call((torch.tensor(1.0), 3), {})
    assert call.batch_size is None
    assert call.double_single_sample() is call
    assert not call.has_samples(torch.tensor(1.0))
