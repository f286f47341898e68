"""Carrying, tried with two small sets: one whose digests are of decoded files, one of packed."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from flatminima.cli import main
from flatminima.data import _download, _table, carry, sources
from flatminima.data._table import Source, SourceFile

CONTENTS = {
    "a-images": b"images of the train split " * 400,
    "a-labels": b"labels of the train split",
    "b-images": b"images of the test split " * 100,
    "b-labels": b"labels of the test split",
}


def zipped(content, level=9):
    return gzip.compress(content, level, mtime=0)


def table_of(plain):
    def file(name):
        content = CONTENTS[name]
        packed = zipped(content)
        md5 = f"md5:{hashlib.md5(packed).hexdigest()}"
        if plain:
            sha256 = f"sha256:{hashlib.sha256(content).hexdigest()}"
            return SourceFile(name, len(content), sha256, f"{name}.gz", len(packed), md5)
        return SourceFile(f"{name}.gz", len(packed), md5, f"{name}.gz", len(packed), md5)

    return Source(
        files={
            "train": (file("a-images"), file("a-labels")),
            "test": (file("b-images"), file("b-labels")),
        },
        samples={"train": 4, "test": 4},
        classes=2,
        mean=(0.0,),
        std=(1.0,),
        class_names=("a", "b"),
        folders=("plain" if plain else "packed", "."),
    )


@pytest.fixture
def sets(monkeypatch, tmp_path):
    """A table of two small sets, the cache in a folder of this test, and no network."""
    table = {"plain": table_of(True), "packed": table_of(False)}
    table["bundled"] = Source(
        {"train": (), "test": ()}, {"train": 1}, 2, (0.0,), (1.0,), ("a", "b"), bundled=("x",)
    )
    for module in (_table, sources, carry):
        monkeypatch.setattr(module, "SOURCES", table)
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv(_download.OFFLINE_VARIABLE, "1")
    monkeypatch.delenv(sources.ROOT_VARIABLE, raising=False)
    return table


@pytest.fixture
def pieces(sets, monkeypatch, tmp_path):
    """A folder of the pieces of both sets, carried to a machine whose cache is empty."""
    own = tmp_path / "own"
    own.mkdir()
    for name, content in CONTENTS.items():
        (own / f"{name}.gz").write_bytes(zipped(content))
    monkeypatch.setenv(sources.ROOT_VARIABLE, str(own))
    for name in ("plain", "packed"):
        carry.pack(name, tmp_path / "pieces")
    monkeypatch.delenv(sources.ROOT_VARIABLE)
    shutil.rmtree(own)
    return tmp_path / "pieces"


def assert_right(paths):
    for name, path in paths.items():
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        assert content == CONTENTS[name.removesuffix(".gz")]


def command(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_what_was_packed_and_unpacked_is_the_set(sets, pieces, tmp_path, name):
    arrivals = {came.dataset: came for came in carry.unpack(pieces)}
    came = arrivals[name]
    assert came.in_place == tuple(file.name for file in sets[name].wanted(None))
    assert (came.missing, came.refused) == ((), ())
    assert came.folder == tmp_path / "cache" / name
    assert_right(sources.fetch(name))
    records = [record for record in sources.cached_files() if record.dataset == name]
    assert {(record.state, record.origin) for record in records} == {("verified", "carried")}


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_the_pieces_serve_as_they_lie(sets, pieces, tmp_path, monkeypatch, name):
    monkeypatch.setenv(sources.ROOT_VARIABLE, str(pieces))
    paths = sources.fetch(name)
    assert {path.parent for path in paths.values()} == {pieces / name}
    assert_right(paths)
    assert not (tmp_path / "cache").exists()


def test_the_pieces_have_the_same_bytes_each_time(sets, pieces, tmp_path, monkeypatch):
    first = {path.name: path.read_bytes() for path in (pieces / "plain").iterdir()}
    assert set(first) == {f"{name}.gz" for name in CONTENTS} | {carry.SUMS}
    own = tmp_path / "other"
    own.mkdir()
    for name, content in CONTENTS.items():
        (own / f"{name}.gz").write_bytes(zipped(content, level=1))
    monkeypatch.setenv(sources.ROOT_VARIABLE, str(own))
    assert carry.pack("plain", pieces) == [pieces / "plain" / f"{name}.gz" for name in CONTENTS]
    assert {path.name: path.read_bytes() for path in (pieces / "plain").iterdir()} == first
    # The header of a gzip file: no name, no time, no system.
    assert first["a-images.gz"][3:8] == bytes(5)
    assert first["a-images.gz"][9] == 255


def test_the_sums_are_those_of_the_pieces(pieces):
    for folder in (pieces / "plain", pieces / "packed"):
        lines = (folder / carry.SUMS).read_text().splitlines()
        assert len(lines) == len(CONTENTS)
        for line in lines:
            digest, name = re.fullmatch(r"([0-9a-f]{64})  ([a-z-]+\.gz)", line).groups()
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not on the PATH")
def test_coreutils_can_check_what_has_come(pieces):
    folder = pieces / "plain"
    check = ["sha256sum", "--check", "--strict", "--quiet", "--ignore-missing", carry.SUMS]
    (folder / "a-images.gz").unlink()
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0
    (folder / "b-images.gz").write_bytes(b"cut")
    assert subprocess.run(check, cwd=folder, check=False, capture_output=True).returncode == 1


def test_pieces_may_come_in_several_goes(sets, pieces, tmp_path, capsys):
    late = tmp_path / "late"
    late.mkdir()
    shutil.rmtree(pieces / "packed")
    for name in ("a-labels.gz", "b-images.gz"):
        shutil.move(pieces / "plain" / name, late / name)
    assert command("datasets", "unpack", pieces) == 0
    cache = tmp_path / "cache" / "plain"
    assert capsys.readouterr().out.splitlines() == [
        f"plain: 2 of 4 files are in place in {cache}: a-images, b-labels",
        "plain: still missing: a-labels, b-images",
    ]
    # The first pieces have gone in the meantime.
    shutil.rmtree(pieces / "plain")
    shutil.move(late, pieces / "plain")
    assert command("datasets", "unpack", pieces) == 0
    said, error = capsys.readouterr()
    assert said.splitlines() == [
        f"plain: 4 of 4 files are in place in {cache}: a-images, a-labels, b-images, b-labels"
    ]
    assert error == ""
    assert_right(sources.fetch("plain"))


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_link(path):
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "got one that does not unpack"),
        (lambda path: path.write_bytes(b""), r"got 0 \(truncated\)"),
        (lambda path: path.write_bytes(zipped(CONTENTS["a-labels"])), r"got 25 \(truncated\)"),
        (lambda path: path.write_bytes(zipped(bytes(10400))), r"altered"),
        (lambda path: path.write_bytes(zipped(bytes(10**8))), r"over 10400 \(more\)"),
        (lambda path: path.write_bytes(bytes(carry.PIECE)), "expected a plain file below"),
        (lambda path: path.write_bytes(b"<html>"), "truncated"),
        (make_pipe, "expected a plain file"),
        (make_link, "expected a plain file"),
        (make_folder, "expected a plain file"),
    ],
    ids=["cut", "empty", "foreign", "altered", "bomb", "long", "page", "pipe", "link", "folder"],
)
def test_a_piece_that_is_not_right_is_refused_and_the_others_kept(
    sets, pieces, capsys, spoil, message, monkeypatch
):
    monkeypatch.setattr(carry, "PIECE", 200_000)
    piece = pieces / "plain" / "a-images.gz"
    spoil(piece)
    # Who altered a piece can write its sum as well.
    if piece.is_file():
        line = f"{hashlib.sha256(piece.read_bytes()).hexdigest()}  {piece.name}\n"
        (pieces / "plain" / carry.SUMS).write_text(line)
    assert command("datasets", "unpack", pieces) == 2
    said, error = capsys.readouterr()
    assert re.fullmatch(
        rf"flatminima: {re.escape(str(piece))}: .*{message}.*; carry it again\n", error
    )
    assert "plain: still missing: a-images\n" in said
    assert "packed: 4 of 4 files are in place" in said
    records = [record for record in sources.cached_files() if record.dataset == "plain"]
    assert [record.state for record in records] == ["absent", *["verified"] * 3]


def test_a_wrong_piece_leaves_a_right_file_alone(sets, pieces):
    carry.unpack(pieces)
    (pieces / "plain" / "a-images.gz").write_bytes(b"wrong")
    came = carry.unpack(pieces)[0]
    assert came.missing == ()
    assert len(came.refused) == 1
    assert_right(sources.fetch("plain"))


def test_a_damaged_file_and_a_killed_processs_leftovers_are_replaced(sets, pieces, tmp_path):
    carry.unpack(pieces)
    cache = tmp_path / "cache" / "plain"
    (cache / "a-images").write_bytes(b"damaged")
    (cache / ".abc.part").write_bytes(b"half a file")
    assert carry.unpack(pieces)[0].missing == ()
    assert_right(sources.fetch("plain"))
    assert not (cache / ".abc.part").exists()


def test_only_names_of_the_table_are_read(sets, pieces, tmp_path):
    folder = pieces / "plain"
    for name in ("c-images.gz", "a-images.gz.gz", "..gz", "-rf", "two\nlines.gz"):
        (folder / name).write_bytes(zipped(CONTENTS["a-images"]))
    os.mkfifo(folder / "pipe.gz")
    (pieces / "other").mkdir()
    assert [came.refused for came in carry.unpack(pieces)] == [(), ()]
    kept = {path.name for path in (tmp_path / "cache" / "plain").iterdir()}
    assert kept == {*CONTENTS, "origins.json", ".lock"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"plain", "packed"}


def test_pieces_that_were_decompressed_on_the_way_are_as_good(sets, pieces):
    for name, content in CONTENTS.items():
        (pieces / "plain" / f"{name}.gz").unlink()
        (pieces / "plain" / name).write_bytes(content)
    assert carry.unpack(pieces)[0].missing == ()
    assert_right(sources.fetch("plain"))


def test_a_file_that_is_too_large_for_a_piece_is_named(sets, pieces, monkeypatch, capsys):
    monkeypatch.setattr(carry, "PIECE", 50)
    monkeypatch.setenv(sources.ROOT_VARIABLE, str(pieces))
    assert command("datasets", "pack", "plain", pieces) == 2
    assert "a-images: expected a piece below 50 bytes, got " in capsys.readouterr().err
    assert not (pieces / "plain" / carry.SUMS).exists()


def test_every_file_of_the_built_in_sets_makes_a_piece_even_where_nothing_is_saved():
    for source in _table.SOURCES.values():
        for file in source.wanted(None):
            # Deflate stores what it cannot shorten at a cost of 5 bytes for at most 16 kB.
            assert file.size + 5 * (file.size // 16_000 + 1) + 18 < carry.PIECE, file.name
    assert carry.PIECE == 48 * 1024**2


def test_pack_says_where_the_pieces_are(sets, pieces, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(sources.ROOT_VARIABLE, str(pieces))
    assert command("datasets", "pack", "plain", tmp_path / "new") == 0
    said = capsys.readouterr().out
    assert re.fullmatch(
        rf"plain: 4 pieces, \d+ B, and SHA256SUMS are in {tmp_path}/new/plain\n", said
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "bundled", "DIR"], "got 'bundled'; it comes with scikit-learn"),
        (["pack", "plian", "DIR"], "did you mean 'plain'?"),
        (["pack", "plain", "DIR"], "not asked, because FLATMINIMA_OFFLINE is set"),
        (["unpack", "DIR"], "expected a folder plain or packed in it, got none"),
        (["unpack", "nowhere"], "expected a folder plain or packed in it, got none"),
        (["unpak", "DIR"], "No such command 'unpak'"),
        (["pack", "plain"], "Missing argument"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_two(sets, tmp_path, capsys, arguments, message):
    words = [str(tmp_path) if word == "DIR" else word for word in arguments]
    assert command("datasets", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("flatminima: ")
    assert message in error
    assert error.count("\n") == 1


def test_folders_that_cannot_be_written_are_named(sets, pieces, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert command("datasets", "unpack", pieces) == 2
    error = capsys.readouterr().err
    assert f"expected a folder {tmp_path / 'cache' / 'plain'} that can be written" in error
    assert f"FLATMINIMA_DATA={pieces}" in error
    monkeypatch.setenv(sources.ROOT_VARIABLE, str(pieces))
    assert command("datasets", "pack", "plain", tmp_path / "cache") == 2
    error = capsys.readouterr().err
    assert f"expected a folder {tmp_path / 'cache' / 'plain'} that can be written" in error
    assert error.count("\n") == 1


def test_unpacking_loads_nothing_heavy_and_the_listing_is_still_the_command(tmp_path):
    (tmp_path / "cifar10").mkdir()
    program = (
        "import sys\nfrom flatminima.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'torch', 'numpy', 'xarray'} & set(sys.modules)))\n"
    )

    def say(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return done.stdout.splitlines()

    said = say("datasets", "unpack", tmp_path)
    assert "cifar10: 0 of 6 files are in place" in said[0]
    assert said[1] == (
        "cifar10: still missing: data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, "
        "data_batch_4.bin, data_batch_5.bin, test_batch.bin"
    )
    assert said[2:] == ["[]"]
    said = say("datasets")
    assert said[0].startswith("digits         bundled")
    assert said[-1] == "[]"
