"""Batch norms, residual sums and activations computed by the layers in front of them.

torch.fx shows what becomes of a layer's output in the `forward` of each module. Where that is a batch norm, a sum or
an activation that nothing else looks at, one call of `fused` takes their place. Only code is rewritten: every layer
and every norm stays where it was, with its own values, so that the model's parameters, its training mode and the way
back are as before. In training mode the model's own `forward` runs.
"""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from gspattern.plans import Activation
from gspattern.torch.convolutions import GSConv
from gspattern.torch.modules import GSLinear
from gspattern.torch.operators import finished, is_watched

_ACTIVATION_CALLS: dict[Any, str] = {
    torch.relu: "relu",
    functional.relu: "relu",
    torch.sigmoid: "sigmoid",
    functional.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    functional.tanh: "tanh",
    functional.gelu: "gelu",
    functional.silu: "silu",
    # methods of a tensor
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
}
_ACTIVATION_LAYERS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUMS_IN_PLACE = (operator.iadd, "add_")
# What `y += x` and the like call: torch.fx itself takes them for y = y + x, which is not what others see who have y.
_OPERATORS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift",
)  # fmt: skip
_IN_PLACE = tuple(getattr(operator, f"i{name}") for name in _OPERATORS)


# ------------------------------------------------------------------ the calls


def fused(
    layer: nn.Module,
    x: torch.Tensor,
    norm: nn.Module | None = None,
    residual: torch.Tensor | None = None,
    activation: Activation = None,
) -> torch.Tensor:
    """Compute ``activation(norm(layer(x)) + residual)``, in one pass where that gives the same.

    The norm is computed by itself where a gradient is wanted, where a graph is compiled (compilers fuse it), and where
    it is of another kind: one of the batch's own statistics, or over other dimensions.
    """
    whole = layer
    if norm is not None:
        if (
            norm.training
            or is_watched(x)
            or (torch.is_grad_enabled() and _learns(layer, norm))
            or not _is_over_outputs(layer, x)
        ):
            return finished(norm(layer(x)), residual, activation)
        whole = _folded(layer, norm)
    if isinstance(whole, GSConv | GSLinear) and (residual is None or _fits(residual, whole, x)):
        return whole(x, residual, activation)  # type: ignore[no-any-return]
    return finished(whole(x), residual, activation)


def _learns(*modules: nn.Module) -> bool:
    return any(p.requires_grad for module in modules for p in module.parameters())


def _fits(residual: Any, layer: GSConv | GSLinear, x: torch.Tensor) -> bool:
    """Whether a summand is what the kernels add: a tensor of the shape and type of the result."""
    if torch.compiler.is_compiling():  # compilers know better, and cannot look into a cache
        return False
    if not isinstance(residual, torch.Tensor) or residual.dtype != x.dtype:
        return False
    if isinstance(layer, GSLinear):
        return residual.shape == (*x.shape[:-1], layer.out_features)
    how = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return residual.shape == _result_shape(x.shape, layer.out_channels, *how)


