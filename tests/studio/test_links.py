"""Links open the page as it was: settings, tab, and what is chosen in it."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from undiffuse.studio.jobs import Job
from undiffuse.studio.links import Opened, opened, query_of, values_of
from undiffuse.studio.settings import Settings
from undiffuse.util.errors import ConfigError

FIRST = Settings(classes=("Bag", "T-shirt/top"), count=2, seed=5, sampler={"solver": "ddim", "guidance": (1.5,)})
JOBS = {
    "sample": Job(task="sample", settings=FIRST),
    "compare": Job(task="compare", settings=FIRST, other=FIRST.with_sampler(guidance=(4.0,), solver="heun")),
    "interpolate": Job(task="interpolate", settings=FIRST, inputs={"seeds": [3, 9], "frames": 5}),
    "pictures": Job(task="interpolate", settings=FIRST, inputs={"images": ["a.png", "b.png"], "frames": 5}),
    "hole": Job(task="inpaint", settings=FIRST, inputs={"images": ["a"], "hole": (1, 2, 3, 4), "method": "dps"}),
    "mask": Job(task="inpaint", settings=FIRST, inputs={"images": ["a"], "mask": "m.png", "method": "repaint"}),
    "enlarge": Job(task="restore", settings=FIRST, inputs={"images": ["a"], "upscale": 4, "method": "dps"}),
    "deblur": Job(task="restore", settings=FIRST,
                  inputs={"images": ["a"], "deblur": 1.5, "degrade": True, "method": "pigdm"}),
    "vary": Job(task="vary", settings=FIRST, inputs={"images": ["a"], "strength": 0.35, "variants": 4}),
    "translate": Job(task="translate", settings=FIRST, inputs={"images": ["a"], "to": "Coat", "strength": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_a_link_opens_what_it_was_made_of(name: str) -> None:
    job = JOBS[name]
    found = opened(query_of(job))
    assert found.settings == job.settings
    assert found.task == job.task
    assert found.other == job.other
    assert found.values == {key: value for key, value in values_of(job).items() if value != ""}
    assert Opened.of(job).values == values_of(job)


def test_values_are_those_of_the_controls() -> None:
    assert values_of(JOBS["interpolate"]) == {"from": 3, "until": 9, "frames": 5}
    assert values_of(JOBS["pictures"]) == {"frames": 5}
    assert values_of(JOBS["hole"]) == {"hole": "1,2,3,4", "method": "dps"}
    assert values_of(JOBS["mask"]) == {"hole": "", "method": "repaint"}
    assert values_of(JOBS["enlarge"]) == {"task": "enlarge", "amount": 4, "degrade": False, "method": "dps"}
    assert values_of(JOBS["translate"]) == {"to": "Coat", "strength": 1.0}


def test_links_of_a_page_name_its_own_model_where_they_name_none() -> None:
    assert opened("seed=3", "my.safetensors").settings.model == "my.safetensors"
    assert opened("seed=3&model=other", "my.safetensors").settings.model == "other"
    assert dict(parse_qsl(query_of(JOBS["compare"])))["b"].startswith("count=2")
    second = opened("tab=compare&count=3&seed=7&b=steps%3D4", "my.safetensors").other
    assert second is not None
    assert (second.model, second.count, second.seed, second.sampler) == ("my.safetensors", 3, 7, {"steps": "4"})


@pytest.mark.parametrize(
    ("query", "field"),
    [("tab=nothing", "tab"), ("tab=vary&strength=much", "strength"), ("tab=interpolate&frames=2.5", "frames"),
     ("count=0", "count"), ("tab=compare&b=eta%3Dmany", "eta"), ("guidance=x", "guidance")],
)  # fmt: skip
def test_a_wrong_link_says_what_is_wrong(query: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(query)
    assert caught.value.field == field
