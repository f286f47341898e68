"""Settings of a study: a TOML file becomes a validated `Study`, or one line says what is wrong.

This module and `plan` import neither torch nor xarray, so that a finished study answers at once.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flatminima.data._table import SOURCES
from flatminima.study._complaints import hint, sentence

Split = Literal["train", "test"]
Parameters = Literal["all", "top"]
Protocol = Literal["crossing", "stepwise", "stepwise_perturb"]
Policy = Literal["recompute", "keep", "interpolate", "batch"]
Checkpoint = Literal["end", "matched"]

# Values per image; an MLP's first layer must take this many.
_FEATURES = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cifar10": 3072}
_MODEL_SETTINGS = {"mlp": ["sizes"], "vgg16": ["classes", "channels", "width"]}
_MLP_SIZES = [784, 800, 320, 50, 10]

_POSITIVE = Field(gt=0.0)
_COUNT = Field(ge=1)
_NAME = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_LABEL = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")


class StudyError(ValueError):
    """A study file that cannot be run as it stands; its one-line message says what to change."""


class _Table(BaseModel):
    """A table of the study file: unknown keys and loose types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _distinct(values: list[Any], what: str) -> None:
    """Refuse an empty list or one that names something twice."""
    if not values or len(set(values)) != len(values):
        raise ValueError(f"expected {what} to name one or more different things, got {values}")


class Data(_Table):
    """`[data]`: which images.

    `limit` takes a class-balanced subset of the training set, `test_limit` one of the test set.
    """

    dataset: str
    limit: Annotated[int, _COUNT] | None = None
    test_limit: Annotated[int, _COUNT] | None = None
    seed: int = 0
    split: list[Split] = ["train"]

    @model_validator(mode="after")
    def _check(self) -> "Data":
        if self.dataset not in SOURCES:
            raise ValueError(
                f"expected dataset to be one of {', '.join(SOURCES)}, got {self.dataset!r}"
                + hint(self.dataset, list(SOURCES))
            )
        for name, split in (("limit", "train"), ("test_limit", "test")):
            most, size = SOURCES[self.dataset].samples[split], getattr(self, name)
            if size is not None and size > most:
                raise ValueError(
                    f"expected {name} of at most the {most} {split} samples of {self.dataset}, "
                    f"got {size}; leave it out to take all"
                )
        _distinct(self.split, "split")
        return self


class Group(_Table):
    """`[[groups]]`: networks that share their labels; the first is compared with the second."""

    name: Annotated[str, _LABEL]
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    noise_seed: int = 0
    scheme: Literal["replace", "flip", "permute"] = "replace"
    epochs: Annotated[int, _COUNT] | None = None


class Model(_Table):
    """`[model]`: a name that `build_model` knows, and its settings."""

    name: Literal["mlp", "vgg16"]
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> "Model":
        known = _MODEL_SETTINGS[self.name]
        for key in self.settings:
            if key not in known:
                raise ValueError(
                    f"expected settings of {self.name!r} among {', '.join(known)}, got {key!r}"
                    + hint(key, known)
                )
        if self.name == "mlp":
            sizes = self.sizes
            whole = isinstance(sizes, list) and all(type(size) is int for size in sizes)
            if not whole or len(sizes) < 2 or min(sizes) < 1:
                raise ValueError(
                    f"expected sizes to be two or more whole numbers from 1 up, got {sizes!r}"
                )
        return self

    @property
    def sizes(self) -> list[int]:
        """Units per layer of an MLP."""
        sizes: list[int] = self.settings.get("sizes", _MLP_SIZES)
        return sizes


class Training(_Table):
    """`[training]`: the recipe, how many networks of each group, and how long a segment is.

    Network `i` of every group has the seed `seed + i`: networks of two groups come in pairs
    with the same initialisation and the same order of batches.
    """

    epochs: Annotated[int, _COUNT]
    batch_size: Annotated[int, _COUNT] = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, _POSITIVE] = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: Annotated[int, _COUNT] | None = None
    step_factor: Annotated[float, _POSITIVE] = 0.1
    stop_at_loss: Annotated[float, _POSITIVE] | None = None
    augment: Literal["none", "crop_flip"] = "none"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    networks: Annotated[int, _COUNT] = 3
    seed: int = 0
    match_loss: Annotated[float, _POSITIVE] = 0.05
    segment_epochs: Annotated[int, _COUNT] = 5

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.schedule == "step" and self.step_epochs is None:
            raise ValueError("expected step_epochs beside schedule = 'step', got none; add it")
        if self.optimizer == "adamw" and self.momentum > 0:
            raise ValueError(
                f"expected no momentum with optimizer 'adamw', got {self.momentum}; leave it out"
            )
        return self


