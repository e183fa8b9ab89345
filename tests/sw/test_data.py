"""Images and labels: normalization by hand, and a message for everything that does not fit."""

import numpy as np
import pytest
from sigbit.data import DataError, load_images, load_raw, normalize

RANDOM = np.random.default_rng(7)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(
        path,
        grey=RANDOM.integers(0, 256, (5, 4, 3), dtype=np.uint8),
        colour=RANDOM.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8),
        planes=np.zeros((5, 3, 8, 8), np.uint8),
        real=RANDOM.normal(size=(5, 2, 4, 4)),
        broken=np.full((5, 1, 4, 4), np.nan),
        flat=np.zeros(5, np.uint8),
        words=np.zeros((5, 4, 4), np.int64),
        empty=np.zeros((0, 4, 4), np.uint8),
        pixels_missing=np.zeros((5, 0, 4), np.uint8),
        labels=np.arange(5, dtype=np.uint8),
        few=np.arange(4),
        soft=np.zeros(5),
    )
    return path


def test_grey_images_become_one_channel(archive):
    images, labels = load_images(f"{archive}:grey,labels", scale=255, mean=0.5, std=0.25)
    raw = np.load(archive)["grey"]
    assert images.dtype == np.float32
    assert images.shape == (5, 1, 4, 3)
    assert images[2, 0, 3, 1] == np.float32((raw[2, 3, 1] / 255 - 0.5) / 0.25)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_colour_images_become_nchw_with_one_mean_per_channel(archive):
    images, labels = load_images(f"{archive}:colour", scale=16, mean=(1, 2, 3), std=(1, 2, 4))
    raw = np.load(archive)["colour"]
    assert images.shape == (5, 3, 4, 6)
    assert images.flags.c_contiguous
    assert images[4, 2, 1, 5] == np.float32((raw[4, 1, 5, 2] / 16 - 3) / 4)
    assert labels is None


def test_float_images_are_taken_as_they_are(archive):
    images, _ = load_images(f"{archive}:real", scale=7, mean=(1, 2, 3), std=9)
    np.testing.assert_array_equal(images, np.load(archive)["real"].astype(np.float32))


def test_numbers_that_outputs_should_be_come_as_they_are(archive):
    _, targets = load_images(f"{archive}:grey,real", 3)
    assert targets.dtype == np.float64
    np.testing.assert_array_equal(targets, np.load(archive)["real"][:3])
    with pytest.raises(DataError, match="Training needs integer labels"):
        load_raw(f"{archive}:grey,real")


def test_limit_takes_the_first_images_and_labels(archive):
    images, labels = load_images(f"{archive}:grey, labels", 2)
    assert len(images) == 2
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("absent", {}, "has no array 'absent'; it has grey, colour"),
        ("grey,absent", {}, "has no array 'absent'"),
        ("grey,few", {}, r"one integer label per image \(5\), but is int64 of shape \(4,\)"),
        ("grey,words", {}, r"one integer label per image \(5\), but is int64 of shape \(5, 4, 4\)"),
        ("grey,broken", {}, "what outputs should be are finite floats"),
        ("empty", {}, r"holds no images \(shape \(0, 4, 4\)\)"),
        ("pixels_missing", {}, "There are no images"),
        ("flat", {}, r"uint8 images must have shape"),
        ("planes", {}, "expected channels last"),
        ("words", {}, "must be uint8 or floating point, not int64"),
        ("soft", {}, "Float images must be"),
        ("broken", {}, "must be finite, but 80 values are not"),
        ("colour", {"mean": (1, 2)}, r"mean must be one value, or one per channel \(3\), not 2 values"),
        ("grey", {"std": (1, 2, 3)}, r"std must be one value, or one per channel \(1\), not 3 values"),
        ("grey", {"std": 0}, "std must be finite and greater than 0"),
        ("grey", {"scale": -1}, "scale must be finite and greater than 0"),
        ("grey", {"mean": np.nan}, "mean must be finite"),
        ("grey", {"limit": 0}, "limit must be at least 1, not 0"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_what_was_found(archive, names, options, message):
    with pytest.raises(DataError, match=message):
        load_images(f"{archive}:{names}", **options)


@pytest.mark.parametrize("source", ["images.npz", ":x", "images.npz:", "images.npz:x,y,z", "images.npz:x,"])
def test_source_must_name_a_file_and_arrays(source):
    with pytest.raises(DataError, match=r"FILE.npz:IMAGES"):
        load_images(source)


def test_files_that_are_no_archives_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_images(f"{tmp_path / 'absent.npz'}:x")
    with pytest.raises(DataError, match="Is a directory"):
        load_images(f"{tmp_path}:x")
    for content in (b"", b"not an archive", b"PK\x03\x04broken"):
        path = tmp_path / "broken.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a readable \.npz file"):
            load_images(f"{path}:x")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="one bare array"):
        load_images(f"{tmp_path / 'one.npy'}:x")


@pytest.mark.parametrize("position", [60, 200, 400, -30])
def test_damaged_archives_are_refused(position, tmp_path):
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, x=RANDOM.integers(0, 9, (20, 8, 8), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError):
        load_images(f"{path}:x")


def test_archives_with_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        load_images(f"{path}:x")


def test_default_normalization_maps_uint8_to_zero_to_one():
    assert normalize(np.array([[[0, 255]]], np.uint8)).tolist() == [[[[0.0, 1.0]]]]
