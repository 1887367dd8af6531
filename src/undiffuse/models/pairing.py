"""Whether a classifier can guide a model."""

from __future__ import annotations

from undiffuse.models.model import ClassifierModel, DiffusionModel, some_names


def check_pair(model: DiffusionModel, classifier: ClassifierModel, at: str = "x_t") -> None:
    """Check that a classifier can guide a model.

    Args:
        model: The model.
        classifier: The classifier.
        at: Where it is asked: at the noisy image ("x_t", "mean") or at the denoised one ("x0").

    Raises:
        ValueError: It has another image shape or other classes, or was trained on clean images and is asked of noisy
            ones.
    """
    problems = []
    if at != "x0" and classifier.clean_only:
        problems.append(
            "it was trained on clean images alone, and a guide is asked of noisy ones: guide at the denoised image "
            "(guidance_at 'x0'), or train one on noisy images"
        )
    if model.image_shape[0] != classifier.image_shape[0]:
        ours = model.image_shape[0]
        channels = f"{ours} channel{'s' if ours != 1 else ''}"
        problems.append(f"images of {channels} against {classifier.image_shape[0]}")
    elif model.image_shape != classifier.image_shape and _attention_pool(classifier):
        shapes = ["x".join(map(str, shape[1:])) for shape in (model.image_shape, classifier.image_shape)]
        problems.append(f"images of {shapes[0]} (height x width) against {shapes[1]}, and its attention pool is fixed")
    if classifier.numbers is not None:  # a regressor has no classes
        pass
    elif model.labels is not None and classifier.labels is not None and model.labels != classifier.labels:
        problems.append(f"classes {some_names(model.labels)} against {some_names(classifier.labels)}")
    elif model.num_classes is not None and model.num_classes != classifier.num_classes:
        problems.append(f"{model.num_classes} classes against {classifier.num_classes}")
    if problems:
        raise ValueError(f"this classifier does not fit the model: {'; '.join(problems)}")


def _attention_pool(classifier: ClassifierModel) -> bool:
    return getattr(getattr(classifier.net, "config", None), "pool", None) == "attention"
