"""Edges of histcode.py: views by themselves, overflow, padding, training that goes on.

The rest is in test_all.py.
"""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import histcode
from lab.histcode.networks import POOLINGS
from lab.tests.helpers import pictures, relative
from lab.tests.helpers_histcode import (
    Pixels,
    drawn_network,
    plain_view,
    ragged,
    random_views,
    seeded,
    small_embedder,
    unit_rows,
)


def test_views_have_their_shape_and_range_and_follow_the_seed():
    """The seeds: the same view again, or no two alike."""
    tiles = (pictures(6, 40) * 255).to(torch.uint8)
    for px in (24, 40, 64):
        a, again, other = (
            histcode.make_view(tiles, histcode.draw_view(6, seeded(s)), px) for s in (1, 1, 2)
        )
        assert a.shape == (6, 3, px, px) and a.dtype == torch.float32
        assert a.min() >= 0 and a.max() <= 1
        assert torch.equal(a, again) and (a - other).abs().mean() > 0.02
    same = tiles[:1].repeat(40, 1, 1, 1)
    views = histcode.make_view(same, histcode.draw_view(40, seeded()), 24).flatten(1)
    assert torch.cdist(views, views).fill_diagonal_(9).min() > 0.1  # no two are alike


def test_the_plain_view_is_the_tile():
    tiles = (pictures(3, 32) * 255).to(torch.uint8)
    assert torch.allclose(histcode.make_view(tiles, plain_view(3), 32), tiles / 255, atol=1e-6)


def test_a_view_depends_on_its_own_draws_alone():
    tiles = (pictures(5, 32) * 255).to(torch.uint8)
    view = histcode.draw_view(5, seeded(3))
    together = histcode.make_view(tiles, view, 24)
    for i in (0, 3):
        own = {name: value[i : i + 1] for name, value in view.items()}
        alone = histcode.make_view(tiles[i : i + 1], own, 24)
        assert torch.allclose(alone[0], together[i], atol=1e-6)


def test_a_full_turn_of_the_hue_changes_nothing_and_a_part_keeps_value_and_chroma():
    x = pictures(2, 8)
    got = histcode.shift_hue(x, torch.tensor([0.3, -0.1]).view(2, 1, 1))
    assert torch.allclose(got.amax(1), x.amax(1), atol=1e-6)
    assert torch.allclose(got.amin(1), x.amin(1), atol=1e-6)
    assert torch.allclose(histcode.shift_hue(x, torch.ones(2, 1, 1)), x, atol=1e-5)


def test_info_nce_does_not_overflow():
    q = unit_rows(7, 5, 0, torch.float32)
    hard = histcode.info_nce(q, -q, q * 1e3, 1e-4)
    assert hard.item() == pytest.approx(2e4, rel=1e-3)


def test_a_bank_climbs():
    """Eq. 3: the bank makes the loss as large as it can."""
    q, k = unit_rows(12, 8, 0), unit_rows(12, 8, 1)
    bank = histcode.Bank(unit_rows(40, 8, 2), rate=0.1, momentum=0)
    losses = []
    for _ in range(30):
        losses.append(bank(q, k).item())
        bank.climb([(q, k)])
    assert (np.diff(losses) > 0).all() and losses[-1] > losses[0] + 0.1


def test_a_bank_is_filled_by_keys_and_then_climbs():
    """AdCo's code: by eq. 1 alone while it fills; too many keys of the last batch are left out."""
    start = histcode.random_bank(20, 8, seed=3)
    assert histcode.spread(histcode.random_bank(4000, 8)) > 0.99
    assert not torch.equal(start, histcode.random_bank(20, 8, seed=4))
    bank = histcode.Bank(start.clone(), fill=True)
    q, k = (x.float() for x in (unit_rows(8, 8, 0), unit_rows(8, 8, 1)))
    assert bank(q, k) == histcode.info_nce(q, k, start, histcode.TAU)
    assert [bool(bank.climb([(q, k)])) for _ in range(3)] == [False, False, True]
    assert torch.equal(bank.w, torch.cat([k, k, k[:4]])) and not bank.velocity.any()
    assert bank(q, k) == histcode.info_nce(q, k, bank.w, histcode.TAU, in_batch=True)
    assert not bank.climb([(q, k)]) and bank.velocity.any()


