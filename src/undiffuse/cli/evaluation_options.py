"""Options of the commands that evaluate: evaluate, reference, compare, sweep. Light, as `parser` is."""

from __future__ import annotations

from typing import Any

from undiffuse.cli import options, values

GREY = "grey images for an extractor of colour images: an error (default), or shown as RGB"
EXTRACTORS = (
    "inception (FID; :clean, :pytorch-fid, :torchmetrics for other protocols than OpenAI's), efflite, fashion, "
    "dinov2, clip, cmmd, or a classifier's FILE"
)
_SETS = """\
a folder, .zip, .npz (arr_0; memory-mapped), fashion-mnist[:test], or the folder of `undiffuse sample`"""


def evaluate(add: Any, commands: Any) -> None:
    """Adds `undiffuse evaluate`."""
    parser = add(commands, "evaluate", "SAMPLES REFERENCE ", f"""\
Measures samples against a reference: FID, sFID, Inception Score, precision, recall, density, coverage, KID and more, as
OpenAI's evaluator defines them, with standard errors. Prints the values and saves them as JSON with everything that
decides them.

SAMPLES is {_SETS};
or a model (file, run folder, shipped or published name); its samples are made now and not written to the disk.

REFERENCE is one of these sets, a file of `undiffuse reference`, or an .npz with mu and sigma.""")  # fmt: skip
    parser.add_argument("samples", metavar="SAMPLES", help="images, or a model")
    parser.add_argument("reference", metavar="REFERENCE", help="images, or a reference file")
    what = _measured(parser)
    what.add_argument("--training", metavar="DATA", help="training images of the model, to look for copies of them")
    what.add_argument(
        "--reference-protocol",
        metavar="NAME",
        help="protocol of an .npz with statistics (default: adm for OpenAI's files)",
    )
    _images(parser, "number of samples: the first of a set (default all), or made by a model (default 2000)")
    _model(parser)
    _run(parser, "JSON file (default evaluations/NAME.json)")
    parser.add_argument("--name", metavar="TEXT", help="name of the run in tables (default: samples and sampler)")


def reference(add: Any, commands: Any) -> None:
    """Adds `undiffuse reference`."""
    parser = add(commands, "reference", "DATA ", f"""\
Makes a reference file of a set of images: statistics of all of them, features of some, and everything that decides the
numbers (protocol, counts, hashes). An evaluation against it does not read the images again.

DATA is {_SETS}.""")  # fmt: skip
    parser.add_argument("data", metavar="DATA", help="images")
    _measured(parser, metrics=False)
    group = _images(parser, None)
    keep = "images whose features are kept for precision, recall and KID (default 10000)"
    group.add_argument("--keep", type=values.natural, default=10_000, metavar="N", help=keep)
    _run(parser, "file (default NAME.reference.safetensors)")


def compare(add: Any, commands: Any) -> None:
    """Adds `undiffuse compare`."""
    parser = add(commands, "compare", "FILE ... ", """\
Shows evaluations side by side, one row each. Runs against different references or by different extractors stand in
different tables, because their numbers do not compare.""")  # fmt: skip
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="JSON files of `undiffuse evaluate`, or folders of them"
    )
    parser.add_argument("--metrics", metavar="M[,M]", help="metrics to show, by name or a part of it (default all)")
    parser.add_argument("--sort", metavar="M", help="sort by this metric, best first")
    options.pick(parser, "--format", ("text", "markdown"), "of the tables (default text)", "text")


def sweep(add: Any, commands: Any) -> None:
    """Adds `undiffuse sweep`."""
    parser = add(commands, "sweep", "REFERENCE ", """\
Evaluates a model at several strengths of guidance and shows the trade-off between fidelity and diversity as a table and
a plot (pip install "undiffuse[plot]"). With --solvers, --nfe or --grids it evaluates several solvers with several
budgets of network calls instead: the frontier of quality against cost. It says which settings equal a long run within
the errors, and `undiffuse sample --budget` chooses from it. The same command resumes a stopped sweep.""")  # fmt: skip
    parser.add_argument("reference", metavar="REFERENCE", help="images, or a reference file")
    group = parser.add_argument_group("what is swept")
    scales = "strengths of guidance (default 0,0.5,1,2,4,8; 1,1.5,2,3,5 with --over cfg or autoguide; 0 for a frontier)"
    group.add_argument("--scales", type=values.scales, metavar="S,S", help=scales)
    over = "what is swept: guidance by a classifier (default), --cfg, or --autoguide; the others stay fixed"
    options.pick(group, "--over", ("guidance", "cfg", "autoguide"), over, "guidance")
    solvers = "for a frontier: solvers (default ddpm,dpmpp-2m,dpmpp-2m-sde,unipc)"
    group.add_argument("--solvers", type=values.words, metavar="NAME,NAME", help=solvers)
    nfe = "for a frontier: network calls for an image; each solver takes as many steps as fit (default 5,10,20,50)"
    group.add_argument("--nfe", type=values.counts, metavar="N,N", help=nfe)
    grids = (
        "for a frontier: how the steps are spaced; tuned (or tuned:images=N) chooses levels for the model with 32 (N) "
        "images (default own: each solver's default)"
    )
    group.add_argument("--grids", nargs="+", metavar="SPEC", help=grids)
    against = "for a frontier: a long run to compare with, SOLVER:STEPS or none (default ddpm:250)"
    group.add_argument("--against", metavar="S:N", help=against)
    by = "for a frontier: the metric that decides (default: the first Frechet distance)"
    group.add_argument("--by", metavar="M", help=by)
    floor = "real images, for example the training data, to measure like samples for comparison"
    group.add_argument("--floor", metavar="DATA", help=floor)
    _measured(parser)
    _images(parser, "samples at each setting (default 2000)")
    _model(parser, swept=True)
    _run(parser, "folder (default sweep)")


