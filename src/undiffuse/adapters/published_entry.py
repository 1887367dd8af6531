"""What is said of one published file: the network it holds, where it lies, what it was measured to give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from undiffuse.adapters import openai_flags
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.nets.ddpm import DDPMConfig

GUIDED = openai_flags.GUIDED
IMPROVED = openai_flags.IMPROVED
CONSISTENCY = openai_flags.CONSISTENCY
DDPM = "ddpm"
UPSAMPLER, CLASSIFIER = " super-resolution", " classifier"  # what follows the release in a family's name


@dataclass(frozen=True, kw_only=True)
class Result:
    """One published measurement, on 50,000 samples, and how they were made; None where a figure was not reported.

    `fid`, `sfid`, `inception` (score), `precision`, `recall`, `bits` (upper bound, in bits per dimension)
    `note`  what else one must know, such as the samples an upsampler was given
    """

    steps: str
    solver: str = "ddpm"
    guidance: float = 0.0
    fid: float | None = None
    sfid: float | None = None
    inception: float | None = None
    precision: float | None = None
    recall: float | None = None
    bits: float | None = None
    note: str = ""

    @property
    def how(self) -> str:
        """ "250 steps, guided by 1", "25 DDIM steps", ..."""
        named = {"ddim": "DDIM ", "heun": "Heun "}.get(self.solver, "")
        how = f"{self.steps.removeprefix('ddim')} {named}step{'' if self.steps == '1' else 's'}"
        how += f", guided by {self.guidance:g}" if self.guidance else ""
        return how + (f", {self.note}" if self.note else "")

    @property
    def figures(self) -> str:
        """The reported figures: "FID 4.59, sFID 5.25, IS 186.70, precision 0.82, recall 0.52"."""
        named = {
            "FID": self.fid,
            "sFID": self.sfid,
            "IS": self.inception,
            "precision": self.precision,
            "recall": self.recall,
            "bits/dim": self.bits,
        }
        return ", ".join(f"{name} {value:.2f}" for name, value in named.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published file.

    `name`        what it is called on our command line
    `file`        its file name; with a folder where the name alone would not tell it
    `family`      release, with " super-resolution" or " classifier": decides what flags mean
    `flags`       the flags of its release that make the network and the process (`openai_flags`), where they differ
                  from the release's defaults; for the files of DDPM in the same words
    `schedule`    of a classifier: that of the models it guides, which its own flags do not tell
    `url`         where a program can fetch it; None where only a person can, at `page`
    `sha256`, `md5`, `size` (bytes)  None where nobody published them: then what the first download gives is recorded
    `parameters`  numbers in it; the file has about four bytes for each
    `sampling`    how its authors sample it; None for a classifier
    `also`        other numbers of steps that its authors sample it with
    `base`        name of the model whose samples an upsampler enlarges
    """

    name: str
    file: str
    family: str
    data: str
    parameters: int
    flags: Mapping[str, Any] = field(hash=False)
    schedule: str = ""
    url: str | None = None
    page: str
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None
    licence: str
    paper: str
    sampling: SamplerConfig | None = None
    also: tuple[SamplerConfig, ...] = ()
    base: str | None = None
    results: tuple[Result, ...] = ()
    source: str = ""
    unverified: str = ""

    @property
    def release(self) -> str:
        """ "guided-diffusion", "improved-diffusion", "consistency_models" or "ddpm"."""
        return self.family.partition(" ")[0]

    @property
    def kind(self) -> str:
        """ "diffusion", "upsampler" or "classifier"."""
        if self.family.endswith(CLASSIFIER):
            return "classifier"
        return "upsampler" if self.family.endswith(UPSAMPLER) else "diffusion"

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
        return int(self.flags["large_size" if self.kind == "upsampler" else "image_size"])

    @property
    def low_size(self) -> int | None:
        """Height and width of the images that an upsampler enlarges."""
        return int(self.flags["small_size"]) if self.kind == "upsampler" else None

    @property
    def num_classes(self) -> int | None:
        """Number of classes it knows (all of them ImageNet's 1000), None without."""
        return openai_flags.CLASSES if self.kind == "classifier" or self.flags.get("class_cond") else None

    @property
    def about_bytes(self) -> int:
        """Size of the file, to about one part in a thousand where it is not known exactly."""
        return self.size or 4 * self.parameters

    @property
    def net(self) -> UNetConfig | ClassifierConfig | DDPMConfig:
        """The network's configuration."""
        if self.kind == "classifier":
            return openai_flags.classifier_config(self.flags)
        if self.release != DDPM:
            return openai_flags.unet_config(self.flags, self.family)
        net = openai_flags.unet_config(self.flags)
        return DDPMConfig(**{f.name: getattr(net, f.name) for f in fields(DDPMConfig) if f.name != "architecture"})

    @property
    def process(self) -> ProcessConfig:
        """The process it was trained on; a classifier's is that of the model it guides."""
        if self.kind == "classifier":
            return ProcessConfig(schedule=self.schedule)
        return openai_flags.process_config(self.flags, GUIDED if self.release == DDPM else self.family)
