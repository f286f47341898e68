"""Checkpoints from strangers, read as data: nothing in a file is ever run, nothing is written.

Tensors stay in the file (memory-mapped) until the wanted ones are known, so that the moments of an
optimizer in a training checkpoint cost no memory; what is returned is a copy.
"""

import argparse
import json
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from flatminima.checkpoints.fit import fit, fitting_prefixes, memory_of, unwrapped

# Where training scripts and Lightning keep the state dict of a larger checkpoint.
_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# The names of transformers, in the order in which it prefers them; then those of peft.
_INDEX = ".index.json"
_MODELS = (
    *("model.safetensors", f"model.safetensors{_INDEX}"),
    *("pytorch_model.bin", f"pytorch_model.bin{_INDEX}"),
)
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
# What torch.save wrote at the start of every file before it wrote zip files (torch < 1.6).
_OLD_TORCH = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
# A file may hold a small tensor expanded to a larger one, but not by this factor over all.
_BLOAT = 16
# Narrower floats are quantised: they mean nothing without their scales.
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_WHOLE = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
_DTYPES = {getattr(torch, name) for name in (*_FLOATS, *_WHOLE)}
# What scripts save beside the weights: options as they came from the command line, which can only
# hold what may be read anyhow.
_HARMLESS: list[Any] = [argparse.Namespace]
_CHECKPOINT = "a safetensors or torch file of tensors"
_UNRUN = "is not unpickled, as that runs code"
_AGAIN = "fetch or save it again"
_RESAVE = (
    "save it again where you trust it, with torch.save(model.state_dict(), ...) or as safetensors"
)


def load_state(
    path: str | Path, *, network: nn.Module | None = None, prefix: str | None = None
) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint from anywhere, as data.

    `path` is a safetensors file, a torch file (a state dict, bare or under `state_dict`,
    `model_state_dict`, `model`, `net` or `weights`, the first of these that holds one), a Lightning
    checkpoint, or a folder: of transformers (one file or shards), of peft, or with one checkpoint
    in it. The contents decide, not the suffix. Only what `torch.load(weights_only=True)` takes is
    read, so a pickled module or object is refused unrun.

    The parts `module.` and `_orig_mod.`, which DDP and `torch.compile` put into names, are taken
    off where the network lacks them; without a network, where all names have them.

    A peft adapter holds nothing but its own tensors. With `network` (wrapped by peft, with one
    adapter) they get the network's names, and the network's own tensors complete the state.

    Args:
        path: The file or the folder.
        network: Checks names and shapes. The outcome then has the names and the order of its state
            dict (tied weights under each of their names). A missing `num_batches_tracked` is the
            network's own.
        prefix: Taken off the names, such as `"model."`; tensors without it are left out.

    Returns:
        Tensors on the CPU in their stored types; sorted by name without `network`.

    Raises:
        ValueError: If there is no such file, it is damaged or no checkpoint, would have to be
            unpickled, holds other than dense tensors, or does not fit the network.
    """
    file = _locate(Path(path))
    found = _read_shards(file) if file.name.endswith(_INDEX) else _read_file(file)
    inner = _below(found, prefix, file) if prefix else found
    if network is None:
        return _copies(unwrapped(inner))
    adapter = file.name in _ADAPTERS
    state, faults = fit(inner, network, adapter=adapter)
    if faults:
        cure = "check that it comes from the same architecture"
        if adapter:
            cure = "give the network that peft made for this adapter"
        elif fitting := fitting_prefixes(found, network):
            cure = "pass " + " or ".join(f'prefix="{start}"' for start in fitting)
        kind = f"the tensors of {type(network).__name__}"
        got = ", ".join(f"{verb} {_some(names)}" for verb, names in faults.items())
        raise _wrong(f"{file}, which {got}", cure, kind)
    return _copies(state)


def _wrong(got: str, cure: str, expected: str = _CHECKPOINT) -> ValueError:
    """An error of one line, whatever a stranger's names hold."""
    line = f"expected {expected}, got {got}; {cure}"
    return ValueError("".join(char if char.isprintable() else "?" for char in line))