@functools.lru_cache(maxsize=1024)  # small convolutions take less time than this does
def _result_shape(
    shape: tuple[int, ...],
    channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """The shape of what a convolution gives."""
    dims = len(kernel)
    covered = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    zeros = [2 * n for n in padding] if isinstance(padding, tuple) else [0] * dims
    if padding == "same":
        zeros = covered
    sizes = [
        (n + z - c - 1) // s + 1
        for n, z, c, s in zip(shape[-dims:], zeros, covered, stride, strict=True)
    ]
    return (*shape[: -dims - 1], channels, *sizes)


def _is_over_outputs(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether the channels of a norm behind a layer are the layer's outputs, which depends on the dimensions of x."""
    return x.ndim == (2 if isinstance(layer, nn.Linear | GSLinear) else _dims(layer) + 2)


def _dims(layer: Any) -> int:
    return len(layer.kernel_size)


class _Folded:
    """The layer that does what another and a norm do in evaluation mode, as long as the values of both stay."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        owners = (layer, *layer._modules.values(), norm)
        self._seen = [
            (tensors, name, t, t.data_ptr(), None if t.is_inference() else t._version)
            for owner in owners
            if owner is not None
            for tensors in (owner._parameters, owner._buffers)
            for name, t in tensors.items()
            if t is not None
        ]
        with torch.no_grad():
            self.layer = _fold(layer, norm)

    def holds(self) -> bool:
        """Whether no tensor is another, or was written to, as far as torch knows."""
        for tensors, name, tensor, place, version in self._seen:
            if tensors.get(name) is not tensor or tensor.data_ptr() != place:
                return False
            if version is not None and tensor._version != version:
                return False
        return True


# By layer and norm. Copies of a model make their own.
_FOLDED: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, _Folded]] = WeakKeyDictionary()


def _folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    known = _FOLDED.get(layer)
    if known is None:
        known = _FOLDED[layer] = WeakKeyDictionary()
    found = known.get(norm)
    if found is None or not found.holds():
        found = known[norm] = _Folded(layer, norm)
    return found.layer


def _fold(layer: Any, norm: Any) -> nn.Module:
    folded: nn.Module
    if not isinstance(layer, GSConv | GSLinear):
        fold = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        folded = fold(copy.deepcopy(layer).eval(), norm)
        return folded
    factors = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factors = factors * norm.weight
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * factors
    if norm.bias is not None:
        bias = bias + norm.bias
    matrix = layer.matrix.scale_rows(factors.numpy())
    if isinstance(layer, GSLinear):
        return GSLinear(matrix, bias)
    how = layer.stride, layer.padding, layer.dilation, layer.padding_mode
    return type(layer)(matrix, bias, *how)


# ------------------------------------------------------------------ the forward of a module


@dataclass(frozen=True)
class Call:
    """What one call computes.

    Attributes
    ----------
    layer : str
        The name of the layer in the module whose code has the call, or in the model.
    norm : str or None
    residual : bool
    activation : str, tuple or None
    """

    layer: str
    norm: str | None = None
    residual: bool = False
    activation: Activation = None

    def __str__(self) -> str:
        name = self.activation[0] if isinstance(self.activation, tuple) else self.activation
        parts = ("batch norm" if self.norm else None, "sum" if self.residual else None, name)
        return ", ".join(part for part in parts if part)


class FusedForward:
    """The `forward` of one module, with its fused calls, for tensors in evaluation mode; otherwise the class's own.

    It stands in the instance: the class of the module stays what it was. Code is made when it is first needed, so that
    copies and pickles hold none.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._code: Any = None
        self.calls: tuple[Call, ...] = ()
        self._count = 0

    def trace(self) -> None:
        """Find the calls.

        Raises
        ------
        Exception
            Whatever the module's own code raises when it meets torch.fx.
        """
        modes = {module: module.training for module in self.module.modules()}
        try:
            self.module.eval()
            graph = _Tracer().trace(self.module)
        finally:
            for module, mode in modes.items():
                module.training = mode
        self._count = sum(node.op == "placeholder" for node in graph.nodes)
        self.calls = tuple(_fuse(self.module, graph)) if self._count else ()
        self._code = type(fx.GraphModule(self.module, graph)).forward if self.calls else _NO_CODE

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        module = self.module
        if module.training:
            for call in self.calls:  # optimisers may write in ways that no tensor tells of
                _FOLDED.pop(module.get_submodule(call.layer), None)
        elif not keywords and all(map(_is_plain, args)):
            if self._code is None:
                self.trace()
            if len(args) == self._count and self._code is not _NO_CODE:
                return self._code(module, *args)
        return type(module).forward(module, *args, **keywords)

    # What torch.export asks of a forward: the arguments that it takes, and where its code stands.

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> Any:
        return type(self.module).forward.__code__

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"])  # type: ignore[misc]


_NO_CODE = object()


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


class _Proxy(fx.Proxy):
    """A value of the code that is read; operators in place stay such."""


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], Any]:
    def record(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name, _function in zip(_OPERATORS, _IN_PLACE, strict=True):
    setattr(_Proxy, f"__i{_name}__", _in_place(_function))


class _Tracer(fx.Tracer):
    """Looks at the code of one module, and of the `nn.Sequential` in it."""

    _HOOKS: ClassVar[tuple[str, ...]] = (
        "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    )  # fmt: skip

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).forward is not nn.Sequential.forward or has_hooks(m)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Arguments that have a default keep it: other calls take the way of the class's own code."""
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        given = [
            p.name
            for p in parameters
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in given]
        return root_fn, [self.root, *proxies]


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at the calls of a module."""
    return any(getattr(module, name) for name in _Tracer._HOOKS)


# ------------------------------------------------------------------ the graph of a module


def _fuse(module: nn.Module, graph: fx.Graph) -> Iterator[Call]:
    """Put fused calls into a graph, the last layer first: of two layers that are added, the later one adds."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module" and _is_layer(module.get_submodule(str(node.target))):
            chain = _Chain(module, node)
            chain.follow()
            if chain.end is not node:
                yield chain.replace(graph)


def _is_layer(layer: nn.Module) -> bool:
    dense = type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d)
    return (dense or isinstance(layer, GSConv | GSLinear)) and not has_hooks(layer)


