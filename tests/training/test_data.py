"""Readers, splits and batches, each against a straightforward second way to the same pixels."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from service.bundle import PictureSpec
from service.images import open_picture, to_picture
from tests.training.conftest import DIGITS
from training.config import DataConfig
from training.data import DataError, Split, Stream, load_data, tiles
from training.data import named as named_module
from training.data.arrays import CIFAR_ARCHIVE, CIFAR_LABELS, IDX_PARTS
from training.data.dataset import Ragged, Source, digest_of, ranked, split_source
from training.data.folder import decode_picture, split_files
from training.data.named import NAMED, File, Named


def digits(name: str) -> bytes:
    return gzip.decompress((DIGITS / f"{name}.gz").read_bytes())


def noise(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (20, 24)) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(noise((*size, 3), index)).save(folder / f"{index:02}.png")


def all_images(split: Split) -> Tensor:
    assert isinstance(split.images, Tensor)
    return split.images


# IDX


def test_idx_pixels_and_labels_are_those_in_the_file() -> None:
    data = load_data(DataConfig(source=str(DIGITS)))
    raw = np.frombuffer(digits("t10k-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 28, 28)
    assert np.array_equal(all_images(data.test)[:, 0].numpy(), raw)
    assert data.test.labels.tolist() == list(digits("t10k-labels-idx1-ubyte")[8:])
    assert data.label_names == tuple("0123456789")
    assert (len(data.train), len(data.validation), len(data.test)) == (392, 8, 100)


def test_raw_idx_files_and_dotted_names_read_as_the_compressed_ones(tmp_path: Path) -> None:
    for part in IDX_PARTS:
        (tmp_path / part.replace("-idx", ".idx")).write_bytes(digits(part))
    assert load_data(DataConfig(source=str(tmp_path))).digest == load_data(DataConfig(source=str(DIGITS))).digest


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(digits("train-images-idx3-ubyte"))
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte, t10k-images"):
        load_data(DataConfig(source=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (digits("train-images-idx3-ubyte")[:-1], "is damaged: its header says"),
        (digits("train-images-idx3-ubyte") + b"x", "is damaged: its header says"),
        (b"not an idx file", "not an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "not an IDX file"),
        ((DIGITS / "train-images-idx3-ubyte.gz").read_bytes()[:-9], "damaged gzip"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    for part in IDX_PARTS:
        (tmp_path / part).write_bytes(digits(part))
    (tmp_path / IDX_PARTS[0]).write_bytes(content)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.*{message}"):
        load_data(DataConfig(source=str(tmp_path)))


# npz


def test_npz_with_keras_names_keeps_its_test_split(tmp_path: Path) -> None:
    train, test = noise((30, 8, 8)), noise((5, 8, 8), 1)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "d.npz", x_train=train, y_train=labels, x_test=test, y_test=np.zeros(5, np.uint8))
    data = load_data(DataConfig(source=str(tmp_path / "d.npz"), validation_fraction=0.1))
    assert np.array_equal(all_images(data.test)[:, 0].numpy(), test)
    assert data.label_names == ("0", "1", "2")
    for picture, label in zip(all_images(data.train), data.train.labels, strict=True):
        (index,) = np.flatnonzero((train == picture[0].numpy()).all((1, 2)))
        assert labels[index] == label


def test_npz_without_labels_or_test_split(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=noise((40, 8, 12, 3)))
    data = load_data(DataConfig(source=str(tmp_path / "d.npz")))
    assert data.label_names == () and data.picture == (3, 8, 12)
    assert (len(data.train), len(data.validation), len(data.test)) == (33, 1, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 8, 8), np.float32)}, r"float32 \(4, 8, 8\): save them as uint8"),
        ({"images": np.array([object()])}, "plain arrays"),
        ({"pictures": np.zeros((4, 8, 8), np.uint8)}, "name the pictures x_train or images"),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, np.int64)},
            "int64 .*: give each picture one integer",
        ),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, -1)}, r"labels must lie in 0\.\.0: correct"),
        (
            {"images": noise((9, 8, 8)), "labels": np.zeros(9, np.int64), "test_images": noise((4, 8, 8))},
            "labels for one of",
        ),
        (
            {"images": noise((9, 8, 8)), "test_images": noise((4, 8, 8)), "test_labels": np.zeros(4, np.int64)},
            "labels for one of",
        ),
        (
            {
                "images": noise((9, 8, 8)),
                "labels": np.zeros(9, np.int64),
                "test_images": noise((4, 8, 8)),
                "test_labels": np.arange(4),
            },
            r"labels must lie in 0\.\.0",
        ),
        ({"images": noise((9, 8, 8)), "labels": np.arange(9) * 50_000_000}, "9 different labels reach up to 400000000"),
        ({"images": noise((9, 8, 8)), "labels": np.arange(2017, 2026)}, "renumber those of training and test together"),
        ({"images": noise((9, 8, 8)), "labels": np.full(9, 2**63 + 5, np.uint64)}, f"reach up to {2**63 + 5}"),
        (
            {"images": np.zeros((9, 0, 8), np.uint8)},
            r"has no pictures: an array of them is \(9, 0, 8\): save it again with some",
        ),
        ({"images": noise((9, 8, 8)), "test_images": noise((4, 8, 12))}, r"\(1, 8, 8\).*\(1, 8, 12\): make them alike"),
        ({"images": noise((9, 8, 8)), "test_images": noise((4, 8, 8, 3))}, r"\(1, 8, 8\).*\(3, 8, 8\)"),
    ],
)
def test_an_unusable_npz_is_refused_with_its_reason(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=True, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(source=str(tmp_path / "d.npz")))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (noise((9, 12, 12)), noise((4, 12, 7)), "data.crop is 8, some pictures are 12x7"),
        (noise((9, 7, 12)), noise((4, 12, 12)), "data.crop is 8, some pictures are 7x12"),
        (noise((9, 12, 12, 3)), noise((4, 12, 12)), r"are \(3,\).*test pictures \(1,\)"),
    ],
    ids=["small test pictures", "small training pictures", "other channels"],
)
def test_a_crop_must_fit_into_the_pictures_of_every_split(
    tmp_path: Path, train: np.ndarray, test: np.ndarray, message: str
) -> None:
    """Only the training pictures were looked at; the others ended in an error of torch."""
    np.savez(tmp_path / "d.npz", images=train, test_images=test)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(source=str(tmp_path / "d.npz"), crop=8))


def test_splits_of_different_sizes_are_cropped_to_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=noise((9, 12, 12)), test_images=noise((4, 8, 17)))
    data = load_data(DataConfig(source=str(tmp_path / "d.npz"), crop=8))
    assert data.picture == (1, 8, 8) and len(data.test) == 4 * 2


def test_an_npz_may_have_more_labels_than_a_byte(tmp_path: Path) -> None:
    labels = np.arange(600) // 2
    np.savez(tmp_path / "d.npz", images=noise((600, 4, 4)), labels=labels)
    assert len(load_data(DataConfig(source=str(tmp_path / "d.npz"))).label_names) == 300


# CIFAR-10


def write_cifar(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    """The binary archive: label byte, then the three colour planes; `pixels` (60,32,32,3) are ten pictures a file."""
    folder.mkdir(parents=True)
    path = folder / CIFAR_ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
        for start, name in zip(range(0, 60, 10), names, strict=True):
            planes = pixels[start : start + 10].transpose(0, 3, 1, 2).reshape(10, -1)
            content = np.concatenate([labels[start : start + 10, None], planes], axis=1).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_cifar10_colours_and_labels(tmp_path: Path) -> None:
    pixels, labels = noise((60, 32, 32, 3)), (np.arange(60) % 10).astype(np.uint8)
    write_cifar(tmp_path / "c", pixels, labels)
    data = load_data(DataConfig(source=str(tmp_path / "c")))
    assert np.array_equal(all_images(data.test).permute(0, 2, 3, 1).numpy(), pixels[50:])
    assert data.test.labels.tolist() == labels[50:].tolist() and data.label_names == CIFAR_LABELS


# folders of picture files


def test_folder_labels_come_from_sub_folders_and_corrupt_files_are_listed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "cat", 10)
    write_pictures(tmp_path / "dog", 10)
    whole = (tmp_path / "dog" / "00.png").read_bytes()
    (tmp_path / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "text.jpg").write_text("not a picture")
    data = load_data(DataConfig(source=str(tmp_path)))
    assert data.label_names == ("cat", "dog")
    assert len(data.train) + len(data.validation) + len(data.test) == 20
    assert [Path(entry.split(":")[0]).name for entry in data.skipped] == ["text.jpg", "cut.png"]


def test_the_log_says_which_labels_were_found_and_why_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One stray picture took all labels away, which nobody saw before the model was served."""
    for label in ("cat", "dog"):
        write_pictures(tmp_path / label, 10)
    with caplog.at_level("INFO"):
        load_data(DataConfig(source=str(tmp_path)))
        assert "labels: cat, dog" in caplog.messages
        shutil.copy(tmp_path / "cat" / "00.png", tmp_path / "stray.png")
        load_data(DataConfig(source=str(tmp_path)))
    assert f"no labels: {tmp_path / 'stray.png'} and 0 more lie beside the sub-folders" in caplog.messages


