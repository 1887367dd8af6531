"""Runs networks: in a precision, in a memory layout, as they are trained or prepared for inference."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undiffuse.arithmetic import advise_on_bfloat16, computes_bfloat16, steady_float32
from undiffuse.kernels.autotune import Plan, planned
from undiffuse.nets.ddpm import DDPMUNet
from undiffuse.nets.edm2_unet import EDM2UNet
from undiffuse.nets.edm_unet import EDMUNet
from undiffuse.nets.encoder import Encoder
from undiffuse.nets.memory import Footprint, store_weights_
from undiffuse.nets.packing import pack_
from undiffuse.nets.protocol import conditions_of, memory_format
from undiffuse.nets.unet2d import UNet2D
from undiffuse.nets.unet_rms import RMSUNet

if TYPE_CHECKING:  # only GPUs need it
    from undiffuse.nets.graphs import Graphs

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NetworkRunner:
    """Calls a network in a given precision; inputs and outputs are float32.

    A runner made directly calls `net` itself, so it follows every change of its weights. `prepare_for_inference` makes
    runners whose `net` is a prepared copy.

    Args:
        net: A network as `undiffuse.nets.protocol.Network` describes it.
        precision: "fp32", or "bf16" or "fp16" to run under autocast.
        device: The device that `net` is on.
        compiled: Whether to compile the network with `torch.compile`.

    Attributes:
        net: The module that is called.
        conditions: Names of the conditions the network accepts.
        precision: The precision.
        compiled: Whether calls go through `torch.compile`.
    """

    def __init__(self, net: nn.Module, precision: str, device: torch.device, compiled: bool = False) -> None:
        self.conditions = conditions_of(net)
        self._layout = memory_format(net)
        self._device = device.type
        self.precision = precision
        self._dtype = AUTOCAST.get(precision)
        self.compiled = compiled
        self._emulates = precision == "bf16" and device.type == "cpu" and not compiled and not computes_bfloat16()
        if precision == "bf16" and device.type == "cpu":
            advise_on_bfloat16()
        self._prepared: Prepared | None = None
        self._plan = Plan()  # for calls outside a run, which has a plan of its own
        self._graphs: Graphs | None = None
        self._use(net)

    def _use(self, net: nn.Module) -> None:
        self.net = net
        self._call: Any = _compiled(net, self._device) if self.compiled else net
        self._overwritten = self.compiled and self._device == "cuda"  # the result may lie in a CUDA graph's memory
        if self._graphs is not None:
            self._graphs.clear()  # those that are recorded read other weights

    def beside(self, net: nn.Module) -> NetworkRunner:
        """Returns a runner of another network on the same device and in the same precision."""
        return NetworkRunner(net, self.precision, torch.device(self._device), self.compiled)

    @cached_property
    def footprint(self) -> Footprint:
        """Memory that the network takes, whatever the batch size."""
        return Footprint.of(self.net)

    def __call__(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Call the network.

        Args:
            x: Images [B, C, H, W].
            t: The network's time input [B].
            **conditions: Those of `conditions`, by name.

        Returns:
            The network's output as float32.

        Raises:
            ValueError: A gradient with respect to `x` is required, but the network was prepared without gradients.
            TypeError: The network returns something other than a tensor.
        """
        if self._prepared is not None:
            if not self._prepared.gradient and x.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    "this network was prepared without gradients, but a gradient with respect to its input is "
                    "required: prepare it with gradient=True"
                )
            if self._prepared.outdated():
                self._use(self._prepared.again())
        x = x.contiguous(memory_format=self._layout)
        if self._graphs is None:
            out = self._run(x, t, conditions)
            # The result of a compiled call is overwritten by the next one; a conversion to float32 copies it.
            return out.clone() if self._overwritten and out.dtype == torch.float32 else out.float()
        names = tuple(conditions)

        def call(x: Tensor, t: Tensor, *values: Tensor) -> tuple[Tensor]:
            return (self._run(x, t, dict(zip(names, values, strict=True))).float(),)

        return self._graphs(call, x, t, *conditions.values(), name=names)[0]

    def record(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call a function of tensors that calls this network, on GPUs as a CUDA graph from its second call on.

        Args:
            function: A function to a tuple of tensors, for example of a gradient. It may not read numbers back from
                the GPU.
            *inputs: Its arguments, on the network's device.

        Returns:
            What the function returns.
        """
        if self._prepared is not None and self._prepared.outdated():
            self._use(self._prepared.again())
        return function(*inputs) if self._graphs is None else self._graphs(function, *inputs)

    def _run(self, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        if torch.is_autocast_enabled(self._device):
            # Inside a caller's autocast, 16-bit copies of weights live on until it ends: those of other weights, if
            # an update or an average was copied into the network since.
            torch.clear_autocast_cache()
        with (
            planned(self._plan, outermost=True),
            steady_float32(self._device),
            torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None),
            _emulation() if self._emulates else nullcontext(),
        ):
            out = self._call(x, t, **conditions)
        if not isinstance(out, Tensor):
            raise TypeError(
                f"the network {type(self.net).__name__} returned a {type(out).__name__}, not a tensor: wrap it in a "
                "module whose forward returns the tensor"
            )
        return out


def _emulation() -> AbstractContextManager[object]:
    from undiffuse.nets.emulation import EmulatedBFloat16  # most processors do not need it

    return EmulatedBFloat16()


def prepare_for_inference(
    net: nn.Module,
    precision: str,
    device: torch.device | str,
    *,
    gradient: bool = False,
    compiled: bool = False,
    consume: bool = False,
) -> NetworkRunner:
    """Prepare a network for fast inference and return a runner; `net` itself is left as it is.

    The runner calls a copy of the network's modules: on `device`, in evaluation mode, with frozen parameters, weights
    in 16 bits where the computation is in 16 bits, and convolutions packed for the CPU. Weights that need no such
    change are shared with `net`, not copied. If the weights of `net` are changed afterwards, by training for example,
    the runner prepares them again at its next call.

    Networks other than the library's own are moved, frozen and called under autocast, but their weights keep their
    precision and layout.

    Args:
        net: The network. It stays on its device and can be saved, trained and called as before.
        precision: "fp32", "bf16" or "fp16".
        device: The device to run on.
        gradient: Whether to keep what a gradient with respect to the image needs, as guidance by a classifier does.
        compiled: Whether to use `torch.compile` instead of packed layers. Ignored with `gradient`.
        consume: Whether to give up the weights of `net`, which saves the memory of a second copy: for callers that own
            the network and need only the runner. The parameters of `net` are empty ("meta") tensors afterwards.

    Returns:
        The runner.

    Raises:
        ValueError: The weights of `net` were given up earlier, or its modules cannot be copied.
    """
    if is_consumed(net):
        raise ValueError(
            "the weights of this network were given up when it was prepared with consume=True: load or build it again"
        )
    device = torch.device(device)
    pack = is_own(net) and device.type == "cpu" and not gradient and not compiled
    footprints: list[Footprint] = []

    def prepared(original: nn.Module) -> nn.Module:
        shared = _shared_copy(original)
        if consume:
            give_up_weights(original)
        footprints.append(_prepare_(shared, precision, device))
        if pack:
            pack_(shared, AUTOCAST.get(precision, torch.float32))
        elif memory_format(shared) == torch.channels_last:
            shared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return shared

    runner = NetworkRunner(prepared(net), precision, device, compiled and not gradient)
    if is_own(net) and device.type == "cuda" and not runner.compiled:
        from undiffuse.nets.graphs import Graphs

        runner._graphs = Graphs()
    runner.footprint = footprints[0]  # packed layers have no parameters
    runner._prepared = Prepared(None if consume else net, prepared, not pack)
    return runner


def is_consumed(net: nn.Module) -> bool:
    """Return whether the weights of `net` were given up by `prepare_for_inference(..., consume=True)`."""
    return any(parameter.is_meta for parameter in net.parameters())


def weights_version(net: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return a value that changes when parameters of `net` are replaced or changed in place by an ordinary operation.

    Changes made through `parameter.data` are not noticed.
    """
    return tuple(map(_version, net.parameters()))


def plain_copy(net: nn.Module) -> tuple[nn.Module, Footprint]:
    """Return a copy of a network for export: on the CPU, in float32, for evaluation, its weights shared with `net`."""
    shared = _shared_copy(net)
    return shared, _prepare_(shared, "fp32", torch.device("cpu"))


class Prepared:
    """Notices changes of the network that a prepared one was made from, without keeping its memory alive.

    The check runs at every call, so it is made of the cheapest parts: version counters of the parameters (in-place
    changes), their identities (other parameters), and their deaths (because identities are used again).

    Args:
        original: The network; None if its weights were given up, so that they cannot change.
        prepare: Makes the prepared network from the original.
        gradient: Whether the prepared network has gradients with respect to the image.
    """

    def __init__(self, original: nn.Module | None, prepare: Callable[[nn.Module], nn.Module], gradient: bool) -> None:
        self.gradient = gradient
        self._prepare = prepare
        self._original = None if original is None else weakref.ref(original)
        self._note(original)

    def _note(self, original: nn.Module | None) -> None:
        modules = [] if original is None else [module for module in original.modules() if module._parameters]
        parameters = [p for module in modules for p in module._parameters.values() if p is not None]
        self._deaths: list[Any] = []
        self._watched = [weakref.ref(parameter, self._deaths.append) for parameter in parameters]
        self._modules = [weakref.ref(module) for module in modules]
        self._identities = _identities(modules)
        self._counters = [_counter(p) for p in parameters if not p.is_inference()]
        self._versions = [counter._version for counter in self._counters]

    def outdated(self) -> bool:
        """Return whether the original's weights have changed; False if it does not exist any more."""
        if (
            not self._deaths
            and self._versions == [counter._version for counter in self._counters]
            and _identities([reference() for reference in self._modules]) == self._identities
        ):
            return False
        original = self._original() if self._original is not None else None
        if original is None or is_consumed(original):
            self._note(None)
            return False
        return True

    def again(self) -> nn.Module:
        """Return a network prepared from the original's present weights."""
        original = self._original() if self._original is not None else None
        assert original is not None
        net = self._prepare(original)
        self._note(original)
        return net


def _identities(modules: Iterable[nn.Module | None]) -> list[int]:
    """The identities of all parameters; -1 stands for a module that does not exist any more."""
    return [
        number for module in modules for number in ((-1,) if module is None else map(id, module._parameters.values()))
    ]


def _counter(parameter: Tensor) -> Tensor:
    """Return an empty tensor that shares the parameter's version counter, but not its memory."""
    counter = parameter.detach()
    counter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    return counter


def _version(parameter: Tensor) -> tuple[int, int]:
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


def _prepare_(net: nn.Module, precision: str, device: torch.device) -> Footprint:
    """Prepare `net`, whose parameters may share memory with another network's, in place, up to its layout."""
    net.eval()
    module: Any
    for module in net.modules():
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = False  # saves memory in training; here it only costs time
    dtype = AUTOCAST.get(precision, torch.float32)
    if is_own(net) and dtype != torch.float32:
        store_weights_(net, dtype)  # before it moves, so that the device never holds all of it in float32
    net.to(device)
    return Footprint.of(net)


def is_own(net: nn.Module) -> bool:
    """Return whether `net` is of this library's architectures, whose layers may be stored in 16 bits and packed."""
    return isinstance(net, (Encoder, DDPMUNet, EDMUNet, EDM2UNet, UNet2D, RMSUNet))


def _shared_copy(net: nn.Module) -> nn.Module:
    """Copy the modules of `net`; the copy's parameters are frozen and share the memory of the original's."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for value in [*module._buffers.values(), *vars(module).values()]:
            if isinstance(value, Tensor):
                memo.setdefault(id(value), value)
    try:
        return copy.deepcopy(net, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the modules of {type(net).__name__} cannot be copied by copy.deepcopy: {error}") from error


def give_up_weights(net: nn.Module) -> None:
    """Replace the parameters of `net` by empty ones, tied parameters by the same."""
    empty: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = empty.setdefault(id(parameter), new)


def _compiled(net: nn.Module, device: str) -> Any:
    """Compile the network: for any size of input in training, else for one size, on GPUs recorded as CUDA graphs."""
    if any(parameter.requires_grad for parameter in net.parameters()):
        return torch.compile(net)
    return torch.compile(net, dynamic=False, mode="reduce-overhead" if device == "cuda" else None)
