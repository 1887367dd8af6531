"""Errors that name the argument at fault, so that each front end can call it by its own name."""

from __future__ import annotations

__all__ = ["ConfigError"]


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

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"
