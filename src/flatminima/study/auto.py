"""What `auto` stands for in a study's settings, on a device and after an earlier run."""

from collections.abc import Mapping
from typing import Any

from flatminima._processor import multiplies_halves
from flatminima.study.config import Study

# Images per batch where the study says "auto": activations of this many stay in a core's cache.
_BATCH_SIZE = {"mlp": 500, "vgg16": 100}
# An accelerator wants many more at once.
_ACCELERATOR_BATCH_SIZE = {"mlp": 60_000, "vgg16": 2500}


def resolve(study: Study, earlier: Mapping[str, Any] | None = None) -> Study:
    """Replace every `auto`, by what an `earlier` run of the study settled on where there was one.

    Args:
        study: Settings as read from the file.
        earlier: The settings in the study's stored manifest.
    """
    run: dict[str, Any] = {}
    if study.run.batch_size == "auto":
        run["batch_size"] = _batch_size(study, earlier)
    resolved: dict[str, Any] = {"run": study.run.model_copy(update=run)}
    if study.training.precision == "auto":
        precision = _training_precision(study, earlier)
        resolved["training"] = study.training.model_copy(update={"precision": precision})
    if study.surface is not None and study.surface.batchnorm == "auto":
        # A plane through minima combines several states; see `Landscape`.
        resolved["surface"] = study.surface.model_copy(update={"batchnorm": "recompute"})
    return study.model_copy(update=resolved)


def _is_of(earlier: Mapping[str, Any], study: Study) -> bool:
    """Whether an earlier run was of the same network on the same kind of device."""
    device: str = earlier["run"]["device"]
    return earlier["model"] == study.model.model_dump() and device == study.run.device


def _training_precision(study: Study, earlier: Mapping[str, Any] | None) -> str:
    """What "auto" means: as in an earlier run, or the quicker."""
    if earlier is not None and _is_of(earlier, study):
        # Networks that are trained already are not trained anew because a store has moved.
        return str(earlier["training"].get("precision", "float32"))
    return "bfloat16" if multiplies_halves(study.run.device) else "float32"


def _batch_size(study: Study, earlier: Mapping[str, Any] | None) -> int:
    """What "auto" means: as in an earlier run, or the usual."""
    if earlier is not None and _is_of(earlier, study):
        return int(earlier["run"]["batch_size"])
    sizes = _BATCH_SIZE if study.run.device == "cpu" else _ACCELERATOR_BATCH_SIZE
    return sizes[study.model.name]
