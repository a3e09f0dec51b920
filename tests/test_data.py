"""Data sets: every loader on tiny files of its own format, written here, and the real ones where they are."""

import gzip
import hashlib
import inspect
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat

from fl_cmi.data import (
    cifar,
    digits,
    fashion_mnist,
    mnist,
    svhn,
    synthetic,
    tiny_imagenet,
)
from fl_cmi.data.dataset import Dataset
from fl_cmi.types import ConfigError, Images, Shape

CONFIGS = sorted((Path(__file__).parents[1] / "conf" / "data").glob("*.yaml"))

REAL = Path("/usr/share/datasets/fashion-mnist")

ON_DISK = {
    "fashion_mnist": fashion_mnist.load,
    "mnist": mnist.load,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "svhn": svhn.load,
    "tiny_imagenet": tiny_imagenet.load,
}

WNIDS = ["n02", "n01", "n03"]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data set of this machine is found by accident."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "no-such-package")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def labels(size: int, num_classes: int) -> np.ndarray:
    return (np.arange(size) % num_classes).astype(np.uint8)


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.tobytes()


def write_idx(folder: Path, zipped: bool) -> None:
    """12 training and 10 test images of 28x28 in the four files of the MNIST family."""
    folder.mkdir(parents=True)
    for part, size in (("train", 12), ("t10k", 10)):
        for name, values in (
            (f"{part}-images-idx3-ubyte", pixels(size, 28, 28)),
            (f"{part}-labels-idx1-ubyte", labels(size, 10)),
        ):
            content = idx_bytes(values)
            path = folder / (name + ".gz" if zipped else name)
            path.write_bytes(gzip.compress(content) if zipped else content)


