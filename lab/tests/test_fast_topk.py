"""lab.tests.test_fast_topk"""

import numpy as np
import pytest
import torch

import he2rna
from lab.fast.topk import HE2RNA, all_k_head, top_k_head
from lab.tests.helpers import bags, direct, relative, swap


def test_padding_never_counts():
    """Three tiles -1, -2, -3 and five padded rows: -1 for k = 1, never 0."""
    scores = torch.tensor([-1.0, -2, -3, 0, 0, 0, 0, 0])[None, :, None]
    mask = torch.arange(8)[None] < 3
    assert [he2rna.top_k_mean(scores, mask, k).item() for k in (1, 2, 3, 8)] == [-1, -1.5, -2, -2]
    layer = torch.nn.Linear(1, 1)
    layer.weight.data.fill_(1), layer.bias.data.fill_(0)
    assert [top_k_head(scores, mask, layer, k).item() for k in (1, 2, 3, 8)] == [-1, -1.5, -2, -2]
    with torch.no_grad():
        assert all_k_head(scores, mask, layer, (1, 2, 8)).item() == pytest.approx(
            (-1 - 1.5 - 2) / 3
        )


def test_the_models_switches_have_two_sides():
    """padding, relu and k of HE2RNA on one set of weights, each against top_k_mean of its tile scores."""
    x, mask = bags(np.random.default_rng(3), [3, 9])
    torch.manual_seed(0)
    plain = HE2RNA(6, 40, (5,), ks=(1, 3, 9), dropout=0)
    plain.layers[-1].bias.data -= 0.3  # scores of both signs
    other = {
        c: HE2RNA(6, 40, (5,), ks=(1, 3, 9), dropout=0, code=(c,), pad_to=12)
        for c in ("padding", "relu", "k")
    }
    for model in other.values():
        model.load_state_dict(plain.state_dict())
    scores = plain.tile_scores(x)
    each = torch.stack([he2rna.top_k_mean(scores, mask, k) for k in (1, 3, 9)])  # (3, B, G)
    padded = torch.stack([he2rna.padded_top_k_mean(scores, mask, k, 12) for k in (1, 3, 9)])
    outputs = {c: model.eval()(x, mask) for c, model in other.items()}
    assert (
        torch.allclose(plain.eval()(x, mask), each.mean(0), atol=1e-6)
        and (each.mean(0) < -0.01).any()
    )
    assert torch.allclose(outputs["k"], each.mean(0), atol=1e-6) and torch.allclose(
        outputs["relu"], each.mean(0).relu(), atol=1e-6
    )
    assert torch.allclose(outputs["padding"], padded.mean(0), atol=1e-6) and not torch.allclose(
        padded.mean(0), each.mean(0), atol=1e-2
    )
    grad = torch.autograd.grad(
        outputs["padding"].square().sum(), other["padding"].layers[0].weight
    )[0]
    other["padding"].pad_to = 9  # none of the longer slide's rows is padding
    assert torch.isfinite(grad).all() and torch.allclose(
        other["padding"](x, mask)[1], each.mean(0)[1], atol=1e-6
    )
    other["padding"].pad_to = 12
    drawn = {}
    for i in range(20):
        for c, model in dict(plain=plain, **other).items():
            torch.manual_seed(i)
            out = model.train()(x, mask)  # (B, G)
            fits = torch.isclose(out, padded if c == "padding" else each, atol=1e-6).all(
                1
            )  # (3, G): all slides, one k
            assert fits.any(0).all()
            drawn.setdefault(c, []).append(fits.all(1).any().item())  # one k for all genes?
    assert (
        all(drawn["plain"]) and all(drawn["relu"]) and all(drawn["padding"]) and not any(drawn["k"])
    )


def test_all_k_is_the_mean_over_the_list_and_a_weighted_mean_of_ranked_tiles():
    rng, n_tiles, ks = np.random.default_rng(1), [1, 4, 30, 120], (1, 2, 5, 10, 20, 50, 100)
    h, mask = bags(rng, n_tiles, 7, pad=9)
    layer = torch.nn.Linear(7, 11)
    with torch.no_grad():
        scores, got = layer(h), all_k_head(h, mask, layer, ks)
    want = torch.stack([he2rna.top_k_mean(scores, mask, k) for k in ks]).mean(0)
    assert torch.allclose(got, want, atol=1e-5)
    for b, n in enumerate(n_tiles):
        weights, ranked = he2rna.rank_weights(n, ks), scores[b, :n].sort(0, descending=True).values
        assert weights.sum() == pytest.approx(1) and (weights.diff() <= 1e-7).all()
        assert torch.allclose(weights @ ranked, got[b], atol=1e-5)


