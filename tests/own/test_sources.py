"""Which files decide the name of a result: those a function's file imports, and no others."""

import hashlib
import importlib
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flatminima.own import open_networks, plan_line
from flatminima.own.objects import load_object
from flatminima.own.sources import source_digest, watched

LAYER = """
from torch import nn

def layer(): return nn.Linear(6, 4)
"""
DATA = """
import torch

def load():
    draws = torch.randn(20, 7, generator=torch.Generator().manual_seed(3))
    return draws[:, :6], draws[:, 6].mul(3).long() % 4
"""
# What stands in net.py, and the file beside it that it needs.
FORMS = {
    "import": ("import layers\ndef build(): return layers.layer()", "layers.py"),
    "from": ("from layers import layer as build", "layers.py"),
    "all": ("from layers import *\nbuild = layer", "layers.py"),
    "as": ("import layers as l\nbuild = l.layer", "layers.py"),
    "indirect": ("from middle import build", "layers.py"),
    "a package": ("from parts import build", "parts/__init__.py"),
    "relative": ("from parts import build", "parts/inner.py"),
    "relative, upwards": ("from parts.deep.bottom import build", "parts/inner.py"),
    "a submodule": ("import parts.inner\nbuild = parts.inner.layer", "parts/inner.py"),
    "its package": ("import parts.inner\nbuild = parts.inner.layer", "parts/__init__.py"),
    "without __init__": ("from loose.inner import layer as build", "loose/inner.py"),
    "in the function": (
        "def build():\n    from layers import layer\n    return layer()",
        "layers.py",
    ),
    "by a name": (
        "import importlib\ndef build(): return importlib.import_module('layers').layer()",
        "layers.py",
    ),
    "by a computed name": (
        "import importlib\ndef build(): return importlib.import_module('lay' + 'ers').layer()",
        "layers.py",
    ),
    "by a computed name, indirectly": (
        "import importlib\ndef build(): return importlib.import_module('mid' + 'dle').build()",
        "layers.py",
    ),
    "when it is called": (
        "from torch import nn\nclass build(nn.Linear):\n"
        "    def __init__(self): super().__init__(6, 4)\n"
        "    def forward(self, x):\n"
        "        import importlib\n"
        "        importlib.import_module('lay' + 'ers')\n"
        "        return super().forward(x)",
        "layers.py",
    ),
    "on a condition": ("from layers import layer as build\nif False: import rare", "rare.py"),
}  # fmt: skip
UNUSED = "spare.py"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of code and two checkpoints; what is imported from it is forgotten afterwards."""
    inner = "from .inner import layer as build\n"
    for name, text in {
        "layers.py": LAYER,
        "middle.py": "from layers import layer as build\n",
        "parts/__init__.py": inner,
        "parts/inner.py": LAYER,
        "parts/deep/__init__.py": "",
        "parts/deep/bottom.py": "from ..inner import layer as build\n",
        "loose/inner.py": LAYER,
        "rare.py": "",
        UNUSED: LAYER,
        "reading.py": DATA,
        "measures.py": "import layers\ndef own_loss(outputs, targets): return outputs.sum(1)\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for seed, name in enumerate(["a.safetensors", "b.safetensors"]):
        generator = torch.Generator().manual_seed(seed)
        state = {"weight": torch.randn(4, 6, generator=generator), "bias": torch.zeros(4)}
        save_file(state, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    forget()


def forget(*names):
    """Modules of the folder are imported anew next time, as in another process."""
    here = str(Path.cwd())
    for name, module in [*sys.modules.items()]:
        # A package without __init__ has no file, only places.
        paths = [getattr(module, "__file__", None) or "", *vars(module).get("__path__", [])]
        if (not names or name in names) and any(str(path).startswith(here) for path in paths):
            del sys.modules[name]
    importlib.invalidate_caches()


def edit(file):
    Path(file).write_text(Path(file).read_text() + "\n# edited\n")


def line(model="net:build", **options):
    own = open_networks(model, ["a.safetensors", "b.safetensors"], "reading:load", **options)
    return plan_line(own, resolution=3).result.digest


@pytest.mark.parametrize("form", FORMS)
def test_a_result_has_another_name_after_any_file_behind_it_was_edited(form):
    text, file = FORMS[form]
    Path("net.py").write_text(text)
    before = line()
    assert line() == before  # in the same process, where all is imported already
    forget()
    assert line() == before
    forget()
    edit(UNUSED)
    edit("reading.py")  # the data are named by what they are
    assert line() == before
    forget()
    edit(file)
    assert line() != before


def test_a_file_without_imports_of_its_folder_has_its_own_digest(folder):
    Path("net.py").write_text(f"import torch, json, numpy\nimport flatminima\n{LAYER}")
    load_object("net:layer", "--model")
    want = hashlib.sha256((folder / "net.py").read_bytes()).hexdigest()
    assert source_digest("net:layer") == want


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("parts:build", "parts/inner.py"),
        ("parts.inner:layer", "parts/__init__.py"),
        ("parts.deep.bottom:build", "parts/deep/__init__.py"),
        ("parts/inner.py:layer", "parts/inner.py"),
        ("loose/inner.py:layer", "loose/inner.py"),
    ],
)
def test_a_function_in_a_package_depends_on_the_package(model, file):
    before = line(model)
    forget()
    assert line(model) == before
    forget()
    edit(file)
    assert line(model) != before


def test_a_loss_has_its_files_too():
    Path("net.py").write_text("from torch import nn\ndef build(): return nn.Linear(6, 4)\n")
    before = line(loss="measures:own_loss"), line()
    forget()
    edit("layers.py")
    after = line(loss="measures:own_loss"), line()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_what_is_imported_already_counts_all_the_same():
    Path("net.py").write_text(FORMS["indirect"][0])
    sys.path.insert(0, str(Path.cwd()))
    importlib.import_module("middle")
    before = line()
    forget("net")
    assert line() == before
    forget()
    assert line() == before


def test_installed_packages_do_not_count(folder, monkeypatch):
    place = folder / "venv/lib/python3.11/site-packages"
    place.mkdir(parents=True)
    (place / "installed.py").write_text("import layers\n")
    monkeypatch.syspath_prepend(str(place))
    Path("net.py").write_text(f"import installed\n{LAYER}")
    load_object("net:layer", "--model")
    assert (
        source_digest("net:layer") == hashlib.sha256((folder / "net.py").read_bytes()).hexdigest()
    )


def test_the_folder_may_be_moved(folder, monkeypatch):
    Path("net.py").write_text(FORMS["relative"][0])
    before = line()
    forget()
    shutil.copytree(folder, folder / "moved")
    monkeypatch.chdir(folder / "moved")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    assert line() == before


@pytest.mark.parametrize("file", ["net.py", "layers.py"])
def test_code_that_was_edited_after_it_ran_is_not_taken_for_the_new_one(file):
    Path("net.py").write_text(FORMS["from"][0])
    before = line()
    edit(file)
    with pytest.raises(ValueError, match=f"expected {file} as it was when it was imported"):
        line()
    importlib.reload(sys.modules[file.removesuffix(".py")])
    assert line() != before


@pytest.mark.parametrize(
    "text",
    [
        "from . import layers",
        "from .... import nothing",
        "import gone, os.gone\nfrom gone import other",
        "x = '\\d'\nfrom layers.gone import y",
        "__import__('layers', globals())\nimport_module()\nimport_module(x)",
        "import_module('.layers')\nimport_module('..layers', 'pack')",
    ],
)
@pytest.mark.filterwarnings("ignore:.*invalid escape")
def test_imports_that_lead_nowhere_do_no_harm(text):
    Path("pack").mkdir()
    Path("pack/__init__.py").write_text("")
    for file in ("odd.py", "pack/odd.py"):
        Path(file).write_text(f"def never():\n{textwrap.indent(text, '    ')}\n")
    Path("plain.py").write_text("def f(): pass\nimport odd, pack.odd\n")
    with watched("plain:f"):
        load_object("plain:f", "--model")
    assert len(source_digest("plain:f")) == 64
