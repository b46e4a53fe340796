"""Labelled images for the classifier experiments: scikit-learn's digits, or MNIST where the user has it as a file."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sublora.errors import SubloraError, reason
from sublora.seeds import generator

DIGITS = "digits"
CLASSES = 10
_NPZ = ("x_train", "y_train", "x_test", "y_test")
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_IDX += ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class Images:
    """Images (N, pixels) float32 in [-1, 1] and labels (N,) int64 in 0..9, for training and for testing."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @property
    def sha256(self) -> str:
        """A hash of the content, wherever it came from."""
        parts = (self.train, self.train_labels, self.test, self.test_labels)
        content = b"".join(str(p.shape).encode() + p.tobytes() for p in parts)
        return hashlib.sha256(content).hexdigest()


def load_images(source: str) -> Images:
    """`digits`, an .npz file with x_train, y_train, x_test, y_test, or a folder with MNIST's four IDX files (.gz or not).

    Raises SubloraError where the source is missing or does not hold images of ten classes.
    """
    if source == DIGITS:
        return _digits()
    path = Path(source).expanduser()
    if path.is_dir():
        arrays = [_read_idx(path, name) for name in _IDX]
    elif path.suffix == ".npz" and path.is_file():
        arrays = _read_npz(path)
    else:
        raise SubloraError(
            f"There are no images at '{source}'; give {DIGITS}, an .npz file with {', '.join(_NPZ)}, or a folder with MNIST's IDX files."
        )
    return _checked(arrays, source)


def _digits() -> Images:
    """1,797 images of 8 x 8 pixels; a quarter, drawn once and for all, is for testing."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = generator("digits-split").permutation(len(x))
    test, train = np.split(order, [len(x) // 4])
    scaled = (x / 8 - 1).astype(np.float32)
    labels = y.astype(np.int64)
    return Images(scaled[train], labels[train], scaled[test], labels[test])


def _read_npz(path: Path) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in _NPZ]
    except (OSError, ValueError, KeyError, EOFError) as error:
        what = " ".join(str(error).split())
        raise SubloraError(
            f"The images {path} cannot be read ({what}); it needs the arrays {', '.join(_NPZ)}."
        ) from None


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """One file of MNIST's own format: two zero bytes, the type (8: unsigned byte), the number of axes, their sizes, the values."""
    file = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if file is None:
        raise SubloraError(
            f"The folder {folder} has no {name} (or {name}.gz); put MNIST's four files there."
        )
    try:
        raw = file.read_bytes()
        if file.suffix == ".gz":
            raw = gzip.decompress(raw)
        axes = raw[3]
        sizes = [int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(axes)]
        if raw[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as an IDX file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(sizes)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise SubloraError(
            f"The file {file} cannot be read as IDX ({reason(error)}); take it from its source again."
        ) from None


def _checked(arrays: list[np.ndarray], source: str) -> Images:
    x, y, x_test, y_test = arrays
    for images, labels in ((x, y), (x_test, y_test)):
        fits = images.dtype == np.uint8 and images.ndim >= 2 and len(images) > 0
        labelled = labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer)
        if not (fits and labelled) or set(np.unique(labels)) - set(range(CLASSES)):
            raise SubloraError(
                f"The images of {source} are not bytes (images, height, width) with one label in 0..9 each; give MNIST as it is published."
            )
    if x.shape[1:] != x_test.shape[1:]:
        raise SubloraError(
            f"The images of {source} have {x.shape[1:]} pixels for training and {x_test.shape[1:]} for testing; give one size."
        )
    flat = [(a.reshape(len(a), -1) / 127.5 - 1).astype(np.float32) for a in (x, x_test)]
    return Images(flat[0], y.astype(np.int64), flat[1], y_test.astype(np.int64))