def test_the_log_says_that_small_pictures_are_enlarged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index, side in enumerate((10, 16, 20, 20, 20, 20, 20)):
        Image.fromarray(noise((side, 24))).save(tmp_path / f"{index}.png")
    load_data(DataConfig(source=str(tmp_path), crop=16))
    assert f"2 pictures of {tmp_path} are no larger than data.crop; smaller ones are enlarged" in caplog.messages


def test_folder_with_nothing_usable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.png"):
        load_data(DataConfig(source=str(tmp_path)))
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(DataError, match=r"none of the 1 pictures in .*: put others there or correct data\.source"):
        load_data(DataConfig(source=str(tmp_path)))


def test_train_and_test_sub_folders_are_the_splits(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 10)
    write_pictures(tmp_path / "test", 3)
    data = load_data(DataConfig(source=str(tmp_path)))
    expected = np.stack([np.asarray(Image.open(tmp_path / "test" / f"0{index}.png")) for index in range(3)])
    assert np.array_equal(all_images(data.test).permute(0, 2, 3, 1).numpy(), expected)


def test_a_label_named_train_is_no_split(tmp_path: Path) -> None:
    """With `train` alone taken for the split, the other labels were left out without a word."""
    for label in ("boat", "plane", "train"):
        write_pictures(tmp_path / label, 6)
    data = load_data(DataConfig(source=str(tmp_path)))
    assert data.label_names == ("boat", "plane", "train")
    assert len(data.train) + len(data.validation) + len(data.test) == 18


