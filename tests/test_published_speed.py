"""What README and docs/speed.md say of speed is what the published files say."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_speeds_that_were_measured():
    works = json.loads((ROOT / "results" / "speed" / "cpu.json").read_text())["works"]
    text = " ".join(README[README.index("## Speed") : README.index("## What differs")].split())
    plane = works["mnist-plane"]
    assert all(len(rounds) >= 5 for rounds in plane["rounds"].values())
    for name in ("exact", "fast"):
        assert f"{plane['seconds_per_point'][name]:.3f}" in text
        for other, ratio in plane["times_faster_than"][name].items():
            assert f"{plane['seconds_per_point'][other]:.3f}" in text, other
            # Halves go up, as for a person; 8.95 is a little less than that in binary.
            assert f"{ratio + 1e-9:.1f}" in text, (name, other)
    assert f"{plane['largest_difference_of_fast']:.2g} in loss" in text
    assert f"{plane['largest_relative_difference_of_exact_from_plain']:.1e} of 1 + loss" in text
    assert f"{plane['seconds_per_point']['exact, clip 3.5']:.3f} s a point" in text
    assert f"which {plane['above_clip']} of the {plane['points']} points exceed" in text
    rows = [line for line in README.splitlines() if line.startswith(("| all para", "| top layer"))]
    for work, what, digits in (
        ("mnist-radius", "all parameters, 5 directions", 1),
        ("mnist-radius-top", "top layer, 20 directions", 0),
    ):
        for group in ("natural", "random"):
            found = works[work][group]
            ours, walk = found["seconds"]["exact"], found["seconds"]["walk, reckoned"]
            ratio = found["times_faster_than"]["exact"]["stepwise walk"]
            row = f"| {what}, {group} labels | {ours:.1f} s | {walk:.0f} s | {ratio:.{digits}f} |"
            assert row in rows, row
    whole, last = works["vgg16"]["plane"], works["vgg16"]["last third"]
    for part, name in ((whole, "exact"), (whole, "fast"), (last, "exact")):
        assert f"{part['seconds_per_point'][name]:.2f} s" in text
    assert f"{whole['seconds_per_point']['plain loop']:.2f} s" in text
    units = json.loads((ROOT / "results" / "speed" / "cpu-amx.json").read_text())["works"]
    own = units["vgg16"]["plane"]["seconds_per_point"]
    told = f"`fast` takes {own['fast']:.2f} s a point and the plain loop {own['plain loop']:.2f} s"
    assert told in text


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("cpu", "| Zen 5"),
        ("cpu-zen4", "| Zen 4"),
        ("cpu-avx2", "| Zen 3"),
        ("cpu-amx", "| Xeon"),
    ],
)
def test_the_readme_shows_what_each_processor_did(file: str, row: str) -> None:
    works = json.loads((ROOT / "results" / "speed" / f"{file}.json").read_text())["works"]
    (line,) = (line for line in README.splitlines() if line.startswith(row))
    rates, seconds, exact, fast, *gains = (cell.strip() for cell in line.split("|")[2:-1])
    plane = works["mnist-plane"]
    ratios = plane["times_faster_than"]
    measured = plane["gflop_per_second"]
    kinds = ("float32 product, oneDNN", "float32 product, as torch chooses")
    assert rates == ", ".join(str(measured[kind]) for kind in kinds)
    assert seconds == f"{plane['seconds_per_point']['plain loop'] + 1e-9:.3f} s"
    assert exact == f"{ratios['exact']['plain loop']:.1f}"
    assert fast.removesuffix(" [b]") == f"{ratios['fast']['plain loop']:.1f}"
    assert ("[b]" in fast) == (plane["largest_difference_of_fast"] == 0.0)
    kinds_of_radii = (
        ("mnist-radius", "exact", 1),
        ("mnist-radius", "fast", 1),
        ("mnist-radius-top", "exact", 0),
    )
    for shown, (work, way, digits) in zip(gains, kinds_of_radii, strict=True):
        found = [
            works[work][group]["times_faster_than"][way]["stepwise walk"]
            for group in ("natural", "random")
            if way in works[work][group]["times_faster_than"]
        ]
        assert shown == ", ".join(f"{ratio:.{digits}f}" for ratio in found)


def test_the_readme_shows_radii_in_fast() -> None:
    works = json.loads((ROOT / "results" / "speed" / "cpu-zen4.json").read_text())["works"]
    found = [works["mnist-radius"][group] for group in ("natural", "random")]
    text = " ".join(README.split())
    fast, exact = ([each["seconds"][way] for each in found] for way in ("fast", "exact"))
    told = f"take {fast[0]:.1f} s on natural and {fast[1]:.1f} s on random labels so,"
    assert f"{told} {exact[0]:.1f} s and {exact[1]:.1f} s in `exact`," in text
    samples = {each["fast"]["samples"] for each in found}
    assert f"looked for over {samples.pop():,} of the images" in text
    differ = max(each["fast"]["radii_differ_by"] for each in found)
    assert f"and differ by {differ:.1e} at most" in text
    for each in found:
        assert 3 <= each["fast"]["evaluations"] / each["rays"] <= 4
        assert 7 <= each["evaluations"] / each["rays"] < 8.5


def test_the_page_on_speed_shows_radii_in_fast() -> None:
    works = json.loads((ROOT / "results" / "speed" / "cpu-zen4.json").read_text())["works"]
    text = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    plane, rates = works["mnist-plane"], works["mnist-plane"]["gflop_per_second"]
    gains = [plane["times_faster_than"][way]["plain loop"] for way in ("exact", "fast")]
    assert (
        f"{rates['float32 product, oneDNN']} GFLOP/s, of which `exact` gets {rates['exact']}."
        in text
    )
    assert f"So it is {gains[0]:.1f} times as fast" in text
    assert f"`fast` gets {rates['fast']} of the {rates['bfloat16 product']} that" in text
    assert f"and is {gains[1]:.1f} times as fast." in text
    natural, random = (works["mnist-radius"][group] for group in ("natural", "random"))
    led = f"took {natural['fast']['evaluations']} evaluations over all images on natural and"
    assert f"{led} {random['fast']['evaluations']} on random labels" in text
    assert f"in place of {natural['evaluations']} and {random['evaluations']}," in text
    for way, word in (("fast", "and"), ("exact", "in place of")):
        found = [each["seconds"][way] for each in (natural, random)]
        assert f"{word} {found[0]:.1f} and {found[1]:.1f}" in text
    left = [each["times_faster_than"]["fast"]["stepwise walk"] for each in (natural, random)]
    assert f"leave {left[0]:.1f} and {left[1]:.1f} of it." in text


def test_the_page_on_speed_shows_the_published_radii_in_fast() -> None:
    path = ROOT / "results" / "speed" / "mnist-paper-radii-fast.json"
    found = json.loads(path.read_text())
    text = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    crossing, stepwise = (found[f"all parameters, {name}"] for name in ("crossing", "stepwise"))
    ways = [each["evaluations_per_ray"] for each in (crossing, stepwise)]
    assert (
        f"{crossing['rays']} crossings from {ways[0]['fast']:.2f} evaluations a ray in place of"
        f" {ways[0]['exact']:.2f}, of one ray {ways[0]['fast, at most']} at most;"
        f" {stepwise['rays']} stepwise walks from {ways[1]['fast']:.2f} in place of"
        f" {ways[1]['exact']:.2f}."
    ) in text
    assert f"differ by {crossing['radii_differ_by']:.1e} at most, steps and outcomes not" in text
    assert stepwise["radii_differ_by"] == 0.0
    assert crossing["other_outcomes"] == stepwise["other_outcomes"] == 0
    minutes = found["minutes_of_a_core"]
    assert f"took {minutes['crossing']} and {minutes['stepwise']} minutes of a core." in text
    assert not found["provenance"]["dirty"]


def test_the_page_on_speed_shows_a_processor_without_avx512() -> None:
    works = json.loads((ROOT / "results" / "speed" / "cpu-avx2.json").read_text())["works"]
    text = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    plane, top = works["mnist-plane"], works["mnist-radius-top"]["natural"]
    plain = _plain_rate(plane)
    rates = plane["gflop_per_second"]
    assert f"runs at {plain:.0f} GFLOP/s and `exact` at {rates['exact']}," in text
    assert f"gained, {plane['times_faster_than']['exact']['plain loop']:.1f} times of" in text
    assert f"at {rates['bfloat16 product']} GFLOP/s" in text
    seconds = top["seconds"]
    assert f"the {top['evaluations']} evaluations for 20 directions" in text
    assert f"{seconds['exact']:.1f} s on two cores; a pass of the plain" in text
    assert f"loop takes {seconds['one pass of the plain loop']:.1f}." in text


def test_both_pages_show_convolutions_from_fewer_products() -> None:
    works = json.loads((ROOT / "results" / "speed" / "cpu-avx2.json").read_text())["works"]
    found = works["vgg16"]
    speed = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    plane, last, top = found["plane"], found["last third"], found["radius, top"]
    seconds = plane["seconds_per_point"]
    ratio = f"{plane['times_faster_than']['exact']['plain loop']:.1f} times as"
    ours, loop = f"{seconds['exact']:.2f} s", f"{seconds['plain loop']:.2f} s"
    assert f"a point takes {ours} in `exact` against {loop} by the plain loop, {ratio} long" in (
        " ".join(README.split())
    )
    assert (
        f"takes {ours} in place of the {loop} of the plain loop: `exact` is {ratio} fast" in speed
    )
    assert f"medians of {len(plane['rounds']['exact'])} rounds" in speed
    assert f"a point takes {last['seconds_per_point']['exact']:.2f} s;" in speed
    walk = top["seconds"]
    assert f"take {walk['exact']:.1f} s, the walk in whole passes would take" in speed
    assert f"would take {walk['walk, reckoned']:.0f} s" in speed


def test_the_page_on_speed_shows_a_processor_with_matrix_units() -> None:
    works = json.loads((ROOT / "results" / "speed" / "cpu-amx.json").read_text())["works"]
    text = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    plane, shares = works["mnist-plane"], works["mnist-profile"]["fast"]
    rates, ratios = plane["gflop_per_second"], plane["times_faster_than"]
    assert f"reached {rates['bfloat16 product']} GFLOP/s in bfloat16 against" in text
    assert f"against {rates['float32 product, oneDNN']} in float32" in text
    assert f"`exact` got {rates['exact']} GFLOP/s of it, where the plain" in text
    assert f"the plain loop ran at {_plain_rate(plane):.0f}" in text
    assert f"the same {ratios['exact']['plain loop']:.1f} times" in text
    assert f"`fast` is {ratios['fast']['plain loop']:.1f} times" in text
    adding, rest = shares["adding directions"], shares["activations"] + shares["copies and casts"]
    told = f"{shares['products']:.0%} is still products"
    assert told.replace("%", " %") in text
    assert f"{100 * adding:.0f} % adding directions, and {100 * rest:.0f} % rounding" in text
    assert f"reach {rates['float32 product, of three in bfloat16']} GFLOP/s" in text


def _plain_rate(plane: dict[str, Any]) -> float:
    """GFLOP/s of the plain loop."""
    products = 784 * 800 + 800 * 320 + 320 * 50 + 50 * 10
    return float(2e-9 * 60_000 * products / plane["seconds_per_point"]["plain loop"])


def test_the_readme_says_how_far_another_processor_is_off() -> None:
    keys = ["parameters", "group", "column"]
    folder = ROOT / "results" / "mnist-quick"
    ours, theirs = (
        pd.read_csv(folder / name).query("column != 'published'").set_index(keys)["mean"]
        for name in ("table.csv", "table-avx2.csv")
    )
    assert len(ours) == 12
    off = float((theirs / ours - 1).abs().max())
    assert f"differ by {100 * off:.0f} % at most" in " ".join(README.split())


def test_the_page_on_speed_shows_what_was_measured():
    works = json.loads((ROOT / "results" / "speed" / "cpu.json").read_text())["works"]
    text = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    for name in ("exact", "fast"):
        shares = works["mnist-profile"][name]
        assert f"| `{name}` | {shares['seconds']:.0f} | {100 * shares['products']:.0f} %" in text
    for rate in works["mnist-plane"]["gflop_per_second"].values():
        assert f" {rate} " in text
    for points in (25, 250, 750):
        found = works["mnist-memory"][f"{points} points"]
        assert f"{found['GiB_above']:.2f} GiB for {points} points" in text
        assert found["GiB_above"] < 1.5
    many = works["scaling"]["points"][-1]
    plain = many["seconds"]["plain loop"]
    ratios = [f"{plain / many['seconds'][name]:.1f}" for name in ("exact", "fast")]
    assert f"{ratios[0]} and {ratios[1]} times as fast" in text
    readme = " ".join(README.split())
    assert (
        f"`exact` is {ratios[0]} and `fast` {ratios[1]} times as fast as the plain loop" in readme
    )
    planes = [value for key, value in works["mnist-refined"].items() if "surface" in key]
    assert all(0.19 <= plane["share_evaluated"] <= 0.35 for plane in planes)
    assert all(plane["largest_error"] < 0.024 for plane in planes)


def test_the_page_on_speed_shows_what_a_gpu_did():
    works = json.loads((ROOT / "results" / "speed" / "cuda.json").read_text())["works"]
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    text = " ".join(page[page.index("## On a GPU") :].split())
    plane = works["mnist-plane"]
    about = plane["provenance"]
    assert about["gpu"]["name"] == "NVIDIA H200"
    assert about["commit"]
    assert about["dirty"] is False
    named = {
        "plain loop, float32": "plain loop",
        "plain loop, TF32": "plain loop, TF32",
        "plain loop, bfloat16 by autocast": "plain loop, bfloat16 autocast",
        "loss-landscapes 3.0.6": "loss-landscapes 3.0.6",
        "landscaper 1.3.1": "landscaper 1.3.1",
    }
    seconds, ratios = plane["seconds_per_point"], plane["times_faster_than"]
    for words, name in named.items():
        cells = [f"{ratios[f'{way}, 400 points'][name]:.1f}" for way in ("exact", "fast")]
        assert f"| {words} | {1e3 * seconds[name]:.2f} | {' | '.join(cells)} |" in text, words
    for way in ("exact", "fast"):
        assert f"| `{way}`, 400 points | {1e3 * seconds[f'{way}, 400 points']:.2f} |" in text
        assert f"| `{way}`, 25 points | {1e3 * seconds[way]:.2f} |" in text
    names = ("products", "adding directions", "activations", "copies and casts", "idle")
    shares = {
        way: [f"{100 * works['mnist-profile'][way][name]:.0f} %" for name in names]
        for way in ("exact", "fast")
    }
    products, adding, active, _, idle = shares["exact"]
    assert f"in `exact` {products} of the kernels' time is products, {adding} adding" in text
    assert f"directions, {active} activations, and the GPU waits for {idle} of the time" in text
    products, adding, active, casts, idle = shares["fast"]
    assert f"in `fast` {products}, {adding} and {active}, {casts} are casts" in text
    assert f"and it waits for {idle}." in text
    for group in ("natural", "random"):
        for work, words in (("mnist-radius", f"s ({group})"), ("mnist-radius-top", "s")):
            assert f"{works[work][group]['seconds']['exact']:.2f} {words}" in text
            assert f"{works[work][group]['seconds']['walk, reckoned']:.2f} s" in text
    for points in (25, 250, 750):
        above = works["mnist-memory"][f"{points} points"]["GiB_above"]
        assert f"{above:.2f} GiB for {points} points" in text
    keys = ["parameters", "group", "column"]
    tables = [
        pd.read_csv(ROOT / "results" / path).set_index(keys)["mean"]
        for path in ("speed/mnist-paper-cuda.csv", "mnist-paper/reports/mnist-paper/table.csv")
    ]
    gap = (tables[0] / tables[1] - 1).abs().xs("measured_matched", level="column")
    assert len(gap) == 4
    assert gap.max() < 0.06
