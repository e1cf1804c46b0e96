import logging
import random
from copy import deepcopy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_prune import export_onnx, quantize_onnx
from lightning_prune.models.torch_floors import TorchFloor
from tests.deploy.pruned import pruned
from tests.versions import refused_before


def convolutional():
    return pruned(
        nn.Sequential(
            nn.Conv2d(3, 40, 3, bias=False),
            nn.BatchNorm2d(40),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(40, 10),
        )
    )


ZEROS = round(0.9 * 40 * 3 * 9) + round(0.9 * 40 * 10)
ENTRIES = 40 * 3 * 9 + 40 * 10


def answers(path, **inputs):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def weights_in(path):
    return {
        constant.name: onnx.numpy_helper.to_array(constant)
        for constant in onnx.load(path).graph.initializer
    }


def state_of(module):
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()},
        [part.training for part in module.modules()],
        [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()],
        [id(parameter.grad) for parameter in module.parameters()],
        logging.getLogger("torch.onnx").level,
    )


def random_numbers():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A module, what was exported of it, and what it and the world were like before and after."""
    module = convolutional().train()
    module[1].eval()
    module[0].register_forward_hook(lambda *args: None)
    module(torch.rand(2, 3, 8, 8)).sum().backward()
    module[0].weight.data[module[0].weight == 0] = -0.0
    path = tmp_path_factory.mktemp("onnx") / "new" / "net.onnx"
    images = torch.rand(1, 3, 8, 8)
    before = state_of(module), random_numbers()
    file = export_onnx(module, path, example=images)
    return module, file, before, (state_of(module), random_numbers())


@pytest.fixture
def exported(written):
    return written[1]


def test_the_file_answers_as_the_module_in_eval_mode_for_any_batch(exported):
    copy = convolutional().eval()
    assert exported.any_batch
    for batch in (1, 7):
        images = torch.randn(batch, 3, 8, 8)
        (found,) = answers(exported.path, input=images)
        np.testing.assert_allclose(found, copy(images).detach(), rtol=1e-4, atol=1e-5)
    assert exported.difference < 1e-5


def test_zeros_and_bytes_are_those_of_the_file(exported):
    assert (exported.zeros, exported.entries) == (ZEROS, ENTRIES)
    assert sum((w == 0).sum() for w in weights_in(exported.path).values() if w.ndim > 1) == ZEROS
    assert exported.size == exported.path.stat().st_size < 4 * ENTRIES + 5000
    assert list(exported.path.parent.iterdir()) == [exported.path]


def test_the_file_names_no_folder_of_this_machine(exported):
    assert b"site-packages" not in exported.path.read_bytes()


def test_the_module_and_random_numbers_are_left_as_they_were(written):
    _, _, (module, numbers), (module_after, numbers_after) = written
    assert list(module[0]) == list(module_after[0])
    for name, tensor in module[0].items():
        assert torch.equal(tensor, module_after[0][name])
        assert torch.equal(tensor.signbit(), module_after[0][name].signbit())
    assert module[1:] == module_after[1:]
    assert torch.equal(numbers[0], numbers_after[0])
    assert numbers[1:] == numbers_after[1:]


class TwoTowers(LightningModule):
    """Takes tokens and features by keyword, a nest and a switch, and answers in a mapping."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 20)
        self.left = nn.Linear(20, 20, bias=False)
        self.right = nn.Linear(20, 20)
        self.right.weight = self.left.weight
        self.teacher = nn.Linear(20, 20)
        self.example_input_array = {
            "more": {"features": torch.rand(1, 20)},
            "ids": torch.randint(0, 7, (1, 5)),
        }

    def forward(self, ids, *, more, times=2, nothing=None):
        features = self.right(more["features"])
        logits = self.left(self.tokens(ids).mean(1)) * features * times
        return {"logits": logits, "none": None, "best": (logits.argmax(1),)}


