"""Which of a user's files a function comes from, and their common digest.

A result depends on the file that holds a function and on every file of the user's that it imports,
directly or not. Import statements are read from the files, wherever they stand, so that one inside
a function counts whether or not the function was called, and a module that is imported already
counts like a new one. Modules whose names are computed while the program runs are seen when they
come in: `watched` notes them.

The user's files are all but the standard library, installed packages and flatminima itself.
"""

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

from flatminima.own.objects import module_of

# What came in, beside what the files' import statements say, with a module that was asked for.
_BROUGHT: WeakKeyDictionary[ModuleType, set[str]] = WeakKeyDictionary()
# Files as they were when first seen: a module that was loaded before is not run again.
_SEEN: WeakKeyDictionary[ModuleType, tuple[object, str]] = WeakKeyDictionary()
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_NOT_OWN = tuple(
    Path(folder)
    for path in (
        Path(__file__).parents[1],
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
    )
    for folder in (os.path.abspath(path), os.path.realpath(path))
)


def source_digest(name: str) -> str:
    """The sha256 of the files that `module:object` comes from.

    Of a file that imports no other file of the user's it is the sha256 of its bytes.

    Args:
        name: What was loaded by `load_object`.

    Returns:
        Hexadecimal; an empty text for a module without a file.

    Raises:
        ValueError: If a file was changed after it was imported: its name would stand for code that
            was not run.
    """
    module = module_of(name)
    file = getattr(module, "__file__", None)
    if module is None or not file:
        return ""
    first = _digest(Path(file), module)
    others = {
        each: _digest(path, sys.modules.get(each))
        for each, path in _others(module, file)
        if path.stat().st_size  # an empty file, as of many packages, does nothing
    }
    if not others:
        return first
    lines = [first, *(f"{each} {digest}" for each, digest in sorted(others.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def watched(name: str) -> Iterator[None]:
    """Note the user's modules that come in meanwhile as belonging to `module:object`."""
    before = set(sys.modules)
    yield
    module = module_of(name) if ":" in name else None
    if module is not None:
        files = {
            each: getattr(sys.modules[each], "__file__", None) for each in {*sys.modules} - before
        }
        found = {each for each, file in files.items() if isinstance(file, str) and _is_own(file)}
        _BROUGHT.setdefault(module, set()).update(found)


def _digest(path: Path, module: ModuleType | None) -> str:
    """The sha256 of a file, which must be the one that its module was made of."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if module is None:
        return digest
    spec = module.__spec__  # a module that is reloaded gets a new one
    seen = _SEEN.get(module)
    if seen is None or seen[0] is not spec:
        _SEEN[module] = (spec, digest)
    elif seen[1] != digest:
        raise ValueError(
            f"expected {path.name} as it was when it was imported, got a changed file, whose code"
            " has not run; start Python again"
        )
    return digest


def _others(start: ModuleType, file: str) -> Iterator[tuple[str, Path]]:
    """The user's modules that a module depends on, by name, each file once."""
    known = {os.path.realpath(file)}
    # The packages that it lies in were run before it.
    todo = [start.__name__, *_imports(Path(file), start.__package__ or "")]
    todo += sorted(_BROUGHT.get(start, ()))
    while todo:
        for spec in _specs(todo.pop(0)):
            path = Path(str(spec.origin))
            if os.path.realpath(path) in known:
                continue
            known.add(os.path.realpath(path))
            yield spec.name, path
            inside = spec.submodule_search_locations is not None
            todo += _imports(path, spec.name if inside else spec.name.rpartition(".")[0])


def _imports(path: Path, package: str) -> Iterator[str]:
    """The names in a file's import statements, in full, and those of their members."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the user's code, which Python has given before
            tree = ast.parse(path.read_bytes() if path.suffix == ".py" else b"")
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                with suppress(ImportError):  # beyond the package
                    base = importlib.util.resolve_name("." * level + (module or ""), package)
                    yield base
                    yield from (f"{base}.{each}" for each in _members(base, names))
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                with suppress(ImportError):
                    yield importlib.util.resolve_name(name, package)


def _members(base: str, names: list[ast.alias]) -> Iterator[str]:
    """What an import statement takes out of a module; of all only what the module says."""
    for each in names:
        if each.name != "*":
            yield each.name
        else:
            yield from map(str, getattr(sys.modules.get(base), "__all__", ()))


def _specs(name: str) -> Iterator[ModuleSpec]:
    """The user's modules on the way to a dotted name, the packages that it lies in first."""
    places: list[str] | None = None
    parts = name.split(".")
    for depth in range(len(parts)):
        spec = _spec(".".join(parts[: depth + 1]), places)
        if spec is None:
            return
        if spec.has_location and spec.origin:
            if not _is_own(spec.origin):
                return  # what is installed does not import what is not
            yield spec
        if spec.submodule_search_locations is None:
            return
        places = list(spec.submodule_search_locations)


def _spec(name: str, places: list[str] | None) -> ModuleSpec | None:
    """Where a module came from, or would come from; nothing is imported."""
    held = getattr(sys.modules.get(name), "__spec__", None)
    if held is not None:
        return held if isinstance(held, ModuleSpec) else None
    for finder in sys.meta_path:
        with suppress(Exception):  # of other people's finders
            found = finder.find_spec(name, places, None)
            if found is not None:
                return found
    return None


def _is_own(file: str) -> bool:
    """Whether a file is neither installed nor of the standard library nor of flatminima."""
    given, real = Path(os.path.abspath(file)), Path(os.path.realpath(file))
    if not real.is_file() or _INSTALLED & {*given.parts}:
        return False
    return not any(path.is_relative_to(each) for path in (given, real) for each in _NOT_OWN)
