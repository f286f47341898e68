"""What a summary says beside its comparisons."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

import flatminima as fm
from cases import ImageNet, images, seeded
from flatminima.flatness.summary import merge_radii, summarise
from flatminima.store import Store, dataset_to_files, files_to_dataset
from flatness.studies import GROUPS, apart, block, history, said, settings, study

PAPER = Path(__file__).parents[2] / "results" / "mnist-paper"
PERTURBED = "as_published_perturbed"
PROTOCOLS = ["crossing", "stepwise", "stepwise_perturb"]


def perturbed_block(radii, group, network, *, outcome=None, negative=None, first=9.0, **more):
    """Walks along +u that moved running statistics."""
    radii = np.asarray(radii, dtype=float)[:, None]
    made = block(
        radii,
        group,
        network,
        protocol="stepwise_perturb",
        outcome=np.zeros(radii.shape) if outcome is None else np.asarray(outcome)[:, None],
        smallest_variance=0.1 * (network + 1),
        buffers="perturb",
        **more,
    )
    negative = np.zeros(len(radii)) if negative is None else np.asarray(negative)
    return made.assign(
        negative_variances=(("direction", "sign"), negative.astype(np.int32)[:, None]),
        first_negative=(("direction", "sign"), np.broadcast_to(first, len(radii))[:, None] * 1.0),
    )


def usual_blocks(networks=3):
    """Radii of a study without perturbed walks, which are far apart."""
    blocks = []
    for checkpoint, protocol in (("end", "stepwise"), ("end", "crossing"), ("matched", "crossing")):
        for parameters in ("all", "top"):
            for group in GROUPS:
                for network in range(networks):
                    radii = apart("", parameters, group, network)
                    where = (group, network, checkpoint, parameters, protocol)
                    blocks.append(block(radii, *where, buffers="policy"))
    return blocks


def perturbed_study(walks, **changes):
    """A study whose perturbed walks are `walks(group, network)`."""
    histories = [history(g, n) for g in GROUPS for n in range(3)]
    radii = merge_radii([*usual_blocks(), *(walks(g, n) for g in GROUPS for n in range(3))])
    used = settings(**changes)
    used["radius"] = {**used["radius"], "protocols": PROTOCOLS}
    return summarise(used, histories, radii), radii


def some_negative(group, network):
    """Of four walks: one crosses, two end at a negative variance, one is not finite without."""
    if group == "random":
        return perturbed_block([2.0, 3.0, 2.0, 3.0], group, network, first=6.5 + network)
    return perturbed_block(
        [7.0, 5.0 + network, 6.0 + network, 4.0],
        group,
        network,
        outcome=[0, 2, 2, 2],
        negative=[1, 1, 3, 0],
        first=np.array([9.0, 5.5 + network, 6.5 + network, 8.0]),
    )


def test_perturbed_walks_have_a_column_and_say_how_they_ended():
    summary, _ = perturbed_study(some_negative)
    assert list(summary["column"].values)[-1] == PERTURBED
    cell = summary.sel(column=PERTURBED, parameters="all")
    assert_allclose(cell["mean"].sel(group="natural"), [5.5, 6.0, 6.5])
    assert_allclose(cell["group_mean"], [6.0, 2.5])
    assert_allclose(cell["group_deviation"], [np.std([5.5, 6.0, 6.5]), 0.0])
    assert_array_equal(cell["group_rays"], [12, 12])
    assert_array_equal(summary["ended_non_finite"], [[3, 3, 3], [0, 0, 0]])
    assert_array_equal(summary["ended_negative"], [[2, 2, 2], [0, 0, 0]])
    assert_array_equal(summary["group_ended_non_finite"], [9, 0])
    assert_array_equal(summary["group_ended_negative"], [6, 0])
    assert_allclose(summary["least_non_finite"], [[4, 4, 4], [np.inf] * 3])
    assert_allclose(summary["least_negative"], [[5, 6, 7], [np.inf] * 3])
    assert_allclose(summary["group_least_negative"], [5, np.inf])
    assert_allclose(summary["first_negative"], [[5.5, 6.5, 7.5], [6.5, 7.5, 8.5]])
    assert_allclose(summary["group_first_negative"], [5.5, 6.5])
    assert_allclose(summary["smallest_variance"], [[0.1, 0.2, 0.3]] * 2)
    assert_allclose(summary["group_smallest_variance"], [0.1, 0.1])


def test_perturbed_walks_enter_no_comparison():
    summary, _ = perturbed_study(some_negative)
    column = summary.sel(column=PERTURBED)
    assert_array_equal(column["verdict"], 0)
    for name in ("difference", "interval", "p_value", "ratio"):
        assert np.isnan(column[name]).all(), name
    assert_array_equal(column["status"].sel(parameters="top"), 3)
    # All other columns, attributes and sentences are those of the same study without them.
    plain = summarise(
        settings(),
        [history(g, n) for g in GROUPS for n in range(3)],
        merge_radii(usual_blocks()),
    )
    xr.testing.assert_equal(plain, summary[list(plain.data_vars)].sel(column=plain["column"]))
    sentences = json.loads(summary.attrs.pop("sentences"))
    assert sentences[:-1] == json.loads(plain.attrs.pop("sentences"))
    assert summary.attrs == plain.attrs


def test_sentence_on_negative_variances():
    sentence = json.loads(perturbed_study(some_negative)[0].attrs["sentences"])[-1]
    assert (
        "a negative variance ends 6 of 12 walks of the natural networks (the first after radius "
        "5.00, and 3 more ended at a loss that was not finite), and none of the 12 walks of the "
        "random networks (the first variance would fall below zero at 6.50)"
    ) in sentence
    assert "6.00 for natural (weights alone: 10.1), and 2.50 for random (weights alone:" in sentence
    assert "enters no comparison" in sentence
    never, _ = perturbed_study(lambda g, n: perturbed_block([2.0, 3.0], g, n, first=np.inf))
    assert "none of the 6 walks of the natural networks (no variance falls)" in said(never)


def test_perturbed_walks_of_networks_that_were_left_out_are_missing():
    histories = [history(g, n, outcome="diverged" if n == 1 else "fitted")
                 for g in GROUPS for n in range(3)]  # fmt: skip
    blocks = [some_negative(g, n) for g in GROUPS for n in (0, 2)]
    gone = [xr.Dataset(attrs=some_negative(g, 1).attrs | {"status": "excluded"}) for g in GROUPS]
    used = settings()
    used["radius"] = {"parameters": ["all"], "protocols": ["stepwise_perturb"]}
    summary = summarise(used, histories, merge_radii([*blocks, *gone]))
    assert_array_equal(summary["ended_negative"], [[2, 0, 2], [0, 0, 0]])
    assert_array_equal(np.isnan(summary["first_negative"]), [[0, 1, 0]] * 2)
    assert_allclose(summary["group_first_negative"], [5.5, 6.5])
    assert "4 of 8 walks of the natural networks" in said(summary)
    assert "weights alone" not in said(summary)


def test_merged_rays_that_moved_no_statistics_say_so():
    _, radii = perturbed_study(some_negative)
    moved = radii["protocol"].values == "stepwise_perturb"
    assert moved.sum() == 24
    assert_array_equal(radii["negative_variances"].values[~moved], 0)
    assert_array_equal(radii["first_negative"].values[~moved], np.inf)
    assert_array_equal(radii["smallest_variance"].values[~moved], np.inf)
    assert_array_equal(radii["negative_variances"].values[moved][:4], [1, 1, 3, 0])
    assert "buffers" not in radii.attrs
    assert "first_negative" not in merge_radii(usual_blocks())


def test_real_walks_of_a_network_with_batchnorm_are_merged_and_summarised():
    blocks, histories = [], []
    for group in GROUPS:
        for seed in range(2):
            network, data = seeded(ImageNet().double(), seed).eval(), images()
            walked = fm.flatness_radius(
                fm.Landscape(network, data),
                network,
                directions=6,
                step=0.3,
                threshold=100.0,
                max_radius=30.0,
                protocol="stepwise",
                buffers="perturb",
            )
            about = {"group": group, "network": seed, "checkpoint": "end"}
            blocks.append(walked.assign_attrs(about, protocol="stepwise_perturb"))
            histories.append(history(group, seed))
    used = settings(radius={"parameters": ["all"], "protocols": ["stepwise_perturb"]})
    radii = merge_radii(blocks)
    summary = summarise(used, histories, radii)
    assert radii.attrs["buffers"] == "perturb"
    for (group, seed), walked in zip(
        [(g, n) for g in GROUPS for n in range(2)], blocks, strict=True
    ):
        at = {"group": group, "network": seed}
        ended = (walked["outcome"] == 2) & (walked["negative_variances"] > 0)
        assert int(summary["ended_negative"].sel(at)) == int(ended.sum()) > 0
        assert float(summary["first_negative"].sel(at)) == float(walked["first_negative"].min())
        assert float(summary["smallest_variance"].sel(at)) == walked.attrs["smallest_variance"]


@pytest.mark.parametrize("build", [lambda: perturbed_study(some_negative), lambda: augmented()])
def test_all_of_it_survives_storage(build):
    for dataset in build():
        stored = files_to_dataset("a.zarr", dataset_to_files("a.zarr", dataset))
        xr.testing.assert_identical(stored, dataset)


def test_end_of_training_is_at_matched_epochs_where_all_were_trained_equally():
    summary, _ = study(apart)
    assert summary.attrs["matched_epochs"] == 1
    assert_array_equal(summary["epochs"], 2)
    sentence = json.loads(summary.attrs["sentences"])[-1]
    assert sentence == (
        "The comparison at matched train loss is the primary one; that at the end of training is "
        "at matched epochs (2 for every network) and not at matched loss."
    )


def test_end_of_training_at_other_epochs_is_said_to_be_so():
    histories = [
        history(group, n, epochs=9 + n if group == "natural" else 40)
        for group in GROUPS
        for n in range(3)
    ]
    summary, _ = study(apart, histories=histories, report={"published": "cifar10"})
    assert summary.attrs["matched_epochs"] == 0
    assert_array_equal(summary["epochs"].sel(group="natural"), [9, 10, 11])
    assert "is not at matched epochs (natural 9 to 11, random 40) and not at" in said(summary)
    # Where no comparison at matched loss exists, none is called the primary one.
    summary, _ = study(
        apart, histories=histories, report={"published": ""}, training={"match_loss": None}
    )
    assert "The comparison at the end of training is not at matched epochs" in said(summary)
    assert "primary" not in said(summary)


def test_epochs_of_a_network_that_was_left_out_do_not_count():
    histories = [
        history(group, n, epochs=7 if n == 1 else 40, outcome="diverged" if n == 1 else "fitted")
        for group in GROUPS
        for n in range(3)
    ]
    summary, _ = study(apart, histories=histories)
    assert summary.attrs["matched_epochs"] == 1
    assert "at matched epochs (40 for every network)" in said(summary)


def test_summaries_of_the_published_mnist_recipe_say_what_they_said():
    histories = [
        history(g, n, epochs=30 if g == "natural" else 150) for g in GROUPS for n in range(3)
    ]
    summary, _ = study(apart, histories=histories)
    assert "epochs" not in summary
    assert "matched epochs" not in said(summary)


def test_the_published_summary_is_made_again_from_its_own_radii():
    store = Store(PAPER, create=False)
    jobs = store.manifest("mnist-paper")["jobs"]
    (digest,) = [job["digest"] for job in jobs if job["kind"] == "summary"]
    histories = [
        store.open_payload("network", job["digest"], "history.zarr")
        for job in jobs
        if job["kind"] == "network"
    ]
    stored, radii = (
        store.open_payload("summary", digest, name) for name in ("summary.zarr", "radii.zarr")
    )
    made = summarise(store.record("summary", digest)["settings"], histories, radii)
    assert set(made.data_vars) == set(stored.data_vars)
    assert made.attrs == stored.attrs
    xr.testing.assert_allclose(made, stored, rtol=1e-9)


def augmented(accuracy=(0.9991, 0.61, 0.42), **changes):
    """A study with augmentation; the random networks' train accuracy at the end is given."""
    histories = [
        history(g, n, accuracy=[0.1, 0.5, 0.9999 if g == "natural" else accuracy[n]], last=1.0 + n)
        for g in GROUPS
        for n in range(3)
    ]
    groups = [{"name": "natural", "noise": 0.0}, {"name": "random", "noise": 0.5}]
    training = {"match_loss": 0.05, "augment": "crop_flip"}
    return study(apart, histories=histories, groups=groups, training=training, **changes)


