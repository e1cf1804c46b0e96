"""ONNX files of modules for texts: any length, named inputs and outputs, and metadata."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lightning_prune
from lightning_prune import export_onnx, quantize_onnx


class Texts(nn.Module):
    """Two inputs of the same length, and outputs with names."""

    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(20, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.linear.weight[0] = 0

    def forward(self, ids, mask):
        states = self.embedding(ids) * mask[..., None]
        return {"logits": self.linear(states.mean(1)), "states": (states, states.flip(1))}


class Batches(Texts):
    """The same, called as ``module(**batch)``."""

    def forward(self, **batch):
        return super().forward(batch["ids"], batch["mask"])


EXAMPLE = {"ids": torch.arange(24).reshape(4, 6) % 20, "mask": torch.ones(4, 6)}
LENGTHS = {"ids": [1], "mask": [1]}


def run(path, length, batch=3):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = torch.zeros(batch, length, dtype=torch.int64, device="cpu")
    given = {"ids": ids.numpy(), "mask": torch.ones(batch, length, device="cpu").numpy()}
    return [output.shape for output in session.run(["logits", "states_0", "states_1"], given)]


@pytest.mark.parametrize("kind", [Texts, Batches])
def test_texts_of_any_length_run_in_batches_of_any_size(kind, tmp_path):
    path = tmp_path / "texts.onnx"
    file = export_onnx(kind(), path, example=EXAMPLE, dynamic_shapes=LENGTHS)
    assert file.any_batch
    assert run(path, length=11) == [(3, 3), (3, 11, 8), (3, 11, 8)]
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["ids", "mask"]
    assert [value.name for value in graph.output] == ["logits", "states_0", "states_1"]


def test_without_dynamic_shapes_the_length_is_that_of_the_example(tmp_path):
    file = export_onnx(Batches(), tmp_path / "texts.onnx", example=EXAMPLE)
    assert file.any_batch
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        run(tmp_path / "texts.onnx", length=11)


def test_a_single_output_and_a_list_have_plain_names(tmp_path):
    class Pair(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y, y + 1

    for module, names in ((nn.Linear(3, 2), ["output"]), (Pair(3, 2), ["output_0", "output_1"])):
        export_onnx(module, tmp_path / "x.onnx", example=torch.ones(2, 3))
        graph = onnx.load(tmp_path / "x.onnx").graph
        assert [value.name for value in graph.output] == names


def test_an_output_never_takes_the_name_of_another_value(tmp_path):
    class Same(nn.Linear):
        def forward(self, x):
            return {"x": super().forward(x)}

    export_onnx(Same(3, 2), tmp_path / "x.onnx", example=torch.ones(2, 3))
    graph = onnx.load(tmp_path / "x.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "x_"]


def test_the_file_says_version_sparsity_and_what_the_user_adds(tmp_path):
    path, small = tmp_path / "texts.onnx", tmp_path / "int8.onnx"
    export_onnx(Texts(), path, example=EXAMPLE, metadata={"recipe": "sparsity: 0.5\n"})
    quantize_onnx(path, small, [EXAMPLE], reduce_range=False)
    for file in (path, small):
        facts = {each.key: each.value for each in onnx.load(file).metadata_props}
        assert facts["lightning_prune.version"] == lightning_prune.__version__
        assert float(facts["lightning_prune.sparsity"]) == pytest.approx(8 / (160 + 24), abs=1e-4)
        assert facts["lightning_prune.recipe"] == "sparsity: 0.5\n"


@pytest.mark.parametrize(
    ("dynamic_shapes", "example", "message"),
    [
        ({"idz": [1]}, EXAMPLE, "got 'idz'; the inputs are ids, mask; did you mean 'ids'"),
        ({"ids": [2]}, EXAMPLE, "need dimensions from 0 to 1 for 'ids' in dynamic_shapes, got 2"),
        (
            {"ids": [1]},
            {name: tensor[:, :1] for name, tensor in EXAMPLE.items()},
            r"need an example with a size of 2 or more in dimension 1 of 'ids', got .*\[4, 1\]",
        ),
        ({"ids": 1}, EXAMPLE, "need dynamic_shapes"),
    ],
)
def test_wrong_dynamic_shapes_are_refused(dynamic_shapes, example, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        export_onnx(Texts(), tmp_path / "x.onnx", example=example, dynamic_shapes=dynamic_shapes)


def test_a_module_of_a_single_length_is_refused(tmp_path):
    class Fixed(Texts):
        def forward(self, ids, mask):
            return self.linear(self.embedding(ids).reshape(-1, 6, 8).mean(1))

    with pytest.raises(ValueError, match=r"dynamic_shapes=\{'ids': \[1\]\}|torch.export can trace"):
        export_onnx(Fixed(), tmp_path / "x.onnx", example=EXAMPLE, dynamic_shapes={"ids": [1]})
    assert not (tmp_path / "x.onnx").exists()