def test_a_train_folder_alone_is_the_data(tmp_path: Path) -> None:
    for label in ("cats", "dogs"):
        write_pictures(tmp_path / "train" / label, 6)
    assert load_data(DataConfig(source=str(tmp_path))).label_names == ("cats", "dogs")


def test_pictures_beyond_the_memory_limit_are_the_same_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 12, size=(40, 50))
    config = DataConfig(source=str(tmp_path / "p"), crop=16)
    assert load_data(config).digest == load_data(config.model_copy(update={"memory_mib": 0})).digest


def unusual_pictures(folder: Path) -> list[Path]:
    """One file a kind of pixel that needs a decision: transparency of every sort, 16 bits, CMYK, an orientation."""
    colours, alpha, turned = Image.fromarray(noise((9, 12, 3))), Image.fromarray(noise((9, 12), 1)), Image.Exif()
    colours.putalpha(alpha)
    turned[0x0112] = 6
    palette = colours.convert("RGB").quantize(16)
    pictures: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "rgba.png": (colours, {}),
        "la.png": (colours.convert("LA"), {}),
        "rgba.webp": (colours, {"lossless": True}),
        "palette.png": (palette, {"transparency": 3}),
        "palette-alpha.png": (palette, {"transparency": bytes(range(0, 256, 16))}),
        "rgb-key.png": (colours.convert("RGB"), {"transparency": colours.convert("RGB").getpixel((0, 0))}),
        "sixteen.png": (Image.fromarray((noise((9, 12)).astype(np.uint16) << 8) + 77), {}),
        "cmyk.jpg": (colours.convert("CMYK"), {}),
        "turned.png": (colours, {"exif": turned}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(folder / name, **options)
    return [folder / name for name in pictures]


@pytest.mark.parametrize("channels", [1, 3])
def test_training_decodes_every_picture_as_the_service_does(tmp_path: Path, channels: int) -> None:
    """Alpha was thrown away and 16 bits were clipped to white: the model was served other pixels than it had seen."""
    for path in unusual_pictures(tmp_path):
        found = decode_picture(path, grey=channels == 1, smallest_side=1, shorter_side=None)
        spec = PictureSpec(height=8, width=8, channels=channels, any_size=True, multiple_of=1)
        served = to_picture(open_picture(path.read_bytes(), max_pixels=1000), spec, "exact").pixels
        assert np.array_equal(found.permute(1, 2, 0).numpy(), served), path.name


def test_animations_are_listed_and_left_out_as_the_service_refuses_them(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 6)
    frames = [Image.fromarray(noise((20, 24, 3), seed)) for seed in (7, 8)]
    for name in ("moving.png", "moving.webp"):
        frames[0].save(tmp_path / "p" / name, save_all=True, append_images=frames[1:])
    data = load_data(DataConfig(source=str(tmp_path / "p")))
    assert len(data.train) + len(data.validation) + len(data.test) == 6
    assert [entry.partition(": ")[2][:8] for entry in data.skipped] == ["animated"] * 2


def test_a_phones_jpeg_of_two_pictures_is_its_first(tmp_path: Path) -> None:
    first, second = (Image.fromarray(noise((20, 24, 3), seed)) for seed in (7, 8))
    first.save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[second])
    first.save(tmp_path / "one.jpg", format="JPEG")
    one, two = (
        decode_picture(tmp_path / f"{name}.jpg", grey=False, smallest_side=1, shorter_side=None)
        for name in ("one", "two")
    )
    assert torch.equal(one, two)
    assert open_picture((tmp_path / "two.jpg").read_bytes(), max_pixels=1000).size == (24, 20)


