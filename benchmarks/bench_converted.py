"""Whole networks at full size, converted, against dense ones, one sample at a time.

    python benchmarks/bench_converted.py --model resnet50        # or gnmt, jasper
    python benchmarks/bench_converted.py --model gnmt --threads 2 --disk

ResNet50 takes a picture of 224 x 224, GNMT v2 translates 30 pieces into 30 by a beam of 5, Jasper 10x5 hears 7 seconds.
Contenders are called in turns; the least time of each counts, of the wall clock or, with --clock cpu, of the processor
(all threads of the process together; for busy machines, with one thread). Dense are PyTorch (in both memory formats,
where there are two) and, where they are installed, ONNX Runtime and OpenVINO, which get the same ONNX graph, and for
GNMT two of them, the encoder and a step of the decoder, in the same beam search. The weights are random and pruned
once: times do not depend on what they are. Errors are the largest difference to the dense answer in units of its
largest number; of GNMT, of the logits for a given translation.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import shutil
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

import gspattern as gs
from examples.common.outcome import peak_memory
from examples.gnmt.model import GNMT, Memory
from examples.gnmt.translate import translate
from examples.jasper.model import Jasper
from examples.resnet50.model import ResNet
from gspattern.bench import print_table
from gspattern.torch import conversion, convert, prune_, save

Call = Callable[[], Any]
Tensors = tuple[torch.Tensor, ...]
Graph = Callable[..., Tensors]  # a module in another library


class Network(ABC):
    """A network, what it is called with, and how other libraries run it.

    Attributes
    ----------
    example : tuple of Tensor
        Arguments of the module.
    """

    title: str
    example: Tensors

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the module."""

    def prune(self, pattern: str, sparsity: float) -> nn.Module:
        return prune_(_with_statistics(self.build()), pattern, sparsity)

    def call(self, model: nn.Module) -> Call:
        """What is timed."""
        return lambda: model(*self.example)

    def dense(self, model: nn.Module) -> dict[str, Call]:
        return {"PyTorch": self.call(model)}

    def peer(self, model: nn.Module, graph: Callable[[nn.Module, Tensors], Graph]) -> Call:
        """The same as `call`, by another library."""
        run = graph(model, self.example)
        return lambda: run(*self.example)

    def answer(self, model: nn.Module) -> torch.Tensor:
        """What errors are measured by."""
        y = model(*self.example)
        return y if isinstance(y, torch.Tensor) else y[0]


class ResNet50(Network):
    title = "ResNet50, 224 x 224"

    def __init__(self) -> None:
        self.example = (torch.randn(1, 3, 224, 224).to(memory_format=torch.channels_last),)

    def build(self) -> nn.Module:
        return ResNet()

    def dense(self, model: nn.Module) -> dict[str, Call]:
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        plain = self.example[0].contiguous()
        return {
            "PyTorch": lambda: model(plain),
            "PyTorch, channels_last": lambda: last(*self.example),
        }


class Speech(Network):
    title = "Jasper 10x5, 7 s"

    def __init__(self) -> None:
        self.example = (torch.randn(1, 64, 700),)

    def build(self) -> nn.Module:
        return Jasper()


class _Encoding(nn.Module):
    """The encoder for one sentence, in which nothing is padded."""

    def __init__(self, model: GNMT) -> None:
        super().__init__()
        self.model = model

    def forward(self, sources: torch.Tensor) -> Tensors:
        encoder = self.model.encoder
        x = encoder.embedder(sources)
        for i, layer in enumerate(encoder.rnn_layers):
            y, _ = layer(x)
            x = x + y if i > 1 else y
        return x, self.model.decoder.att_rnn.attn.linear_k(x)


class _Step(nn.Module):
    """A step of the decoder, whose states are tensors of their own."""

    def __init__(self, model: GNMT) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self, words: torch.Tensor, context: torch.Tensor, keys: torch.Tensor, absent: torch.Tensor,
        *states: torch.Tensor,
    ) -> Tensors:  # fmt: skip
        pairs = list(zip(states[::2], states[1::2], strict=True))
        logits, shares, after = self.decoder(words, Memory(context, keys, absent), pairs)
        return logits, shares, *(part for pair in after for part in pair)