def test_a_full_bank_puts_the_slow_copy_where_the_encoder_is():
    """AdCo's code, at the end of filling."""
    weights = []
    for size in (24, 25):
        model = small_embedder()
        bank = histcode.Bank(histcode.random_bank(size, 5), fill=True)
        options = {"epochs": 1, "momentum_encoder": 0.9}
        (state,) = histcode.pretrain_epochs(model, random_views, bank, **options)
        weights.append([state[of]["encoder.layer.weight"] for of in ("model", "keys")])
    (model, keys), (model_of_more, lagging) = weights
    assert torch.equal(model, keys) and not torch.equal(model_of_more, lagging)


def test_spread_tells_a_collapse():
    """torch's variance."""
    z = unit_rows(500, 32, 0)
    deviation = z.var(0, unbiased=False).sum().sqrt()
    assert histcode.spread(z) == pytest.approx(deviation.item(), rel=1e-9)
    assert histcode.spread(z) > 0.95
    assert histcode.spread(z[:1].repeat(9, 1)) < 1e-6


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_keys_come_from_a_slow_copy(symmetric):
    """MoCo's rule: a tenth of the way."""
    model = small_embedder()
    before = copy.deepcopy(model.state_dict())
    bank = histcode.Bank(unit_rows(20, 5, 7, torch.float32))
    options = {"epochs": 1, "momentum_encoder": 0.9, "symmetric": symmetric}
    steps = functools.partial(random_views, steps=2)
    (state,) = histcode.pretrain_epochs(model, steps, bank, **options)
    moved = relative(state["model"]["encoder.layer.weight"], before["encoder.layer.weight"])
    slow = relative(state["keys"]["encoder.layer.weight"], before["encoder.layer.weight"])
    assert 0 < slow < 0.11 * moved  # one of two steps, a tenth of the way


@pytest.mark.parametrize(
    "options",
    [
        {"momentum_encoder": 0.9, "symmetric": True, "final_lr": 0.001},
        {"momentum_encoder": 0.0},
        {"momentum_encoder": 0.0, "simclr": True},
    ],
)
def test_pretraining_goes_on_from_a_state_as_if_it_had_not_stopped(options):
    options = {**options}
    simclr = options.pop("simclr", False)

    def negatives():
        return (
            histcode.OtherTiles() if simclr else histcode.Bank(unit_rows(20, 5, 7, torch.float32))
        )

    options["epochs"] = 3
    training = histcode.pretrain_epochs(small_embedder(), random_views, negatives(), **options)
    whole = [copy.deepcopy(state) for state in training]
    torch.manual_seed(9)
    fresh = histcode.Embedder(Pixels(), d=5)
    options["state"] = whole[0]
    rest = list(histcode.pretrain_epochs(fresh, random_views, negatives(), **options))
    assert [s["epoch"] for s in whole] == [1, 2, 3] and [s["epoch"] for s in rest] == [2, 3]
    assert rest[-1]["loss"] == whole[-1]["loss"]
    for name, value in whole[-1]["model"].items():
        assert torch.equal(rest[-1]["model"][name], value)


def test_a_loss_that_is_lost_is_told():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        bank = histcode.Bank(torch.full((9, 5), torch.nan))
        next(histcode.pretrain_epochs(small_embedder(), random_views, bank))


# ----- Feature aggregation -----------------------------------------------------------------------


@pytest.mark.parametrize("name", POOLINGS)
def test_order_of_tiles_and_padding_change_nothing(name):
    model = drawn_network(name, 64)
    h, mask = ragged((1, 9, 40), 64)
    outputs, a = model(h, mask)
    order = torch.randperm(40, generator=seeded())
    moved, b = model(h[:, order], mask[:, order])
    assert (moved - outputs).abs().max() < 1e-6 and (b - a[:, order]).abs().max() < 1e-6
    for filler in (torch.nan, torch.inf, 1e30):
        longer, c = model(F.pad(h, (0, 0, 0, 13), value=filler), F.pad(mask, (0, 13)))
        assert (longer - outputs).abs().max() < 1e-6
        assert (c[:, :40] - a).abs().max() < 1e-6 and (c[:, 40:] == 0).all()
