import pytest
import torch
from torch import nn

from lightning_prune.engine.selection import select_tensors
from lightning_prune.models.prunable import prunable_weights


def chosen(module, sparsity=None, optimizers=None):
    if optimizers is None:
        optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    return select_tensors(module, optimizers, sparsity or {"*": 0.5})


def names(selection):
    return [tensor.name for tensor in selection.tensors]


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.my_weight = nn.Parameter(torch.ones(3, 4))
        self.matrix = nn.Parameter(torch.ones(3, 4))


class Conv1D(nn.Module):
    """Named and laid out as in Hugging Face's transformers: inputs first."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 6))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(4, 3), ["weight"]),
        (nn.Linear(4, 3, bias=False), ["weight"]),
        (nn.Conv1d(4, 3, 2), ["weight"]),
        (nn.Conv2d(4, 3, 2), ["weight"]),
        (nn.Conv3d(4, 3, 2), ["weight"]),
        (nn.ConvTranspose2d(4, 3, 2), ["weight"]),
        (nn.Bilinear(4, 3, 2), ["weight"]),
        (nn.LSTM(4, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.GRU(4, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.RNN(4, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
        (Custom(), ["my_weight"]),
        (Conv1D(), ["weight"]),
        (
            nn.ModuleDict(
                {"n": nn.LayerNorm([2, 3]), "e": nn.Embedding(5, 4), "l": nn.Linear(2, 2)}
            ),
            ["l.weight"],
        ),
        (
            nn.ModuleDict(
                {"b": nn.BatchNorm2d(3), "g": nn.GroupNorm(1, 3), "c": nn.Conv2d(1, 3, 1)}
            ),
            ["c.weight"],
        ),
        (
            nn.ModuleDict({"bag": nn.EmbeddingBag(5, 4), "lin": nn.Linear(2, 2)}),
            ["lin.weight"],
        ),
    ],
)
def test_by_default_weights_of_layers_are_pruned_and_nothing_else(module, expected):
    assert names(chosen(module)) == expected
    assert list(prunable_weights(module)) == expected


def test_the_output_axis_of_input_first_layers_is_the_second():
    assert chosen(nn.ConvTranspose2d(4, 3, 2)).tensors[0].shape == (3, 4, 2, 2)
    assert chosen(Conv1D()).tensors[0].shape == (6, 4)
    assert chosen(nn.Linear(4, 3)).tensors[0].shape == (3, 4)
    assert chosen(nn.ConvTranspose2d(4, 3, 2), {"bias": 0.5}).tensors[0].shape == (3,)
    parametrized = nn.utils.parametrizations.spectral_norm(Conv1D())
    assert chosen(parametrized).tensors[0].shape == (6, 4)


def test_everything_else_stays_dense_with_its_reason():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Embedding(2, 2), nn.Linear(2, 2))
    net[3].requires_grad_(False)
    assert chosen(net).dense == {
        "0.bias": "not named *weight*",
        "1.weight": "normalization",
        "1.bias": "normalization",
        "2.weight": "embedding",
        "3.weight": "frozen",
        "3.bias": "not named *weight*",
    }


def test_what_no_optimizer_owns_waits():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    selection = chosen(net, optimizers=[torch.optim.SGD(net[0].parameters(), lr=0.1)])
    assert names(selection) == ["0.weight"]
    assert selection.dense["1.weight"] == "no optimizer owns it"
    assert selection.may_grow


def test_the_owner_is_found_among_several_optimizers():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizers = [torch.optim.SGD(net[i].parameters(), lr=0.1) for i in (1, 0)]
    assert [t.optimizer for t in chosen(net, optimizers=optimizers).tensors] == [1, 0]


def test_tied_weights_count_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    assert names(chosen(net)) == ["0.weight"]
    assert names(chosen(net, {"2": 0.5})) == ["0.weight"]


def test_a_weight_tied_to_an_embedding_stays_dense():
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    net["head"].weight = net["embedding"].weight
    net["other"] = nn.Linear(4, 4)
    selection = chosen(net)
    assert names(selection) == ["other.weight"]
    assert selection.dense["embedding.weight"] == "tied to an embedding"


def test_of_a_weight_norm_only_the_direction_is_pruned():
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 2)))
    assert names(chosen(new)) == ["0.parametrizations.weight.original1"]
    root = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    assert names(chosen(root)) == ["parametrizations.weight.original1"]
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(3, 4))
    assert names(chosen(old)) == ["weight_v"]


def test_a_spectral_norm_is_pruned_and_other_parametrizations_are_not():
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    assert names(chosen(spectral)) == ["parametrizations.weight.original"]
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    assert names(chosen(orthogonal)) == []


class Shift(nn.Module):
    def forward(self, x):
        return x + 1


def shifted():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    torch.nn.utils.parametrize.register_parametrization(net[1], "weight", Shift())
    nn.utils.parametrizations.spectral_norm(net[1])
    return net


def test_a_weight_whose_zeros_are_lost_stays_dense_with_that_reason():
    selection = chosen(shifted())
    assert names(selection) == ["0.weight"]
    why = "zeros do not survive Shift, _SpectralNorm"
    assert selection.dense["1.parametrizations.weight.original"] == why


def test_a_glob_that_names_a_weight_whose_zeros_are_lost_is_refused():
    name = "1.parametrizations.weight.original"
    with pytest.raises(ValueError, match="zeros do not survive Shift, _SpectralNorm") as error:
        chosen(shifted(), {"*": 0.9, "1": 0.5})
    assert str(error.value).endswith(f'write\nsparsity:\n  "*": 0.9\n  "1": 0.5\n  "{name}": null')
    assert names(chosen(shifted(), {"*": 0.9, "1": 0.5, name: None})) == ["0.weight", "1.bias"]


WEIGHTS = ["encoder.0.weight", "encoder.1.weight", "head.weight"]


def three():
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "head": nn.Linear(2, 2),
        }
    )


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        ({"*": 0.9, "head": None}, {"encoder.0.weight": 0.9, "encoder.1.weight": 0.9}),
        ({"encoder": 0.9}, {"encoder.0.weight": 0.9, "encoder.1.weight": 0.9}),
        ({"encoder.1": 0.5, "*": 0.9}, dict.fromkeys(WEIGHTS, 0.9)),
        (
            {"*": 0.9, "encoder.?": 0.5, "*.0.weight": 0.2},
            {"encoder.0.weight": 0.2, "encoder.1.weight": 0.5, "head.weight": 0.9},
        ),
        ({"head.bias": 0.5}, {"head.bias": 0.5}),
        (
            {"*": 0.9, "head.bias": 0.5, "encoder": None},
            {"head.weight": 0.9, "head.bias": 0.5},
        ),
    ],
)
def test_the_last_glob_that_matches_a_parameter_or_module_decides(sparsity, expected):
    assert {t.name: t.sparsity for t in chosen(three(), sparsity).tensors} == expected


def test_what_no_glob_matches_stays_dense():
    assert chosen(three(), {"encoder": 0.9}).dense["head.weight"] == "no glob matches"


def test_a_position_embedding_can_be_named():
    net = three()
    net.register_parameter("positions", nn.Parameter(torch.ones(1, 4, 2)))
    assert names(chosen(net, {"positions": 0.5})) == ["positions"]


def test_a_glob_that_matches_nothing_lists_the_names_that_exist():
    with pytest.raises(ValueError, match=r"'decoder\.\*': 0\.5.*'encoder\.0\.weight'.*'head\.wei"):
        chosen(three(), {"*": 0.9, "decoder.*": 0.5})


@pytest.mark.parametrize(
    ("written", "meant"),
    [("encodr.*", "encoder.*"), ("haed", "head"), ("*.0.wieght", "*.0.weight"), ("zzz", None)],
)
def test_a_glob_that_matches_nothing_is_guessed(written, meant):
    with pytest.raises(ValueError, match="need a glob that matches") as error:
        chosen(three(), {written: 0.5})
    guess = "" if meant is None else f"; did you mean '{meant}'?"
    assert str(error.value).endswith("'head.weight'" + guess)


def test_an_integer_parameter_is_refused():
    net = three()
    net.codes = nn.Parameter(torch.zeros(3, 3, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match=r"need floating-point.*'codes'.*torch\.int64"):
        chosen(net, {"codes": 0.5})


def test_names_do_not_show_compilation():
    net = three()
    net["head"] = torch.compile(net["head"])
    assert "head.weight" in names(chosen(net))
    assert names(chosen(net, {"head": 0.5})) == ["head.weight"]


def test_a_lazy_layer_waits_for_its_shape():
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    selection = chosen(net)
    assert selection.dense["0.weight"] == "not initialized yet"
    assert names(selection) == ["1.weight"]