class _Foreign:
    """What `translate` asks of a model, by graphs of another library."""

    def __init__(self, encode: Graph, step: Graph, states: Tensors) -> None:
        self.encode, self.step, self.states = encode, step, states

    def remember(self, sources: torch.Tensor, lengths: torch.Tensor) -> Memory:
        context, keys = self.encode(sources)
        return Memory(context, keys, torch.zeros(1, 1, sources.shape[1], dtype=torch.bool))

    def decoder(self, words: torch.Tensor, memory: Memory, state: Any) -> tuple[Any, ...]:
        parts = self.states if state is None else [part for pair in state for part in pair]
        logits, shares, *after = self.step(words, *memory, *parts)
        return logits, shares, list(zip(after[::2], after[1::2], strict=True))


class Translation(Network):
    title = "GNMT v2, 30 pieces, beam 5"
    beam, steps = 5, 30

    def __init__(self) -> None:
        words = torch.randint(4, 32320, (2, self.steps))
        self.example = (words[:1], torch.tensor([self.steps]), words[1:])

    def build(self) -> nn.Module:
        return GNMT(32320)

    def prune(self, pattern: str, sparsity: float) -> nn.Module:
        model = self.build().eval()
        return prune_(model, pattern, sparsity, include=["*"])

    def call(self, model: Any) -> Call:
        sources, lengths, _ = self.example
        return lambda: translate(
            model, sources, lengths, self.beam, steps=self.steps, to_the_end=True
        )

    def peer(self, model: Any, graph: Callable[[nn.Module, Tensors], Graph]) -> Call:
        sources = self.example[0]
        hidden = model.encoder.embedder.embedding_dim
        encode = graph(_Encoding(model).eval(), (sources,))
        states = tuple(torch.zeros(1, self.beam, hidden) for _ in range(8))
        memory = (
            torch.zeros(self.beam, self.steps, hidden), torch.zeros(self.beam, self.steps, hidden),
            torch.zeros(self.beam, 1, self.steps, dtype=torch.bool),
        )  # fmt: skip
        words = torch.zeros(self.beam, 1, dtype=torch.long)
        step = graph(_Step(model).eval(), (words, *memory, *states))
        return self.call(_Foreign(encode, step, states))


NETWORKS: dict[str, type[Network]] = {
    "resnet50": ResNet50, "gnmt": Translation, "jasper": Speech,
}  # fmt: skip


def _with_statistics(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model.eval()


# ------------------------------------------------------------- other libraries


def _exported(module: nn.Module, example: Tensors, folder: str) -> tuple[Path, list[str]]:
    file = Path(folder) / "model.onnx"
    names = [f"x{i}" for i in range(len(example))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, example, str(file), input_names=names, dynamo=False)
    return file, names


def onnxruntime_graph(threads: int) -> Callable[[nn.Module, Tensors], Graph]:
    """What runs a module by ONNX Runtime; ImportError if that is not there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1

    def graph(module: nn.Module, example: Tensors) -> Graph:
        with tempfile.TemporaryDirectory() as folder:
            file, names = _exported(module, example, folder)
            session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        taken = {each.name for each in session.get_inputs()}

        def run(*tensors: torch.Tensor) -> Tensors:
            fed = {n: t.contiguous().numpy() for n, t in zip(names, tensors, strict=True) if n in taken}  # fmt: skip
            return tuple(torch.from_numpy(y) for y in session.run(None, fed))

        return run

    return graph


def openvino_graph(threads: int) -> Callable[[nn.Module, Tensors], Graph]:
    """What runs a module by OpenVINO; ImportError if that is not there."""
    import openvino

    how = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()

    def graph(module: nn.Module, example: Tensors) -> Graph:
        with tempfile.TemporaryDirectory() as folder:
            file, names = _exported(module, example, folder)
            compiled = core.compile_model(core.read_model(file), "CPU", how)
        taken = {name for each in compiled.inputs for name in each.names}
        request = compiled.create_infer_request()

        def run(*tensors: torch.Tensor) -> Tensors:
            fed = {n: t.contiguous().numpy() for n, t in zip(names, tensors, strict=True) if n in taken}  # fmt: skip
            found = request.infer(fed)
            return tuple(torch.from_numpy(np.array(found[each])) for each in compiled.outputs)

        return run

    return graph


# ------------------------------------------------------------------ measuring


def contenders(
    network: Network, model: nn.Module, fast: nn.Module, threads: int
) -> dict[str, Call]:
    """What is timed, by name; dense ones first."""
    calls = {f"{name}, dense": call for name, call in network.dense(model).items()}
    for name, make in (("ONNX Runtime", onnxruntime_graph), ("OpenVINO", openvino_graph)):
        try:
            calls[f"{name}, dense"] = network.peer(model, make(threads))
        except ImportError:
            print(f"{name} is not installed: left out")
    calls["converted"] = network.call(fast)
    return calls


def measure(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """The least seconds of each call."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in tqdm(range(rounds), desc="measuring"):
        for name, call in calls.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best


def shares(network: Network, fast: nn.Module, rounds: int, clock: Callable[[], float]) -> dict[str, float]:  # fmt: skip
    """Seconds of a call by kind of layer, the least over rounds; "everything else" is what is in no layer."""
    spent: dict[str, float] = {}
    now: dict[str, float] = defaultdict(float)
    stack: list[float] = []

    def before(*_: Any) -> None:
        stack.append(clock())

    def after(module: nn.Module, *_: Any) -> None:
        seconds = clock() - stack.pop()
        if type(module).__module__.startswith("gspattern") or not list(module.children()):
            now[type(module).__name__] += seconds

    # Of all modules: folded ones are not among those of the network.
    handles = [
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after),
    ]
    call = network.call(fast)
    for _ in range(rounds):
        now.clear()
        start = clock()
        call()
        total = clock() - start
        now["everything else"] = total - sum(now.values())
        if not spent or total < sum(spent.values()):
            spent = dict(now)
    for handle in handles:
        handle.remove()
    return spent


