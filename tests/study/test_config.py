import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatminima.study.config import StudyError, load_study, parse_study

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_in_the_repository_is_valid_and_called_after_its_file(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_the_paper_study_is_the_published_recipe() -> None:
    study = load_study(STUDIES / "mnist-paper.toml")
    assert [(group.noise, group.epochs) for group in study.groups] == [(0.0, 30), (0.5, 150)]
    assert (study.data.dataset, study.data.limit, study.model.name) == ("mnist", None, "mlp")
    recipe = study.training
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum) == ("sgd", 0.01, 0.0)
    assert (recipe.batch_size, recipe.networks, recipe.match_loss) == (64, 3, 0.05)
    assert study.surface is not None
    assert (study.surface.resolution, study.surface.extent) == (50, (-0.4, 1.3))
    assert study.surface.coordinates == "barycentric"
    assert study.radius is not None
    assert (study.radius.directions, study.radius.steps) == (20, {"all": 1.0, "top": 0.2})
    assert study.radius.protocols == ["crossing", "stepwise"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"training": {"epocs": 3}}, r"unknown key 'epocs' in \[training\]; did you mean 'epochs'"),
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'"),
        ({"surface": {"zzz": 1}}, r"unknown key 'zzz' in \[surface\]; expected one of resolution"),
        ({"training": {"networks": 0}}, r"networks: expected it to be greater.* 1, got 0"),
        ({"training": {"networks": 2}}, "at least 3 networks for the plane of a surface, got 2"),
        ({"training": {"batch_size": "8"}}, "batch_size: expected it to be a valid integer"),
        ({"training": {"learning_rate": math.nan}}, "finite number, got nan"),
        ({"training": {"schedule": "step"}}, "expected step_epochs"),
        ({"training": {"optimizer": "adam"}}, "got 'adam'; did you mean 'adamw'"),
        ({"training": {"optimizer": "adamw", "momentum": 0.9}}, "no momentum with .* 'adamw'"),
        ({"surface": {"resolution": 1}}, r"\[surface\] resolution: .* 2, got 1"),
        ({"surface": {"extent": [1, 0]}}, "low < high"),
        ({"data": {"dataset": "minst"}}, "one of digits, .* got 'minst'; did you mean 'mnist'"),
        ({"data": {"dataset": "x"}}, "one of digits, .* got 'x'$"),
        ({"data": {"split": ["train", "train"]}}, "different things"),
        ({"model": {"name": "mpl", "settings": {}}}, "'mlp' or 'vgg16', got 'mpl'; did you mean"),
        ({"model": {"settings": {"size": [64, 10]}}}, "got 'size'; did you mean 'sizes'"),
        ({"model": {"settings": {"sizes": [64, 0, 10]}}}, "whole numbers from 1 up"),
        ({"model": {"settings": {"sizes": [784, 10]}}}, "from 64 to 10 units for digits, got 784"),
        ({"radius": {"protocols": ["crosing"]}}, "got 'crosing'; did you mean 'crossing'"),
        ({"radius": {"steps": {"top": 0.1}}}, "expected a step for 'all'"),
        ({"run": {"batch_size": 0}}, "batch_size 'auto' or a whole number from 1 up, got 0"),
        ({"run": {"device": "gpu"}}, "got 'gpu'"),
        ({"groups": []}, "at least 1 item"),
        ({"groups": [{"name": "a", "noise": 1.5}]}, r"\[groups #1\] noise: .* 1, got 1.5"),
        ({"groups": [{"name": "a", "noise": -0.1}]}, r"\[groups #1\] noise: .* 0, got -0.1"),
        ({"groups": [{"name": "a", "nosie": 0.5}]}, r"\[groups #1\]; did you mean 'noise'"),
        ({"groups": [{"name": "a"}, {"name": "a"}]}, "different things"),
        ({"name": "a/b"}, "letters, digits"),
        ({"data": None}, "data: expected this key"),
        ({"data": 3}, "data: expected it to be a valid dictionary"),
    ],
    ids=str,
)
def test_a_bad_setting_is_one_line_that_names_it(
    smallest: Callable[..., dict[str, Any]], tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        parse_study(smallest(**tables), source="x.toml")
    assert str(caught.value).startswith("x.toml: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_named_before_what_is_missing_because_of_it() -> None:
    with pytest.raises(StudyError, match=r"'nmae'; did you mean 'name'\? \(and \d more\)"):
        parse_study({"nmae": "x", "data": {"dataset": "digits"}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "got nothing there"),
        (b"name = ", "expected TOML"),
        (b"\xff\xfe", "expected TOML"),
        (b"", "got an empty file"),
        (b"[tool.ruff]\nline-length = 100", r"expected a study \(name, .* got tool"),
    ],
    ids=["missing", "broken", "binary", "empty", "foreign"],
)
def test_a_file_that_is_no_study_is_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "study.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyError, match=message) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(StudyError, match="Is a directory"):
        load_study(tmp_path)