@pytest.mark.parametrize("way", ["gather", "products"])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_fast_head_has_the_value_and_gradients_of_the_direct_way(
    monkeypatch, way, dtype, tolerance
):
    """Dropout on, padding anywhere, ragged slides, k from 1 to beyond the slide; several blocks of genes. Authority: autograd."""
    swap(monkeypatch, "lab.fast.topk", "GATHER", {"cpu": 2 if way == "gather" else 0})
    swap(monkeypatch, "lab.fast.topk", "BLOCK_SCORES", 300)
    rng = np.random.default_rng(0)
    x, mask = bags(rng, [1, 7, 40, 23], 12, pad=50)
    order = torch.from_numpy(rng.permutation(40))
    x, mask, y = (
        x[:, order].to(dtype).requires_grad_(),
        mask[:, order],
        torch.randn(4, 31, dtype=dtype),
    )
    model = HE2RNA(12, 31, (16, 8), dropout=0.5).to(dtype).train()
    for k in (1, 2, 7, 23, 39, 40, 99):
        results = []
        for predict in (model, lambda *a: direct(model, *a)):
            torch.manual_seed(k)  # the same dropout
            prediction = predict(x, mask, k)
            loss = (prediction - y).square().mean()
            results.append([prediction, loss, *torch.autograd.grad(loss, [x, *model.parameters()])])
        for ours, want in zip(*results):
            assert relative(ours.detach(), want.detach()) < tolerance, k


def test_tied_tiles_and_one_gene(monkeypatch):
    """A slide whose tiles stand there four times each: any of a tie may be taken, and nothing depends on which."""
    x, mask = bags(np.random.default_rng(5), [9, 9], 6)
    x, mask = x.repeat(1, 4, 1), mask.repeat(1, 4)
    model = HE2RNA(6, 1, (5,), dropout=0).train()
    for gather in (0, 2):
        swap(monkeypatch, "lab.fast.topk", "GATHER", {"cpu": gather})
        for k in (1, 3, 6, 30):
            grads = [
                torch.autograd.grad(p.square().sum(), list(model.parameters()))
                for p in (model(x, mask, k), direct(model, x, mask, k))
            ]
            assert all(relative(a, b) < 1e-5 for a, b in zip(*grads))


def test_bfloat16_chooses_among_nearly_equal_scores_and_predicts_in_float32():
    """The k best by rounded scores: their exact mean can only be lower than that of the k best, by less than the rounding."""
    torch.manual_seed(0)
    x, mask = bags(np.random.default_rng(6), [3000, 1200], 64)
    model = HE2RNA(64, 50, (64,), dropout=0).train()
    for k in (1, 10, 100, 500):
        model.precision = "float32"
        with torch.no_grad():
            exact, scores = model(x, mask, k), model.tile_scores(x)
            model.precision = "bfloat16"
            lost = exact - model(x, mask, k)
        centred = (scores - scores[mask].mean(0)) * mask[
            :, :, None
        ]  # what bfloat16 rounds, to one part in 256
        assert lost.min() > -1e-6 and (
            k + 36 > 600 or lost.max() > 0
        )  # bfloat16 had a part where the rule lets it
        assert lost.max() < 2**-7 * centred.abs().max()


def test_model_is_kernel_one_convolutions_and_blind_to_order_and_padding():
    torch.manual_seed(0)
    model = HE2RNA(6, 11, (16, 8)).eval()
    x, mask = bags(np.random.default_rng(2), [3, 9], pad=5)
    convolutions = []
    for layer in model.layers:
        conv = torch.nn.Conv1d(layer.in_features, layer.out_features, 1)
        conv.weight.data, conv.bias.data = layer.weight.data[:, :, None], layer.bias.data
        convolutions += [conv, torch.nn.ReLU()]
    want = torch.nn.Sequential(*convolutions[:-1])(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(model.tile_scores(x), want, atol=1e-6) and want.shape == (2, 9, 11)
    out = model(x, mask)
    order = torch.randperm(9)
    assert torch.allclose(model(x[:, order], mask[:, order]), out, atol=1e-6)
    more = (
        torch.cat([x, torch.full((2, 4, 6), -77.0)], 1),
        torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], 1),
    )
    assert torch.allclose(model(*more), out, atol=1e-6) and torch.allclose(
        model(x[:1, :3], mask[:1, :3]), out[:1], atol=1e-6
    )


def test_training_draws_one_k_of_the_list_and_evaluation_averages():
    model, (x, mask) = (
        HE2RNA(6, 4, (5,), ks=(1, 3, 9), dropout=0),
        bags(np.random.default_rng(3), [9, 9]),
    )
    each = [he2rna.top_k_mean(model.tile_scores(x), mask, k) for k in (1, 3, 9)]
    seen = set()
    for i in range(40):
        torch.manual_seed(i)
        out = model.train()(x, mask)
        seen |= {k for k, want in zip((1, 3, 9), each) if torch.allclose(out, want, atol=1e-6)}
        assert any(torch.allclose(out, want, atol=1e-6) for want in each)
    assert seen == {1, 3, 9} and torch.allclose(model.eval()(x, mask), sum(each) / 3, atol=1e-6)


def test_gradient_reaches_the_kept_tiles_only():
    scores, mask = bags(np.random.default_rng(4), [2, 8], 3)
    scores.requires_grad_()
    he2rna.top_k_mean(scores, mask, 3).sum().backward()
    assert (scores.grad[0, 2:] == 0).all() and (
        (scores.grad != 0).sum(1) == torch.tensor([[2], [3]])
    ).all()
    assert torch.allclose(scores.grad.sum(1), torch.ones(2, 3))
    layer, real = torch.nn.Linear(4, 3).double(), torch.ones(2, 5, dtype=torch.bool)
    h = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, *_: top_k_head(h, real, layer, 2), (h, *layer.parameters())
    )
    model = HE2RNA(4, 3, (6,), ks=(1, 2, 9)).double().eval()  # gradients at test time too
    assert torch.autograd.gradcheck(lambda h: model(h, real), h)