def disk(network: Network, model: nn.Module, fast: nn.Module) -> dict[str, dict[str, int]]:
    """Bytes of files, and of memory that a process needs at most to load one and call it."""
    with tempfile.TemporaryDirectory() as folder:
        dense, compact, zipped = (Path(folder) / name for name in ("dense", "compact", "dense.gz"))
        save_model(model, str(dense))
        save(fast, compact)
        with dense.open("rb") as source, gzip.open(zipped, "wb", 6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        files = {"dense": dense, "dense, gzip": zipped, "compact": compact}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        memory = peak_memory(network.build, {"dense": dense, "compact": compact}, network.example)
    return {"bytes on disk": sizes, "peak memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=list(NETWORKS), default="resnet50")
    parser.add_argument("-p", "--pattern", default="gs(cpu)")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--dtype", help="of the compact values; default: float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--disk", action="store_true", help="bytes and memory as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    gs.set_num_threads(given.threads)
    torch.manual_seed(0)
    network = NETWORKS[given.model]()
    model = network.prune(given.pattern, given.sparsity)
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    with torch.inference_mode():
        fast = convert(model, dtype=given.dtype, example_inputs=network.example)
        print(conversion(fast), end="\n\n")
        calls = contenders(network, model, fast, given.threads)
        expected, found = network.answer(model), network.answer(fast)
        error = float((found.float() - expected).abs().max() / expected.abs().max())
        results = measure(calls, given.rounds, clock)
        parts = shares(network, fast, given.rounds, clock)
    fastest = min(seconds for name, seconds in results.items() if name != "converted")
    what = f"{given.pattern}, {given.sparsity:.0%} sparse, {given.dtype or 'float32'}"
    where = f"{given.threads} thread(s) of {gs.cpu_info().name}"
    print_table(
        f"{network.title}: {what}, {where}; error {error:.1e}",
        ["", "ms", "converted is faster by"],
        [[n, f"{1e3 * s:.2f}", f"{s / results['converted']:.2f}"] for n, s in results.items()],
    )
    whole = sum(parts.values())
    print_table(
        "Where the time of the converted network goes",
        ["layers", "ms", "share", "faster than the fastest dense if they took none"],
        [
            [kind, f"{1e3 * s:.2f}", f"{s / whole:.0%}", f"{fastest / (whole - s):.2f}"]
            for kind, s in sorted(parts.items(), key=lambda item: -item[1])
        ],
    )
    record: dict[str, Any] = {
        "model": given.model, "pattern": given.pattern, "sparsity": given.sparsity, "threads": given.threads,
        "dtype": given.dtype or "float32", "seconds": results, "error": error, "layers": parts,
    }  # fmt: skip
    if given.disk:
        record |= disk(network, model, fast)
        rows = [
            [name, key, f"{value:,}", f"{value / record[name]['dense']:.1%}"]
            for name in ("bytes on disk", "peak memory")
            for key, value in record[name].items()
        ]
        print_table("Bytes", ["", "", "bytes", "of dense"], rows)
    if given.json:
        given.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
