"""Converted models in files, and back to dense ones; masks of other tools."""

from __future__ import annotations

import copy
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import gspattern as gs  # noqa: E402
from gspattern.torch import (  # noqa: E402
    GSLSTM,
    GSConv1d,
    GSLinear,
    Pruner,
    absorb_masks,
    convert,
    load,
    prune_,
    repair,
    revert,
    save,
    sizes,
)


class Net(nn.Module):
    """Layers of all compact types, and some that are dense, on [batch, time, 16]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(16, 32, 3, padding=1)
        self.conv = nn.Conv1d(32, 32, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.lstm = nn.LSTM(32, 32, 2, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(64, 32)
        self.one = nn.Linear(32, 32)
        self.two = self.one  # one layer in two places
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        y = self.norm(self.conv(self.stem(x.transpose(1, 2)))).transpose(1, 2)
        y = self.cell(self.lstm(y)[0][:, -1])
        return self.head(self.two(torch.relu(self.one(y))))


def pruned(seed=0):
    torch.manual_seed(seed)
    model = Net()
    model(torch.randn(8, 6, 16))  # statistics of the norm
    return prune_(model.eval(), {"lstm": "gs(16,1)+scatter", "*": "gs(8,8)"}, 0.8)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_a_model_goes_through_a_file(tmp_path, dtype):
    model = pruned()
    fast = convert(model, keep_dense=False, dtype=dtype)
    save(fast, tmp_path / "net.safetensors")
    with torch.device("meta"):
        empty = Net()
    loaded = load(tmp_path / "net.safetensors", empty)
    assert loaded is empty
    assert [type(loaded.conv), type(loaded.lstm), type(loaded.one)] == [GSConv1d, GSLSTM, GSLinear]
    assert loaded.one is loaded.two
    assert not loaded.training
    x = torch.randn(3, 6, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))
    found = sizes(tmp_path / "net.safetensors")
    assert found.compact == (tmp_path / "net.safetensors").stat().st_size
    assert found.compact < found.dense
    dense = {
        name: value.to_dense() if isinstance(value, gs.Matrix) else value
        for name, value in gs.load_file(tmp_path / "net.safetensors").items()
    }
    assert found.dense == sum(value.nbytes for value in dense.values())
    assert found.zipped == sum(len(zlib.compress(value.tobytes())) for value in dense.values())
    assert f"{found.compact / found.dense:.1%} of dense" in str(found)


def test_layers_that_were_kept_dense_stay_so(tmp_path):
    model = pruned()
    fast = convert(model, keep_dense=False)
    fast.conv = copy.deepcopy(model.conv)
    save(fast, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors", Net())
    assert type(loaded.conv) is nn.Conv1d
    x = torch.randn(3, 6, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))


def test_single_layers(tmp_path):
    layer = convert(prune_(nn.Linear(32, 16), "gs(8,8)", 0.8), keep_dense=False)
    save(layer, tmp_path / "layer.safetensors")
    loaded = load(tmp_path / "layer.safetensors", nn.Linear(32, 16))
    x = torch.randn(2, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), layer(x))
    assert isinstance(revert(loaded), nn.Linear)


def test_files_of_another_architecture_are_refused(tmp_path):
    file = tmp_path / "net.safetensors"
    save(convert(pruned(), keep_dense=False), file)

    class Wider(Net):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.Linear(32, 48)

    class Longer(Net):
        def __init__(self):
            super().__init__()
            self.more = nn.Linear(4, 4)

    class Shorter(Net):
        def __init__(self):
            super().__init__()
            del self.head

    class Other(Net):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.Bilinear(32, 32, 32)
            self.one.weight = nn.Parameter(torch.zeros(32, 32))

    for kind, message in [
        (Wider, r"one.weight has shape \(48, 32\) in the model, and \(32, 32\) in the file"),
        (Longer, "it lacks more.bias, more.weight"),
        (Shorter, "the model lacks head.bias, head.weight"),
        (Other, "one is compact in the file, and a Bilinear in the model"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(file, kind())
    model = Net()
    model.head = nn.Linear(32, 5)
    with pytest.raises(ValueError, match=r"head.(bias|weight) has shape"):
        load(file, model)

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(ValueError, match="_extra_state is no tensor"):
        save(nn.Sequential(Extra(2, 2)), file)


def test_revert_is_bit_for_bit():
    model = pruned()
    fast = convert(model, keep_dense=False)
    back = revert(fast)
    assert back is fast
    assert back.one is back.two
    assert back.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, back.state_dict()[key]), key
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        assert torch.equal(back(x), model(x))
    opt = torch.optim.SGD(back.parameters(), 0.1)
    pruner = Pruner.from_zeros(back, "irregular", opt)
    back.train()(torch.randn(4, 6, 16)).square().mean().backward()
    opt.step()
    for name, mask in pruner.masks.items():
        assert torch.count_nonzero(back.get_parameter(name)[~mask]) == 0
    quantised = convert(model, keep_dense=False, dtype="int8")
    expected = quantised.one.matrix.astype("float32").to_dense()
    assert np.array_equal(revert(quantised).one.weight.detach().numpy(), expected)


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_revert_gives_the_types_of_the_dense_model_back(tmp_path, caplog, given, dtype):
    model = pruned().to(given)
    fast = convert(model, keep_dense=False, dtype=dtype)
    save(fast, tmp_path / "net.safetensors")
    x = torch.randn(2, 6, 16).to(given)
    for compact in (fast, load(tmp_path / "net.safetensors", Net().to(given))):
        caplog.clear()
        back = revert(compact)
        assert {p.dtype for p in back.parameters()} == {given}
        rounded = dtype is not None and str(given) != f"torch.{dtype}"
        assert ("go back as" in caplog.text) == rounded
        with torch.no_grad():
            error = (back(x).float() - model(x).float()).abs().max()
        assert error < 0.05 if rounded else error == 0


@pytest.mark.parametrize("pattern", ["gs(8,8)", "gs(8,2)", "gs(8,1)", "block(1,4)"])
def test_repair_finds_the_nearest_mask(pattern):
    """Against SciPy's assignment of the largest overlap, by a linear program over all masks of the same count."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(3)
    rows, cols, banks = 8, 32, 8
    model = nn.Linear(cols, rows)
    with torch.no_grad():
        model.weight[torch.from_numpy(rng.random((rows, cols)) < 0.7)] = 0
    before = model.weight.detach().numpy().copy()
    nonzeros = int((before != 0).sum())
    repair(model, pattern)
    mask = model.gs_pruned["weight"].mask
    assert gs.check(mask, pattern)
    assert np.array_equal(model.weight.detach().numpy(), before * mask)
    unit = 4 if pattern.startswith("block") else banks
    assert nonzeros - unit < mask.sum() <= nonzeros
    overlap = int((mask & (before != 0)).sum())
    count = int(mask.sum())
    if pattern.startswith("block"):
        blocks = (before != 0).reshape(rows, -1, 4).sum(axis=2).ravel()
        assert overlap == np.sort(blocks)[-count // 4 :].sum()
        return
    # Variables: each element, and the bundles of each group; rows hold n k, banks n, all groups together `count`.
    per_row = int(pattern[5])
    high = banks // per_row
    groups = rows // high
    size = rows * cols
    equal, right = [], []
    for row in range(rows):
        line = np.zeros(size + groups)
        line[row * cols : (row + 1) * cols] = 1
        line[size + row // high] = -per_row
        equal.append(line)
        right.append(0)
    for group in range(groups):
        for bank in range(banks):
            line = np.zeros(size + groups)
            for row in range(group * high, (group + 1) * high):
                line[row * cols + bank : (row + 1) * cols : banks] = 1
            line[size + group] = -1
            equal.append(line)
            right.append(0)
    line = np.zeros(size + groups)
    line[:size] = 1
    equal.append(line)
    right.append(count)
    best = optimize.linprog(
        np.concatenate([-(before != 0).ravel().astype(float), np.zeros(groups)]),
        A_eq=np.array(equal), b_eq=right, bounds=[(0, 1)] * size + [(0, None)] * groups,
    )  # fmt: skip
    assert overlap >= -best.fun - 1e-6 - banks  # the program may split a bundle between groups
    assert overlap <= -best.fun + 1e-6


def test_repair_leaves_valid_masks_and_dense_layers_alone():
    model = pruned()
    before = copy.deepcopy(model)
    repair(model, "gs(8,8)", exclude=["lstm"])
    for key, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    with pytest.raises(ValueError, match="nothing to repair"):
        repair(Net(), "gs(8,8)")


def test_masks_of_other_tools():
    model = Net()
    prune.l1_unstructured(model.conv, "weight", 0.8)
    prune.random_unstructured(model.one, "weight", 0.8)
    model.cell.register_buffer("__weight_hh_mma_mask", torch.rand(96, 32) < 0.2)
    expected = {
        "conv.weight": model.conv.weight.detach().clone(),
        "cell.weight_hh": (model.cell.weight_hh * model.cell._buffers["__weight_hh_mma_mask"]).detach(),
        "one.weight": model.one.weight.detach().clone(),
    }  # fmt: skip
    assert absorb_masks(model) == list(expected)
    assert model.state_dict().keys() == Net().state_dict().keys()
    for name, value in expected.items():
        assert torch.equal(model.get_parameter(name), value)
    assert set(Pruner.from_zeros(model, "irregular").finalize().one.gs_pruned) == {"weight"}
    fast = convert(model, keep_dense=False)
    assert type(fast.conv) is GSConv1d
    csr = fast.one.matrix.to_csr()
    assert np.array_equal(csr.toarray(), expected["one.weight"].numpy())
    assert absorb_masks(model) == []


def test_a_tensor_of_two_names_is_stored_once_and_stays_one(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.middle, self.out = (
                nn.Embedding(40, 32),
                nn.Linear(32, 32),
                nn.Linear(32, 40, bias=False),
            )
            self.out.weight = self.words.weight

        def forward(self, x):
            return self.out(self.middle(self.words(x)))

    torch.manual_seed(0)
    model = Tied()
    prune_(model, "gs(8,8)", 0.5, include=["middle.weight"])
    fast = convert(model, keep_dense=False)
    save(fast, tmp_path / "tied.safetensors")
    assert set(gs.load_file(tmp_path / "tied.safetensors")) == {
        "words.weight",
        "middle.weight",
        "middle.bias",
    }
    with torch.device("meta"):
        empty = Tied()
    loaded = load(tmp_path / "tied.safetensors", empty)
    assert loaded.out.weight is loaded.words.weight
    x = torch.arange(40)
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))
