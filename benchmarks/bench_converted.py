"""A whole network, converted, against the dense one: ResNet50 at 224 x 224, one picture at a time.

    python benchmarks/bench_converted.py [-p PATTERN] [--sparsity 0.9] [--batch 1] [--dtype DTYPE] [--json FILE]

Contenders are called in turns, one thread each; the least processor time of each counts. Dense are PyTorch in both
memory formats and, if it is installed, OpenVINO, whose compiler fuses as we do. The weights are random and pruned once:
times do not depend on what they are. Errors are the largest difference to the dense answer in units of its largest
number.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gspattern as gs
from gspattern.bench import print_table
from gspattern.torch import conversion, convert, prune_

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "resnet50"))
from model import ResNet

LAST = torch.channels_last
Call = Callable[[], Any]


def with_statistics(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model.eval()


def openvino_call(model: nn.Module, x: torch.Tensor) -> Call | None:
    try:
        import openvino
    except ImportError:
        return None
    read = openvino.convert_model(model, example_input=x)
    read.reshape(list(x.shape))
    how = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(read, "CPU", how).create_infer_request()
    return lambda: torch.from_numpy(next(iter(request.infer({0: x.numpy()}).values())))


def contenders(pattern: str, sparsity: float, batch: int, dtype: str | None) -> dict[str, Call]:
    """What is timed, by name; prints what became of every layer."""
    torch.manual_seed(0)
    model = prune_(with_statistics(ResNet()), pattern, sparsity)
    x = torch.randn(batch, 3, 224, 224)
    last = x.contiguous(memory_format=LAST)
    dense = copy.deepcopy(model).to(memory_format=LAST)
    plain = convert(model, dtype=dtype, keep_dense=False, fuse=False)
    fast = convert(model, dtype=dtype, example_inputs=last)
    print(conversion(fast), end="\n\n")
    calls: dict[str, Call] = {
        "PyTorch, dense": lambda: model(x),
        "PyTorch, dense, channels_last": lambda: dense(last),
    }
    other = openvino_call(model, x)
    if other is not None:
        calls["OpenVINO, dense"] = other
    calls["converted, fuse=False"] = lambda: plain(last)
    calls["converted"] = lambda: fast(last)
    return calls


def measure(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    best = dict.fromkeys(calls, float("inf"))
    answers = {name: call() for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - start)
    expected = next(iter(answers.values()))
    largest = expected.abs().max()
    return {
        name: {
            "ms": best[name] * 1e3,
            "error": float((answers[name] - expected).abs().max() / largest),
        }
        for name in calls
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time ResNet50, dense and converted.")
    parser.add_argument("-p", "--pattern", default="gs(cpu)")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", help="of the compact values; default: float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    calls = contenders(arguments.pattern, arguments.sparsity, arguments.batch, arguments.dtype)
    with torch.inference_mode():
        results = measure(calls, arguments.rounds)
    fastest = min(r["ms"] for name, r in results.items() if "dense" in name)
    rows = [
        [name, f"{r['ms']:.2f}", f"{fastest / r['ms']:.2f}", f"{r['error']:.1e}"]
        for name, r in results.items()
    ]
    what = f"{arguments.pattern}, {arguments.sparsity:.0%} sparse, batch {arguments.batch}"
    title = f"ResNet50, {what}, one thread of {gs.cpu_info().name}"
    print_table(title, ["", "ms", "times the fastest dense", "error"], rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
