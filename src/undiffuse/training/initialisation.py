"""Where a training's weights begin if they begin with a model's: fine-tuning for other classes, channels and sizes.

The new network has the old one's architecture; what may differ follows from the data and the process. Every weight is
taken over as it is where it means the same, and is otherwise made so that the new network begins as near to the old one
as it can:

    classes          a class of the same name keeps its row of the class table, or of a classifier's last layer (for
                     ImageNet's classes synonyms and synset ids count as names). Others begin as the average class, or
                     as the "no class" of a model that has one. A network that was unconditional begins with a table of
                     zeros, and so as the same model; one that becomes unconditional adds the average class to its
                     time embedding.
    channels         grey from RGB: the sum over the input's channels, so that a grey picture is seen as before, and the
                     mean over the output's. RGB from grey: a third for every input channel, copies for the output, and
                     fresh weights for what the colours differ in, of which a grey picture has nothing. Without these
                     all colours would get the same gradients and stay alike for hundreds of updates. Alpha is seen
                     through fresh weights and predicted by zeros; where it goes, its weights go.
    variance         a variance that is learned anew begins with zeros: the middle of the range between the bounds
                     (Improved DDPM eq. 15), as in a fresh network. One that is no longer learned is left out.
    size             networks of convolutions fit every size; a classifier's attention pool has its position table
                     interpolated, the position of the mean left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.adapters import imagenet_classes
from undiffuse.data.labels import join_names
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import ClassifierModel, DiffusionModel
from undiffuse.nets.runner import is_own

Model = DiffusionModel | ClassifierModel

FREE = ("dropout", "use_checkpoint", "null_class")
"""Fields of a network that may differ from its model's besides those that follow from data and process."""

_BY_DATA = ("image_size", "in_channels", "out_channels", "num_classes")
_INPUTS = ("input_blocks.0.0.weight", "conv_in.weight")
_TABLE, _TIME, _POSITIONS = "label_emb.weight", "time_embed.2.bias", "out.2.positional_embedding"
_COLOURS: dict[tuple[int, int], list[list[float]]] = {
    (3, 1): [[1, 1, 1]],
    (4, 1): [[1, 1, 1, 0]],
    (1, 3): [[1 / 3]] * 3,
    (1, 4): [[1 / 3]] * 3 + [[0]],
    (3, 4): [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]],
    (4, 3): [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
}
"""From (old, new) channels to how the new input's weights are summed from the old ones [new, old]."""


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """What became of a model's weights in a new network.

    `source`    the model's name, `weights` which of its weights, `sha256` their hash
    `loaded`    (tensors, numbers in them) taken over as they are
    `adapted`   what was made to fit, and how; `fresh` what begins anew; `dropped` what was left out
    `notes`     what else differs from what the model was trained for
    """

    source: str
    weights: str
    sha256: str
    loaded: tuple[int, int]
    adapted: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def initialise(
    net: nn.Module,
    model: Model,
    process: ProcessConfig,
    labels: Sequence[str] | None = None,
    source: str = "a model",
) -> Initialisation:
    """Gives `net`, a network of `model`'s architecture, `model`'s weights in place; returns what became of them.

    process   the process that `net` is to be trained on
    labels    names of its classes, None if it has none
    source    what the model is called in the report

    ValueError if the networks differ in more than `FREE` fields and what follows from data and process, or if there is
    no way from the model's channels to the network's.
    """
    if not is_own(net) or not is_own(model.net):
        return _take_all(net, model, source)
    ours: Any = net.config
    check_architecture(ours, model.net.config)
    fitting = _Fitting(net, model, process, labels)
    with torch.no_grad():
        fitting.input_layer()
        if isinstance(model, DiffusionModel):
            fitting.output_layer()
            fitting.class_table()
        else:
            fitting.class_scores()
            fitting.positions()
        fitting.note_differences()
        loaded = fitting.load_rest()
    net.load_state_dict(fitting.state)
    return Initialisation(
        source=source,
        weights=model.weights,
        sha256=model.digest,
        loaded=loaded,
        adapted=tuple(fitting.adapted),
        fresh=tuple(fitting.fresh),
        dropped=tuple(fitting.dropped),
        notes=tuple(fitting.notes),
    )


def _take_all(net: nn.Module, model: Model, source: str) -> Initialisation:
    """Give a network that is not one of the library's own all weights of a model, which must fit as they are."""
    ours, theirs = ({name: tuple(t.shape) for name, t in part.state_dict().items()} for part in (net, model.net))
    odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if odd:
        raise ValueError(
            f"the weights of {source} are not those of this network: {len(odd)} tensors differ, for instance {odd[0]}. "
            "Only the library's own architectures are adapted to other data"
        )
    net.load_state_dict(model.net.state_dict())
    count = sum(t.numel() for t in net.state_dict().values())
    return Initialisation(source=source, weights=model.weights, sha256=model.digest, loaded=(len(ours), count))


