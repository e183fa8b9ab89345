"""Images and labels from ``.npz`` files, normalized for a model."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
from sigbit_hw.spec.errors import SigbitError

__all__ = ["DataError", "load_images", "load_raw", "normalize"]


class DataError(SigbitError):
    """A data file that cannot be used, naming what was found and what was expected."""


def _parse(source: str) -> tuple[Path, list[str]]:
    # From the right, so that a drive letter or a colon in a folder's name does no harm.
    path, colon, keys = source.rpartition(":")
    names = [name.strip() for name in keys.split(",")]
    if not colon or not path or not 1 <= len(names) <= 2 or not all(names):
        raise DataError(f"Data must be given as FILE.npz:IMAGES or FILE.npz:IMAGES,LABELS, not {source!r}")
    return Path(path), names


def _arrays(path: Path, names: list[str]) -> list[np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{str(path)!r} holds one bare array; expected an .npz file of named arrays")
        with loaded as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise DataError(f"{str(path)!r} has no array {missing[0]!r}; it has {', '.join(file) or 'none'}")
            return [file[name] for name in names]
    except OSError as error:
        raise DataError(f"Cannot read data file {str(path)!r}: {error.strerror or error}") from None
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, AttributeError, ValueError) as error:
        raise DataError(f"{str(path)!r} is not a readable .npz file: {error}") from None


def _statistics(values, channels: int, what: str) -> np.ndarray:
    values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if values.ndim != 1 or len(values) not in (1, channels):
        expected = f"one value, or one per channel ({channels})"
        raise DataError(f"{what} must be {expected}, not {values.size} values")
    if not np.isfinite(values).all() or (what != "mean" and (values <= 0).any()):
        expected = "finite" if what == "mean" else "finite and greater than 0"
        raise DataError(f"{what} must be {expected}, not {values.tolist()}")
    return values


def normalize(images, scale=255.0, mean=0.0, std=1.0) -> np.ndarray:
    """``(x / scale - mean) / std`` of uint8 images as float32 NCHW; float arrays are taken as they are.

    Parameters
    ----------
    images : array
        uint8 ``(N, height, width)`` (grey) or ``(N, height, width, channels)``; or float in the model's own layout.
    scale : float
    mean, std : float or sequence
        One value, or one per channel.

    Raises
    ------
    :exc:`DataError`
        If type, shape or number of channels do not fit, or values are not finite.
    """
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.floating):
        if images.ndim not in (2, 4):
            raise DataError(
                "Float images must be N x channels x height x width (height 1 for lengths) or N x features, "
                f"not {images.shape}"
            )
        result = images.astype(np.float32)
        if not np.isfinite(result).all():
            raise DataError(f"Float images must be finite, but {np.count_nonzero(~np.isfinite(result))} values are not")
    elif images.dtype == np.uint8:
        if images.ndim not in (3, 4):
            raise DataError(
                f"uint8 images must have shape (N, height, width) or (N, height, width, channels), not {images.shape}"
            )
        pixels = images[..., np.newaxis] if images.ndim == 3 else images
        channels = pixels.shape[3]
        if channels > 4 >= pixels.shape[1]:
            raise DataError(
                f"uint8 images of shape {images.shape} look like N x channels x height x width; "
                "expected channels last: (N, height, width, channels)"
            )
        mean, std = _statistics(mean, channels, "mean"), _statistics(std, channels, "std")
        (divisor,) = _statistics(scale, 1, "scale")
        # In float64, rounded once: what a float32 model sees does not depend on the order of these steps.
        values = (pixels / divisor - mean) / std
        result = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32)
    else:
        raise DataError(f"Images must be uint8 or floating point, not {images.dtype}")
    if result.size == 0:
        raise DataError(f"There are no images: the array has shape {images.shape}")
    return result


def load_images(source: str, limit: int | None = None, *, scale=255.0, mean=0.0, std=1.0):
    """Normalized images, and labels or targets if they are named, from ``FILE.npz:IMAGES[,LABELS]``.

    Parameters
    ----------
    source : str
        File and names of arrays in it, such as ``digits.npz:x_test,y_test``.
    limit : int, optional
        Only the first ``limit`` images.
    scale, mean, std
        See :func:`normalize`.

    Returns
    -------
    images : float32 array
    labels : int64 array ``(N,)`` of classes, float64 array ``(N, ...)`` of what outputs should be, or None

    Raises
    ------
    :exc:`DataError`
        If anything is missing, empty or of the wrong shape.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}")
    images, labels = _read(source, limit)
    return normalize(images, scale, mean, std), labels


def load_raw(source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as they are stored, and labels, from ``FILE.npz:IMAGES,LABELS``.

    Raises
    ------
    :exc:`DataError`
        As :func:`load_images`, or if no labels are named.
    """
    images, labels = _read(source, None)
    if labels is None:
        raise DataError(f"Training needs labels; name them after the images: FILE.npz:IMAGES,LABELS, not {source!r}")
    if labels.dtype != np.int64:
        raise DataError(f"Training needs integer labels, one class per image, but {source!r} names numbers")
    return images, labels


def _read(source: str, limit: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    path, names = _parse(source)
    images, *rest = _arrays(path, names)
    if images.ndim and len(images) == 0:
        raise DataError(f"Array {names[0]!r} of {str(path)!r} holds no images (shape {images.shape})")
    labels = None
    if rest:
        labels = rest[0]
        numbers = np.issubdtype(labels.dtype, np.floating) and np.isfinite(labels).all()
        classes = np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1
        if not (numbers or classes) or labels.shape[:1] != images.shape[:1]:
            raise DataError(
                f"Array {names[1]!r} of {str(path)!r} must hold one integer label per image "
                f"({len(images) if images.ndim else 0}), but is {labels.dtype} of shape {labels.shape}; what outputs "
                f"should be are finite floats"
            )
        labels = labels[:limit].astype(np.float64 if numbers else np.int64)
    return images[:limit] if images.ndim else images, labels
