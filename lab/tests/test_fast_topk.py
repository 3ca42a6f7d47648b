"""lab/fast/topk.py: equal to HE2RNA's plain last layer and top_k_mean, in value and gradient."""

from functools import partial

import numpy as np
import pytest
import torch

import he2rna
from lab.fast import topk
from lab.fast.topk import all_k_head, top_k_head
from lab.tests.helpers import relative
from lab.tests.helpers_he2rna import bags

KS = (1, 2, 5, 10, 20, 50, 100)


def both(*sizes, **more):
    """A plain model and its fast twin, of the same weights."""
    plain = he2rna.HE2RNA(*sizes, **more)
    fast = he2rna.HE2RNA(*sizes, head=top_k_head, **more)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def test_padding_never_counts():
    """Three tiles of -1, -2, -3 and five padded rows: -1 for k = 1, never 0."""
    scores = torch.tensor([-1.0, -2, -3, 0, 0, 0, 0, 0])[None, :, None]
    mask = torch.arange(8)[None] < 3
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    for k, want in ((1, -1), (2, -1.5), (3, -2), (8, -2)):
        assert top_k_head(scores, mask, layer, k).item() == want
        with torch.no_grad():
            assert top_k_head(scores, mask, layer, k).item() == want


def test_all_k_at_once_is_the_mean_over_the_list():
    n_tiles = [1, 4, 30, 120]
    h, mask = bags(np.random.default_rng(1), n_tiles, 7, pad=9)
    layer = torch.nn.Linear(7, 11)
    each = [he2rna.top_k_mean(layer(h), mask, k) for k in KS]
    with torch.no_grad():
        got = all_k_head(h, mask, layer, KS)
    assert torch.allclose(got, torch.stack(each).mean(0), atol=1e-5)