def _some(names: Iterable[object]) -> str:
    """The first few of `names`, for a message of one line."""
    every = [str(name) for name in names]
    shown = ", ".join(name if len(name) <= 80 else name[:77] + "..." for name in every[:3])
    return shown + (f" and {len(every) - 3} more" if len(every) > 3 else "")


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader makes of a stranger's bytes into one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"asks for {_some([named[1]])}" if named else "holds more than tensors"
        raise _wrong(f"{path}, which {asks} and {_UNRUN}", _RESAVE) from None
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise _wrong(f"{path}: {reason}", "check the path", kind) from None
    except Exception as error:  # readers raise nearly anything on damaged files
        reason = f"which is none or damaged ({_first_line(error)})"
        raise _wrong(f"{path}, {reason}", _AGAIN, kind) from None


def _first_line(error: Exception) -> str:
    """The start of a reader's own message."""
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__


def _locate(path: Path) -> Path:
    """The file to read for `path`, a regular file or a folder that holds one checkpoint."""
    with _reading(path, "a checkpoint or a folder with one"):
        mode = path.stat().st_mode
        folder = stat.S_ISDIR(mode)
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file()) if folder else []
    if not folder and not stat.S_ISREG(mode):
        raise _wrong(f"{path}, a pipe or a device", "give a regular file")
    if not folder:
        return path
    known = [next((name for name in kind if name in names), "") for kind in (_MODELS, _ADAPTERS)]
    choices = [name for name in known if name]
    choices = choices or [name for name in names if name.lower().endswith(_SUFFIXES)]
    if not choices:
        kind = f"a folder with a checkpoint ({', '.join(_SUFFIXES)})"
        held = f"with {_some(names)}" if names else "which has no files"
        raise _wrong(f"{path} {held}", "give the checkpoint itself", kind)
    if len(choices) > 1:
        held = f"with {_some(choices)}"
        raise _wrong(f"{path} {held}", "give one of them", "one checkpoint in a folder")
    return path / choices[0]


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors that an index lists, from the shards beside it."""
    kind = "an index with a weight_map of tensors and shards"
    with _reading(path, kind):
        table = dict(json.loads(path.read_bytes())["weight_map"])
        shards = sorted(set(table.values()))
        outside = [s for s in shards if s in ("", "..") or "\\" in s or Path(s).name != s]
        missing = [s for s in shards if not outside and not (path.parent / s).is_file()]
    if outside:
        kind = "shards beside their index"
        raise _wrong(f"{_some(outside)} in {path}", "do not trust this folder", kind)
    if missing:
        raise _wrong(f"no {_some(missing)}", "fetch them too", f"every shard that {path} lists")
    held = {shard: _read_file(path.parent / shard) for shard in shards}
    lacking = [f"{name} in {shard}" for name, shard in table.items() if name not in held[shard]]
    if lacking or not table:
        got = f"no {_some(lacking)}" if lacking else "none"
        raise _wrong(got, _AGAIN, f"every tensor that the weight_map of {path} lists")
    return {name: held[shard][name] for name, shard in table.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, whose first bytes say what it is."""
    with _reading(path, _CHECKPOINT), path.open("rb") as handle:
        head = handle.read(64)
        size = path.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        raise _wrong(f"{path}, a Git LFS pointer to one", "run git lfs pull")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        found = _read_torch(path, zipped=True)
    elif _OLD_TORCH in head[:32]:
        found = _read_torch(path, zipped=False)
    elif head[8:9] == b"{" or (head and path.suffix == ".safetensors"):
        kind = "a safetensors file"
        with _reading(path, kind), safetensors.safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    elif re.match(rb"\x80[\x02-\x05]", head):
        raise _wrong(f"{path}, which is a pickle and {_UNRUN}", _RESAVE)
    else:
        raise _wrong(f"{path}, which is {'neither' if head else 'empty'}", _AGAIN)
    _check_tensors(found, path, size)
    return found