@refused_before(TorchFloor.ONNX_OF_NONE)
@pytest.mark.slow
def test_a_lightning_module_with_nested_inputs_is_exported_by_its_example(tmp_path):
    module = pruned(TwoTowers())
    given = {
        "ids": torch.randint(0, 7, (30, 9 - 4)),
        "more": {"features": torch.rand(30, 20)},
        "times": 2,
    }
    file = export_onnx(module, tmp_path / "net.onnx", inputs=[given])
    assert file.any_batch
    # The tied weight counts once, the unused one and the embedding do not: 0.9 * 20 * 20, and the
    # zeros of the embedding that are in the file, too.
    assert file.zeros == 360 + 126
    logits, best = answers(file.path, ids=given["ids"], more_features=given["more"]["features"])
    expected = module.eval()(**given)
    np.testing.assert_allclose(logits, expected["logits"].detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(best, expected["best"][0])

    handlers = logging.getLogger().handlers[:]
    batches = [{"ids": given["ids"], "features": given["more"]["features"]}]
    integers = quantize_onnx(file.path, tmp_path / "int8.onnx", batches, reduce_range=False)
    assert integers.zeros >= file.zeros  # of the embedding, too, whose zeros are not the byte 0
    assert integers.entries == file.entries
    embedding = next(
        w for w in weights_in(integers.path).values() if w.dtype == np.uint8 and w.ndim
    )
    assert (embedding == 0).sum() < 126
    assert logging.getLogger().handlers == handlers


@refused_before(TorchFloor.FORWARD_WITH_ATTRIBUTES)
@pytest.mark.slow
def test_recurrent_weights_keep_their_zeros(tmp_path):
    module = pruned(nn.LSTM(6, 8, batch_first=True))
    file = export_onnx(module, tmp_path / "net.onnx", example=torch.rand(1, 3, 6))
    assert file.zeros >= round(0.9 * 32 * 6) + round(0.9 * 32 * 8)


class OneSize(nn.Module):
    def forward(self, images):
        return images.view(1, 4).sum(1)


@pytest.mark.slow
def test_a_module_for_one_size_is_exported_for_that(tmp_path):
    file = export_onnx(OneSize(), tmp_path / "net.onnx", example=torch.rand(1, 2, 2))
    assert not file.any_batch
    shape = onnx.load(file.path).graph.input[0].type.tensor_type.shape
    assert [dimension.dim_value for dimension in shape.dim] == [1, 2, 2]


@pytest.mark.slow
def test_half_precision_halves_the_file_and_keeps_zeros_and_float_inputs(tmp_path):
    path = tmp_path / "net.onnx"
    file = export_onnx(convolutional(), path, example=torch.rand(2, 3, 8, 8), precision="fp16")
    assert (file.zeros, file.entries) == (ZEROS, ENTRIES)
    assert {w.dtype.name for w in weights_in(path).values() if w.ndim > 1} == {"float16"}
    (found,) = answers(path, input=torch.rand(3, 3, 8, 8))
    assert found.dtype == np.float32
    assert 1e-5 < file.difference < 1e-2


@pytest.mark.slow
def test_what_overflows_in_half_precision_is_refused_and_leaves_the_older_file(tmp_path):
    (tmp_path / "net.onnx").write_text("older")
    module = nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))
    module[0].weight.data = 1e5 * torch.eye(3)
    with pytest.raises(ValueError, match=r"need activations of at most 65504 .* got 20000. in '0'"):
        export_onnx(
            module,
            tmp_path / "net.onnx",
            example=0.1 * torch.rand(2, 3),
            inputs=[torch.full((2, 3), 2.0)],
            precision="fp16",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "older"


@pytest.mark.parametrize(("reduce_range", "largest"), [(True, 64), (False, 127)])
def test_zeros_survive_in_8_bits(reduce_range, largest, exported, tmp_path):
    handlers = logging.getLogger().handlers[:]
    batches = [torch.rand(4, 3, 8, 8) for _ in range(3)]
    file = quantize_onnx(exported.path, tmp_path / "int8.onnx", batches, reduce_range=reduce_range)
    weights = weights_in(file.path)
    kernels = [w for w in weights.values() if w.ndim > 1]
    assert {w.dtype.name for w in kernels} == {"int8"}
    assert max(np.abs(w.astype(int)).max() for w in kernels) == largest
    points = [w for name, w in weights.items() if name.endswith("weight_zero_point")]
    assert len(points) == 2
    assert not any(point.any() for point in points)
    floats = [w for w in weights_in(exported.path).values() if w.ndim > 1]
    assert all((w[f == 0] == 0).all() for w, f in zip(kernels, floats, strict=True))
    assert file.zeros == sum((w == 0).sum() for w in kernels) >= ZEROS
    assert file.entries == ENTRIES
    assert file.any_batch
    assert 0 < file.difference < 0.05
    assert logging.getLogger().handlers == handlers
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


@refused_before(TorchFloor.PROCESSOR)
@pytest.mark.parametrize(
    ("capabilities", "largest"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_vnni": False}, 64),
        ({"architecture": "x86_64", "avx512_vnni": True}, 127),
        ({"architecture": "x86_64", "avx_vnni": True}, 127),
        ({"architecture": "aarch64"}, 127),
    ],
)
def test_seven_bits_are_used_where_eight_would_saturate(
    capabilities, largest, exported, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    file = quantize_onnx(exported.path, tmp_path / "int8.onnx", [torch.rand(4, 3, 8, 8)])
    kernels = [w for w in weights_in(file.path).values() if w.ndim > 1]
    assert max(np.abs(w.astype(int)).max() for w in kernels) == largest


def test_8_bits_need_batches(exported, tmp_path):
    with pytest.raises(ValueError, match="at least one batch to calibrate with"):
        quantize_onnx(exported.path, tmp_path / "int8.onnx", [])


def test_openvino_reads_the_file(exported):
    openvino = pytest.importorskip("openvino")
    images = torch.rand(3, 3, 8, 8)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # with AMX it computes in bfloat16 otherwise
    compiled = openvino.compile_model(exported.path, "CPU", exact)
    (found,) = compiled([images.numpy()]).values()
    expected = convolutional().eval()(images).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_equal_weights_may_be_in_the_file_once(tmp_path):
    first = nn.Linear(8, 8)
    nn.init.zeros_(first.weight[:4])
    module = nn.Sequential(first, nn.ReLU(), deepcopy(first))
    file = export_onnx(module, tmp_path / "twins.onnx", example=torch.randn(2, 8))
    assert file.zeros >= 32
