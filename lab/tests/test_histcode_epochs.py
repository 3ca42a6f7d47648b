"""lab/histcode/epochs.py: which tiles an epoch has, in which order, and how they are read."""

import argparse
import shutil

import numpy as np
import pytest
import torch

import tiling
from lab.cohort.slides import open_slide
from lab.files import InputError
from lab.histcode.epochs import (
    BATCHES_FROM,
    Reader,
    batches_by_slide,
    choose_tiles,
    mixed_batches,
    mixed_order,
    read_batches,
    sizes_by_slide,
)
from lab.tests.helpers_histcode import data_of


@pytest.mark.parametrize("n, pool", [(1, 5), (50, 1), (200, 30), (200, 500)])
def test_mixing_shuffles_within_its_pool(n, pool):
    order = mixed_order(n, pool, np.random.default_rng(0))
    assert sorted(order) == list(range(n))
    assert (order <= np.arange(n) + pool - 1).all()  # only what has been read
    assert n == 1 or (order == np.arange(n)).all() == (pool == 1)
    if pool >= 30:
        places = [np.flatnonzero(order == i)[0] for i in range(10)]
        assert np.ptp(places) > 15


def test_an_epochs_tiles_are_drawn_from_every_slide_by_seed_and_epoch():
    counts, per_slide = np.array([5, 40, 0, 12]), np.full(4, 10)
    chosen = choose_tiles(counts, per_slide, 0, 1)
    assert len({*map(tuple, chosen)}) == len(chosen)  # none twice
    assert np.bincount(chosen[:, 0], minlength=4).tolist() == [5, 10, 0, 10]
    assert (chosen[:, 1] < counts[chosen[:, 0]]).all()
    assert (np.diff(chosen[:, 0]) != 0).sum() == 2  # slide after slide
    assert (chosen == choose_tiles(counts, per_slide, 0, 1)).all()
    keys = [(0, 1), (0, 2), (1, 1)]
    assert len({choose_tiles(counts, per_slide, *key).tobytes() for key in keys}) == 3