class Beside(_Table):
    """`[[surface.beside]]`: the same plane once more, under another BatchNorm policy."""

    batchnorm: Policy
    resolution: Annotated[int, Field(ge=2)] | None = None


class Surface(_Table):
    """`[surface]`: the grid on the plane through the first three networks of each group.

    `recompute_samples` is how many samples the BatchNorm policy `recompute` pools over.
    """

    resolution: Annotated[int, Field(ge=2)] = 50
    coordinates: Literal["barycentric", "isometric"] = "barycentric"
    extent: Annotated[tuple[float, float], Field(strict=False)] | None = None
    tile: Annotated[int, _COUNT] = 50
    checkpoints: Annotated[list[Checkpoint], Field(min_length=1)] = ["end"]
    batchnorm: Literal["auto"] | Policy = "auto"
    recompute_samples: Annotated[int, _COUNT] = 2000
    beside: list[Beside] = []
    clip: Annotated[float, _POSITIVE] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Surface":
        if self.beside:
            own = "recompute" if self.batchnorm == "auto" else self.batchnorm
            _distinct([own, *(plane.batchnorm for plane in self.beside)], "batchnorm and beside")
        if self.extent is not None and not self.extent[0] < self.extent[1]:
            raise ValueError(f"expected extent = [low, high] with low < high, got {self.extent}")
        _distinct(self.checkpoints, "checkpoints")
        return self


class Radius(_Table):
    """`[radius]`: the flatness radius, in blocks of `block` directions.

    `crossing` is measured at every one of `checkpoints`; the published protocol knows the end only.
    `max_radius` is one limit, or one for "all" and "top" each; without it twice their norm.
    """

    directions: Annotated[int, _COUNT] = 20
    seed: int = 0
    threshold: Annotated[float, _POSITIVE] = 0.05
    tolerance: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-3
    block: Annotated[int, _COUNT] = 5
    parameters: list[Parameters] = ["all", "top"]
    protocols: list[Protocol] = ["crossing", "stepwise"]
    checkpoints: Annotated[list[Checkpoint], Field(min_length=1)] = ["end", "matched"]
    steps: dict[Parameters, Annotated[float, _POSITIVE]] = {"all": 1.0, "top": 0.2}
    max_radius: (
        Annotated[float, _POSITIVE] | dict[Parameters, Annotated[float, _POSITIVE]] | None
    ) = None

    @model_validator(mode="after")
    def _check(self) -> "Radius":
        _distinct(self.parameters, "parameters")
        _distinct(self.protocols, "protocols")
        _distinct(self.checkpoints, "checkpoints")
        missing = [name for name in self.parameters if name not in self.steps]
        if {"stepwise", "stepwise_perturb"} & set(self.protocols) and missing:
            raise ValueError(f"expected a step for {missing[0]!r}, got none; add it to steps")
        return self


class Summary(_Table):
    """`[summary]`: the outcomes of training that keep a network out of every summary."""

    exclude: list[Literal["diverged", "chance"]] = ["diverged", "chance"]


class Run(_Table):
    """`[run]`: how the numbers are computed; part of every digest, since it can move last bits."""

    threads: Annotated[int, _COUNT] = 1
    batch_size: int | str = "auto"
    precision: Literal["exact", "fast"] = "exact"
    device: Literal["cpu", "cuda", "mps"] = "cpu"

    @model_validator(mode="after")
    def _check(self) -> "Run":
        size = self.batch_size
        if size != "auto" and not (isinstance(size, int) and size >= 1):
            raise ValueError(
                f"expected batch_size 'auto' or a whole number from 1 up, got {size!r}"
            )
        return self


