"""Reads flags of OpenAI's programs and their forks from a command line or from a file with the arguments.

A file may contain, as text,

    a command line      with or without the program's name, over several lines, or as shell variables
    printed arguments   as many forks log them: Namespace(image_size=256, ...), {"lr": 1e-4}
    settings by line    "image_size: 256" or "image_size = 256", as in the YAML files of DPS and RePaint

or be a JSON object. Python's notation is parsed as literals; nothing is executed.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undiffuse.adapters import openai_flags

SUFFIXES = (".txt", ".json", ".yaml", ".yml", ".log", ".sh", ".args")
_MOST = 4_000_000  # bytes of a file with flags
_SETTING = re.compile(r"^\s*[\"']?([A-Za-z_]\w*)[\"']?\s*[:=]\s*(.*?)\s*,?\s*$")
_FLAG = re.compile(r"--([A-Za-z_]\w*)(?:\s*=\s*|\s+)(?!--)(\"[^\"]*\"|'[^']*'|[^\s\"']+)")
_KNOWN = openai_flags.known()
# DPS's file of the process uses other names for some flags.
_SPELLINGS = {"steps": "diffusion_steps"}
_MEANINGS = {
    ("model_mean_type", "epsilon"): ("predict_xstart", "False"),
    ("model_mean_type", "start_x"): ("predict_xstart", "True"),
    ("model_var_type", "learned_range"): ("learn_sigma", "True"),
    ("model_var_type", "fixed_large"): ("learn_sigma", "False"),
    ("model_var_type", "fixed_small"): ("sigma_small", "True"),
}


def split(text: str) -> tuple[list[str], dict[str, str]]:
    """Splits a command line into words without dashes and flags with their values.

    Args:
        text: For example "--image_size 64 --lr 1e-4" or "256x256_diffusion image_size=64".

    Returns:
        The words that belong to no flag, and the flags by name; a flag without a value is a word.

    Raises:
        ValueError: A quotation mark is not closed.
    """
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{_short(text)} cannot be read: {error}") from error
    words, flags = [], {}
    while parts:
        part = parts.pop(0)
        name, given, value = part.lstrip("-").partition("=")
        if given:
            flags[name] = value
        elif part.startswith("--") and parts and not parts[0].startswith("--"):
            flags[name] = parts.pop(0)
        else:
            words.append(part)
    return words, flags


def read_file(path: str | Path) -> dict[str, str]:
    """Reads the flags in a text file of one of the formats listed in the module's docstring.

    Raises:
        ValueError: The file is not text, or contains no flags of these programs.
    """
    path = Path(path)
    with open(path, "rb") as file:
        content = file.read(_MOST + 1)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text, so no flags can be read from it") from None
    if len(content) > _MOST:
        raise ValueError(f"{path} is larger than {_MOST // 1_000_000} MB, so it is not a file of flags")
    flags = _of_text(text)
    if not flags:
        raise ValueError(
            f"{path} contains no flags of guided or improved diffusion. (Their log.txt contains only losses.) Give the "
            "training command line, a printed Namespace(...), JSON, or lines like image_size: 256"
        )
    return flags


def of_arguments(arguments: Any) -> dict[str, str]:
    """Returns the flags among arguments that were saved as a dictionary; {} if there are none."""
    if not isinstance(arguments, Mapping):
        return {}
    flags: dict[str, str] = {}
    sampled = "training_mode" in arguments  # of consistency_models, whose "steps" are those of a sampler
    for key, value in arguments.items():
        name, text = str(key) if sampled else _SPELLINGS.get(str(key), str(key)), _as_text(value)
        name, text = _MEANINGS.get((name, text), (name, text))
        if name in _KNOWN and value is not None and name not in openai_flags.OTHERS:
            flags[name] = text
    return flags


def _of_text(text: str) -> dict[str, str]:
    try:
        return of_arguments(json.loads(text))
    except (ValueError, RecursionError):
        pass
    found = of_arguments(_printed(text))
    if found:
        return found
    given = {match[1]: match[2].strip("\"'") for match in _FLAG.finditer(text.replace("\\\n", " "))}
    if not given:
        settings = (_SETTING.match(line.split(" #", 1)[0]) for line in text.splitlines())
        given = {match[1]: match[2].strip("\"'") for match in settings if match}
    return of_arguments(given)


def _printed(text: str) -> dict[str, Any]:
    """Returns the literals in the last Namespace(...) or {...} printed in a text."""
    for begin in reversed([match.start() for match in re.finditer(r"Namespace\(|\{\s*['\"]", text)]):
        line = text[begin:]
        for end in (match.end() for match in re.finditer(r"[)}](?=\s|$)", line)):
            try:
                node = ast.parse(line[:end], mode="eval").body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            if isinstance(node, ast.Call):
                pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
            elif isinstance(node, ast.Dict):
                keys = [getattr(key, "value", None) for key in node.keys]
                pairs = list(zip(keys, node.values, strict=True))
            else:
                break
            return {name: _literal(value) for name, value in pairs if isinstance(name, str)}
    return {}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    return str(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
