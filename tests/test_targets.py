"""Which weights are pruned: every type of layer, what stays dense and why, and the matrix view."""

from __future__ import annotations

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

import gspattern as gs  # noqa: E402
from gspattern.torch import Pruner  # noqa: E402
from gspattern.torch.targets import as_matrix, find_targets, from_matrix  # noqa: E402


class Mixed(nn.Module):
    """One layer of every type."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.stem = nn.Conv1d(32, 32, 5)
        self.conv = nn.Conv1d(32, 64, 3)
        self.image = nn.Conv2d(16, 32, 3)
        self.grouped = nn.Conv2d(32, 32, 3, groups=4)
        self.up = nn.ConvTranspose1d(64, 32, 2)
        self.norm = nn.BatchNorm1d(64)
        self.layernorm = nn.LayerNorm(32)
        self.lstm = nn.LSTM(64, 32, 2, bidirectional=True)
        self.gru = nn.GRU(64, 32, bias=False)
        self.lstm_cell = nn.LSTMCell(32, 32)
        self.gru_cell = nn.GRUCell(32, 32)
        self.attention = nn.MultiheadAttention(32, 4)
        self.cross = nn.MultiheadAttention(32, 4, kdim=48, vdim=16)
        self.normed = parametrizations.weight_norm(nn.Linear(32, 32))
        self.bilinear = nn.Bilinear(16, 16, 32)
        self.middle = nn.Linear(32, 64)
        self.head = nn.Linear(64, 10)
        self.scale = nn.Parameter(torch.ones(1))


RECURRENT = [f"{kind}_l{layer}{side}" for layer in (0, 1) for side in ("", "_reverse")
             for kind in ("weight_ih", "weight_hh")]  # fmt: skip
PRUNED = [
    "conv.weight",
    "image.weight",
    *(f"lstm.{name}" for name in RECURRENT),
    "gru.weight_ih_l0",
    "gru.weight_hh_l0",
    "lstm_cell.weight_ih",
    "lstm_cell.weight_hh",
    "gru_cell.weight_ih",
    "gru_cell.weight_hh",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
    "cross.out_proj.weight",
    "middle.weight",
]


def test_every_type_of_layer_is_found(caplog):
    model = Mixed()
    keys = {key: value.shape for key, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "gspattern"):
        pruner = Pruner(model, "gs(8,8)", 0.75)
    assert sorted(pruner.masks) == sorted(PRUNED)
    for name, mask in pruner.masks.items():
        parameter = model.get_parameter(name)
        assert mask.shape == parameter.shape
        assert torch.count_nonzero(parameter[~mask]) == 0
        matrix = gs.as_matrix(parameter.detach().numpy()) if parameter.ndim > 2 else parameter
        assert gs.check(np.asarray(matrix.detach() if parameter.ndim == 2 else matrix), "gs(8,8)")
        assert 0.75 <= 1 - mask.double().mean() < 0.76
    reasons = {row.name: row.reason for row in pruner.report().dense}
    assert reasons["stem.weight"].startswith("the first convolution")
    assert reasons["head.weight"].startswith("the last Linear")
    assert reasons["grouped.weight"].startswith("its 4 groups")
    assert reasons["up.weight"] == "transposed convolutions are not pruned"
    assert reasons["bilinear.weight"] == "bilinear layers are not pruned"
    assert reasons["embed.weight"] == "embedding"
    assert reasons["norm.weight"] == reasons["layernorm.weight"] == "norm"
    assert reasons["norm.bias"] == "norm"
    assert reasons["middle.bias"] == reasons["lstm.bias_ih_l0"] == "bias"
    assert "Mixed" in reasons["scale"]
    assert sorted([*reasons, *PRUNED]) == sorted(name for name, _ in model.named_parameters())
    assert "normed.weight stays dense: it is parametrized" in caplog.text
    assert {key: value.shape for key, value in model.state_dict().items()} == keys


def test_matrix_view_is_that_of_the_library():
    for shape in [(6, 4, 5), (6, 4, 3, 2), (6, 4, 3, 2, 2)]:
        weight = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
        matrix = as_matrix(weight)
        for index in np.ndindex(*shape):
            row, channel, *taps = index
            col = int(np.ravel_multi_index((*taps, channel), (*shape[2:], shape[1])))
            assert matrix[row, col] == weight[index]
        assert torch.equal(from_matrix(matrix, shape), weight)
        if len(shape) < 5:
            assert np.array_equal(matrix.numpy(), gs.as_matrix(weight.numpy()))
    weight = torch.randn(3, 4)
    assert as_matrix(weight) is weight
    assert from_matrix(weight, (3, 4)) is weight


def test_names_globs_and_types():
    def names(**options):
        return [target.name for target in find_targets(Mixed(), **options).chosen]

    assert names(include=[nn.Conv2d]) == ["image.weight"]
    assert names(include=[nn.Conv1d, "middle"]) == ["stem.weight", "conv.weight", "middle.weight"]
    assert names(include=["lstm"], exclude=["*_reverse", "*ih*"]) == [
        "lstm.weight_hh_l0",
        "lstm.weight_hh_l1",
    ]
    without = names(exclude=[nn.LSTM, nn.GRU, nn.RNNCellBase, nn.MultiheadAttention])
    assert without == [
        "conv.weight", "image.weight", "attention.out_proj.weight", "cross.out_proj.weight", "middle.weight",
    ]  # fmt: skip
    # A layer that cannot be pruned may be excluded, as it is dense in any case.
    assert "middle.weight" in names(exclude=["grouped"])
    for options, error, message in [
        ({"include": ["grouped"]}, ValueError, "grouped.weight cannot be pruned: its 4 groups"),
        ({"include": ["up.weight"]}, ValueError, "up.weight cannot be pruned: transposed"),
        ({"include": ["normed"]}, ValueError, "normed.weight cannot be pruned: it is parametrized"),
        (
            {"include": [nn.Conv3d]},
            ValueError,
            "include has Conv3d.*there are: Conv1d, Conv2d, GRU",
        ),
        ({"include": nn.Conv2d}, ValueError, r"did you mean \[Conv2d\]"),
        ({"include": [nn.Conv2d(4, 4, 1)]}, TypeError, "names or types of layers"),
        ({"exclude": [3]}, TypeError, "names or types of layers such as nn.Conv2d, got 3"),
    ]:
        with pytest.raises(error, match=message):
            find_targets(Mixed(), **options)


def test_layers_with_a_forward_of_their_own_stay_dense():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(nn.Conv2d(3, 16, 3), Scaled(16, 16, 3), nn.Conv2d(16, 16, 3))
    targets = find_targets(model)
    assert [target.name for target in targets.chosen] == ["2.weight"]
    assert targets.dense["1.weight"].startswith("Scaled uses its weight in a way of its own")
    assert [t.name for t in find_targets(model, include=["1"]).chosen] == ["1.weight"]
    assert [t.name for t in find_targets(nn.Conv2d(8, 8, 3)).chosen] == ["weight"]


def test_lazy_layers_need_a_call_first():
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8), nn.Linear(8, 2))
    assert "call the model once" in find_targets(model).dense["1.weight"]
    model(torch.zeros(1, 8))
    assert [t.name for t in find_targets(model).chosen] == ["0.weight", "1.weight"]


def test_a_weight_that_is_parametrized_later_is_noticed():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    pruner = Pruner(model, "gs(8,8)", 0.5)
    parametrizations.weight_norm(model[0])
    with pytest.raises(RuntimeError, match=r"0\.weight is no parameter any more"):
        pruner.step()