def test_pictures_are_scaled_turned_upright_and_greyed(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, 8, size=(10, 30))
    turned = Image.fromarray(noise((10, 30, 3)))
    exif = turned.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    for index in range(8):
        turned.save(folder / f"{index:02}.png", exif=exif)
    data = load_data(DataConfig(source=str(folder), grey=True, shorter_side=20))
    assert data.picture == (1, 60, 20)


def test_different_sizes_need_a_crop_and_small_pictures_grow_to_it(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 6, size=(20, 24))
    Image.fromarray(noise((10, 10, 3))).save(tmp_path / "p" / "small.png")
    with pytest.raises(DataError, match=r"set data\.crop"):
        load_data(DataConfig(source=str(tmp_path / "p")))
    data = load_data(DataConfig(source=str(tmp_path / "p"), crop=16))
    assert data.picture == (3, 16, 16)
    assert isinstance(data.train.images, Ragged)
    assert min(min(data.train.images[index].shape[1:]) for index in range(len(data.train))) >= 16


def test_a_picture_that_the_encoder_cannot_halve_is_refused() -> None:
    data = load_data(DataConfig(source=str(DIGITS)))
    data.require_multiple_of(4)
    with pytest.raises(DataError, match="multiples of 8"):
        data.require_multiple_of(8)


def test_an_unknown_source_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="mnist, fashion_mnist, cifar10: correct it"):
        load_data(DataConfig(source="minst"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.npz", b"", "cannot be read as a .npz"),
        ("d.png", b"\x89PNG\r\n\x1a\n", "data.source is a folder of picture files, or a .npz$"),
        ("d.npy", None, "is one array: save a .npz"),
    ],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is None:
        np.save(path, noise((9, 8, 8)))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(source=str(path)))


