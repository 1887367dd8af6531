"""Messages of the library in the words of the command line."""

from __future__ import annotations

import pytest

from undiffuse.cli.words import in_options


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('leave them out with on_broken="skip"', "leave them out with --on-broken skip"),
        ("say grey='repeat' to show it", "say --grey repeat to show it"),
        ("raise it with max_pixels=189000000)", "raise it with --max-pixels 189000000)"),
        ("which do not become 3: set channels=5", "which do not become 3: set --channels 5"),
        ("channels=0: expected 1 (grey)", "channels=0: expected 1 (grey)"),
        ("take value_range=(0, 4095) to train", "take --range 0,4095 to train"),
        ("declare it with value_range=(low, high)", "declare it with --range LOW,HIGH"),
        ('name one with labels="labels.csv:age"', "name one with --labels labels.csv:age"),
        ('enlarge them with on_tiny="upscale", or', "enlarge them with --on-tiny upscale, or"),
    ],
)
def test_arguments_become_options(said: str, expected: str) -> None:
    assert in_options(said) == expected
