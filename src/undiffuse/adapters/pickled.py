"""Pickles read as data: a reader that follows the instructions of a pickle and calls nothing.

Python's pickles are programs. This reader runs only what builds plain values (numbers, text, lists, dictionaries) and
PyTorch's tensors and NumPy's arrays; whatever else a file would call or construct becomes an `Inert` that says what it
was and which values it came with. So weights can be taken from files that hold objects of a training program beside
them, for instance an `argparse.Namespace`, and from EDM's network pickles.

    read(path)    a file of `torch.save` (a zip archive), or a bare pickle
"""

from __future__ import annotations

import io
import math
import pickletools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from undiffuse.util.limits import is_zip, open_zip


@dataclass(eq=False)
class Inert:
    """An object of a pickle that was not made.

    Attributes:
        name: Module and name of what would have been called, "argparse.Namespace".
        args: Arguments it would have been called with.
        state: What would have been its attributes, a dictionary where the file says them by name.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes by name; empty where there are none."""
        return self.state if isinstance(self.state, Mapping) else {}


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names."""

    name: str


class Refused(ValueError):
    """The file is damaged, of another format, or names programs that run commands."""


DANGEROUS = frozenset(
    ("os", "posix", "nt", "subprocess", "sys", "shutil", "pty", "socket", "runpy", "importlib", "webbrowser", "code")
)
_BUILTINS = frozenset(("eval", "exec", "compile", "getattr", "setattr", "open", "__import__", "breakpoint", "input"))
_MOST_BYTES = 32 << 30

_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES = {str(dtype): dtype for dtype in _STORAGES.values()}
_MARK = object()
_BLOCK = 1 << 16
_MAGIC = 0x1950A86A20F9469CFC6C  # the first value in a file of `torch.save` before 2020


def read(path: Path) -> Any:
    """Read a file of `torch.save` or a bare pickle.

    Raises:
        Refused: It is damaged, no pickle, or names what runs commands.
    """
    try:
        if is_zip(path):
            with open_zip(path) as archive:
                inner = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
                if inner is None:
                    raise Refused("it is an archive without a pickle of PyTorch")
                folder = inner.removesuffix("data.pkl")
                return _Machine(lambda key: archive.read(f"{folder}data/{key}")).run(io.BytesIO(archive.read(inner)))
        with open(path, "rb") as file:
            content = _Machine(None).run(file)
            return _legacy(file) if content == _MAGIC else content
    except (Refused, MemoryError, OSError):
        raise
    except Exception as error:  # a damaged file can make this raise anything
        text = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise Refused(f"it is damaged or incomplete ({text})") from None


def _legacy(file: BinaryIO) -> Any:
    """What a file of `torch.save` before 2020 holds: pickles in sequence, then the tensors' numbers."""
    for _ in range(2):  # the protocol's number, and sizes of the writer's integers
        _Machine(None).run(file)
    machine = _Machine(None, late={})
    content = machine.run(file)
    for key in _Machine(None).run(file):
        count = int.from_bytes(file.read(8), "little")
        storage = machine.storages[str(key)]
        size = count * storage.element_size()
        numbers = file.read(size) if count == storage.numel() else b""
        if count != storage.numel() or len(numbers) != size:
            raise Refused("it is damaged or incomplete (the numbers of a tensor end early)")
        if count:
            storage.copy_(torch.frombuffer(bytearray(numbers), dtype=storage.dtype))
    return content


