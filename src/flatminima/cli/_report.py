"""What `flatminima report` does."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from flatminima.cli._own import is_networks, write_page
from flatminima.cli._run import write_own_report
from flatminima.store import Store, StoreError
from flatminima.study.config import load_study

Source = tuple[Store, str]
"""A study and the store it is in."""


def report(studies: Sequence[str], *, out: Path, to: Path | None) -> None:
    """`flatminima report`."""
    sources = find_studies(studies, out)
    (store, name), *beside = sources
    own = [source for source in sources if is_networks(*source)]
    if own and (len(own) < len(sources) or to is not None):
        raise ValueError(
            f"expected {own[0][1]!r}, which holds measurements of own networks, without studies and"
            " without --to, got more; report it by itself"
        )
    if own:
        for store, name in own:
            with store.lock():
                print(write_page(store, name))
        return
    if to is not None:
        # Nothing is written in the stores, so a published one may be read where it lies.
        print(_write(sources, to))
        return
    if any(other.root.resolve() != store.root.resolve() for other, _ in beside):
        raise ValueError(
            "expected --to FOLDER for a report on studies of several stores, got none; say where "
            "the page goes"
        )
    with store.lock():
        if beside:
            # No study is called so: names have no plus sign.
            print(_write(sources, store.report_folder("+".join(name for _, name in sources))))
        else:
            print(write_own_report(store, name))


def find_studies(studies: Sequence[str], out: Path) -> list[Source]:
    """Every study that is meant, with its store.

    Args:
        studies: Study files and names of studies in the store at `out`, and folders of stores, for
            all of their studies. A name in `out` is meant rather than a folder of that name.
        out: The store of files and names.

    Raises:
        StoreError: If a folder is no store or an empty one, or `out` is needed and is none.
        ValueError: If a study file is not valid.
    """
    return [source for text in studies for source in _find(text, out)]


def _find(text: str, out: Path) -> Iterator[Source]:
    path = Path(text)
    if text.endswith(".toml") or path.is_file():
        yield Store(out), load_study(text).name
    elif (out / "store.json").exists() and text in Store(out).studies():
        yield Store(out), text
    elif (path / "store.json").exists():
        store = Store(path)
        names = store.studies()
        if not names:
            raise StoreError(f"expected a study in the store {path}, got none; run one there first")
        for name in names:
            yield store, name
    elif path.is_dir():
        raise StoreError(
            f"expected a study's name, its file or a store, got the folder {path} without "
            "store.json; name the store's folder"
        )
    else:
        yield Store(out), text


def _write(sources: Sequence[Source], to: Path) -> Path:
    from flatminima.report import write_report

    (store, name), *beside = sources
    return write_report(store, [name], to, beside=beside)