# splits


@pytest.mark.parametrize("own_test_split", [False, True])
def test_the_files_of_the_test_split_are_those_that_training_puts_aside(tmp_path: Path, own_test_split: bool) -> None:
    """Benchmarks measure on them: with corrupt files, or a `test` folder, they once had pictures of the training."""
    for index in range(30):
        folder = tmp_path / ("test" if index % 4 == 0 else "train") if own_test_split else tmp_path
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 8 * index, np.uint8)).save(folder / f"{index}.png")
        if index % 3 == 0:
            (folder / f"{index}-corrupt.png").write_bytes(b"nothing")
    data = load_data(DataConfig(source=str(tmp_path), grey=True, test_fraction=0.2))
    assert isinstance(data.test.images, torch.Tensor)
    others, test = split_files(tmp_path, 0.2)
    assert sorted(8 * int(path.stem) for path in test) == sorted(data.test.images[:, 0, 0, 0].tolist())
    assert len(others) == len(data.train) + len(data.validation)
    assert not {*others} & {*test}


def test_splits_cover_the_data_once_whatever_the_order_of_the_files() -> None:
    names = [f"{index}.png" for index in range(50)]
    order = ranked(names)
    assert sorted(order) == list(range(50))
    shuffled = names[::-1]
    assert [shuffled[index] for index in ranked(shuffled)] == [names[index] for index in order]
    by_hand = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [names[index] for index in order] == by_hand


@pytest.mark.parametrize(
    ("count", "test_fraction", "validation_fraction", "sizes"),
    [
        (24, 0.15, 0.1, (18, 2, 4)),  # 3.6 and 2.4
        (22, 0.15, 0.08, (17, 2, 3)),  # 3.3 and 1.76
        (10, 0.25, 0.35, (4, 4, 2)),  # 2.5 and 3.5: a half goes to the even number
        (20, 0.01, 0.01, (18, 1, 1)),  # 0.2 each: at least one
    ],
)
def test_the_sizes_of_splits_are_rounded_to_the_nearest(
    count: int, test_fraction: float, validation_fraction: float, sizes: tuple[int, int, int]
) -> None:
    """By hand: another rounding would move pictures from one split to the other between versions."""
    source = Source(numbered(count), [str(index) for index in range(count)], None, ())
    assert tuple(map(len, split_source(source, validation_fraction, test_fraction))) == sizes
    own = Source(source.train, source.names, numbered(7), ())
    assert tuple(map(len, split_source(own, validation_fraction, test_fraction))) == (count - sizes[1], sizes[1], 7)


def test_too_few_pictures_to_split_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 2)
    with pytest.raises(DataError, match=r"2 pictures are too few: 2 are held out\. Add pictures to data\.source"):
        load_data(DataConfig(source=str(tmp_path / "p")))


def test_tiles_are_the_centred_grid_of_each_picture() -> None:
    pictures = [torch.from_numpy(noise((3, 21, 33))), torch.from_numpy(noise((3, 16, 18), 1))]
    split = Split(Ragged(pictures, lambda path: torch.empty(0)), torch.tensor([4, 7]))
    cut = tiles(split, 8)
    expected = [
        picture[:, top : top + 8, left : left + 8]
        for picture, tops, lefts in (
            (pictures[0], (2, 10), (0, 8, 16, 24)),
            (pictures[1], (0, 8), (1, 9)),
        )
        for top in tops
        for left in lefts
    ]
    assert torch.equal(all_images(cut), torch.stack(expected))
    assert cut.labels.tolist() == [4] * 8 + [7] * 4


# batches


def numbered(count: int) -> Split:
    """Pictures that are their own index."""
    return Split(torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1), torch.arange(count))


