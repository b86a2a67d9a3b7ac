"""The data of a study: its own, IDX files, a user's loaders, and what is wrong with them."""

import gzip
import struct

import pytest
import torch
from sklearn.datasets import load_digits

from livella.study import data
from livella.study.errors import StudyError
from tests.study.worlds import users


def all_examples(dataset):
    parts = (dataset.train, dataset.validation, dataset.test)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def as_rows(x, y):
    """Each example with its label as one row of numbers, in an order of their own."""
    rows = torch.cat([x.double().flatten(1), y.double().unsqueeze(1)], dim=1)
    return sorted(map(tuple, rows.tolist()))


def refused(spec):
    """The message with which the data are refused: one line."""
    with pytest.raises(StudyError) as caught:
        data.load(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_parts_of_digits_share_no_example_and_are_all_there_is():
    images, labels = load_digits(return_X_y=True)
    dataset = data.load("digits")
    assert dataset.shape == (1, 8, 8)
    assert dataset.classes == 10
    x, y = torch.as_tensor(images / 16), torch.as_tensor(labels)
    assert as_rows(*all_examples(dataset)) == as_rows(x, y)
    assert "1,006 / 252 / 539 examples" in dataset.describe()


def test_every_class_of_digits_stands_in_every_part():
    dataset = data.load("digits")
    for _, labels in (dataset.train, dataset.validation, dataset.test):
        assert labels.unique().tolist() == list(range(10))


# --- IDX files ---

TRAIN = torch.arange(12 * 4 * 3, dtype=torch.uint8).view(12, 4, 3)
TRAIN_LABELS = torch.arange(12, dtype=torch.uint8) % 3
TEST, TEST_LABELS = TRAIN[:5] + 100, TRAIN_LABELS[:5]


def idx(tensor):
    header = struct.pack(f">4B{tensor.dim()}I", 0, 0, 8, tensor.dim(), *tensor.shape)
    return header + bytes(tensor.flatten().tolist())


FILES = {
    "train-images-idx3-ubyte": idx(TRAIN),
    "train-labels-idx1-ubyte": idx(TRAIN_LABELS),
    "t10k-images-idx3-ubyte": idx(TEST),
    "t10k-labels-idx1-ubyte": idx(TEST_LABELS),
}


def folder(path, **changed):
    """IDX files in a folder; a changed one by the first letters of its name, None to leave out."""
    for name, content in FILES.items():
        short = name.replace("-", "_").removesuffix("_idx3_ubyte").removesuffix("_idx1_ubyte")
        content = changed.get(short, content)
        if content is not None:
            (path / name).write_bytes(content)
    return f"idx:{path}"


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_as_they_were_written(tmp_path, packed):
    spec = folder(tmp_path)
    if packed:
        for file in tmp_path.iterdir():
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    dataset = data.load(spec)
    assert dataset.shape == (1, 4, 3)
    assert dataset.name == tmp_path.name
    assert [len(y) for _, y in (dataset.train, dataset.validation)] == [10, 2]
    torch.testing.assert_close(dataset.test, (TEST.unsqueeze(1) / 255, TEST_LABELS.long()))
    x, y = torch.cat([TRAIN, TEST]), torch.cat([TRAIN_LABELS, TEST_LABELS])
    assert as_rows(*all_examples(dataset)) == as_rows(x / 255, y)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_images": None}, "no file train-images-idx3-ubyte or train-images-idx3-ubyte.gz"),
        ({"train_images": b""}, "is not an IDX file of unsigned bytes"),
        ({"train_images": b"\0\0\x08"}, "is not an IDX file"),
        ({"train_images": b"\0\0\x08\x03\0\0"}, "is not an IDX file"),
        ({"train_images": b"\0\0\x0d" + idx(TRAIN)[3:]}, "is not an IDX file of unsigned bytes"),
        ({"train_images": gzip.compress(idx(TRAIN))}, "is not an IDX file"),
        ({"t10k_labels": idx(TEST_LABELS)[:-1]}, "holds 4 values where its header says (5,)"),
        ({"t10k_labels": idx(TEST_LABELS) + b"\0"}, "holds 6 values where its header says (5,)"),
        ({"t10k_labels": idx(TEST_LABELS[:4])}, "got (5, 4, 3) and (4,)"),
        ({"train_images": idx(TRAIN.flatten(1))}, "got (12, 12) and (12,)"),
        ({"train_images": idx(TRAIN[:0]), "train_labels": idx(TRAIN[:0, 0, 0])}, "is empty"),
        ({"t10k_images": idx(TEST[:, :2])}, "has examples of shape (1, 2, 3)"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, changed, said):
    assert said in refused(folder(tmp_path, **changed))


def test_a_damaged_archive_is_refused(tmp_path):
    spec = folder(tmp_path, train_labels=None)
    whole = gzip.compress(FILES["train-labels-idx1-ubyte"])
    for damaged in (whole[:-9], b"no archive", whole[:12] + b"\xff\xff" + whole[14:]):
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(damaged)
        assert "cannot be read" in refused(spec)


def test_a_missing_folder_is_named(tmp_path):
    assert "no folder" in refused(f"idx:{tmp_path / 'nowhere'}")


@pytest.mark.skipif(
    not data.FASHION_MNIST.is_dir(), reason=f"needs Fashion-MNIST in {data.FASHION_MNIST}"
)
def test_fashion_mnist_is_read_from_its_package():
    dataset = data.load("fashion-mnist")
    assert "50,000 / 10,000 / 10,000 examples" in dataset.describe()
    assert dataset.shape == (1, 28, 28)
    assert all_examples(dataset)[1].bincount().tolist() == [7000] * 10


# --- a user's loaders ---


@pytest.mark.parametrize(
    ("name", "sizes"), [("loaders", (48, 12, 30)), ("three_loaders", (40, 20, 30))]
)
def test_every_example_of_the_loaders_lands_in_one_part(name, sizes):
    dataset = data.load(users(name))
    assert tuple(len(y) for _, y in (dataset.train, dataset.validation, dataset.test)) == sizes
    x, y = all_examples(dataset)
    assert len({row[:-1] for row in as_rows(x, y)}) == 90
    assert (dataset.shape, dataset.classes) == ((1, 6, 6), 3)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.bincount().tolist() == [30] * 3


def test_reading_the_loaders_leaves_the_callers_random_state_alone():
    state = torch.get_rng_state()
    data._load.cache_clear()
    data.load(users("loaders"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", "fails raised RuntimeError: no such disk"),
        ("no_loaders", "returned a int: expected (train, test) or (train, validation, test)"),
        ("one_loader", "returned a list of 1: expected (train, test)"),
        ("a_dictionary", "returned a dict of 2: expected (train, test)"),
        ("empty", "is empty: expected (examples, labels) batches"),
        ("no_iterable", "failed: TypeError: 'int' object is not iterable"),
        ("no_pairs", "gave a tuple of 3: expected (examples, labels)"),
        ("bare_tensors", "gave a Tensor: expected (examples, labels)"),
        ("breaks_off", "failed: OSError: unplugged"),
        ("nan", "has NaN or infinity in 1 of 72 examples: clean them first"),
        ("infinite", "has NaN or infinity in 2 of 90 examples"),
        ("one_class", "has one class only"),
        ("float_labels", "and type torch.float32 for 90 examples: expected one class number"),
        ("one_hot_labels", "gave labels of shape (90, 3)"),
        ("negative_labels", "has the label -1: expected class numbers from 0"),
        ("too_few_labels", "gave labels of shape (89,) and type torch.int64 for 90 examples"),
        ("other_shape", "has examples of shape (1, 6, 5), training has (1, 6, 6)"),
    ],
)
def test_loaders_that_cannot_be_used_are_refused(name, said):
    message = refused(users(name))
    assert said in message
    assert name in message, "it says whose data they are"


@pytest.mark.parametrize("spec", ["digit", "mnist", ""])
def test_unknown_data_are_told_what_is_known(spec):
    assert "expected digits, fashion-mnist, japanese-vowels, idx:DIR" in refused(spec)