class _Capped:
    """A file for `pickletools.genops`: a damaged length takes no more memory than the file has bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.readline, self.tell = file.readline, file.tell
        begin = file.tell()
        self._file, self._end = file, file.seek(0, io.SEEK_END)
        file.seek(begin)

    def read(self, size: int) -> bytes:
        """As that of the file."""
        return self._file.read(size if size < _BLOCK else min(size, self._end - self._file.tell()))


@dataclass
class _Machine:
    """The stack machine of pickles, without calls.

    `stored` gives the bytes of a tensor by its key in the archive; with `late` they come after the pickle.
    """

    stored: Callable[[str], bytes] | None
    late: dict[str, Any] | None = None
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Tensor] = field(default_factory=dict)

    def run(self, content: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(_Capped(content)):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise Refused("it is incomplete")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP_MARK":
            self._marked()
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in _MARKED:
            items = self._marked()
            stack.append(_MARKED[name](items))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            _extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [*reversed([stack.pop(), stack.pop()])] if name == "SETITEM" else self._marked()
            _fill(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            what, module = stack.pop(), stack.pop()
            stack.append(_named(module, what))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._made(function, arguments))
        elif name == "NEWOBJ_EX":
            keywords, arguments, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(Inert(_name_of(function), (*arguments, keywords)))
        elif name in ("OBJ", "INST"):
            items = self._marked()
            function = _named(*argument.split(" ", 1)) if name == "INST" else items.pop(0)
            stack.append(self._made(function, tuple(items)))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1] = _with_state(stack[-1], state)
        elif name in ("BINPERSID", "PERSID"):
            stack.append(self._persistent(stack.pop() if name == "BINPERSID" else argument))
        else:
            raise Refused(f"it uses {name}, which no file of weights needs")

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise Refused("it is damaged: a mark is missing")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _made(self, function: Any, arguments: Any) -> Any:
        """The value that a call would give, where it is a plain one, and an `Inert` for all others."""
        name = _name_of(function)
        given = tuple(arguments) if isinstance(arguments, (tuple, list)) else (arguments,)
        if name in _MAPPINGS:
            return OrderedDict(given[0]) if given and isinstance(given[0], (list, Mapping)) else OrderedDict()
        if name in ("builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple", "torch.Size"):
            return list(given[0]) if given else []
        if name == "_codecs.encode" and len(given) == 2 and given[1] == "latin1":
            return given[0].encode("latin1")
        if name in ("builtins.bytearray", "builtins.bytes") and given and isinstance(given[0], (bytes, bytearray)):
            return bytes(given[0])
        if name == "torch._utils._rebuild_tensor_v2" or name == "torch._utils._rebuild_tensor":
            return _view(*given[:4])
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return given[0]
        if name == "torch.storage._load_from_bytes":
            return _legacy_storage(given[0])
        if name.startswith("numpy."):
            return _of_numpy(name, given)
        if name == "copyreg._reconstructor" and given:
            return Inert(_name_of(given[0]))
        return Inert(name, given)

    def _persistent(self, about: Any) -> Any:
        """A tensor's storage, which lies beside the pickle in an archive."""
        absent = self.stored is None and self.late is None
        if absent or not isinstance(about, tuple) or len(about) < 5 or about[0] != "storage":
            raise Refused("it refers to something that is not in the file")
        kind, key, count = about[1], str(about[2]), about[4]
        dtype = _STORAGES.get(_name_of(kind).rpartition(".")[2])
        if dtype is None:
            raise Refused(f"it holds tensors of an unknown type, {_name_of(kind)}")
        if not isinstance(count, int) or not 0 <= count * dtype.itemsize <= _MOST_BYTES:
            raise Refused(f"it is damaged: a tensor of {count} numbers")
        if key not in self.storages and self.stored is None:
            self.storages[key] = torch.zeros(count, dtype=dtype)
        elif key not in self.storages:
            assert self.stored is not None
            content = bytearray(self.stored(key))
            if len(content) < count * dtype.itemsize:
                raise Refused(f"it is damaged: {len(content)} bytes for {count} numbers")
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key]


_VALUES = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
     "BINBYTES8", "BYTEARRAY8")
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_MAPPINGS = frozenset(
    ("collections.OrderedDict", "builtins.dict", "collections.defaultdict", "dnnlib.util.EasyDict", "easydict.EasyDict")
)
_MARKED: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": list,
    "DICT": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
}