def test_with_augmentation_it_is_said_whether_random_labels_are_interpolated():
    summary, _ = augmented()
    assert_array_equal(summary["interpolates"], [[1, 1, 1], [1, 0, 0]])
    assert_allclose(summary["end_accuracy"].sel(group="random"), [0.9991, 0.61, 0.42])
    assert_allclose(summary["end_loss"], [[1, 2, 3]] * 2)
    assert summary.attrs["augment"] == "crop_flip"
    assert summary.attrs["interpolation_accuracy"] == 0.999
    assert json.loads(summary.attrs["randomised"]) == ["random"]
    (sentence,) = [text for text in json.loads(summary.attrs["sentences"]) if "augment" in text]
    assert sentence == (
        "Trained with augmentation (crop_flip), 1 of the 3 random networks interpolate their labels"
        " (a train accuracy of 0.999 or more at the end of training, without augmentation): the"
        " accuracy is 0.4200 to 0.9991, the train loss 1.00 to 3.00."
    )
    assert "none of the 3 random networks interpolate" in said(augmented([0.99, 0.6, 0.4])[0])
    assert "all 3 random networks interpolate" in said(augmented([0.999, 1.0, 1.0])[0])


def test_without_augmentation_nothing_is_said_of_interpolation():
    for training in ({"match_loss": 0.05}, {"match_loss": 0.05, "augment": "none"}):
        summary, _ = study(apart, training=training)
        assert "interpolates" not in summary
        assert "augment" not in summary.attrs
        assert "interpolate" not in said(summary)
