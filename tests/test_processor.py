"""What is asked of a device, and what is done where products in half precision are imitated."""

import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import flatminima as fm
from cases import perceptron, points
from flatminima import _processor
from flatminima._processor import mkl_is_slow, multiplies_halves
from flatminima.cli._own import _say
from flatminima.cli._run import announcement, remarks
from flatminima.report.captions import _precision
from flatminima.report.contents import Surface
from flatminima.report.networks.words import about
from flatminima.study.check import check_results
from flatminima.study.estimate import job_seconds
from flatminima.study.run import make_plan, run_study

STUDY = """
name = "half"
[data]
dataset = "digits"
limit = 40
[[groups]]
name = "a"
[model]
name = "mlp"
[model.settings]
sizes = [64, 6, 10]
[training]
epochs = 2
batch_size = 8
precision = "bfloat16"
[surface]
resolution = 3
[run]
precision = "fast"
"""


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Answers are remembered; not within, nor from there."""
    answers = (
        _processor._processor_multiplies_halves,
        _processor._onednn_at_hand,
        _processor.mkl_is_slow,
        _processor.has_narrow_vectors,
    )
    for answer in answers:
        answer.cache_clear()
    yield
    for answer in answers:
        answer.cache_clear()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    ("machine", "told", "x86", "onednn", "expected"),
    [
        ("x86_64", "flags : avx512f avx512_bf16", False, False, True),
        ("x86_64", "flags : avx2", True, True, False),
        ("AMD64", "", True, False, True),
        ("x86_64", "", False, True, False),  # imitates them
        ("aarch64", "Features : bf16", False, True, True),
        ("aarch64", "", True, False, False),
    ],
)
def test_a_processor_has_units_or_not(monkeypatch, machine, told, x86, onednn, expected):
    monkeypatch.setattr(_processor, "_cpuinfo", lambda: told)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: x86)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert multiplies_halves("cpu") is expected


@pytest.mark.parametrize(
    ("here", "units", "expected"), [(True, True, True), (True, False, False), (False, False, True)]
)
def test_a_gpu_is_asked_whether_it_imitates_them(monkeypatch, here, units, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda imitated: imitated or units)
    assert multiplies_halves("cuda:1") is expected
    assert not multiplies_halves("mps")


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    ("vendor", "units", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False),
     ("GenuineIntel", "AVX512", False)],
)  # fmt: skip
def test_mkl_holds_back_where_it_leaves_units_unused(monkeypatch, vendor, units, expected):
    monkeypatch.setattr(_processor, "_cpuinfo", lambda: f"vendor_id : {vendor}\n")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: units)
    assert mkl_is_slow() is (expected and torch.backends.mkldnn.is_available())


@pytest.mark.usefixtures("no_halves")
def test_fast_is_exact_where_that_is_quicker():
    minima = [perceptron(seed, dtype=torch.float32) for seed in range(3)]
    data, plane = points(dtype=torch.float32), fm.Subspace.through(*minima)
    quick, slow = (
        fm.loss_surface(fm.Landscape(minima[0], data, precision=p), plane, resolution=5)
        for p in ("fast", "exact")
    )
    np.testing.assert_array_equal(quick["loss"], slow["loss"])
    told = {name: quick.attrs[name] for name in ("precision", "repeated", "largest_difference")}
    assert told == {"precision": "fast", "repeated": 0, "largest_difference": 0.0}
    assert "nothing was to be gained" in _precision([Surface("a", "end", "train", quick)])
    assert "exact arithmetic (fast was asked for; nothing" in about(quick)
    assert any("nothing was to be gained" in line for line in _say("surface", quick))
    assert "exact arithmetic, " in about(slow)
    assert not any("gained" in line for line in _say("surface", slow))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "half.toml"
    file.write_text(STUDY)
    return file


@pytest.mark.usefixtures("no_halves")
def test_a_run_says_so_before_it_computes(study, tmp_path):
    plan = make_plan(study, out=tmp_path / "runs")
    training, computing = remarks(plan)
    assert "training  in bfloat16: this processor has no units for it" in training
    assert "float32" in computing
    assert announcement(plan, {}, "serial", 1)[-3:-1] == [training, computing]
    assert all(len(line) < 160 for line in (training, computing))
    assert remarks(plan, "10.0.0.1:6379") == []  # others compute
    assert len(remarks(make_plan(study, out=tmp_path / "runs", only=["surfaces"]))) == 2
    assert remarks(make_plan(study, out=tmp_path / "runs", only=["training"])) == [training]


@pytest.mark.usefixtures("halves")
def test_a_run_says_nothing_where_there_are_units(study, tmp_path):
    assert remarks(make_plan(study, out=tmp_path / "runs")) == []


def test_the_time_of_training_follows_the_processor(study, tmp_path, request):
    job = next(job for job in make_plan(study, out=tmp_path / "runs").jobs if job.kind == "train")
    request.getfixturevalue("halves")
    quick = job_seconds(job)
    request.getfixturevalue("no_halves")
    assert job_seconds(job) > quick


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("kind", ["train", "tile"])
def test_estimates_follow_the_width_of_vectors(study, tmp_path, monkeypatch, kind):
    job = next(job for job in make_plan(study, out=tmp_path / "runs").jobs if job.kind == kind)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(_processor, "_processor_multiplies_halves", lambda: True)
    seconds = []
    for flags in ("avx2 avx512f avx512_bf16", "avx2", "avx512f", ""):
        monkeypatch.setattr(_processor, "_cpuinfo", lambda flags=flags: flags)
        _processor.has_narrow_vectors.cache_clear()
        seconds.append(job_seconds(job))
    wide, narrow, *others = seconds
    assert narrow > wide
    assert others == [wide, wide]  # where nothing is told, too


def test_the_time_of_training_on_a_gpu_does_not(study, tmp_path, request):
    plan = make_plan(study, out=tmp_path / "runs", device="cuda")
    job = next(job for job in plan.jobs if job.kind == "train")
    request.getfixturevalue("halves")
    seconds = job_seconds(job)
    request.getfixturevalue("no_halves")
    assert job_seconds(job) == seconds


@pytest.mark.usefixtures("no_halves")
def test_a_study_that_asks_for_fast_agrees_with_itself(study, tmp_path):
    store = run_study(study, out=tmp_path / "runs", only=["surfaces"])
    plan = make_plan(study, out=store.root)
    surface = next(job for job in plan.jobs if job.kind == "surface")
    found = store.open_payload("surface", surface.digest, "surface.zarr")
    assert (found.attrs["precision"], found.attrs["repeated"]) == ("fast", 0)
    assert all(agrees for _, agrees in check_results(store))