def while_training(parser: Any) -> None:
    """Adds the options of `undiffuse train` that measure samples during the training."""
    group = parser.add_argument_group("evaluation during training (few samples: compare within the run only)")
    every = "measure samples of the averaged weights every N images; the best weights go to best.safetensors"
    group.add_argument("--evaluate-every", type=values.positive, metavar="N", help=every)
    group.add_argument("--evaluate-images", type=values.positive, metavar="N", help="samples (default 1000)")
    against = "images or a reference file (default: the held-out images, else the training images)"
    group.add_argument("--evaluate-against", metavar="DATA", help=against)
    group.add_argument("--extractor", type=values.words, metavar="E[,E]", help="as for `undiffuse evaluate`")
    group.add_argument("--extractor-weights", metavar="FILE", help="file of its weights, if they cannot be downloaded")
    options.pick(group, "--grey", ("refuse", "repeat"), GREY, "refuse")
    best = "metric that chooses the best weights (default: the first Frechet distance)"
    group.add_argument("--best-by", metavar="M", help=best)
    parser.set_defaults(grey=None)  # what is not given is left to the run that is resumed


def _measured(parser: Any, metrics: bool = True) -> Any:
    group = parser.add_argument_group("what is measured")
    default = "the reference file's, fashion for Fashion-MNIST, else inception"
    group.add_argument(
        "--extractor",
        type=values.words,
        metavar="E[,E]",
        help=f"{EXTRACTORS}; several in one pass (default: {default})",
    )
    group.add_argument("--weights", metavar="FILE", help="file of its weights, if they cannot be downloaded")
    options.pick(group, "--grey", ("refuse", "repeat"), GREY, "refuse")
    if metrics:
        names = (
            "fd, sfd, is, pr, dc, kid, accuracy (default: those that apply), cmmd, vendi, fd-infinity, memorisation, "
        )
        names += "or a metric of an installed package"
        group.add_argument("--metrics", type=values.words, metavar="M[,M]", help=names)
        distances = "arithmetic of precision and recall (default exact; float16-emulated rounds as OpenAI's evaluator)"
        group.add_argument(
            "--distances", type=values.choice("exact", "float32", "float64", "float16-emulated"), default="exact",
            metavar="TYPE", help=distances,
        )  # fmt: skip
        group.add_argument(
            "--chunk", type=values.positive, default=5000, metavar="N", help="of the Inception Score (default 5000)"
        )
    return group


def _images(parser: Any, count: str | None) -> Any:
    group = parser.add_argument_group("images")
    if count is not None:
        group.add_argument("--count", type=values.positive, metavar="N", help=count)
        thinned = "number of reference images, evenly spaced over the set (default all)"
        group.add_argument("--reference-count", type=values.positive, metavar="N", help=thinned)
    else:
        group.add_argument(
            "--count", type=values.positive, metavar="N", help="images, evenly spaced over the set (default all)"
        )
    size = "size to prepare stored images to, as for training (default: the model's, else as they are)"
    group.add_argument("--size", type=values.size, metavar="S|HxW", help=size)
    options.data_options(group)
    given = "values of stored images that become 0 and 255, if they are not 8-bit (default: the model's)"
    group.add_argument("--range", dest="value_range", type=values.pair, metavar="LOW,HIGH", help=given)
    return group


def _model(parser: Any, swept: bool = False) -> None:
    group = parser.add_argument_group("model" if swept else "samples from a model")
    if swept:
        what = f"model file, run folder, or the shipped {options.SHIPPED} (default)"
        group.add_argument("--model", default=options.SHIPPED, metavar="M", help=what)
    which = "weights of the model: net (as trained) or an average, for example 0.999 (default: the slowest)"
    group.add_argument("--model-weights", metavar="W", help=which)
    options.class_option(group, 'classes that the samples cycle through; repeatable, or a comma list (default "all")')
    options.seed_option(group)
    options.guidance_options(parser)
    options.sampler_options(parser)


def _run(parser: Any, out: str) -> None:
    group = parser.add_argument_group("run and output")
    options.output_options(group, out)
    kept = "keep a model's samples in the cache, so that another extractor needs no sampling"
    group.add_argument("--keep-samples", action="store_true", help=kept)
    group.add_argument("--no-cache", dest="cache", action="store_false", help="neither read nor write cached features")
    options.offline_option(group)
    options.device_options(parser)