def test_every_picture_comes_once_an_epoch_in_a_new_order() -> None:
    stream = Stream(numbered(10), batch_size=4, seed=3)
    labels = torch.cat([stream.batch(step)[1] for step in range(10)]).reshape(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in labels)
    assert len({tuple(epoch.tolist()) for epoch in labels}) == 4


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one, again, other = (Stream(numbered(50), 8, seed) for seed in (1, 1, 2))
    for step in (7, 0, 30):
        assert torch.equal(one.batch(step)[0], again.batch(step)[0])
    assert not torch.equal(one.batch(0)[0], other.batch(0)[0])


def test_the_shares_of_all_processes_are_the_batch_of_one() -> None:
    split = Split(torch.from_numpy(noise((20, 3, 12, 12))), torch.arange(20))
    stream = partial(Stream, split, 8, 5, crop=8, flip=True)
    whole = stream().batch(6)
    shares = [stream(rank=rank, world_size=2).batch(6) for rank in range(2)]
    assert torch.equal(whole[0], torch.cat([share[0] for share in shares]))
    assert torch.equal(whole[1], torch.cat([share[1] for share in shares]))
    with pytest.raises(DataError, match="multiple of the 3 processes"):
        stream(world_size=3)


def test_crops_reach_every_corner_and_half_of_them_are_mirrored() -> None:
    picture = torch.arange(36, dtype=torch.uint8).reshape(1, 6, 6)
    stream = Stream(Split(picture[None], torch.zeros(1, dtype=torch.int64)), 400, seed=1, crop=4, flip=True)
    crops = stream.batch(0)[0][:, 0]  # (400, 4, 4); the first column of an unmirrored crop grows to the right
    mirrored = crops[:, 0, 0] > crops[:, 0, 1]
    upright = torch.where(mirrored[:, None, None], crops.flip(-1), crops)
    corners = upright[:, 0, 0].long()
    windows = picture[0].unfold(0, 4, 1).unfold(1, 4, 1)  # (3, 3, 4, 4)
    assert torch.equal(upright, windows[corners // 6, corners % 6])
    counts = torch.bincount(corners, minlength=36)
    assert sorted(torch.nonzero(counts).flatten().tolist()) == [0, 1, 2, 6, 7, 8, 12, 13, 14]
    assert counts[counts > 0].min() > 20  # 400 / 9 = 44, standard deviation 6.3
    assert 150 < int(mirrored.sum()) < 250  # 200, standard deviation 10


def test_another_seed_crops_elsewhere() -> None:
    split = Split(torch.from_numpy(noise((1, 1, 40, 40))), torch.zeros(1, dtype=torch.int64))
    one, other = (Stream(split, 8, seed, crop=4).batch(0)[0] for seed in (1, 2))
    assert not torch.equal(one, other)


def test_whether_a_crop_is_mirrored_has_nothing_to_do_with_where_it_lies() -> None:
    columns = torch.arange(40, dtype=torch.uint8).expand(1, 4, 40)
    split = Split(columns[None], torch.zeros(1, dtype=torch.int64))
    crops = Stream(split, 400, seed=1, crop=4, flip=True).batch(0)[0][:, 0, 0].long()  # (400, 4)
    mirrored, right = crops[:, 0] > crops[:, 1], crops.amin(1) >= 18
    for side in (right, ~right):
        assert 0.35 < float(mirrored[side].float().mean()) < 0.65


def test_the_digest_is_of_every_picture_and_label() -> None:
    def splits() -> list[Split]:
        return [Split(torch.from_numpy(noise((3, 1, 4, 4), seed)), torch.arange(3)) for seed in range(3)]

    digests = {digest_of(splits())}
    for index in range(3):
        images, labels = splits(), splits()
        assert isinstance(images[index].images, torch.Tensor)
        images[index].images[2, 0, 3, 3] ^= 1
        labels[index].labels[2] = 0
        digests |= {digest_of(images), digest_of(labels)}
    assert len(digests) == 7
    assert digest_of(splits()) in digests


# downloads, from a server on this machine


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """No access log in the tests' output."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "mirror"
    (folder / "good").mkdir(parents=True)
    (folder / "bad").mkdir()
    for part in IDX_PARTS:
        (folder / "good" / f"{part}.gz").write_bytes((DIGITS / f"{part}.gz").read_bytes())
        (folder / "bad" / f"{part}.gz").write_bytes(gzip.compress(b"something else"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def as_named(monkeypatch: pytest.MonkeyPatch, *mirrors: str) -> None:
    md5s = {part: hashlib.md5(digits(part), usedforsecurity=False).hexdigest() for part in IDX_PARTS}
    files = tuple(File(f"{part}.gz", md5, of_content=True) for part, md5 in md5s.items())
    monkeypatch.setitem(NAMED, "mnist", Named(mirrors, files, "CC BY-SA 3.0"))


def test_a_named_data_set_comes_from_the_first_mirror_with_the_right_checksum(
    tmp_path: Path, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, served = mirror
    as_named(monkeypatch, f"{url}/absent/", f"{url}/bad/", f"{url}/good/")
    config = DataConfig(source="mnist", root=str(tmp_path / "data"))
    downloaded = load_data(config)
    assert downloaded.digest == load_data(DataConfig(source=str(DIGITS))).digest
    assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == sorted(f"{p}.gz" for p in IDX_PARTS)
    for path in served.rglob("*.gz"):
        path.unlink()
    assert load_data(config).digest == downloaded.digest  # from disk, the mirror is empty now


def test_with_no_mirror_the_error_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_module, "TIMEOUT_S", 2.0)
    as_named(monkeypatch, "http://127.0.0.1:9/")  # the discard port: refused
    with pytest.raises(DataError, match=r"Put the file at .*data/mnist/train-images-idx3-ubyte\.gz"):
        load_data(DataConfig(source="mnist", root=str(tmp_path / "data")))
    assert list((tmp_path / "data" / "mnist").iterdir()) == []


def test_a_changed_file_of_a_named_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_named(monkeypatch)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part in IDX_PARTS:
        (folder / part).write_bytes(digits(part))  # decompressed by hand: accepted
    assert len(load_data(DataConfig(source="mnist", root=str(tmp_path))).test) == 100
    (folder / IDX_PARTS[3]).write_bytes(digits(IDX_PARTS[3])[:-1] + b"\x05")
    for part in IDX_PARTS:  # a good compressed file beside it is no reason to read it unchecked
        (folder / f"{part}.gz").write_bytes((DIGITS / f"{part}.gz").read_bytes())
        with pytest.raises(DataError, match=f"{IDX_PARTS[3]} has another MD5"):
            load_data(DataConfig(source="mnist", root=str(tmp_path)))


def test_a_named_data_set_is_read_from_the_files_that_were_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST's checksums are of the .gz: a raw file beside them was not checked, and read."""
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    files = []
    for part in IDX_PARTS:
        packed = (DIGITS / f"{part}.gz").read_bytes()
        (folder / f"{part}.gz").write_bytes(packed)
        files.append(File(f"{part}.gz", hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    names = NAMED["fashion_mnist"].label_names
    monkeypatch.setitem(NAMED, "fashion_mnist", Named((), tuple(files), "MIT", names))
    (folder / IDX_PARTS[3]).write_bytes(digits(IDX_PARTS[3])[:-1] + b"\x05")
    (folder / CIFAR_ARCHIVE).write_bytes(b"another reader's")
    data = load_data(DataConfig(source="fashion_mnist", root=str(tmp_path)))
    assert data.digest == load_data(DataConfig(source=str(DIGITS))).digest and data.label_names == names


def test_a_named_cifar10_is_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = noise((60, 32, 32, 3)), (np.arange(60) % 10).astype(np.uint8)
    packed = write_cifar(tmp_path / "cifar10", pixels, labels).read_bytes()
    files = (File(CIFAR_ARCHIVE, hashlib.md5(packed, usedforsecurity=False).hexdigest()),)
    monkeypatch.setitem(NAMED, "cifar10", Named((), files, "none"))
    data = load_data(DataConfig(source="cifar10", root=str(tmp_path)))
    assert data.label_names == CIFAR_LABELS and data.test.labels.tolist() == labels[50:].tolist()
