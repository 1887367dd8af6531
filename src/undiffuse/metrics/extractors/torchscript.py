"""Reads the tensors of a TorchScript archive as data: nothing in the file is executed.

Such an archive is a zip of three things: code (never opened here), one record of raw numbers for each storage, and
`data.pkl`, which says how they are put together. A pickle is a program for a machine that calls whatever it imports.
The machine below has no import and no call: a name in the file stays the text it is, and the few names that torch
itself writes are compared with that text and stand for containers and descriptions of tensors. Any other name, and any
instruction that torch's writer does not use, ends the reading with an error. The instructions are decoded by
`pickletools.genops`, which decodes numbers and texts and does nothing else.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.estimate import MetricError
from undiffuse.util.limits import is_zip, open_zip

__all__ = ["is_torchscript", "read_torchscript"]

LIMIT = 1 << 23
"""The most bytes of instructions to read; a network of 36 blocks has 0.06 million."""

STORAGES = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "|i1",
    "torch ByteStorage": "|u1",
    "torch BoolStorage": "|b1",
}
LISTS = {f"torch.jit._pickle build_{kind}list" for kind in ("int", "tensor", "double", "bool")}
TENSOR = "torch._utils _rebuild_tensor_v2"
ORDERED = "collections OrderedDict"
TYPED = "torch.jit._pickle restore_type_tag"
MODULES = ("__torch__.", "__torch__ ")

DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, LookupError, ValueError, TypeError, ArithmeticError, RuntimeError)
"""What a broken zip, missing operands, broken text and numbers that are too large lead to."""

VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True)
class _Name:
    """Stands for something that the file would import. It is never looked up."""

    text: str


class _Module:
    """Stands for an object of the file's own classes, of which only the attributes are kept."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] | None = None


@dataclass(frozen=True)
class _Storage:
    """Describes a record of `count` numbers."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """Describes a view of a record."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Refused(Exception):
    """The file needs more than a file of tensors may, or is damaged."""


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, by the names of its records (a plain zip of torch has no code)."""
    if not is_zip(path):
        return False
    try:
        with open_zip(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read_torchscript(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Reads the tensors of an archive's modules by their dotted names, on the CPU.

    The memory is that of the tensors, which may not have more bytes than the file.

    Args:
        path: The archive.
        prefix: Only names that begin with it are read.

    Raises:
        MetricError: A file that is damaged, that needs more than tensors and containers, or whose tensors reach outside
            their records.
    """
    try:
        with open_zip(path) as archive:
            root = _root(archive)
            found = {
                name: stub for name, stub in _named(_interpret(_program(archive, root))) if name.startswith(prefix)
            }
            space = sum(math.prod(t.size) * np.dtype(t.storage.dtype).itemsize for t in found.values())
            if space > Path(path).stat().st_size:
                raise _Refused("its tensors would be larger than the file")
            return {name: _numbers(archive, root, stub) for name, stub in found.items()}
    except _Refused as error:
        raise MetricError(f"{path} is not a plain TorchScript archive: {error}; nothing of it was run") from error
    except DAMAGE as error:
        raise MetricError(
            f"{path} is damaged ({type(error).__name__}: {error}); get it again. Nothing of it was run"
        ) from error


def _root(archive: zipfile.ZipFile) -> str:
    """Returns the folder in the archive, which torch names after the file it was first saved as."""
    roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise _Refused(f"it has {len(roots)} records data.pkl instead of one")
    order = f"{roots[0]}/byteorder"
    if order in archive.namelist() and archive.read(_stored(archive, order, 16)) != b"little":
        raise _Refused("its numbers are not little-endian")
    return roots[0]