def _check_zip(path: Path, size: int) -> None:
    """Refuse zip files that torch.save did not write, before torch opens them."""
    with _reading(path, "a torch file"), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    root = names[0].partition("/")[0] if names else ""
    if f"{root}/data.pkl" not in names:
        raise _wrong(f"{path}, a zip file of something else", "give the checkpoint")
    if f"{root}/constants.pkl" in names:
        raise _wrong(f"{path}, a TorchScript program, which is not run", _RESAVE)
    # torch.save stores without compression, so that contents beyond the file's own size are a bomb.
    strange = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    strange = strange or sum(entry.file_size for entry in entries) > size
    if strange or any(n.split("/")[0] != root or ".." in n.split("/") for n in names):
        kind = "a zip file with compressed, overlapping or outside entries"
        raise _wrong(f"{path}, {kind}", "do not trust it")


def _read_torch(path: Path, *, zipped: bool) -> dict[str, Tensor]:
    """The state dict in a torch file."""
    # torch takes any path of this suffix for safetensors; and it maps only paths.
    mapped = zipped and not path.name.endswith(".safetensors")
    options: dict[str, Any] = {"map_location": "cpu", "mmap": mapped}
    harmless = torch.serialization.safe_globals(_HARMLESS)
    with _reading(path, "a torch file"), path.open("rb") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with harmless:
            content = torch.load(path if mapped else handle, weights_only=True, **options)
    for _ in range(4):  # a hostile file can nest without end
        if _is_state(content):
            return dict(content)
        inner = [content.get(key) for key in _HOLDERS] if isinstance(content, dict) else []
        inner = [value for value in inner if isinstance(value, dict) and value] or [content]
        content = next((value for value in inner if _is_state(value)), inner[0])
    held = f"a {type(content).__name__}"
    if isinstance(content, dict):
        keys = [f"{key!s:.80} ({type(value).__name__})" for key, value in content.items()]
        held = f"the keys {_some(keys)}" if keys else "an empty dict"
    kind = f"a state dict, bare or under {', '.join(_HOLDERS)}"
    raise _wrong(f"{path} with {held}", "save model.state_dict() alone", kind)


def _is_state(content: object) -> bool:
    """Whether `content` is a mapping of names to tensors, and nothing else."""
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def _check_tensors(found: Mapping[str, Tensor], path: Path, size: int) -> None:
    """Refuse types and sizes that no plain state dict has."""
    if not found:
        raise _wrong(f"{path} without tensors", _AGAIN)
    for name, value in found.items():
        plain = type(value) in (Tensor, nn.Parameter) and not value.is_nested
        dense = value.layout == torch.strided and value.device.type == "cpu"
        if not (plain and dense and value.dtype in _DTYPES):
            form = f"{value.layout} {value.dtype} on {value.device}".replace("torch.", "")
            got = f"{_some([name])} ({type(value).__name__}, {form}) in {path}"
            kind = "dense tensors of integers or of floats of 16 bits and more"
            raise _wrong(got, "save the network unquantised and dense", kind)
    total = sum({memory_of(value): value.nbytes for value in found.values()}.values())
    if total > _BLOAT * size:
        kind = f"tensors of about the size of the file ({size} bytes)"
        raise _wrong(f"{total} bytes in {path}", "save contiguous tensors", kind)


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in memory of their own; tied ones stay one tensor."""
    made: dict[tuple[object, ...], Tensor] = {}
    for value in state.values():
        if (place := memory_of(value)) not in made:
            made[place] = value.detach().clone(memory_format=torch.contiguous_format)
    return {name: made[memory_of(value)] for name, value in state.items()}


def _below(found: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    start = prefix if prefix.endswith(".") else prefix + "."
    inner = {name[len(start) :]: v for name, v in found.items() if name.startswith(start)}
    if not inner:
        kind = f"names that start with {start}"
        raise _wrong(f"{_some(found)} in {path}", "use a prefix that they have", kind)
    return inner