def write_cifar(root: Path, num_classes: int) -> Path:
    """The binary version: two records per file, of label byte(s) and 3,072 bytes."""
    ten = num_classes == 10
    folder = root / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    folder.mkdir(parents=True)
    meta = "batches.meta.txt" if ten else "fine_label_names.txt"
    (folder / meta).write_text("\n".join(f"class{label}" for label in range(num_classes)) + "\n\n")
    batches = [f"data_batch_{batch}.bin" for batch in range(1, 6)] if ten else ["train.bin"]
    for number, name in enumerate([*batches, "test.bin" if not ten else "test_batch.bin"]):
        fine = np.array([[number], [num_classes - 1 - number]], np.uint8)
        head = fine if ten else np.concatenate([np.array([[19], [7]], np.uint8), fine], axis=1)
        records = np.concatenate([head, pixels(2, 3072) ^ np.uint8(number)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    return folder


CHECK = svhn._check


@pytest.fixture(autouse=True)
def small_files_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files of SVHN are too large for tests."""
    monkeypatch.setattr(svhn, "_check", lambda path: None)


def write_svhn(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for part, size in (("train", 11), ("test", 10)):
        y = labels(size, 10)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": pixels(32, 32, 3, size), "y": np.where(y == 0, 10, y)})


def write_tiny_imagenet(root: Path) -> Path:
    """Three classes, two training images each (one of them gray) and two validation images."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tlamp\nn99\tother\n")
    for shade, wnid in enumerate(WNIDS):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        Image.new("RGB", (64, 64), (60 * shade, 100, 200)).save(images / f"{wnid}_0.JPEG", quality=95)
        Image.new("L", (64, 64), 50 * shade + 10).save(images / f"{wnid}_1.JPEG", quality=95)
    for number in range(2):
        name = f"val_{number}.JPEG"
        Image.new("RGB", (64, 64), (200, 10, 90 * number)).save(folder / "val" / "images" / name, quality=95)
    (folder / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn03\t0\t0\t62\t62\nval_1.JPEG\tn02\t1\t2\t3\t4\n"
    )
    return folder


def write(name: str, root: Path) -> None:
    """The data set called `name` under `root`, as its loader expects it."""
    if name in ("fashion_mnist", "mnist"):
        write_idx(root / ("MNIST" if name == "mnist" else "FashionMNIST") / "raw", zipped=False)
    elif name in ("cifar10", "cifar100"):
        write_cifar(root, 10 if name == "cifar10" else 100)
    elif name == "svhn":
        write_svhn(root)
    else:
        write_tiny_imagenet(root)


def check(dataset: Dataset) -> None:
    """What holds for every data set."""
    for images in (dataset.train, dataset.test):
        assert images.x.dtype == torch.uint8
        assert images.x.is_contiguous()
        assert images.y.dtype == torch.int64
        assert images.y.min() >= 0
        assert images.y.max() < images.num_classes == dataset.num_classes
    assert len(set(dataset.class_names)) == dataset.num_classes
    assert all(0 < mean < 1 for mean in dataset.mean)
    assert all(0 < std < 1 for std in dataset.std)


@pytest.mark.parametrize("name", ON_DISK)
def test_every_set_on_disk_is_read_from_its_own_format(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    dataset = ON_DISK[name](str(tmp_path))
    assert dataset.name == name
    check(dataset)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_all_parameters_of_a_loader(path: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(path).data  # beside it lies `augment`, for whoever augments
    assert path.stem in (*ON_DISK, "digits", "synthetic")
    if path.stem in ON_DISK:
        write(path.stem, tmp_path)
        config.root = str(tmp_path)
    dataset = instantiate(config)
    assert dataset.name == path.stem
    file, function = config._target_.removeprefix("fl_cmi.data.").split(".")
    loader = getattr({"cifar": cifar, "digits": digits, "synthetic": synthetic}.get(file), function, None)
    loader = loader or ON_DISK[path.stem]
    assert {key for key in config if key != "_target_"} == set(inspect.signature(loader).parameters)


@pytest.mark.parametrize("name", ON_DISK)
def test_a_missing_root_is_the_users_mistake(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.root=.*nowhere: no such folder") as caught:
        ON_DISK[name](str(tmp_path / "nowhere"))
    assert caught.value.key == "data.root"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("root", [None, "empty"])
@pytest.mark.parametrize("name", ON_DISK)
def test_a_missing_set_says_what_brings_it(name: str, root: str | None, tmp_path: Path) -> None:
    folder = None
    if root:
        folder = str(tmp_path / root)
        Path(folder).mkdir()
    with pytest.raises(ConfigError, match=r"^data\.root=.*data\.download=true") as caught:
        ON_DISK[name](folder)
    assert "\n" not in str(caught.value)
    if name == "fashion_mnist":
        assert "apt-get install dataset-fashion-mnist" in str(caught.value)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-bin/data_batch_3.bin"),
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt"),
        ("cifar100", "cifar-100-binary/test.bin"),
        ("svhn", "test_32x32.mat"),
        ("tiny_imagenet", "tiny-imagenet-200/train/n01/images/n01_0.JPEG"),
        ("tiny_imagenet", "tiny-imagenet-200/val/images/val_1.JPEG"),
    ],
)
@pytest.mark.parametrize("keep", [0.0, 0.6])
def test_a_truncated_file_is_named(name: str, damaged: str, keep: float, tmp_path: Path) -> None:
    write(name, tmp_path)
    path = tmp_path / damaged
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ConfigError) as caught:
        ON_DISK[name](str(tmp_path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["data_batch_5.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_file_of_cifar_is_named(missing: str, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, 10)
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=f"{missing}: missing file"):
        cifar.cifar10(str(tmp_path))


@pytest.mark.parametrize("missing", ["wnids.txt", "val/val_annotations.txt", "val/images/val_0.JPEG"])
def test_a_missing_file_of_tiny_imagenet_is_named(missing: str, tmp_path: Path) -> None:
    (write_tiny_imagenet(tmp_path) / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        tiny_imagenet.load(str(tmp_path))


def test_digits_are_split_once_and_for_all() -> None:
    dataset = digits.load()
    check(dataset)
    assert dataset.shape == (1, 8, 8)
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    # a fifth of 178, 182, 177, 183, 181, 182, 181, 179, 174 and 180, rounded
    assert dataset.test.class_counts().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert dataset.train.class_counts().sum() + 359 == 1797
    # 17 gray levels: round(255 k / 16)
    assert set(dataset.train.x.unique().tolist()) == {round(255 * level / 16) for level in range(17)}
    # golden: sha256 over the test pixels and labels of this split, so that it never moves silently
    digest = hashlib.sha256(dataset.test.x.numpy().tobytes() + dataset.test.y.numpy().tobytes()).hexdigest()
    assert digest == "5f637d4b42b7c5bc70d20ab297f29614b13160d089fc357187ec87c1a4169cfc"
    assert torch.equal(digits.load().train.x, dataset.train.x)


def test_published_means_and_deviations_fit_the_pixels() -> None:
    x = digits.load().train.pixels()
    assert digits.MEAN[0] == pytest.approx(x.mean().item(), abs=1e-4)
    assert digits.STD[0] == pytest.approx(x.std().item(), abs=1e-4)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", ".", "debian"])
def test_fashion_mnist_is_read_in_place(
    place: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    folder = tmp_path / "package" if place == "debian" else root / place
    write_idx(folder, zipped)
    root.mkdir(exist_ok=True)
    if place == "debian":
        monkeypatch.setattr(fashion_mnist, "DEBIAN", folder)
    before = sorted(tmp_path.rglob("*"))
    dataset = fashion_mnist.load(str(root))
    assert sorted(tmp_path.rglob("*")) == before
    check(dataset)
    assert dataset.shape == (1, 28, 28)
    assert np.array_equal(dataset.train.x[:, 0].numpy(), pixels(12, 28, 28))
    assert np.array_equal(dataset.test.y.numpy(), labels(10, 10))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x0d\3" + bytes(12), "not an IDX file"),
        ("train-images-idx3-ubyte", b"\0\0\x08\1" + bytes(12), "not an IDX file"),
        ("train-labels-idx1-ubyte", idx_bytes(labels(12, 10)) + b"x", "21 bytes, but its header promises 20"),
        ("train-labels-idx1-ubyte", idx_bytes(labels(11, 10)), "11 labels for 12 images"),
        ("train-labels-idx1-ubyte", idx_bytes(labels(12, 12)), "labels must be 0..9"),
    ],
)
def test_idx_files_are_checked(name: str, content: bytes, fault: str, tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", zipped=False)
    (tmp_path / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        mnist.load(str(tmp_path))


# The header holds the time, and a test's name must be the same in every process.
@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(bytes(1000))[:-12]],
    ids=["empty", "no gzip", "cut off"],
)
def test_damaged_gzip_is_named(content: bytes, tmp_path: Path) -> None:
    write_idx(tmp_path / "raw", zipped=True)
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        mnist.load(str(tmp_path / "raw"))


def test_cifar10_bytes_are_label_red_green_blue(tmp_path: Path) -> None:
    write_cifar(tmp_path, 10)
    dataset = cifar.cifar10(str(tmp_path))
    assert dataset.train.y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert dataset.test.y.tolist() == [5, 4]
    third = pixels(2, 3072)[1] ^ np.uint8(2)
    image = dataset.train.x[5]
    for channel in range(3):
        for row, column in ((0, 0), (0, 31), (17, 4), (31, 31)):
            assert image[channel, row, column] == third[1024 * channel + 32 * row + column]
    assert dataset.class_names[3] == "class3"


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    write_cifar(tmp_path, 100)
    dataset = cifar.cifar100(str(tmp_path))
    assert dataset.train.y.tolist() == [0, 99]
    assert dataset.test.y.tolist() == [1, 98]
    assert np.array_equal(dataset.train.x.numpy().reshape(2, -1), pixels(2, 3072))


def test_cifar_labels_are_checked(tmp_path: Path) -> None:
    path = write_cifar(tmp_path, 10) / "data_batch_1.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])
    with pytest.raises(ConfigError, match=r"data_batch_1\.bin: label 11, but labels must be 0\.\.9"):
        cifar.cifar10(str(tmp_path))


def test_cifar_leaves_the_pickled_version_alone(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ConfigError, match="binary version"):
        cifar.cifar10(str(tmp_path))


def test_svhn_puts_the_last_axis_first_and_ten_to_zero(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    dataset = svhn.load(str(tmp_path))
    assert dataset.train.y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    raw = pixels(32, 32, 3, 11)
    assert dataset.train.x.shape == (11, 3, 32, 32)
    assert dataset.train.x[4, 2, 7, 30] == raw[7, 30, 2, 4]


def test_svhn_is_as_published_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path)
    monkeypatch.setattr(svhn, "_check", CHECK)
    with pytest.raises(
        ConfigError, match=r"train_32x32\.mat: its md5 is [0-9a-f]{32}, that of the published"
    ):
        svhn.load(str(tmp_path))
    files = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.mat")}
    monkeypatch.setattr(svhn, "MD5", dict(sorted(files.items(), reverse=True)))
    assert len(svhn.load(str(tmp_path)).train) == 11


def test_parts_of_a_set_are_not_taken_for_all(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, 10)
    short = folder / "data_batch_3.bin"
    short.write_bytes(short.read_bytes()[: 1 + 3072])
    with pytest.raises(ConfigError, match=r"data_batch_3\.bin: 1 records, fewer than in another batch"):
        cifar.cifar10(str(tmp_path))
    folder = write_tiny_imagenet(tmp_path)
    (folder / "train" / WNIDS[2] / "images" / f"{WNIDS[2]}_1.JPEG").unlink()
    with pytest.raises(ConfigError, match=rf"{WNIDS[2]}.images: 1 images, elsewhere 2"):
        tiny_imagenet.load(str(tmp_path))


def test_svhn_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels(28, 28, 3, 2), "y": labels(2, 10)})
    with pytest.raises(ConfigError, match=r"test_32x32\.mat: X \(28, 28, 3, 2\)"):
        svhn.load(str(tmp_path))


def test_tiny_imagenet_follows_its_lists(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    dataset = tiny_imagenet.load(str(tmp_path))
    assert dataset.shape == (3, 64, 64)
    assert dataset.class_names == ("lamp", "goldfish", "n03")
    assert dataset.train.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.test.y.tolist() == [2, 0]
    # plain colors survive JPEG to within a few levels; gray is the same in all channels
    assert (dataset.train.x[2, :, 5, 5].int() - torch.tensor([60, 100, 200])).abs().max() <= 4
    assert dataset.train.x[5].float().mean(dim=(1, 2)).tolist() == pytest.approx([110] * 3, abs=2)
    assert (dataset.test.x[1, :, 9, 9].int() - torch.tensor([200, 10, 90])).abs().max() <= 4


def test_tiny_imagenet_refuses_other_sizes_and_unknown_classes(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    good = annotations.read_text()
    annotations.write_text(good + "val_0.JPEG\tn77\t0\t0\t1\t1\n")
    with pytest.raises(ConfigError, match="'n77' is not in wnids.txt"):
        tiny_imagenet.load(str(tmp_path))
    annotations.write_text(good)
    Image.new("RGB", (32, 64)).save(folder / "val" / "images" / "val_0.JPEG")
    with pytest.raises(ConfigError, match=r"val_0\.JPEG: an image of 64x32 instead of 64x64"):
        tiny_imagenet.load(str(tmp_path))


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_downloaded_only_when_asked_and_missing(
    name: str, num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fake(url: str, root: str, *, md5: str, remove_finished: bool) -> None:
        calls.append((url, md5))
        write_cifar(Path(root), num_classes)

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fake)
    for _ in range(2):
        check(ON_DISK[name](str(tmp_path / "new"), download=True))
    assert len(calls) == 1
    assert calls[0][0] == f"https://www.cs.toronto.edu/~kriz/cifar-{num_classes}-binary.tar.gz"
    assert len(calls[0][1]) == 32


@pytest.mark.parametrize(
    ("name", "cls"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("svhn", "SVHN")]
)
def test_torchvision_downloads_only_when_asked_and_missing(
    name: str, cls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fake(root: str, split: str = "", *, download: bool) -> None:
        calls.append(split)
        if split != "test":
            write(name, Path(root))

    monkeypatch.setattr(f"torchvision.datasets.{cls}", fake)
    for _ in range(2):
        check(ON_DISK[name](str(tmp_path / "new"), download=True))
    assert calls == (["train", "test"] if name == "svhn" else [""])


@pytest.mark.parametrize(
    "error", [URLError("no network"), RuntimeError("File not found\nor corrupted."), OSError(28)]
)
def test_a_failed_download_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> NoReturn:
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    with pytest.raises(ConfigError, match=r"^data\.download=true: could not fetch cifar-10") as caught:
        cifar.cifar10(str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


def test_synthetic_is_seeded_balanced_and_learnable() -> None:
    dataset = synthetic.load(channels=3, side=12, num_classes=5, num_train=203, num_test=50)
    check(dataset)
    assert dataset.shape == (3, 12, 12)
    assert sorted(dataset.train.class_counts().tolist()) == [40, 40, 41, 41, 41]
    again = synthetic.load(channels=3, side=12, num_classes=5, num_train=203, num_test=50)
    assert torch.equal(again.train.x, dataset.train.x)
    assert torch.equal(again.test.y, dataset.test.y)
    other = synthetic.load(channels=3, side=12, num_classes=5, num_train=203, num_test=50, seed=1)
    assert not torch.equal(other.train.x, dataset.train.x)
    more = synthetic.load(channels=3, side=12, num_classes=5, num_train=300, num_test=50)
    assert torch.equal(more.test.x, dataset.test.x)
    # the nearest class mean of the training part tells the test part
    x, y = dataset.train.pixels().flatten(1), dataset.train.y
    means = torch.stack([x[y == label].mean(dim=0) for label in range(5)])
    guess = torch.cdist(dataset.test.pixels().flatten(1), means).argmin(dim=1)
    assert (guess == dataset.test.y).float().mean() > 0.95


@pytest.mark.parametrize(
    ("key", "value"),
    [("channels", 0), ("side", 1), ("num_classes", 1), ("num_train", 3), ("num_test", 0), ("noise", -0.1)],
)
def test_synthetic_sizes_are_checked(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^data.{key}={value}: "):
        synthetic.load(**{key: value})


def test_a_dataset_is_consistent() -> None:
    def images(shape: Shape, num_classes: int) -> Images:
        return Images(
            torch.zeros(2, *shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), num_classes
        )

    train = images((1, 8, 8), 2)
    for test, mean, names in (
        (images((1, 9, 8), 2), (0.5,), ("a", "b")),
        (images((1, 8, 8), 3), (0.5,), ("a", "b")),
        (train, (0.5, 0.5), ("a", "b")),
        (train, (0.5,), ("a",)),
    ):
        with pytest.raises(AssertionError):
            Dataset("x", train, test, mean, mean, names)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", REAL)
    dataset = fashion_mnist.load()
    check(dataset)
    assert dataset.shape == (1, 28, 28)
    assert dataset.train.class_counts().tolist() == [6000] * 10
    assert dataset.test.class_counts().tolist() == [1000] * 10
    x = dataset.train.pixels()
    assert x.mean().item() == pytest.approx(dataset.mean[0], abs=1e-4)
    assert x.std().item() == pytest.approx(dataset.std[0], abs=1e-4)
    # the first training image is an ankle boot: toe on the left, its upper left corner is background
    assert dataset.class_names[dataset.train.y[0]] == "Ankle boot"
    assert x[0, 0, :10, :6].max() == 0
