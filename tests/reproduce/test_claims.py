"""The ledger as data: 83 claims, recipes that name methods, and hashes that notice a change of what was registered."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from undiffuse.reproduce import CLAIMS, Claim
from undiffuse.reproduce import claim as claim_module
from undiffuse.reproduce.arms import ARMS, SCALES, settings_of
from undiffuse.reproduce.claim import method_text
from undiffuse.reproduce.gan import base_parameters, networks
from undiffuse.reproduce.ledger.base import arithmetic, more, same
from undiffuse.training.request import TrainRequest

RECIPES = [(claim, recipe) for claim in CLAIMS for recipe in claim.recipes]
IDS = [f"{claim.id}-{recipe.tier}" for claim, recipe in RECIPES]


def test_all_claims_are_there() -> None:
    assert [claim.id for claim in CLAIMS] == [f"C{n:02d}" for n in range(1, 84)]
    for claim in CLAIMS:
        assert claim.published
        assert claim.source
        assert claim.title.endswith(".")


@pytest.mark.parametrize(("claim", "recipe"), RECIPES, ids=IDS)
def test_a_recipe_names_a_method_and_arms_that_exist(claim: Claim, recipe: claim_module.Recipe) -> None:
    assert len(recipe.digest) == 16
    assert set(recipe.arms) <= set(ARMS)
    assert bool(recipe.arms) == bool(recipe.scale)
    assert recipe.minutes > 0
    if recipe.tier in ("cpu", "gpu") or recipe.tier == "oracle":
        assert len(recipe.seeds) >= 3


def test_at_least_45_claims_have_a_test() -> None:
    assert sum(bool(claim.recipes) for claim in CLAIMS) >= 45


def test_the_hash_changes_with_what_decides_and_not_with_prose() -> None:
    recipe = arithmetic("prior_term", more("decades", "It is small.", 0.5, "decades"), square=0.25, limit=1e-4)
    part = recipe.parts[0]
    for changed in (
        replace(recipe, settings={"square": 0.3, "limit": 1e-4}),
        replace(recipe, seeds=(1, 2, 3)),
        replace(recipe, parts=(replace(part, smallest=0.4),)),
        replace(recipe, parts=(replace(part, expects="equal"),)),
        replace(recipe, method="arithmetic:decoder_floor"),
    ):
        assert changed.digest != recipe.digest
    for same_still in (
        replace(recipe, differs="other words", minutes=3.0),
        replace(recipe, parts=(replace(part, says="Other words."),)),
    ):
        assert same_still.digest == recipe.digest


@pytest.mark.parametrize("table", ["ARMS", "SCALES"])
def test_the_hash_changes_with_what_is_trained(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = next(recipe for claim, recipe in RECIPES if "gan" in recipe.arms and recipe.tier == "cpu")
    before, untrained = recipe.digest, RECIPES[0][1].digest
    known, key = (ARMS, "gan") if table == "ARMS" else (SCALES, recipe.scale)
    prose = {"says": "Other words."} if table == "ARMS" else {"minutes": 99.0}
    monkeypatch.setitem(known, key, replace(known[key], **prose))
    assert recipe.digest == before
    monkeypatch.setitem(known, key, replace(known[key], **({"length": 2.0} if table == "ARMS" else {"images": 10})))
    assert recipe.digest != before
    assert RECIPES[0][1].digest == untrained


def test_the_hash_sees_a_methods_code_and_not_its_layout(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    texts = {}
    layout = [
        "def f(x):",
        '    """Says it in',
        "    other words.",
        '    """',
        "",
        "    # a comment",
        "    return [",
        "        x,",
    ]
    versions = {
        "first": 'def f(x):\n    """Says it."""\n    return [x, 1]\n',
        "layout": "\n".join([*layout, "        1,", "    ]", ""]),
        "changed": 'def f(x):\n    """Says it."""\n    return [x, 2]\n',
    }
    for name, source in versions.items():
        (tmp_path / "m.py").write_text(source)
        spec = type("Spec", (), {"origin": str(tmp_path / "m.py")})
        monkeypatch.setattr(claim_module.importlib.util, "find_spec", lambda _, spec=spec: spec)
        method_text.cache_clear()
        texts[name] = method_text("m:f")
    method_text.cache_clear()
    assert texts["first"] == texts["layout"] != texts["changed"]


def test_a_claim_needs_recipes_or_a_reason() -> None:
    given = {"id": "C99", "title": "It is.", "source": "us", "published": "1", "mark": "V"}
    with pytest.raises(ValueError, match="reason"):
        Claim(**given)  # type: ignore[arg-type]
    recipe = arithmetic("decoder_floor", same("linear", "Equal.", 0.1, "bits"))
    with pytest.raises(ValueError, match="two recipes"):
        Claim(**given, recipes=(recipe, recipe))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm.kind != "gan"])
def test_the_settings_of_an_arm_are_settings_of_a_training(arm: str, scale: str) -> None:
    from undiffuse.training.face import sorted_settings

    given = settings_of(arm, SCALES[scale])
    known = {"size", "channels", "images", "batch", "recipe"}
    TrainRequest(data="fashion-mnist").changed(sorted_settings({k: v for k, v in given.items() if k not in known}))


def test_the_gan_has_as_many_parameters_as_the_diffusion_arm() -> None:
    for scale in SCALES.values():
        wanted = base_parameters(scale)
        found = sum(p.numel() for net in networks(scale.size, wanted, 0) for p in net.parameters())
        assert abs(found / wanted - 1) < 0.1


def test_the_ledger_is_read_without_torch() -> None:
    """`undiffuse reproduce --list` and the verdicts need no tensors."""
    code = "import sys, undiffuse.reproduce as r; r.ledger(); print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
