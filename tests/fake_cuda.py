"""A pretended GPU: tensors of shape, type and device without values (torch's FakeTensorMode).

What runs on them shows, without a GPU, wrong devices, waiting for the device, and operations that
CUDA does not have. It shows no wrong numbers, no lack of memory and no time.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = "cuda"


@contextmanager
def pretended_gpu():
    """Inside, `cuda` exists. Real tensors may be moved there; `backward` and `Module.to` work."""
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
        # What autocast asks before it does anything.
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr(torch.Tensor, "backward", _backward)
        patch.setattr(nn.Module, "to", _to)
        patch.setattr(FakeTensor, "__deepcopy__", _deepcopy, raising=False)
        yield


class Watch(TorchDispatchMode):
    """Notes in `faults` what a training step or a pass of the network must not do on a GPU.

    What needs a value at once, such as `.item()`, `bool()` or `nonzero`, raises on its own.

    Args:
        host: names of operations that may give tensors on the CPU.
    """

    def __init__(self, host=()):
        super().__init__()
        self.host = set(host)
        self.faults = []
        self.sent = 0
        """Tensors that went to the GPU."""
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name == "aten::_fused_sgd_":  # torch has no pretended form of it
            result, fault = None, _fused_fault(*args[:3])
            self.faults += [fault] if fault else []
        else:
            result = func(*args, **(kwargs or {}))
        self.operations.add(name)
        taken, given = _devices(args, kwargs), _devices(result)
        if _on_cpu(result) and name not in self.host:
            self.faults.append(f"{name} makes a tensor on the CPU")
        self.sent += name == "aten::_to_copy" and "cpu" in taken and CUDA in given
        if {"cpu", CUDA} <= taken | given and not _is_async(func, args, kwargs):
            self.faults.append(f"{name} waits for a copy between CPU and GPU")
        if name in _WAITING or "index_put" in name and _by_mask(args[1]):
            self.faults.append(f"{name} waits for the GPU")
        if CUDA in given and not _has_kernel(name):
            self.faults.append(f"{name} has no kernel for CUDA")
        return result


_WAITING = {"aten::equal", "aten::multinomial", "aten::is_nonzero", "aten::_local_scalar_dense"}
"""That pretended tensors let pass, or might one day."""


def _devices(*values):
    return {value.device.type for value in tree_leaves(values) if isinstance(value, torch.Tensor)}


def _on_cpu(values):
    """Whether there is a tensor on the CPU, and something in it."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    return any(value.device.type == "cpu" and value.numel() for value in tensors)


def _is_async(func, args, kwargs):
    if func is torch.ops.aten._to_copy.default:
        return bool((kwargs or {}).get("non_blocking"))
    if func is torch.ops.aten.copy_.default:
        return len(args) > 2 and bool(args[2])
    # A number from the host, as a tensor without dimensions, goes along with the kernel.
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    return all(value.dim() == 0 for value in tensors if value.device.type == "cpu")


def _fused_fault(*lists):
    """What CUDA's kernel checks of parameters, gradients and momentum."""
    for together in zip(*lists, strict=True):
        if len({(t.shape, t.dtype, t.device) for t in together}) > 1:
            return "the fused SGD gets tensors of several shapes, types or devices"
        if len({_layout(t) for t in together}) > 1:
            return "the fused SGD gets tensors of several layouts"
    return None


def _layout(tensor):
    """Strides, but of the dimensions that have only one element."""
    return tuple(s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)


def _by_mask(indices):
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _has_kernel(name):
    """In a build of torch without CUDA there is nothing to look at: always True."""
    keys = (
        "CUDA",
        "CompositeImplicitAutograd",
        "CompositeExplicitAutograd",
        "CompositeExplicitAutogradNonFunctional",
    )
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return torch.version.cuda is None or any(has(name, key) for key in keys)


def _backward(total):
    """Takes the place of `Tensor.backward`, whose engine asks for the streams of a real GPU.

    Goes through the graph from the newest operation to the oldest.
    """
    waiting, gradients = [], defaultdict(dict)

    def hand_on(node, number, gradient):
        if node is None or gradient is None:
            return
        if node not in gradients:
            heapq.heappush(waiting, (-node._sequence_nr(), len(gradients), node))
        slots, expected = gradients[node], node._input_metadata[number]
        if gradient.shape != expected.shape:  # of what was broadcast
            gradient = gradient.sum_to_size(expected.shape)
        gradient = gradient.to(expected.dtype)
        slots[number] = slots[number] + gradient if number in slots else gradient

    with torch.no_grad():
        hand_on(total.grad_fn, 0, torch.ones_like(total))
        while waiting:
            *_, node = heapq.heappop(waiting)
            slots = gradients[node]
            # Nodes made in Python (torchvision's operations) are not called but applied.
            call = node if callable(node) else node.apply
            given = call(*(slots.get(n) for n in range(max(slots) + 1)))
            given = given if isinstance(given, tuple) else (given,)
            # Those give None for arguments that are no tensors as well, which stand last.
            for (following, number), gradient in zip(node.next_functions, given, strict=False):
                hand_on(following, number, gradient)


def _deepcopy(tensor, memo):
    copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied


def _to(module, *args, memory_format=torch.preserve_format, **kwargs):
    """Takes the place of `Module.to`, which does not exchange pretended parameters.

    Like it, this moves parameters and buffers, and nothing else that a module may hold.
    """
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)

    def moved(tensor):
        layout = memory_format if tensor.dim() == 4 else torch.preserve_format
        kind = dtype if tensor.is_floating_point() else None
        return tensor.detach().to(device, kind, non_blocking, memory_format=layout)

    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(moved(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = moved(value)
    return module