@pytest.mark.parametrize("place", ["cpu", "as on a GPU"])
@pytest.mark.parametrize("way", ["gather", "products"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_value_and_gradients_are_the_plain_ones(monkeypatch, place, way, dtype, tolerance):
    """Dropout, padding anywhere, ragged slides, k up to beyond the slide, several blocks of genes.

    Authority: autograd of the plain model.
    """
    monkeypatch.setattr(topk, "GATHER", {"cpu": 2 if way == "gather" else 0})
    monkeypatch.setattr(topk, "BLOCK_SCORES", 300)
    if place != "cpu":
        monkeypatch.setattr(topk, "highest", topk.by_topk)
    rng = np.random.default_rng(0)
    order = torch.from_numpy(rng.permutation(40))
    x, mask = bags(rng, [1, 7, 40, 23], 12, pad=50)
    x = x[:, order].to(dtype).requires_grad_()
    mask = mask[:, order]
    y = torch.randn(4, 31, dtype=dtype)
    models = [model.to(dtype).train() for model in both(12, 31, (16, 8), dropout=0.5)]
    for k in (1, 2, 7, 23, 39, 40, 99):
        results = []
        for model in models:
            torch.manual_seed(k)  # the same dropout
            prediction = model(x, mask, k)
            loss = (prediction - y).square().mean()
            gradients = torch.autograd.grad(loss, [x, *model.parameters()])
            results.append([prediction.detach(), loss.detach(), *gradients])
        for plain, fast in zip(*results, strict=True):
            assert relative(fast, plain) < tolerance, k


@pytest.mark.parametrize("gather", [0, 2])
def test_of_tied_tiles_any_may_be_taken(monkeypatch, gather):
    """Every tile stands there four times, and one gene alone: nothing depends on which is taken."""
    monkeypatch.setattr(topk, "GATHER", {"cpu": gather})
    x, mask = bags(np.random.default_rng(5), [9, 9], 6)
    x, mask = x.repeat(1, 4, 1), mask.repeat(1, 4)
    plain, fast = both(6, 1, (5,), dropout=0)
    for k in (1, 3, 6, 30):
        gradients = []
        for model in (plain, fast):
            loss = model(x, mask, k).square().sum()
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        assert all(relative(a, b) < 1e-5 for a, b in zip(*gradients, strict=True))


def test_gradients_hold_in_float64_in_training_and_in_evaluation():
    """Authority: torch.autograd.gradcheck, by finite differences."""
    layer = torch.nn.Linear(4, 3).double()
    real = torch.ones(2, 5, dtype=torch.bool)
    h = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda h, *_: top_k_head(h, real, layer, 2), (h, *weights))
    _, fast = both(4, 3, (6,), ks=(1, 2, 9))
    fast = fast.double().eval()
    assert torch.autograd.gradcheck(lambda h: fast(h, real), h)


def test_bfloat16_chooses_among_nearly_equal_scores_and_predicts_in_float32():
    """The mean of tiles chosen by rounded scores falls short of the best by less than rounding."""
    torch.manual_seed(0)
    x, mask = bags(np.random.default_rng(6), [8000, 1200], 64)
    plain, fast = both(64, 50, (64,), dropout=0)
    fast.head = partial(top_k_head, precision="bfloat16")
    scores = plain.tile_scores(x).detach()
    centred = (scores - scores[mask].mean(0)) * mask[:, :, None]  # what is rounded
    for k in (1, 10, 50, 500):
        lost = (plain(x, mask, k) - fast(x, mask, k)).detach()
        assert lost.min() > -1e-6
        assert lost.max() < 2**-7 * centred.abs().max()
        assert lost.max() > 1e-6 or k == 500  # 500 is more than the rule leaves to bfloat16


def test_evaluation_is_the_plain_models():
    x, mask = bags(np.random.default_rng(3), [3, 9])
    for relu in (False, True):
        plain, fast = both(6, 40, (5,), ks=(1, 3, 9), relu=relu)
        with torch.no_grad():
            assert torch.allclose(plain.eval()(x, mask), fast.eval()(x, mask), atol=1e-6)


def test_several_threads_rank_as_one(monkeypatch):
    """Slides of several sizes, rows of several scratches.

    Authority: torch's sort and topk.
    """
    monkeypatch.setattr(topk, "SCRATCH", 300)
    sizes, taken = [30, 4, 57, 20], [5, 4, 5, 5]
    scores = torch.randn(50, sum(sizes))
    slides = scores.split(sizes, 1)
    best = [of_slide.topk(k, 1).values.mean(1) for of_slide, k in zip(slides, taken, strict=True)]
    for threads in (1, 3):
        monkeypatch.setattr(topk, "THREADS_PAY", 0)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        means, bits = topk.highest(scores, sizes, taken)
        assert torch.allclose(means, torch.stack(best, 1))
        chosen = topk.numbers(bits, scores.shape[1]).long()
        for tiles, part, mean in zip(chosen.split(taken, 1), topk.slices(sizes), best, strict=True):
            assert ((tiles >= part.start) & (tiles < part.stop)).all()
            assert torch.allclose(scores.gather(1, tiles).mean(1), mean)
        m = torch.full_like(scores, torch.nan)
        topk.fill(m, bits, torch.ones(50, 4), sizes, taken)
        assert torch.equal(m, torch.zeros_like(m).scatter_(1, chosen, 1))
        ranked = scores.clone()
        topk.sort_slides(ranked, sizes)
        assert torch.equal(ranked, torch.cat([of_slide.sort(1).values for of_slide in slides], 1))


def test_as_many_tiles_are_taken_where_scores_are_equal_or_no_numbers():
    """Of ties any, never more or fewer than k: M's rows would not be of one length."""
    scores = torch.randint(3, (40, 30)).float()
    scores[3, 7] = torch.nan
    for k in (1, 4, 11):
        _, bits = topk.highest(scores, [20, 10], [k, min(k, 10)])
        chosen = topk.numbers(bits, 30)
        assert chosen.shape == (40, k + min(k, 10))
        first = scores[:, :20].nan_to_num(9)
        least = first.topk(k, 1).values.sum(1)
        assert torch.equal(first.gather(1, chosen[:, :k].long()).sum(1), least)
