"""What an import loads, and which room may know which."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import flatminima

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "xarray", "zarr", "scipy", "matplotlib", "plotly", "sklearn", "ray", "curvlinops"}

# With each, what it may load of the heavy packages: nothing.
LIGHT = [
    "flatminima",
    "flatminima.cli",
    "flatminima.data",
    "flatminima.data.sources",
    "flatminima.report",
    "flatminima.store",
    "flatminima.study",
    "flatminima.study.config",
    "flatminima.study.plan",
]


def loaded_by(statement):
    """The top-level packages that a fresh interpreter has loaded after a statement."""
    script = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", LIGHT)
def test_importing_a_light_module_loads_nothing_heavy(name):
    assert loaded_by(f"import {name}") & HEAVY == set()


def test_computing_needs_no_plotting_library():
    statement = "import flatminima as fm; fm.Landscape, fm.train, fm.flatness_radius, fm.Dataset"
    loaded = loaded_by(statement)
    assert "torch" in loaded
    assert loaded & {"matplotlib", "plotly", "ray", "curvlinops", "torchvision"} == set()


@pytest.mark.parametrize("name", flatminima.__all__)
def test_every_public_name_leads_somewhere(name):
    found = getattr(flatminima, name)
    assert found.__doc__
    assert name in dir(flatminima)


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'flatnes_radius'"):
        _ = flatminima.flatnes_radius


def test_nothing_imports_torchvision():
    # Its published builds do not load beside a CPU build of torch.
    sources = sorted((ROOT / "src").rglob("*.py"))
    assert sources
    guilty = [path for path in sources if "import torchvision" in path.read_text("utf-8")]
    guilty += [path for path in sources if "from torchvision" in path.read_text("utf-8")]
    assert guilty == []


def test_rooms_import_downwards_only():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_are_marked_as_checked():
    home = Path(import_module("flatminima").__file__).parent
    assert (home / "py.typed").exists()