def check_architecture(ours: Any, theirs: Any) -> None:
    """ValueError unless a network of config `ours` can take the weights of one of config `theirs`, part by part."""
    if type(ours) is not type(theirs):
        raise ValueError(f"a network of {type(theirs).__name__} gives no weights to one of {type(ours).__name__}")
    different = [
        f"{field.name} = {getattr(ours, field.name)} instead of {getattr(theirs, field.name)}"
        for field in fields(theirs)
        if field.name not in (*FREE, *_BY_DATA) and getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if different:
        raise ValueError(
            f"these weights are for another network ({', '.join(different)}); of a network that begins with a model's "
            f"weights only {', '.join(FREE)} may differ, beside what follows from the data"
        )
    channels = (theirs.in_channels, ours.in_channels)
    if channels[0] != channels[1] and channels not in _COLOURS:
        raise ValueError(
            f"there is no way from a network for pictures of {channels[0]} channels to one for {channels[1]}; "
            "1 (grey), 3 (RGB) and 4 (RGBA) can be made from each other"
        )


class _Fitting:
    """The new network's weights in the making: `state`, and what has been done."""

    def __init__(self, net: nn.Module, model: Model, process: ProcessConfig, labels: Sequence[str] | None) -> None:
        self.model, self.process, self.labels = model, process, labels
        self.ours: Any = net.config
        self.theirs: Any = model.net.config
        self.old: dict[str, Tensor] = {name: t.cpu() for name, t in model.net.state_dict().items()}
        self.new: dict[str, Tensor] = dict(net.state_dict())
        self.state: dict[str, Tensor] = {}
        self.adapted: list[str] = []
        self.fresh: list[str] = []
        self.dropped: list[str] = []
        self.notes: list[str] = []

    @property
    def channels(self) -> tuple[int, int]:
        """(old, new) channels of a picture."""
        return self.theirs.in_channels, self.ours.in_channels

    def input_layer(self) -> None:
        """The first convolution, for pictures of other channels."""
        old, new = self.channels
        if old == new:
            return
        (name,) = (name for name in _INPUTS if name in self.old)
        mixing = torch.tensor(_COLOURS[old, new], dtype=torch.float32)
        # A super-resolution network sees two pictures, one after the other.
        pictures = zip(self.old[name].split(old, dim=1), self.new[name].cpu().split(new, dim=1), strict=True)
        self.state[name] = torch.cat(
            [torch.einsum("no,ko...->kn...", mixing, was) + _fresh_part(old, fresh) for was, fresh in pictures], dim=1
        )
        third = "a third for each colour and fresh weights for their differences"
        how = _how(old, new, "the sum over the colours", third, "fresh weights for alpha")
        self.adapted.append(f"input layer: {how}")

    def output_layer(self) -> None:
        """The last convolution, for pictures of other channels or another variance."""
        (old, new), was, is_now = self.channels, self.model.process, self.process
        keeps_variance = was.variance == is_now.variance or not (was.learns_variance or is_now.learns_variance)
        if old == new and keeps_variance:
            return
        for name in list(self.old)[-2:]:
            parts = list(self.old[name].split(old))  # the prediction, and the variance where it is learned
            if old != new:
                rows = torch.tensor(_COLOURS[old, new], dtype=torch.float32)
                rows /= rows.sum(dim=1, keepdim=True).clamp(min=1e-9)
                parts = [torch.einsum("no,o...->n...", rows, part) for part in parts]
            if is_now.learns_variance and not (keeps_variance and was.learns_variance):
                parts = [parts[0], torch.zeros_like(parts[0])]
            self.state[name] = torch.cat(parts if is_now.learns_variance else parts[:1])
        if old != new:
            how = _how(old, new, "the mean over the colours", "a copy for each colour", "zeros for alpha")
            self.adapted.append(f"output layer: {how}")
        if not keeps_variance and is_now.learns_variance:
            where = ", the middle of its range" if is_now.variance == "learned_range" else ""
            self.fresh.append(f"output layer: the variance begins at zero{where}")
        elif not keeps_variance:
            self.dropped.append("output layer: the variance, which is no longer learned")

    def class_table(self) -> None:
        """The table of the classes' embeddings, there or not in either network."""
        table = self.old.get(_TABLE)
        if _TABLE in self.new:
            if table is None:
                self.state[_TABLE] = torch.zeros_like(self.new[_TABLE])
                self.fresh.append("class table: zeros, so that the network begins as the unconditional one it was")
                return
            classes = self.theirs.num_classes
            average = table[classes] if self.theirs.null_class else table[:classes].mean(dim=0)
            rows = self._by_class(table[:classes], average, "class table")
            null = [average[None]] if self.ours.null_class else []
            self.state[_TABLE] = torch.cat([rows, *null])
        elif table is not None:
            classes = self.theirs.num_classes
            average = table[classes] if self.theirs.null_class else table.mean(dim=0)
            self.state[_TIME] = self.old[_TIME] + average
            self.adapted.append("time embedding: the average class was added to it")
            self.dropped.append(f"class table: {classes} classes")

    def class_scores(self) -> None:
        """The last layer of a classifier."""
        names = list(self.old)[-2:]
        named = False
        for name in names:
            old = self.old[name]
            self.state[name] = self._by_class(old, old.mean(dim=0), "" if named else "last layer")
            named = True

    def positions(self) -> None:
        """The position table of an attention pool, for pictures of another size."""
        if _POSITIONS not in self.old or self.old[_POSITIONS].shape == self.new[_POSITIONS].shape:
            return
        old, new = ([side // config.downsampling for side in config.size] for config in (self.theirs, self.ours))
        mean, grid = self.old[_POSITIONS].split([1, old[0] * old[1]], dim=1)
        grid = F.interpolate(grid.reshape(1, -1, *old), size=new, mode="bilinear", align_corners=False)[0].flatten(1)
        self.state[_POSITIONS] = torch.cat([mean, grid], dim=1)
        self.adapted.append(f"position table: interpolated from {old[0]}x{old[1]} to {new[0]}x{new[1]}")

    def note_differences(self) -> None:
        """What the weights cannot show: another size, another process."""
        if self.ours.size != self.theirs.size:
            sizes = ["x".join(map(str, config.size)) for config in (self.theirs, self.ours)]
            self.notes.append(f"it was trained at {sizes[0]} (height x width) and is now trained at {sizes[1]}")
        for field in fields(self.process):
            was, is_now = getattr(self.model.process, field.name), getattr(self.process, field.name)
            if was != is_now and field.name not in ("variance", "betas"):
                self.notes.append(f"process.{field.name} was {was} and is {is_now}: to that it has to get used")
            elif was != is_now and field.name == "betas":
                self.notes.append("the noise levels are others: to that it has to get used")

    def load_rest(self) -> tuple[int, int]:
        """Takes over all tensors that have not been made; (tensors, numbers) of them."""
        odd = [n for n, t in self.new.items() if n not in self.state and self.old[n].shape != t.shape]
        assert not odd, odd  # `check_architecture` lets nothing else differ
        kept = [name for name in self.new if name not in self.state]
        self.state |= {name: self.old[name] for name in kept}
        return len(kept), sum(self.old[name].numel() for name in kept)

    def _by_class(self, rows: Tensor, average: Tensor, what: str) -> Tensor:
        """A row for each of the new classes [new, ...] from the old ones' `rows` [old, ...]; says so of `what`."""
        found = matches(self.labels, self.ours.num_classes, self.model)
        if what:
            self._tell(found, what)
        return torch.stack([average if index is None else rows[index] for index in found])

    def _tell(self, found: list[int | None], what: str) -> None:
        labels = self.labels or [str(k) for k in range(len(found))]
        known = [name for name, index in zip(labels, found, strict=True) if index is not None]
        unknown = [name for name, index in zip(labels, found, strict=True) if index is None]
        if known and found != list(range(self.theirs.num_classes)):
            self.adapted.append(f"{what}: {len(known):,} of {len(found):,} classes by name ({join_names(known, 6)})")
        if unknown:
            begin = "begins" if len(unknown) == 1 else "begin"
            self.fresh.append(f"{what}: {join_names(unknown, 6)} {begin} as the average class")
        if self.model.labels is None and known:
            self.notes.append("its classes have no names: it was taken for granted that they are yours, in your order")


def matches(labels: Sequence[str] | None, classes: int, model: Model) -> list[int | None]:
    """For each of `classes` new classes, called `labels`, the model's class of the same name, None if there is none.

    Case does not matter; for ImageNet's classes, synonyms and synset ids are names too. Where the model's classes have
    no names, and are as many, they are taken for the same.
    """
    if model.labels is None or labels is None:
        return list(range(classes)) if classes == model.num_classes else [None] * classes
    if imagenet_classes.are_these(model.labels):
        if imagenet_classes.are_these(labels):
            return list(range(classes))
        return [_imagenet(label) for label in labels]
    known = {label.casefold(): index for index, label in reversed(list(enumerate(model.labels)))}
    return [known.get(label.casefold()) for label in labels]


def _imagenet(label: str) -> int | None:
    """The ImageNet class called like this; a number is a name that somebody chose for something else."""
    found = [] if label.strip().isdigit() else imagenet_classes.exact(label)
    return found[0] if len(found) == 1 else None


def _fresh_part(old: int, fresh: Tensor) -> Tensor:
    """What a network for pictures of `old` channels says nothing of in a fresh input layer [out, new, ...]."""
    part = fresh.clone()
    if old == 1:
        part[:, :3] -= part[:, :3].mean(dim=1, keepdim=True)
    else:
        part[:, :3] = 0
    return part if part.shape[1] > old else torch.zeros_like(part)


def _how(old: int, new: int, to_grey: str, from_grey: str, alpha: str) -> str:
    """ "from RGB to grey, the sum over the colours": what became of the weights for a picture's channels."""
    names = {1: "grey", 3: "RGB", 4: "RGBA"}
    how = [to_grey] if new == 1 else [from_grey] if old == 1 else []
    how += [alpha] if new == 4 else ["without alpha"] if old == 4 else []
    return f"from {names[old]} to {names[new]}, {', '.join(how)}"
