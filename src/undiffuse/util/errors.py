"""Errors that name the argument at fault, so that each front end can call it by its own name; warnings for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Advice", "ConfigError", "reading"]

_VERBS = {"is", "was", "has", "needs", "takes", "must", "cannot", "does", "enlarges"}


class ConfigError(ValueError):
    """A setting has a value that cannot be used.

    The library speaks of arguments; the command line replaces their names by those of its options, in the text where
    they stand between backquotes.

    Args:
        field: Name of the argument or of the dataclass field, for example "guidance_at".
        text: What is wrong, what is expected and what to do. Names of other arguments stand
            between backquotes.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.field, self.text = field, text

    def message(self, name: str) -> str:
        """Returns the whole message with the argument called `name`.

        A text that begins with a verb continues the name to a sentence ("eta is the noise of ddim"); any other text
        follows a colon ("clip: 'x' is not possible").
        """
        return f"{name}{' ' if self.text.split(' ', 1)[0] in _VERBS else ': '}{self.text}"

    def __str__(self) -> str:
        return self.message(self.field)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """A context in which content of an unexpected form, whatever it leads to, is a ValueError.

    For readers of files that may be damaged or of another program: to check every value before its use would hide what
    they do. The original error is kept as the cause.

    Args:
        what: What is read, the beginning of the message: "the records of runs/a".

    Raises:
        ValueError: Within the context an entry was missing, or a value had another type or size than expected.
    """
    import struct  # here, because help does without them
    import zlib

    try:
        yield
    except (
        LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RecursionError, AssertionError, struct.error,
        zlib.error,
    ) as error:  # fmt: skip
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"{what} cannot be read, because its content has an unexpected form: {why[:200]}") from error


class Advice(UserWarning):
    """A warning for the user of a program, not for its author: the command line shows its text only."""