class Share(_Table):
    """What one job takes of a node of a cluster; `memory` is in GiB."""

    cpus: Annotated[float, _POSITIVE] | None = None
    gpus: Annotated[float, Field(ge=0.0)] | None = None
    memory: Annotated[float, _POSITIVE] | None = None


class Resources(_Table):
    """`[resources]`: what jobs of each part take of a cluster's nodes; changes no result.

    By default a core for every thread, one accelerator if the study names one, and 2 GiB (4 GiB
    for radii, which keep products between evaluations).
    """

    training: Share = Share()
    surfaces: Share = Share()
    radii: Share = Share()


class Report(_Table):
    """`[report]`: how the results are drawn; changes no result."""

    clip: Annotated[float, _POSITIVE] = 3.5
    published: Literal["", "mnist", "cifar10"] = ""
    quick: bool = False


class Study(_Table):
    """A whole study file. A part whose table is absent (`surface`, `radius`) is not made."""

    name: Annotated[str, _NAME]
    title: str = ""
    data: Data
    groups: Annotated[list[Group], Field(min_length=1)]
    model: Model
    training: Training
    surface: Surface | None = None
    radius: Radius | None = None
    summary: Summary = Summary()
    run: Run = Run()
    resources: Resources = Resources()
    report: Report = Report()

    @model_validator(mode="after")
    def _check(self) -> "Study":
        _distinct([group.name for group in self.groups], "groups")
        source = SOURCES[self.data.dataset]
        features = _FEATURES.get(self.data.dataset)
        if self.model.name == "mlp" and features is not None:
            first, last = self.model.sizes[0], self.model.sizes[-1]
            if (first, last) != (features, source.classes):
                raise ValueError(
                    f"expected [model.settings] sizes from {features} to {source.classes} units "
                    f"for {self.data.dataset}, got {first} to {last}; change its first and last"
                )
        if self.model.name == "mlp":
            _check_without_batchnorm(self)
        stop = None if self.surface is None else self.surface.clip
        if stop is not None and stop < self.report.clip:
            raise ValueError(
                f"expected [surface] clip of at least the {self.report.clip:g} that figures are "
                f"drawn up to, got {stop:g}; raise it, or lower [report] clip"
            )
        if self.surface is not None and self.training.networks < 3:
            raise ValueError(
                f"expected at least 3 networks for the plane of a surface, got "
                f"{self.training.networks}; raise [training] networks or remove [surface]"
            )
        return self


def _check_without_batchnorm(study: Study) -> None:
    """Refuse what only a network with BatchNorm can be asked for."""
    asked = []
    if study.surface is not None and study.surface.beside:
        asked.append("[[surface.beside]]")
    if study.radius is not None and "stepwise_perturb" in study.radius.protocols:
        asked.append("the protocol 'stepwise_perturb'")
    if asked:
        raise ValueError(
            f"expected a network with BatchNorm for {asked[0]}, got {study.model.name!r}, which "
            "has none; leave it out"
        )


def load_study(path: str | Path) -> Study:
    """Read and validate a study file.

    Raises:
        StudyError: the file is missing, is not TOML, is not a study, or holds a setting that is
            unknown or out of range. The message is one line.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"{path}: expected a study file, got nothing there; see studies/ for examples"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: expected TOML, got something else: {error}") from None
    except OSError as error:
        raise StudyError(f"{path}: expected a readable file, got: {error.strerror}") from None
    return parse_study(table, source=str(path))


def parse_study(table: Mapping[str, Any], *, source: str = "study") -> Study:
    """Validate the settings of a study given as nested mappings.

    Raises:
        StudyError: as for `load_study`; `source` begins the message.
    """
    if not set(table) & set(Study.model_fields):
        found = ", ".join(sorted(table)[:4]) or "an empty file"
        raise StudyError(
            f"{source}: expected a study (name, [data], [[groups]], [model], [training]), "
            f"got {found}; see studies/ for examples"
        )
    try:
        return Study.model_validate(dict(table))
    except ValidationError as error:
        # An unknown key is likelier the cause of a missing one than the other way round.
        errors = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise StudyError(f"{source}: {sentence(dict(errors[0]), Study)}{more}") from None
