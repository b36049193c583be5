"""Batches of training follow from the seed and the step alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.training.conftest import noise, numbered
from training.data import DataError, Split, Stream


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
