"""Compiles the kernels with the machine's C compiler and loads them. Of PyTorch, they use only its OpenMP."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from undiffuse.downloads import cache_dir

SOURCES = tuple(Path(__file__).with_name(name) for name in ("norm_act.c", "convolution.c", "matrix_unit.c"))
HEADER = Path(__file__).with_name("vectors.h")
# -fopenmp is for the compiler only: the linker would load a second OpenMP into the process.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-Wno-psabi")
MACHINES = ("x86_64", "aarch64")
PATIENCE = 120.0  # time limit of the compiler in seconds


class Unavailable(Exception):
    """The compiled kernels are not available; the message says why."""


def load() -> ctypes.CDLL:
    """Loads the library from the cache folder, or builds it; raises `Unavailable` if that is impossible."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise Unavailable(
            f"the kernels require Linux on {' or '.join(MACHINES)}; this is {sys.platform} on {platform.machine()}"
        )
    try:
        file = _built()
        _share_openmp()
        return _declared(ctypes.CDLL(str(file)))
    except OSError as error:
        raise Unavailable(f"the kernels cannot be built or loaded: {error}") from None


def _built() -> Path:
    file = cache_dir("kernels") / f"kernels-{_digest(sources())}.so"
    if file.exists():
        _check_owner(file)
        return file
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or ""]
    if not shutil.which(compiler[0]):
        raise Unavailable(f"no C compiler ({compiler[0] or 'cc, gcc'}) was found")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = file.parent / f".{secrets.token_hex(6)}"  # several processes may build at the same time
    whole = own.with_suffix(".so")
    objects = [own.with_suffix(f".{number}.o") for number in range(len(SOURCES))]
    try:
        for source, part in zip(SOURCES, objects, strict=True):
            _run([*compiler, *flags(), "-c", str(source), "-o", str(part)])
        _run([*compiler, "-shared", *map(str, objects), "-o", str(whole)])
        os.chmod(whole, 0o700)
        os.replace(whole, file)
    finally:
        for part in (*objects, whole):
            part.unlink(missing_ok=True)
    return file


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the compiler did not finish within {PATIENCE:g} seconds: {shlex.join(command)}") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        said = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit {error.returncode}")
        raise Unavailable(f"the compiler failed: {said}") from None


def _digest(source: bytes) -> str:
    """Hashes everything that determines the machine code: sources, flags, compiler, and processor."""
    compiler = os.environ.get("CC", "")
    about = "\0".join([*flags(), compiler, platform.machine(), platform.libc_ver()[1], *processor()])
    return hashlib.sha256(source + about.encode()).hexdigest()[:24]


def flags() -> tuple[str, ...]:
    """Returns the compiler's flags. Where the environment limits PyTorch or oneDNN, so it does the kernels."""
    limits = os.environ.get("ATEN_CPU_CAPABILITY", ""), os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    narrow = limits[1].upper() in ("SSE41", "AVX") or limits[1].upper().startswith("AVX2")
    if (narrow or limits[0].lower() in ("avx2", "default")) and platform.machine() == "x86_64":
        return (*FLAGS, "-mno-avx512f")
    if limits[1].upper().startswith("AVX512_CORE") and "AMX" not in limits[1].upper():
        return (*FLAGS, "-DUNDIFFUSE_NO_TILES")
    return FLAGS


def sources() -> bytes:
    """Returns all source code of the kernels."""
    return b"\0".join(file.read_bytes() for file in (*SOURCES, HEADER))


@functools.lru_cache
def processor() -> tuple[str, str]:
    """Returns the model name and the instruction sets ("flags") of the processor, empty where they are not known."""
    names, features = set(), set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                names.add(value.strip())
            elif key.strip() in ("flags", "Features"):
                features.add(value.strip())
    return ", ".join(sorted(names)) or platform.processor(), " ".join(sorted(features))


def _check_owner(file: Path) -> None:
    """Refuses code that others could have written."""
    about = file.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise Unavailable(f"{file} belongs to another user or is writable by others: delete it")


def _share_openmp() -> None:
    """Makes PyTorch's OpenMP visible to the kernels; raises OSError if PyTorch has none."""
    beside = Path(torch.__file__).parent
    places = sorted([*beside.glob("lib/libgomp*.so*"), *beside.parent.glob("torch.libs/libgomp*.so*")])
    mapped = Path("/proc/self/maps").read_text()
    for place in [str(place) for place in places] + ["libgomp.so.1"]:
        if place in mapped or "/" + place in mapped:
            ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)
            return
    raise OSError("PyTorch does not use GNU OpenMP here")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    shape = [count, count, count, count]
    for name in ("f32", "bf16"):
        forward = getattr(library, f"undiffuse_forward_{name}")
        forward.argtypes = (
            [pointer] * 6 + [count] + [pointer] * 3 + shape + [ctypes.c_float, ctypes.c_int, ctypes.c_int]
        )
        forward.restype = None
        backward = getattr(library, f"undiffuse_backward_{name}")
        backward.argtypes = [pointer] * 7 + [count] + [pointer] * 5 + shape + [ctypes.c_int, ctypes.c_int]
        backward.restype = None
        with contextlib.suppress(AttributeError):  # exists with AVX-512, in float32 also with AVX2
            convolution = getattr(library, f"undiffuse_convolution_{name}")
            convolution.argtypes = [pointer] * 6 + [count] * 5 + [ctypes.c_int]
            convolution.restype = None
            product = getattr(library, f"undiffuse_product_{name}")
            product.argtypes = [pointer] * 5 + [count] * 3 + [ctypes.c_int]
            product.restype = None
    with contextlib.suppress(AttributeError):  # exists with AMX
        library.undiffuse_tiles_convolution.argtypes = [pointer] * 6 + [count] * 5 + [ctypes.c_int]
        library.undiffuse_tiles_product.argtypes = [pointer] * 5 + [count] * 3 + [ctypes.c_int]
        library.undiffuse_tiles_weights.argtypes = [pointer] * 5 + [count] * 5 + [ctypes.c_int]
        library.undiffuse_tiles_pack.argtypes = [pointer] * 2 + [count] * 6 + [ctypes.c_int]
        library.undiffuse_tiles_attention.argtypes = [pointer] * 5 + [count] * 7 + [ctypes.c_float, ctypes.c_int]
        for name in ("convolution", "product", "weights", "pack", "attention"):
            getattr(library, f"undiffuse_tiles_{name}").restype = None
        library.undiffuse_tiles_space.argtypes = [count] * 4
        library.undiffuse_tiles_weights_space.argtypes = [count] * 3
        library.undiffuse_tiles_attention_space.argtypes = [count, count, ctypes.c_int]
        library.undiffuse_tiles_attention_space.restype = count
        library.undiffuse_tiles_space.restype = library.undiffuse_tiles_weights_space.restype = count
        library.undiffuse_tiles_refused.argtypes, library.undiffuse_tiles_refused.restype = [], ctypes.c_int
    with contextlib.suppress(AttributeError):
        library.undiffuse_convolution_space.argtypes = [count] * 5 + [ctypes.c_int]
        library.undiffuse_convolution_space.restype = count
        library.undiffuse_weights_space.argtypes = [count] * 2
        library.undiffuse_weights_space.restype = count
        library.undiffuse_weights_f32.argtypes = [pointer] * 5 + [count] * 5 + [ctypes.c_int]
        library.undiffuse_weights_f32.restype = None
    return library
