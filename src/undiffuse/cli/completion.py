"""`undiffuse completion`: prints a script for bash, zsh or fish, which completes commands, options and values.

At each Tab the script calls `undiffuse` with the words of the line and UNDIFFUSE_COMPLETE set to the shell's name, and
`answer` prints what fits the last word. Nothing heavy is imported, so that this takes a tenth of a second.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence

from undiffuse.cli import known_names
from undiffuse.cli.parser import COMMANDS, build_parser
from undiffuse.grid_specs import GRIDS
from undiffuse.solvers.registry import SOLVERS

__all__ = ["VARIABLE", "answer", "candidates", "run"]

VARIABLE = "UNDIFFUSE_COMPLETE"
FILES = ":files"
"""A line of the answer that stands for the names of files and folders."""

Candidates = list[tuple[str, str]]

_SCRIPTS = {
    "bash": """\
_undiffuse() {
    local line word=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "${word#=}")
        else
            COMPREPLY+=("${line%%$'\\t'*}")
        fi
    done < <(UNDIFFUSE_COMPLETE=bash "${COMP_WORDS[0]}" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _undiffuse undiffuse
""",
    "zsh": """\
#compdef undiffuse
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_undiffuse() {
    local line files=0
    local -a values shown
    for line in "${(@f)$(UNDIFFUSE_COMPLETE=zsh "${words[1]}" "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $line == :files ]]; then
            files=1
        elif [[ -n $line ]]; then
            values+=("${line%%$'\\t'*}")
            shown+=("${line/$'\\t'/  -- }")
        fi
    done
    (( $#values )) && compadd -l -d shown -a values
    (( files )) && _files
}
compdef _undiffuse undiffuse
""",
    "fish": """\
function __undiffuse_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (UNDIFFUSE_COMPLETE=fish $words[1] $words[2..-1] 2>/dev/null)
        if test "$line" = :files
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c undiffuse -f -a '(__undiffuse_complete)'
""",
}

_MODELS = tuple(
    name for name in known_names.SHIPPED + known_names.PUBLISHED if "classifier" not in name and "judge" not in name
)
_CLASSIFIERS = tuple(name for name in known_names.SHIPPED + known_names.PUBLISHED if name.endswith("classifier"))
_VALUES: dict[str, tuple[tuple[str, ...], bool]] = {
    "model": (_MODELS, True), "autoguide": (_MODELS, True), "partner": (_MODELS, True), "init_from": (_MODELS, True),
    "upsampler": (("auto", *(name for name in _MODELS if "upsampl" in name)), True),
    "classifier": (("auto", *_CLASSIFIERS), True),
    "like": (known_names.PUBLISHED, True),
    "solver": (tuple(SOLVERS), False), "upsampler_solver": (tuple(SOLVERS), False), "solvers": (tuple(SOLVERS), False),
    "grid": (tuple(GRIDS), False), "grids": (("own", "tuned", *GRIDS), False),
    "recipe": (known_names.RECIPES, False),
    "extractor": (known_names.EXTRACTORS, True),
    "device": (("auto", "cpu", "cuda", "mps"), False),
    "log": (("tensorboard", "wandb"), False),
    "data": (known_names.DATA, True), "images": (known_names.DATA, True), "reference": (known_names.DATA, True),
    "floor": (known_names.DATA, True), "training": (known_names.DATA, True), "source": (known_names.DATA, True),
    "samples": (known_names.SHIPPED[:1], True), "what": ((*known_names.DATA, *known_names.SHIPPED), True),
    "labels": (("auto", "none", "folder", "prefix"), True),
}  # fmt: skip
"""What a setting may be: names, and whether a file or folder is possible too."""
_PATHS = ("DIR", "PATH", "FILE", "DATA", "RUN", "DATA|SHARE", "PNG|DIR", "M", "MODEL", "LATENTS", "SRC", "DST", "A B")


def run(args: argparse.Namespace) -> int:
    """Prints the script of a shell."""
    sys.stdout.write(_SCRIPTS[args.shell])
    return 0


def answer(words: Sequence[str], shell: str) -> int:
    """Prints what can stand in the place of the last word, a line each: the text, a tab and a description.

    Args:
        words: The words after `undiffuse`, the last one as far as it is typed.
        shell: "bash", "zsh" or "fish"; bash takes "=" for a word of its own.
    """
    for text, about in candidates(words, shell):
        print(f"{text}\t{about}" if about else text)
    return 0


def candidates(words: Sequence[str], shell: str = "fish") -> Candidates:
    """Returns the texts that can stand in the place of the last word, each with a description; see `answer`."""
    line = list(words) or [""]
    if shell == "bash":  # --solver=dd comes as --solver, =, dd
        line = ["" if word == "=" and k == len(line) - 1 else word for k, word in enumerate(line)]
        line = [word for word in line if word != "="]
    *before, current = line
    command = next((word for word in before if not word.startswith("-")), None)
    if command is None:
        return _fitting([*COMMANDS.items(), ("--help", "show all commands"), ("--version", "")], current)
    if command not in COMMANDS:
        return []
    parser = build_parser([command])
    choices = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = [a for a in dict(choices or {})[command]._actions if a.option_strings or a.nargs != 0]
    options = {name: action for action in actions for name in action.option_strings}
    name, equals, typed = current.partition("=")
    if equals and name in options:
        return [(text if text == FILES else f"{name}={text}", about) for text, about in _values(options[name], typed)]
    last = options.get(before[-1])
    if last is not None and last.nargs != 0:
        return _values(last, current)
    if current.startswith("-"):
        about = {name: getattr(action, "full_help", action.help) for name, action in options.items()}
        return _fitting([(name, str(text or "")) for name, text in about.items() if name.startswith("--")], current)
    place = _place(before[before.index(command) + 1 :], options)
    positional = [action for action in actions if not action.option_strings]
    if not positional:
        return []
    return _values(positional[min(place, len(positional) - 1)], current)


def _place(words: Iterable[str], options: dict[str, argparse.Action]) -> int:
    """Returns how many positional arguments there are among words."""
    count, skip = 0, False
    for word in words:
        if word.startswith("-"):
            action = options.get(word)
            skip = action is not None and action.nargs != 0
        elif not skip:
            count += 1
        else:
            skip = False
    return count


def _values(action: argparse.Action, typed: str) -> Candidates:
    """Returns the values of an option or a positional argument that begin with `typed`, also the last of a list."""
    metavar = str(action.metavar or "")
    if action.choices:
        return _fitting([(str(choice), "") for choice in action.choices], typed)
    words = metavar.split("|")
    if len(words) > 1 and all(re.fullmatch(r"[a-z][\w-]*", word) for word in words):
        return _fitting([(word, "") for word in words], typed)
    known, files = _VALUES.get(action.dest, ((), metavar in _PATHS))
    if action.dest == "name":  # of recipes and models
        known = known_names.RECIPES if "recipe" in str(action.help) else known_names.SHIPPED + known_names.PUBLISHED
    if action.dest == "to" and metavar == "FORMAT":
        known = ("safetensors", "openai", "diffusers", "onnx", "torch")
    about = {name: info.line for name, info in SOLVERS.items()} if known == tuple(SOLVERS) else dict(GRIDS)
    done, comma, rest = typed.rpartition(",")
    found = _fitting([(f"{done}{comma}{name}", about.get(name, "")) for name in known], f"{done}{comma}{rest}")
    return [*found, (FILES, "")] if files else found


def _fitting(known: Iterable[tuple[str, str]], typed: str) -> Candidates:
    return [(name, " ".join(about.split())) for name, about in known if name.startswith(typed)]
