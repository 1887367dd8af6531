"""Errors that name the argument at fault, so that each front end can call it by its own name."""

from __future__ import annotations

__all__ = ["ConfigError"]

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
