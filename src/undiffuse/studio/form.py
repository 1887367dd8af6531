"""Builds the controls of model, sampler and guidance from their declarations, and reads and fills them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from undiffuse.adapters import published
from undiffuse.adapters.importing import place_of
from undiffuse.config.fields import Setting
from undiffuse.config.kinds import Choice, Flag, Number, SolverName
from undiffuse.models import SHIPPED
from undiffuse.solvers.registry import SOLVERS
from undiffuse.studio.settings import MOST, Settings, declared, sampler_values, text_of
from undiffuse.studio.views import label_of
from undiffuse.training.request import is_run_folder

__all__ = ["SettingsForm", "models_here"]

_FIRST = ("solver", "steps", "guidance", "cfg")
"""Settings that are always visible; the others are folded away by group."""
_HELP = {
    "solver": "sampling method; the default is the model's own, or one that suits it",
    "steps": "number of steps, or a list; empty: the solver's own",
    "guidance": "0: none; larger: more typical of the class, less varied",
    "cfg": "1: off; for models trained with label dropout",
    "budget": "use the best sampler measured for this model with at most this many network calls per image",
    "clip_after_guidance": "clamp the denoised image again after guidance; without it as OpenAI's ddim",
    "classifier": "noisy-image classifier: file, run folder or name; empty: the model's own. Commas separate several",
    "guidance_temperature": "divide the classifier's logits by this number",
    "guidance_normalize": "scale every gradient to unit size, so that the guidance scale is relative to the noise",
    "autoguide": "file of a smaller or less trained version of the model, to steer away from (Karras et al. 2024)",
    "autoguide_weights": "which weights of that version; without one, weights of the model itself",
    "guidance_every": "evaluate guidance at every k-th network call only, and reuse the last update in between",
}


def models_here() -> list[tuple[str, str]]:
    """Returns (label, reference) of the models to offer: shipped, in this folder, in runs/, and published."""
    found = [(name, name) for name in SHIPPED if not name.endswith(("-classifier", "-judge"))]
    here = Path.cwd()
    files = sorted(here.glob("*.safetensors"))
    runs = sorted(folder for folder in (here / "runs").glob("*") if is_run_folder(folder))
    found += [(file.name, file.name) for file in files]
    found += [(f"runs/{folder.name}", f"runs/{folder.name}") for folder in runs]
    for name, entry in published.ENTRIES.items():
        if entry.kind != "classifier" and place_of(entry).is_file():
            found.append((f"{name} (published)", name))
    return found


def help_of(found: Setting) -> str:
    """Returns the help of a setting in words that suit a page, without names of options."""
    text = _HELP.get(found.name, found.help)
    text = re.sub(r", see --help-all| see --help-all", "", text)
    return re.sub(r"--([a-z-]+)", lambda word: f"“{label_of(word[1].replace('-', '_'))}”", text)


def _is_number(found: Setting, default: Any) -> bool:
    """Whether a setting has a control for numbers; one that can be empty is text, because an empty number becomes 0."""
    return isinstance(found.kind, Number) and not found.many and default is not None


class SettingsForm:
    """The controls of `Settings`.

    Args:
        start: What they show at first.
        prefix: Begins the names of the elements on the page.
        whole: Whether there are controls for classes, number, seed and conditions; a comparison shares them.
    """

    def __init__(self, start: Settings, prefix: str, whole: bool = True) -> None:
        self.whole = whole
        self.names: list[str] = []
        self._parts: list[Any] = []

        def add(name: str, part: Any) -> Any:
            self.names.append(name)
            self._parts.append(part)
            return part

        named = {found.name: (default, found) for default, found in declared()}
        choices = models_here()
        if start.model not in [value for _, value in choices]:
            choices.append((start.model, start.model))
        self.model = add("model", gr.Dropdown(
            choices, value=start.model, allow_custom_value=True, label="Model", elem_id=f"{prefix}-model",
            info="name, file or run folder; type one that is not in the list",
        ))  # fmt: skip
        self.state = gr.HTML(elem_id=f"{prefix}-model-state")
        if whole:
            self.classes = add("classes", gr.Dropdown(
                [], value=start.class_list() or [], multiselect=True, allow_custom_value=True, label="Classes",
                info="images cycle through them; empty: all", elem_id=f"{prefix}-classes",
            ))  # fmt: skip
            with gr.Accordion("Class from a picture", open=False):
                self.example = gr.File(
                    label="An example picture", file_types=["image"], height=110, elem_id=f"{prefix}-example"
                )
                self.example_state = gr.HTML(elem_id=f"{prefix}-example-state")
            with gr.Row(elem_classes="pair"):
                add("count", gr.Slider(
                    1, MOST, value=start.count, step=1, label="Images", elem_id=f"{prefix}-count", min_width=120
                ))  # fmt: skip
                add("seed", gr.Number(
                    start.seed, label="Seed", precision=0, minimum=0, elem_id=f"{prefix}-seed", min_width=120
                ))  # fmt: skip
        for name in _FIRST:
            add(name, self._control(*named[name], start, prefix))
        groups: dict[str, list[str]] = {}
        for name, (_, found) in named.items():
            if name not in _FIRST:
                groups.setdefault(found.group, []).append(name)
        for group, names in groups.items():
            with gr.Accordion(f"More: {group}", open=False):
                for name in names:
                    add(name, self._control(*named[name], start, prefix))
                if group == "sampler":
                    add("weights", gr.Textbox(
                        start.weights or "", label="Weights",
                        info="net, or the decay of an average; empty: the largest", elem_id=f"{prefix}-weights",
                    ))  # fmt: skip
        if whole:
            with gr.Accordion("More: conditions", open=False):
                self.condition = add("condition", gr.Textbox(
                    "\n".join(start.condition), label="Conditions besides the class", lines=2,
                    info="one a line: age=30,angle=45 or labels=hat|scarf or image:FILE", elem_id=f"{prefix}-condition",
                ))  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """The controls, in the order of `read` and `write`."""
        return self._parts

    def _control(self, default: Any, found: Setting, start: Settings, prefix: str) -> Any:
        how = {"label": label_of(found.name), "info": help_of(found), "elem_id": f"{prefix}-{found.name}"}
        value = self._shown(found, start.sampler.get(found.name), default)
        if isinstance(found.kind, Flag):
            return gr.Checkbox(value=value, **how)
        if isinstance(found.kind, SolverName):
            shown = [("the default", ""), *((f"{name}: {info.line}", name) for name, info in SOLVERS.items())]
            return gr.Dropdown(shown, value=value, **how)
        if isinstance(found.kind, Choice):
            return gr.Dropdown(list(found.kind.words), value=value, **how)
        if _is_number(found, default):
            return gr.Number(value=value, **how)
        return gr.Textbox(value=value, **how)

    @staticmethod
    def _shown(found: Setting, value: Any, default: Any) -> Any:
        """A value as its control holds it."""
        value = default if value is None else value
        if isinstance(found.kind, Flag):
            return bool(value)
        if _is_number(found, default):
            return value
        if isinstance(value, (tuple, list)):
            return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
        return "" if value is None else text_of(value)

    def read(self, values: Sequence[Any], shared: Settings | None = None) -> Settings:
        """Returns the settings of the controls.

        Args:
            values: What the controls hold.
            shared: Where classes, number, seed and conditions come from, if these controls do not have them.

        Raises:
            ConfigError: A value is not possible.
        """
        given = dict(zip(self.names, values, strict=True))
        common: dict[str, Any]
        if shared is not None:
            common = {name: getattr(shared, name) for name in ("classes", "count", "seed", "condition")}
        else:
            lines = str(given.get("condition") or "").splitlines()
            common = {
                "classes": tuple(map(str, given.get("classes") or ())), "count": given.get("count"),
                "seed": given.get("seed"), "condition": tuple(line.strip() for line in lines if line.strip()),
            }  # fmt: skip
        weights = str(given.get("weights") or "").strip() or None
        return Settings(model=given["model"] or "", weights=weights, sampler=sampler_values(given), **common)

    def write(self, settings: Settings) -> list[Any]:
        """Returns the values that show settings in the controls."""
        plain: dict[str, Any] = {
            "model": settings.model, "classes": settings.class_list() or [], "count": settings.count,
            "seed": settings.seed, "weights": settings.weights or "", "condition": "\n".join(settings.condition),
        }  # fmt: skip
        for default, found in declared():
            plain[found.name] = self._shown(found, settings.sampler.get(found.name), default)
        return [plain[name] for name in self.names]

    def described(self, values: Mapping[str, Any]) -> tuple[str, Any]:
        """Returns what the page says of a model, and the change to its control of classes."""
        channels, height, width = values["shape"]
        kinds = ["classifier guidance"] if values["classifier"] else []
        kinds += ["classifier-free guidance"] if values["cfg"] else []
        colours = "grey" if channels == 1 else "colour" if channels == 3 else f"{channels} channels"
        parts = [
            f"{height}x{width}, {colours}, {values['parameters'] / 1e6:.3g}M parameters",
            values["process"], f"Default: {values['solver']}, {values['steps']} steps",
        ]  # fmt: skip
        parts += [f"Ready for {' and '.join(kinds)}"] if kinds else []
        needs = [f"{name} ({low:g} to {high:g})" for name, low, high in values["numbers"]]
        needs += [f"labels ({', '.join(values['tags'][:8])})"] if values["tags"] else []
        needs += [f"a picture ({values['picture']['kind']})"] if values["picture"] else []
        needs += ["the picture to enlarge"] if values["super_resolution"] else []
        parts += [f"Takes {'; '.join(needs)}"] if needs else []
        return ". ".join(parts) + ".", gr.update(choices=values["classes"])