class _Chain:
    """A layer, and the nodes of a graph that its call can take over."""

    def __init__(self, module: nn.Module, layer: fx.Node) -> None:
        self.module, self.layer, self.end = module, layer, layer
        self.taken = [layer]
        self.norm: str | None = None
        self.residual: fx.Node | None = None
        self.activation: Activation = None

    def follow(self) -> None:
        if len(self.layer.args) != 1 or self.layer.kwargs:
            return
        while (node := self._next()) is not None:
            child = (
                self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
            )
            if child is not None and (has_hooks(child) or len(node.args) != 1 or node.kwargs):
                return
            if type(child) is nn.Identity:
                pass
            elif self._is_norm(child):
                self.norm = str(node.target)
            elif self._is_sum(node):
                self.residual = next(arg for arg in node.args if arg is not self.end)  # type: ignore[assignment]
            elif (activation := _activation(node, child)) is not None:
                self.activation = activation
            else:
                return
            self.taken.append(node)
            self.end = node
            if self.activation is not None:
                return

    def _next(self) -> fx.Node | None:
        """The node that alone looks at the end, if the layer may be called as late as that."""
        if len(self.end.users) != 1:
            return None
        (node,) = self.end.users
        # In between, something might change in place what the call is to read later.
        between = node.prev
        while between is not self.end:
            if self._may_write(between):
                return None
            between = between.prev
        return node

    def _may_write(self, node: fx.Node) -> bool:
        """Whether a node changes tensors in place: those that the call reads, as far as one can know."""
        if node.op == "call_module":
            child = self.module.get_submodule(str(node.target))
            known = type(child).__module__.startswith("torch.nn.") or _is_layer(child)
            if known and next(child.children(), None) is None:
                return bool(getattr(child, "inplace", False))
            return bool({self.layer.args[0], self.residual} & set(node.all_input_nodes))
        name = str(getattr(node.target, "__name__", node.target))
        in_place = node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        return in_place or bool(node.kwargs.get("inplace")) or "out" in node.kwargs

    def _is_norm(self, child: nn.Module | None) -> bool:
        layer = self.module.get_submodule(str(self.layer.target))
        linear = isinstance(layer, nn.Linear | GSLinear)
        kind = BatchNorm1d if linear or _dims(layer) == 1 else BatchNorm2d
        return (
            type(child) is kind
            and child.running_mean is not None
            and self.norm is None
            and self.residual is None
        )

    def _is_sum(self, node: fx.Node) -> bool:
        if node.op not in ("call_function", "call_method") or node.target not in _SUMS:
            return False
        if self.residual is not None or node.kwargs or len(node.args) != 2:
            return False
        left, right = node.args
        other = right if left is self.end else left
        if not isinstance(other, fx.Node) or other is self.end:
            return False
        # A sum in place must not change what others see.
        alone = len(other.users) == 1 and other.op not in ("placeholder", "get_attr")
        return node.target not in _SUMS_IN_PLACE or left is self.end or alone

    def replace(self, graph: fx.Graph) -> Call:
        layer = str(self.layer.target)
        with graph.inserting_before(self.end):
            parts = [
                None if name is None else graph.create_node("get_attr", name)
                for name in (layer, self.norm)
            ]
            args = (parts[0], self.layer.args[0], parts[1], self.residual, self.activation)
            call = graph.call_function(fused, args)
        self.end.replace_all_uses_with(call)
        for node in reversed(self.taken):
            graph.erase_node(node)
        return Call(layer, self.norm, self.residual is not None, self.activation)


def _activation(node: fx.Node, child: nn.Module | None) -> Activation:
    """The activation that a node computes, if it is one that the kernels know."""
    if isinstance(child, nn.Hardtanh):  # ReLU6 too
        return "clamp", float(child.min_val), float(child.max_val)
    if child is not None:
        exact = not isinstance(child, nn.GELU) or child.approximate == "none"
        return _ACTIVATION_LAYERS.get(type(child)) if exact else None
    if node.op not in ("call_function", "call_method") or len(node.args) != 1:
        return None
    if set(node.kwargs) - {"inplace"}:
        return None
    return _ACTIVATION_CALLS.get(node.target)


# ------------------------------------------------------------------ whole models


def fuse_calls(model: nn.Module) -> tuple[dict[str, Call], dict[str, str]]:
    """Give every module of a model, in place, a `forward` with fused calls, where that fuses anything.

    Returns
    -------
    calls : dict of str to Call
        By the name of the layer in the model; the widest, if a layer is called in several places.
    untraced : dict of str to str
        Modules with layers of which torch.fx could not read the code, and why. What stands in the modules and the
        `nn.Sequential` inside of them may be fused all the same.
    """
    calls: dict[str, Call] = {}
    untraced: dict[str, str] = {}
    for name, module in model.named_modules():
        if not _has_code(module) or not any(map(_is_layer, module.modules())):
            continue
        forward = FusedForward(module)
        try:
            forward.trace()
        except Exception as error:  # whatever the model's own code raises
            untraced[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        if forward.calls:
            module.forward = forward
        prefix = f"{name}." if name else ""
        for call in forward.calls:
            key = prefix + call.layer
            norm = call.norm and prefix + call.norm
            if len(str(call)) > len(str(calls.get(key, ""))):
                calls[key] = replace(call, layer=key, norm=norm)
    return calls, untraced


def _has_code(module: nn.Module) -> bool:
    """Whether a module calls layers, in a way that is its own or that of `nn.Sequential`."""
    if "forward" in module.__dict__ or next(module.children(), None) is None:
        return False
    code = type(module).forward
    return code is nn.Sequential.forward or not code.__module__.startswith("torch.nn.")


def unfuse(model: nn.Module) -> None:
    """Give every module its own `forward` back, in place."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), FusedForward):
            del module.__dict__["forward"]