@pytest.mark.parametrize(
    "n, batch", [(7, 256), (8, 256), (30, 32), (30, 16), (300, 256), (264, 256), (512, 256)]
)
def test_a_slide_is_cut_into_equal_batches_of_eights(n, batch):
    sizes = sizes_by_slide(n, batch)
    assert sum(sizes) == (n // 8 * 8) and len(sizes) == -(-sum(sizes) // batch)
    assert all(size % 8 == 0 for size in sizes) and max([0, *sizes]) <= batch
    assert not sizes or max(sizes) - min(sizes) in (0, 8)


@pytest.mark.parametrize("batch, counts", [(8, [3, 9, 40, 8]), (16, [0, 30, 16]), (6, [5, 13])])
def test_batches_by_slide_hold_tiles_of_one_slide_each(batch, counts):
    chosen = choose_tiles(np.array(counts), np.full(len(counts), 10**6), 0, 1)
    batches = batches_by_slide(chosen, batch, 20, np.random.default_rng(0))
    assert all(len({*chosen[rows, 0]}) == 1 for rows in batches)
    rows = np.concatenate(batches)
    assert len({*rows}) == len(rows)  # none twice
    each = [chosen[rows[0], 0] for rows in batches]
    assert (np.diff(each) != 0).sum() == len({*each}) - 1  # slide after slide
    assert {*each} == {s for s, n in enumerate(counts) if n >= min(8, batch)}
    longest = max(batches, key=len)
    assert (np.diff(longest) < 0).any()  # not in the order of reading


def test_mixed_batches_hold_tiles_of_several_slides():
    chosen = choose_tiles(np.full(5, 40), np.full(5, 40), 0, 1)
    batches = mixed_batches(chosen, 16, 10**6, np.random.default_rng(0))
    assert [len(rows) for rows in batches] == [16] * 12
    assert all(len({*chosen[rows, 0]}) > 2 for rows in batches)


@pytest.fixture(scope="module")
def drawn_epoch(unlabelled_once):
    """Data of a cohort, and the tiles and batches of six of an epoch."""
    data = data_of(unlabelled_once)
    counts = np.array([len(coords) for coords in data["coords"]])
    chosen = choose_tiles(counts, np.full(len(counts), 3), 0, 1)
    return data, chosen, mixed_batches(chosen, 6, 7, np.random.default_rng(0))


def test_batches_do_not_depend_on_workers_and_processes_share_them(drawn_epoch):
    data, chosen, batches = drawn_epoch

    def read(share, workers):
        return list(read_batches(data, chosen, batches, share, workers))

    whole = read((0, 1), 1)
    assert len(whole) == len(chosen) // 6 > 2 and whole[0].shape == (6, 36, 36, 3)
    assert all((a == b).all() for a, b in zip(whole, read((0, 1), 5), strict=True))
    for all_rows, *parts in zip(whole, read((0, 2), 2), read((1, 2), 2), strict=True):
        assert (np.concatenate(parts) == all_rows).all()


def test_a_batchs_tiles_are_those_of_its_rows(drawn_epoch, unlabelled):
    """As tiling.read_tiles gives them, and with --colour macenko by the stains of the slide."""
    data, chosen, batches = drawn_epoch
    s, t = chosen[batches[0][0]]
    slide, edge = open_slide(data["paths"][s]), data["tiles"][s]
    wanted = tiling.read_tiles(slide, data["coords"][s][[t]], edge, 36)
    assert (next(read_batches(data, chosen, batches))[0] == wanted[0]).all()
    stains = tiling.slide_stains(slide, data["coords"][s], edge, 36, 0)
    coloured = next(read_batches(data_of(unlabelled, colour="macenko"), chosen, batches))[0]
    assert stains is not None and (coloured != wanted[0]).any()
    assert (coloured == tiling.macenko(wanted, stains)[0][0]).all()


def test_a_slide_that_breaks_off_is_named(unlabelled, tmp_path):
    shutil.copytree(unlabelled, tmp_path / "c", ignore=shutil.ignore_patterns("runs"))
    data = data_of(tmp_path / "c")
    path = sorted((tmp_path / "c" / "slides").iterdir())[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    n = len(data["coords"][0])
    chosen = np.stack([np.zeros(n, int), np.arange(n)], 1)
    with pytest.raises(InputError, match=f"{path.stem}.*(take it out|not a readable)"):
        list(read_batches(data, chosen, [np.arange(n)]))


def test_a_reader_gives_the_views_of_an_epoch_and_of_the_bank(unlabelled):
    data = data_of(unlabelled)
    o = argparse.Namespace(tiles_per_slide=2, batch=8, tile_px=36, view_px=32, seed=0)
    o.share, o.workers, o.bank_percent, o.batch_from = (0, 1), 1, 30, "all"
    reader = Reader(data, o, "cpu")
    views = list(reader.views(1))
    assert len(views) == reader.tiles_of_epoch // 8 and {*reader.slides_at} < {*data["slides"]}
    assert all(x.shape == (8, 3, 32, 32) for pair in views for x in pair)
    full = int(np.ceil(0.3 * reader.counts).sum())
    for o.bank_size, wanted in ((10**6, full // 8 * 8), (9, 8), (5, 5)):
        assert sum(len(x) for x in reader.bank_views()) == wanted


@pytest.mark.parametrize("o_batch_from", BATCHES_FROM)
def test_an_epoch_is_the_same_for_processes_that_share_it(unlabelled, o_batch_from):
    data = data_of(unlabelled)
    data["coords"] = [np.repeat(coords, 4, 0) for coords in data["coords"]]  # enough for a batch
    o = argparse.Namespace(tiles_per_slide=11, batch=8, tile_px=36, view_px=32, seed=0, workers=1)
    o.batch_from = o_batch_from

    def views_of(*share):
        o.share = share
        reader = Reader(data, o, "cpu")
        views = [torch.stack(pair) for pair in reader.views(1)]  # (2, B, 3, px, px)
        assert [x.shape[1] * share[1] for x in views] == reader.sizes
        return views

    for whole, a, b in zip(views_of(0, 1), views_of(0, 2), views_of(1, 2), strict=True):
        assert torch.equal(torch.cat([a, b], 1), whole)
