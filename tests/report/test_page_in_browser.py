"""The page in a real browser: both surfaces are drawn, and every button changes what is drawn."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flatminima as fm
from cases import perceptron, points
from flatminima.report import write_networks_report, write_report
from flatminima.store import Store, dataset_to_files

pytestmark = pytest.mark.browser

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--use-gl=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
]
_DRAWN = "n => document.querySelectorAll('.scene[data-ready]').length === n"
_SLOW = 120_000  # milliseconds: software rendering on a busy machine
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no browser found: none of {', '.join(_NAMES)} is on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(synthetic_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(synthetic_store(), ["synthetic"], tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def both(synthetic_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two data sets, one of them with planes under three BatchNorm policies."""
    mnist = synthetic_store(name="mnist", resolution=6)
    cifar = synthetic_store(
        name="cifar", resolution=8, dataset="cifar10", policies=("keep", "interpolate")
    )
    out = tmp_path_factory.mktemp("both")
    return write_report(mnist, ["mnist"], out, beside=[(cifar, "cifar")])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page on three networks of somebody's own: a surface and nothing else."""
    networks = [perceptron(seed) for seed in range(3)]
    plane = fm.Subspace.through(*networks)
    surface = fm.loss_surface(fm.Landscape(networks[0], points()), plane, resolution=5)
    files = dataset_to_files("surface.zarr", surface.assign_attrs(networks=["a", "b", "c"]))
    store = Store(tmp_path_factory.mktemp("own") / "store", create=True)
    store.write("surface", "0" * 64, files, settings={})
    jobs = [{"kind": "surface", "digest": "0" * 64}]
    store.write_manifest("mine", {"settings": {"kind": "networks", "title": "mine"}, "jobs": jobs})
    return write_networks_report(store, "mine", store.report_folder("mine"))


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Opens the report; afterwards nothing may have gone wrong or asked for anything outside."""
    wrong: list[str] = []
    contexts = []

    def open_at(
        size: str = "laptop", scheme: str = "light", path: Path = report, scenes: int = 2
    ) -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_SLOW)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_function(_DRAWN, arg=scenes)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert wrong == []


def heights(page: Any, scene: int) -> list[float]:
    """All plotted heights of a surface, without its holes."""
    found: list[float] = page.evaluate(
        "i => document.getElementById(`scene-0-${i}`).data[0].z"
        ".map(line => Array.from(line)).flat().filter(z => z !== null)",
        scene,
    )
    return found


def press(page: Any, name: str) -> str:
    """Click a toggle and return the state that it announces."""
    button = page.locator(f"[data-toggle={name}]")
    button.click()
    return str(button.get_attribute("aria-pressed"))


def test_toggles_change_what_is_plotted(open_page: Callable[..., Any]) -> None:
    page = open_page()
    clipped = [heights(page, scene) for scene in (0, 1)]
    assert [len(z) for z in clipped] == [256, 246]  # ten holes
    assert all(max(z) == 3.5 for z in clipped)

    assert press(page, "clip") == "false"
    whole = [heights(page, scene) for scene in (0, 1)]
    assert all(max(z) > 3.5 for z in whole)
    assert all(min(a) == min(b) for a, b in zip(whole, clipped, strict=True))

    assert press(page, "log") == "true"
    logarithmic = [heights(page, scene) for scene in (0, 1)]
    for z, loss in zip(logarithmic, whole, strict=True):
        assert max(z) == pytest.approx(math.log10(max(loss)))
        assert min(z) < 0
    assert "logarithmic, not clipped" in page.locator(".scale .name").inner_text()

    press(page, "log")
    press(page, "clip")
    assert [heights(page, scene) for scene in (0, 1)] == clipped


def test_surfaces_share_colours_and_turn_together(open_page: Callable[..., Any]) -> None:
    page = open_page()
    ranges = page.evaluate(
        "[0, 1].map(i => document.getElementById(`scene-0-${i}`).data[0])"
        ".map(d => [d.cmin, d.cmax])"
    )
    assert ranges[0] == ranges[1] == [0, 3.5]
    eyes = (
        "[0, 1].map(i => document.getElementById(`scene-0-${i}`)._fullLayout.scene.camera.eye)"
        ".map(eye => [eye.x, eye.y, eye.z])"
    )
    before = page.evaluate(eyes)
    assert before[0] == before[1]
    page.locator("#view-0").scroll_into_view_if_needed()
    box = page.locator("#scene-0-0").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 80, y - 10, steps=4)
    page.mouse.up()
    page.wait_for_function(
        f"before => {{ const [a, b] = {eyes}; return a[0] !== before && "
        "a.every((value, i) => Math.abs(value - b[i]) < 1e-9); }",
        arg=before[0][0],
    )
    page.locator("[data-reset]").click()
    page.wait_for_function(
        f"before => {eyes}.flat().every((v, i) => Math.abs(v - before[i]) < 1e-9)",
        arg=[*before[0], *before[1]],
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_fits_the_screen_and_follows_the_theme(
    open_page: Callable[..., Any], size: str, scheme: str
) -> None:
    page = open_page(size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colour = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(colour)
    theme = page.locator("#theme")
    assert theme.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    theme.click()
    assert page.evaluate(colour) != first
    assert theme.get_attribute("aria-pressed") == str(scheme == "light").lower()


@pytest.mark.parametrize(("size", "scheme"), [("laptop", "light"), ("phone", "dark")])
def test_a_page_of_several_studies_fits_the_screen(
    open_page: Callable[..., Any], both: Path, size: str, scheme: str
) -> None:
    page = open_page(size, scheme, both, scenes=4)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # Two planes of one data set, and two under three policies.
    boxes = [figure.bounding_box() for figure in page.locator("#_figures svg").all()]
    assert len(boxes) == 2 + 2 * 3
    width, _ = SIZES[size]
    assert all(box["width"] > 200 and box["x"] + box["width"] <= width for box in boxes)
    rows = {round(box["y"]) for box in boxes}
    assert len(rows) == {"laptop": 3, "phone": 8}[size]
    scroll = "e => [e.scrollWidth, e.clientWidth]"
    needed, given = page.locator("#_table-1 .scroll").evaluate(scroll)
    assert (needed <= given) == (size == "laptop")
    for link in page.locator("header nav a").all():
        assert page.locator(f"[id='{link.get_attribute('href')[1:]}']").count() == 1


@pytest.mark.parametrize("size", SIZES)
def test_the_page_on_own_networks_draws_their_surface(
    open_page: Callable[..., Any], own: Path, size: str
) -> None:
    page = open_page(size, path=own, scenes=1)
    assert len(heights(page, 0)) == 25
    assert press(page, "clip") == "false"
    width = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0
