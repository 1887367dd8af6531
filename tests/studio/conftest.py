"""A studio in Chromium for the tests of this folder that want one; they are skipped where Playwright is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cli_runs import conditional_model, write_images, write_upsampler
from support.studio_browser import Window, chromium, served
from undiffuse.conditions import ImageCondition, ModelConditions
from undiffuse.models import save_model


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("studio")
    write_images(place / "photos", each=6)
    write_upsampler(place / "upsampler.safetensors")
    drawn = ModelConditions(image=ImageCondition(kind="map", values=(0, 7)))
    save_model(place / "map.safetensors", conditional_model(drawn))
    return place


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


@pytest.fixture
def window(browser: Any, url: str) -> Iterator[Window]:
    made = Window(browser, url)
    made.fill("#form-steps", "4")
    made.fill("#form-count", "3")
    yield made
    made.close()