def _stored(archive: zipfile.ZipFile, name: str, most: int) -> zipfile.ZipInfo:
    """Returns the entry of an uncompressed record: torch never compresses, and nothing may unpack to more."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise _Refused(f"the record {name} is compressed")
    if entry.file_size > most:
        raise _Refused(f"the record {name} has {entry.file_size} bytes, at most {most} were expected")
    return entry


def _program(archive: zipfile.ZipFile, root: str) -> bytes:
    return archive.read(_stored(archive, f"{root}/data.pkl", LIMIT))


def _interpret(program: bytes) -> Any:
    """Returns what the instructions of `data.pkl` build."""
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for instruction, argument, _ in pickletools.genops(program):
        name = instruction.name
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "GLOBAL":
            stack.append(_Name(str(argument)))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memory[_expect(argument, int)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[_expect(argument, int)])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            pairs = zip(items[::2], items[1::2], strict=True)
            _expect(stack[-1], dict).update((_expect(key, (str, int)), value) for key, value in pairs)
        elif name == "NEWOBJ":
            arguments, kind = stack.pop(), _expect(stack.pop(), _Name)
            stack.append(_new(kind, arguments))
        elif name == "BUILD":
            state, module = stack.pop(), _expect(stack[-1], _Module)
            module.state = _expect(state, dict)
        elif name == "REDUCE":
            arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), _Name)
            stack.append(_stand_in(function, arguments))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise _Refused(f"it uses the instruction {name}, which no file of tensors needs")
    raise _Refused("its instructions do not end")


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"an instruction meets a {type(value).__name__.strip('_')} where it cannot")
    return value


def _new(kind: _Name, arguments: Any) -> _Module:
    if not kind.text.startswith(MODULES) or arguments != ():
        raise _Refused(f"it wants to make a {kind.text!r}")
    return _Module()


def _stand_in(function: _Name, arguments: tuple[Any, ...]) -> Any:
    """Returns what a call in the file stands for; nothing is called."""
    if function.text == TENSOR and len(arguments) in (6, 7):
        return _view(*arguments[:4])
    if function.text == ORDERED and arguments == ():
        return {}
    if function.text in LISTS and len(arguments) == 1:
        return _expect(arguments[0], list)
    if function.text == TYPED and len(arguments) == 2:
        return arguments[0]
    raise _Refused(f"it wants to call {function.text!r}")


def _storage(identity: Any) -> _Storage:
    match identity:
        # Until 2020 there was a sixth part, always None.
        case ("storage", _Name(text), str(key), str(), int(count), *rest) if text in STORAGES and rest in ([], [None]):
            return _Storage(STORAGES[text], key, count)
    raise _Refused("it refers to something that is not a record of numbers")


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> _Tensor:
    whole = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8
    if (
        not isinstance(storage, _Storage)
        or not whole
        or any(type(n) is not int or n < 0 for n in (offset, *size, *stride))
    ):
        raise _Refused("a tensor is described wrongly")
    # The last number a view reaches; a stride of 0 could make much of little.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count > storage.count or (count and last >= storage.count):
        raise _Refused(f"a tensor of shape {list(size)} reaches outside its record of {storage.count} numbers")
    return _Tensor(storage, offset, size, stride)


def _named(tree: Any) -> list[tuple[str, _Tensor]]:
    """Yields (dotted name, tensor) of a module and of the modules in it; each module once."""
    found: list[tuple[str, _Tensor]] = []
    waiting = [("", _expect(tree, _Module))]
    seen = {id(tree)}
    while waiting:
        path, module = waiting.pop()
        for name, value in (module.state or {}).items():
            if isinstance(value, _Tensor):
                found.append((f"{path}{name}", value))
            elif isinstance(value, _Module) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{path}{name}.", value))
    return found


def _numbers(archive: zipfile.ZipFile, root: str, view: _Tensor) -> Tensor:
    """Returns a tensor with memory of its own. The checksum of the zip is compared on the way."""
    dtype = np.dtype(view.storage.dtype)
    size = view.storage.count * dtype.itemsize
    raw = archive.read(_stored(archive, f"{root}/data/{view.storage.key}", size))
    if len(raw) != size:
        raise _Refused(f"the record {view.storage.key} has {len(raw)} bytes instead of {size}")
    numbers = torch.from_numpy(np.frombuffer(raw, dtype).astype(dtype.newbyteorder("=")))
    return numbers.as_strided(view.size, view.stride, view.offset).clone(memory_format=torch.contiguous_format)
