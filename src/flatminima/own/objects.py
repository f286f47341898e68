"""Objects by their names in a user's code: `package.module:factory`, `folder/file.py:factory`."""

import hashlib
import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any


def load_object(name: str, what: str) -> Any:
    """The object called `module:object`, with modules of the current folder in reach.

    Args:
        name: A module or a file, a colon, and a name in it (dots reach into objects).
        what: What it is for, such as "--model", for the error.

    Raises:
        ValueError: If there is no such module, file or name, or it fails when imported.
    """
    home, colon, path = name.partition(":")
    if not (home and colon and path):
        raise ValueError(
            f"expected {what} as module:name or file.py:name, got {name!r}; for a function build in"
            " net.py write net:build"
        )
    found: Any = _module(home, what)
    for part in path.split("."):
        if not hasattr(found, part):
            names = [each for each in dir(found) if not each.startswith("_")]
            close = get_close_matches(part, names, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else "; check the name"
            raise ValueError(f"expected {what} {name!r} to exist, got no {part!r} in {home}{hint}")
        found = getattr(found, part)
    return found


def module_of(name: str) -> ModuleType | None:
    """The module that `module:object` was loaded from, if it was."""
    return sys.modules.get(_module_name(name.partition(":")[0]))


def _module_name(home: str) -> str:
    """A module's name; of a file its stem, unless another file's module has that already."""
    if not home.endswith(".py"):
        return home
    path = Path(home).resolve()
    held = sys.modules.get(path.stem)
    if held is None or Path(getattr(held, "__file__", None) or "").resolve() == path:
        return path.stem
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _module(home: str, what: str) -> ModuleType:
    """Import a module, or a file as the module of its name."""
    folder = Path(home).parent.resolve() if home.endswith(".py") else Path.cwd()
    if home.endswith(".py") and not Path(home).is_file():
        raise ValueError(f"expected the file {home} for {what}, got none; check the path")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return _imported(home)
    except ModuleNotFoundError as error:
        if error.name and f"{_module_name(home)}.".startswith(f"{error.name}."):
            raise ValueError(
                f"expected the module {home!r} for {what}, got none in {folder} or among the"
                " installed packages; check its name, or name the file, such as net.py:build"
            ) from None
        raise ValueError(
            f"expected {what} {home!r} to import, got no module {error.name!r}, which it needs;"
            " install it"
        ) from None
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"expected {what} {home!r} to import, got {type(error).__name__} from it ({error});"
            " run it by itself to see where"
        ) from error


def _imported(home: str) -> ModuleType:
    """The module, run once; a file is that file, whatever else of its name can be imported."""
    name = _module_name(home)
    spec = importlib.util.spec_from_file_location(name, Path(home).resolve())
    if not home.endswith(".py") or name in sys.modules or spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
