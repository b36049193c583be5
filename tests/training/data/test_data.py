"""Readers of picture folders, and splits, each against a straightforward second way to the same pixels."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.bundle.fields import PictureSpec
from service.pictures.images import open_picture, to_picture
from tests.training.conftest import DIGITS, all_images, noise, numbered, write_pictures
from training.config import DataConfig
from training.data import DataError, Split, load_data, load_to_measure, tiles
from training.data.dataset import Ragged, Source, digest_of, ranked, split_source
from training.data.folder import decode_picture, split_files


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (noise((9, 12, 12)), noise((4, 12, 7)), "data.crop is 8, some pictures are 12x7"),
        (noise((9, 7, 12)), noise((4, 12, 12)), "data.crop is 8, some pictures are 7x12"),
        (noise((9, 12, 12, 3)), noise((4, 12, 12)), r"have 3 channels, test pictures 1: make them alike$"),
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


@pytest.mark.parametrize("splits", [("images",), ("images", "test_images")])
def test_a_finished_run_needs_larger_pictures_and_no_other_crop(tmp_path: Path, splits: tuple[str, ...]) -> None:
    """The message asked for a smaller crop, which no option of `evaluate` sets."""
    np.savez(tmp_path / "d.npz", **{name: noise((9, 12, 7)) for name in splits})
    config = DataConfig(source=str(tmp_path / "d.npz"), crop=8)
    with pytest.raises(DataError, match=r"some pictures are 12x7: bring larger pictures$"):
        load_to_measure(config, "")
    with pytest.raises(DataError, match=r"some pictures are 12x7: choose a smaller crop$"):
        load_data(config)


def test_splits_of_different_sizes_are_cropped_to_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=noise((9, 12, 12)), test_images=noise((4, 8, 17)))
    data = load_data(DataConfig(source=str(tmp_path / "d.npz"), crop=8))
    assert data.picture == (1, 8, 8) and len(data.test) == 4 * 2


def test_a_picture_of_another_size_is_refused_though_it_is_the_only_one_of_validation(tmp_path: Path) -> None:
    """Splits were compared with themselves, and test with training: the first validation ended in an error of torch."""
    write_pictures(tmp_path / "p", 7)
    odd = ranked([f"{index:02}.png" for index in range(7)])[1]  # the first is the test split
    Image.fromarray(noise((24, 24, 3))).save(tmp_path / "p" / f"{odd:02}.png")
    with pytest.raises(DataError, match=r"are \(3, 20, 24\) .*, validation pictures \(3, 24, 24\): make them alike"):
        load_data(DataConfig(source=str(tmp_path / "p")))


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
    """It counted those of the crop's own size, and so all that were scaled to it."""
    for index, side in enumerate((10, 16, 20, 20, 20, 20, 20)):
        Image.fromarray(noise((side, 24))).save(tmp_path / f"{index}.png")
    for shorter_side in (None, 16, 24):
        load_data(DataConfig(source=str(tmp_path), crop=16, shorter_side=shorter_side))
    assert caplog.messages == [f"1 pictures of {tmp_path} are smaller than data.crop, and are enlarged"] * 3


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
        found, _ = decode_picture(path, grey=channels == 1, smallest_side=1, shorter_side=None)
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
        decode_picture(tmp_path / f"{name}.jpg", grey=False, smallest_side=1, shorter_side=None)[0]
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
    Image.fromarray(noise((7, 7, 3))).save(tmp_path / "p" / "small.png")
    with pytest.raises(DataError, match=r"set data\.crop=8, say"):
        load_data(DataConfig(source=str(tmp_path / "p")))
    data = load_data(DataConfig(source=str(tmp_path / "p"), crop=16))
    assert data.picture == (3, 16, 16)
    assert isinstance(data.train.images, Ragged)
    assert min(min(data.train.images[index].shape[1:]) for index in range(len(data.train))) >= 16


def test_a_picture_that_the_encoder_cannot_halve_is_refused() -> None:
    data = load_data(DataConfig(source=str(DIGITS)))
    data.require_multiple_of(4)
    for sides in ((28, 28), (28, 24), (24, 28)):
        with pytest.raises(DataError, match="multiples of 8"):
            replace(data, picture=(1, *sides)).require_multiple_of(8)


def test_an_unknown_source_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="mnist, fashion_mnist, cifar10: correct it"):
        load_data(DataConfig(source="minst"))


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
