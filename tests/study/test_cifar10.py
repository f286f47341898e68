"""A study of CIFAR-10 with BatchNorm, on real images and with a very slim VGG16."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatminima.data import load_dataset
from flatminima.minimum import Minimum
from flatminima.store import Store
from flatminima.study import run_study
from flatminima.study.work import make_landscape

pytestmark = [pytest.mark.network, pytest.mark.slow]

SETTINGS: dict[str, Any] = {
    "name": "slim",
    "data": {"dataset": "cifar10", "limit": 40, "test_limit": 20},
    "groups": [{"name": "natural"}, {"name": "random", "noise": 0.5, "noise_seed": 1}],
    "model": {"name": "vgg16", "settings": {"width": 0.0625}},
    "training": {
        "epochs": 3,
        "batch_size": 10,
        "learning_rate": 0.05,
        "segment_epochs": 1,
        "match_loss": 3.0,
        "augment": "crop_flip",
    },
    "surface": {
        "resolution": 3,
        "recompute_samples": 30,
        "beside": [{"batchnorm": "keep"}, {"batchnorm": "interpolate", "resolution": 2}],
    },
    "radius": {
        "directions": 2,
        "protocols": ["crossing", "stepwise", "stepwise_perturb"],
        "steps": {"all": 1.0, "top": 1.0},
    },
    "summary": {"exclude": ["diverged"]},  # so short a training leaves networks at chance
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    try:
        load_dataset("cifar10", limit=10)
    except (OSError, ValueError) as error:
        pytest.skip(f"CIFAR-10 cannot be had here: {error}")
    return run_study(SETTINGS, out=tmp_path_factory.mktemp("slim") / "runs")


def _of_kind(store: Store, kind: str) -> list[dict[str, Any]]:
    return [record for record in store.records() if record["kind"] == kind]


def test_every_plane_is_there_under_every_policy(finished: Store) -> None:
    sizes = {}
    for record in _of_kind(finished, "surface"):
        surface = finished.open_payload("surface", record["digest"], "surface.zarr")
        assert surface.attrs["batchnorm"] == record["settings"]["batchnorm"]
        sizes[surface.attrs["group"], surface.attrs["batchnorm"]] = surface["loss"].shape
    assert sizes == {
        (group, policy): shape
        for group in ("natural", "random")
        for policy, shape in (("recompute", (3, 3)), ("keep", (3, 3)), ("interpolate", (2, 2)))
    }


def test_the_minima_have_their_own_losses_and_those_their_training_left(finished: Store) -> None:
    networks = {
        (record["settings"]["group"], record["settings"]["network"]): finished.read(
            "network", record["digest"]
        )
        for record in _of_kind(finished, "network")
    }
    for record in _of_kind(finished, "surface"):
        settings = record["settings"]
        if settings["batchnorm"] != "recompute":
            continue
        surface = finished.open_payload("surface", record["digest"], "surface.zarr")
        landscape = make_landscape(settings, "train")
        for index in range(3):
            files = networks[settings["group"], index]
            minimum = Minimum.from_bytes(files["last.safetensors"])
            found = float(surface["anchor_loss"][index])
            expected = float(landscape.loss_at(minimum, batchnorm="recompute").loss[0])
            assert abs(found - expected) <= 1e-6 + 1e-6 * expected
            history = finished.open_payload(
                "network", _digest(finished, settings["group"], index), "history.zarr"
            )
            stored = float(surface["anchor_stored_loss"][index])
            np.testing.assert_allclose(stored, float(history["train_loss"][-1]), rtol=1e-5)
            assert abs(stored - found) > 1e-3  # so few steps leave other statistics behind


def _digest(store: Store, group: str, network: int) -> str:
    return next(
        str(record["digest"])
        for record in _of_kind(store, "network")
        if (record["settings"]["group"], record["settings"]["network"]) == (group, network)
    )


def test_the_walk_that_moves_statistics_has_a_column_of_its_own(finished: Store) -> None:
    (record,) = _of_kind(finished, "summary")
    summary = finished.open_payload("summary", record["digest"], "summary.zarr")
    assert "as_published_perturbed" in summary["column"].values
    radii = finished.open_payload("summary", record["digest"], "radii.zarr")
    walks = radii["ray"].size
    # Per network: both protocols over all and the top, and the perturbed one over all alone.
    assert walks == 6 * (2 * 2 * 2 * 2 + 2 * 2 + 2)


def test_the_report_says_whether_augmented_random_labels_are_interpolated(finished: Store) -> None:
    (record,) = _of_kind(finished, "summary")
    summary = finished.open_payload("summary", record["digest"], "summary.zarr")
    assert summary["interpolates"].values.tolist() == [[0, 0, 0], [0, 0, 0]]
    sentences = json.loads(summary.attrs["sentences"])
    (sentence,) = [text for text in sentences if "augment" in text]
    assert "random" in sentence


_KILLED = """
import json, os, signal, sys
from flatminima.data import augment
from flatminima.study import run_study

left, change = int(sys.argv[3]), augment.crop_flip

def killing(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return change(*arguments, **options)

augment.crop_flip = killing
run_study(json.loads(sys.argv[1]), out=sys.argv[2], only=["training"])
"""


@pytest.mark.parametrize("batches", [3, 6, 11])
def test_a_training_killed_inside_an_epoch_ends_with_the_same_bytes(
    finished: Store, tmp_path: Path, batches: int
) -> None:
    """Four batches an epoch: killed in the first, the second and the last of them."""
    command = [sys.executable, "-c", _KILLED, json.dumps(SETTINGS), str(tmp_path), str(batches)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    cut = Store(tmp_path)
    assert len(list(cut.records())) == (batches - 1) // 4
    run_study(SETTINGS, out=tmp_path, only=["training"])
    whole = {record["digest"]: record["payload"] for record in _of_kind(finished, "network")}
    again = {record["digest"]: record["payload"] for record in _of_kind(cut, "network")}
    assert again == whole