def _named(module: Any, name: Any) -> Global:
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(str(module), str(module))
    if module.partition(".")[0] in DANGEROUS or (module == "builtins" and name in _BUILTINS):
        raise Refused(f"GLOBAL {module}.{name}")
    return Global(f"{module}.{name}")


def _name_of(function: Any) -> str:
    return function.name if isinstance(function, (Global, Inert)) else type(function).__name__


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Inert):  # a class derived from list
        target.args = (*target.args, *items)


def _fill(target: Any, items: list[Any]) -> None:
    pairs = list(zip(items[::2], items[1::2], strict=True))
    pairs = [(key if _hashable(key) else repr(key), value) for key, value in pairs]
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Inert):  # a class derived from dict
        target.state = {**target.attributes, **dict(pairs)}


def _hashable(key: Any) -> bool:
    return isinstance(key, (str, int, float, bool, bytes, type(None), Global))


def _with_state(value: Any, state: Any) -> Any:
    """What BUILD makes of a value: attributes of an `Inert`, the content of a NumPy array."""
    if isinstance(value, Inert):
        if value.name == "numpy.ndarray" and isinstance(state, tuple) and len(state) == 5:
            return _array(state)
        if isinstance(state, tuple) and len(state) == 2 and state[0] is None:  # attributes in slots
            state = state[1]
        value.state = {**value.attributes, **state} if isinstance(state, Mapping) else state
    return value  # an OrderedDict's own attributes, such as _metadata of a state dict, say nothing of its content


def _view(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    """A tensor as a view of its storage, checked to lie within it."""
    shape, stride = tuple(shape), tuple(stride)
    whole = (offset, *shape, *stride)
    if not isinstance(storage, Tensor) or not all(isinstance(n, int) and n >= 0 for n in whole):
        raise Refused("it is damaged: a tensor without numbers")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0
    if last >= max(1, storage.numel()):
        raise Refused("it is damaged: a tensor reaches beyond its numbers")
    return storage.as_strided(shape, stride, offset)


def _legacy_storage(content: Any) -> Tensor:
    """The numbers of a tensor that was pickled alone, whose storage is a small file of its own."""
    if not isinstance(content, (bytes, bytearray)):
        raise Refused("it is damaged: a tensor without numbers")
    with warnings.catch_warnings():  # that storages of a type go out of use
        warnings.simplefilter("ignore")
        storage = torch.load(io.BytesIO(bytes(content)), map_location="cpu", weights_only=True)
        return torch.tensor([], dtype=storage.dtype).set_(storage.untyped(), 0, (len(storage),), (1,))


def _of_numpy(name: str, given: tuple[Any, ...]) -> Any:
    what = name.rpartition(".")[2]
    if what == "dtype":
        return Inert("numpy.dtype", given)
    if what == "_reconstruct":
        return Inert("numpy.ndarray")
    if what == "scalar" and len(given) == 2:
        return np.frombuffer(given[1], _dtype(given[0]), 1)[0].item()
    return Inert(name, given)


def _array(state: tuple[Any, ...]) -> Any:
    _, shape, dtype, fortran, content = state
    if not isinstance(content, (bytes, bytearray)):
        return Inert("numpy.ndarray")
    values = np.frombuffer(bytes(content), _dtype(dtype))
    return values.reshape(shape, order="F" if fortran else "C")


def _dtype(about: Any) -> np.dtype[Any]:
    text = str(about.args[0]) if isinstance(about, Inert) and about.args else ""
    if len(text) != 2 or text[0] not in "fiub":
        raise Refused(f"it holds a NumPy value of type {text!r}")
    order = about.state[1] if isinstance(about.state, tuple) and len(about.state) > 1 else "="
    return np.dtype(f"{order}{text}" if order in ("<", ">") else text)


def walk(content: Any) -> Iterator[Any]:
    """Yield every value in what a file held, also those within lists, dictionaries and objects; each once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Mapping):
            waiting += list(value.values())
        elif isinstance(value, (list, tuple)):
            waiting += list(value)
        elif isinstance(value, Inert):
            waiting += [value.state, *value.args]
