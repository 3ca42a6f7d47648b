"""test_all"""

import colorsys
import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

import histcode
from lab.histcode.networks import POOLINGS, SlideModel, network_of
from lab.tests.helpers import pictures, relative
from lab.tests.helpers_histcode import learn, planted_bags


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_view(n, **changed):
    """The view that is the whole tile as it is, but for what is changed."""
    view = {
        "box": torch.tensor([[0.0, 0, 1, 1]]).repeat(n, 1),
        "turns": torch.zeros(n, 3, dtype=torch.bool),
        "colour": torch.tensor([histcode.PLAIN_COLOUR]).repeat(n, 1),
        "grey": torch.zeros(n, dtype=torch.bool),
        "sigma": torch.zeros(n),
    }
    return {**view, **changed}


def test_views_have_their_shape_and_range_and_follow_the_seed():
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


def test_parts_of_a_batch_get_the_views_of_the_whole():
    tiles = (pictures(6, 20) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    whole = histcode.two_views(tiles, 16, seed=1, epoch=2, step=3)
    first = histcode.two_views(tiles[:3], 16, 1, 2, 3, part=0, parts=2)
    second = histcode.two_views(tiles[3:], 16, 1, 2, 3, part=1, parts=2)
    for side in (0, 1):
        assert torch.allclose(whole[side], torch.cat([first[side], second[side]]), atol=1e-5)
    assert (whole[0] - whole[1]).abs().mean() > 0.1


@pytest.mark.parametrize("px", [16, 33, 48, 90])
def test_crops_equal_pillows_resize(px):
    tiles = (pictures(4, 64) * 255).to(torch.uint8)
    boxes = torch.tensor(
        [[0, 0, 1, 1], [0.1, 0.25, 0.6, 0.5], [0.3, 0.02, 0.7, 0.93], [0.5, 0.5, 0.45, 0.5]]
    )
    got = histcode.make_view(tiles, plain_view(4, box=boxes), px) * 255
    for tile, (left, top, width, height), view in zip(tiles, boxes * 64, got, strict=True):
        box = [float(v) for v in (left, top, left + width, top + height)]
        for channel, mine in zip(tile.float().numpy(), view.numpy(), strict=True):
            resized = Image.fromarray(channel, "F").resize((px, px), Image.Resampling.BILINEAR, box)
            assert np.abs(np.asarray(resized) - mine).max() < 0.01


def test_turns_are_the_eight_symmetries():
    tile = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    x = tile[0] / 255
    wanted = [torch.rot90(side, k, (1, 2)) for side in (x, x.flip(2)) for k in range(4)]
    which = set()
    for bits in itertools.product([False, True], repeat=3):
        view = histcode.make_view(tile, plain_view(1, turns=torch.tensor([bits])), 4)[0]
        distance = [(view - w).abs().max().item() for w in wanted]
        assert min(distance) < 1e-6
        which.add(int(np.argmin(distance)))
    assert which == set(range(8))


def jittered_by_colorsys(pixels, brightness, contrast, saturation, hue):
    """The same jitter of one picture (h, w, 3), pixel by pixel."""
    pixels = (pixels * brightness).clip(0, 1)
    grey = pixels @ histcode.LUMINANCE
    pixels = (contrast * pixels + (1 - contrast) * grey.mean()).clip(0, 1)
    grey = pixels @ histcode.LUMINANCE
    pixels = (saturation * pixels + (1 - saturation) * grey[..., None]).clip(0, 1)
    for i, j in np.ndindex(pixels.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*pixels[i, j])
        pixels[i, j] = colorsys.hsv_to_rgb((h + hue) % 1, s, v)
    return pixels


def test_colour_jitter_equals_colorsys():
    x = pictures(3, 5)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 1, 0] = 0, 1, 0.5  # black, white, grey
    rng = np.random.default_rng(0)
    for _ in range(5):
        colour = np.c_[rng.uniform(0.5, 1.5, (3, 3)), rng.uniform(-0.5, 0.5, 3)]
        got = histcode.jitter(x, torch.tensor(colour, dtype=torch.float32))
        for picture, factors, mine in zip(x, colour, got, strict=True):
            wanted = jittered_by_colorsys(picture.permute(1, 2, 0).double().numpy(), *factors)
            assert np.abs(mine.permute(1, 2, 0).numpy() - wanted).max() < 2e-5


def test_a_full_turn_of_the_hue_changes_nothing_and_a_part_keeps_value_and_chroma():
    x = pictures(2, 8)
    got = histcode.shift_hue(x, torch.tensor([0.3, -0.1]).view(2, 1, 1))
    assert torch.allclose(got.amax(1), x.amax(1), atol=1e-6)
    assert torch.allclose(got.amin(1), x.amin(1), atol=1e-6)
    assert torch.allclose(histcode.shift_hue(x, torch.ones(2, 1, 1)), x, atol=1e-5)


def test_blur_equals_scipy_away_from_the_rim():
    x = torch.rand(3, 3, 40, 40, generator=seeded())
    sigma = torch.tensor([0, 1.1, 2.0])
    got = histcode.blur(x, sigma)
    assert torch.allclose(got[0], x[0], atol=1e-6)
    assert torch.allclose(histcode.blur(torch.ones_like(x), sigma), torch.ones_like(x))
    for i in (1, 2):
        s = float(sigma[i])
        wanted = ndimage.gaussian_filter(x[i].numpy(), (0, s, s), truncate=8)
        assert np.abs(wanted - got[i].numpy())[:, 12:-12, 12:-12].max() < 1e-5


def test_draws_have_their_ranges_and_chances():
    view = histcode.draw_view(20000, seeded())
    left, top, width, height = view["box"].T
    assert (view["box"] >= 0).all()
    assert (left + width).max() < 1 + 1e-6 and (top + height).max() < 1 + 1e-6
    area, ratio = width * height, width / height
    assert area.min() > 0.2 - 1e-6 and area.mean() > 0.5
    assert ratio.min() > 0.75 - 1e-5 and ratio.max() < 4 / 3 + 1e-5
    change = view["colour"] - torch.tensor(histcode.PLAIN_COLOUR)
    reach = change.abs().amax(0)
    assert (reach - torch.tensor(histcode.JITTER)).abs().max() < 0.001
    sigma = view["sigma"]
    assert sigma[sigma > 0].min() >= 0.1 and 1.99 < sigma.max() <= 2
    chances = [((change != 0).any(1), 0.8), (view["grey"], 0.2), (sigma > 0, 0.5)]
    chances += [(turn, 0.5) for turn in view["turns"].T]
    for happened, chance in chances:
        assert abs(happened.float().mean() - chance) < 0.015


def unit(n, d, seed, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, generator=seeded(seed), dtype=dtype), dim=1)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("tau", [0.12, 1.0])
def test_info_nce_equals_its_sum(tau, in_batch):
    q, k = unit(7, 5, 0), unit(7, 5, 1)
    w = 3 * torch.randn(11, 5, generator=seeded(2), dtype=torch.float64)
    loss = 0.0
    for i in range(7):
        negatives = [v / v.norm() for v in w]
        if in_batch:
            negatives += [k[j] for j in range(7) if j != i]
        positive = math.exp(float(q[i] @ k[i]) / tau)
        others = sum(math.exp(float(q[i] @ m) / tau) for m in negatives)
        loss -= math.log(positive / (positive + others)) / 7
    assert histcode.info_nce(q, k, w, tau, in_batch).item() == pytest.approx(loss, rel=1e-12)


def test_info_nce_does_not_overflow():
    q = unit(7, 5, 0, torch.float32)
    hard = histcode.info_nce(q, -q, q * 1e3, 1e-4)
    assert hard.item() == pytest.approx(2e4, rel=1e-3)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("tau", [0.02, 0.12, 1.0])
def test_bank_gradient_equals_autograd_and_is_orthogonal(tau, in_batch):
    q, k = unit(12, 16, 0), unit(12, 16, 1)
    w = torch.randn(333, 16, generator=seeded(2), dtype=torch.float64)
    w *= torch.logspace(-2, 2, 333, dtype=torch.float64)[:, None]
    loss = histcode.info_nce(q, k, w.requires_grad_(), tau, in_batch)
    (wanted,) = torch.autograd.grad(loss, w)
    w = w.detach()
    got = histcode.bank_gradient(q, k, w, tau, in_batch)
    size = got.norm(dim=1)
    assert ((got - wanted).norm(dim=1) <= 1e-10 * wanted.norm(dim=1) + 1e-16).all()
    assert size.min() > 0 and ((got * w).sum(1).abs() <= 1e-10 * size * w.norm(dim=1)).all()
    short = histcode.bank_gradient(q.float(), k.float(), w.float(), tau, in_batch)
    assert relative(short, wanted) < 1e-4


def test_bank_step_equals_torchs_sgd():
    """Also in the sign of the decay, which shrinks where the gradient is climbed."""
    q, k = unit(12, 8, 0), unit(12, 8, 1)
    ours = torch.randn(40, 8, generator=seeded(2), dtype=torch.float64)
    theirs = ours.clone().requires_grad_()
    velocity = torch.zeros_like(ours)
    sgd = torch.optim.SGD([theirs], 0.3, momentum=0.9, weight_decay=1e-2, maximize=True)
    for _ in range(5):
        gradient = histcode.bank_gradient(q, k, ours, 0.12)
        histcode.bank_step(ours, velocity, gradient, 0.3, 0.9, 1e-2)
        sgd.zero_grad()
        histcode.info_nce(q, k, theirs, 0.12).backward()
        sgd.step()
    assert torch.allclose(ours, theirs.detach(), rtol=1e-10)


def test_a_bank_climbs():
    q, k = unit(12, 8, 0), unit(12, 8, 1)
    bank = histcode.Bank(unit(40, 8, 2), rate=0.1, momentum=0)
    losses = []
    for _ in range(30):
        losses.append(bank(q, k).item())
        bank.climb([(q, k)])
    assert (np.diff(losses) > 0).all() and losses[-1] > losses[0] + 0.1
    nearest = max(float(q[0] @ w / w.norm()) for w in bank.w)
    assert bank.hardest(q, k)[0].item() == pytest.approx(nearest)


def test_nt_xent_equals_its_sum():
    z1, z2, tau = unit(6, 4, 0), unit(6, 4, 1), 0.3
    z = torch.cat([z1, z2])
    loss = 0.0
    for i in range(12):
        e = [math.exp(float(z[i] @ z[j]) / tau) if i != j else 0 for j in range(12)]
        loss -= math.log(e[(i + 6) % 12] / sum(e)) / 12
    assert histcode.nt_xent(z1, z2, tau).item() == pytest.approx(loss, rel=1e-12)
    assert torch.isfinite(histcode.nt_xent(z1.float(), -z1.float(), 1e-4))
    others = [max(float(z1[i] @ z2[j]) for j in range(6) if i != j) for i in range(6)]
    assert np.allclose(histcode.OtherTiles().hardest(z1, z2), others)


def test_spread_tells_a_collapse():
    z = unit(500, 32, 0)
    deviation = z.var(0, unbiased=False).sum().sqrt()
    assert histcode.spread(z) == pytest.approx(deviation.item(), rel=1e-9)
    assert histcode.spread(z) > 0.95
    assert histcode.spread(z[:1].repeat(9, 1)) < 1e-6


class Pixels(torch.nn.Module):
    """An encoder small enough to be trained by hand: a linear layer on the pixels."""

    n_features = 6

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 4 * 4, 6)

    def forward(self, x):
        return self.layer(x.flatten(1))


def small_embedder():
    torch.manual_seed(0)
    return histcode.Embedder(Pixels(), d=5)


def random_views(epoch, steps=3, n=8):
    """Two noisy copies of random tiles."""
    g = seeded(epoch)
    for _ in range(steps):
        x = torch.randn(n, 3, 4, 4, generator=g)
        yield tuple(x + 0.3 * torch.randn(x.shape, generator=g) for _ in range(2))


def test_pretraining_equals_two_optimizers_that_play_against_each_other():
    """Eqs. 2-4 with autograd for both players: SGD down for the encoder, SGD up for the bank."""
    start = unit(20, 5, 7, torch.float32)
    bank = histcode.Bank(start.clone(), 0.5)
    model = small_embedder()
    (state,) = histcode.pretrain_epochs(model, random_views, bank, epochs=1, momentum_encoder=0)
    theirs, w = small_embedder(), start.clone().requires_grad_()
    down = torch.optim.SGD(theirs.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    up = torch.optim.SGD([w], 0.3, momentum=0.9, weight_decay=1e-4, maximize=True)
    losses = []
    for x1, x2 in random_views(1):
        loss = histcode.info_nce(theirs(x1), theirs(x2), w, 0.5)
        down.zero_grad(), up.zero_grad()
        loss.backward()
        down.step(), up.step()
        losses.append(loss.item())
    for ours, wanted in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours, wanted, atol=1e-6)
    assert torch.allclose(state["negatives"]["w"], w.detach(), atol=1e-6)
    assert state["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_keys_come_from_a_slow_copy(symmetric):
    model = small_embedder()
    before = copy.deepcopy(model.state_dict())
    bank = histcode.Bank(unit(20, 5, 7, torch.float32))
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
        return histcode.OtherTiles() if simclr else histcode.Bank(unit(20, 5, 7, torch.float32))

    whole = [
        copy.deepcopy(state)
        for state in histcode.pretrain_epochs(
            small_embedder(), random_views, negatives(), epochs=3, **options
        )
    ]
    torch.manual_seed(9)
    fresh = histcode.Embedder(Pixels(), d=5)
    rest = list(
        histcode.pretrain_epochs(
            fresh, random_views, negatives(), epochs=3, state=whole[0], **options
        )
    )
    assert [s["epoch"] for s in whole] == [1, 2, 3] and [s["epoch"] for s in rest] == [2, 3]
    assert rest[-1]["loss"] == whole[-1]["loss"]
    for name, value in whole[-1]["model"].items():
        assert torch.equal(rest[-1]["model"][name], value)


def test_the_learning_rate_stays_or_falls_along_half_a_cosine():
    assert histcode.learning_rate(7, 10) == 0.03
    rates = [histcode.learning_rate(epoch, 4, 1.0, 0.2) for epoch in (1, 2, 3, 4)]
    assert np.allclose(rates, 0.6 + 0.4 * np.cos(np.pi * np.arange(4) / 4))


def test_a_loss_that_is_lost_is_told():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        bank = histcode.Bank(torch.full((9, 5), torch.nan))
        next(histcode.pretrain_epochs(small_embedder(), random_views, bank))


def test_a_bank_starts_from_embeddings_of_the_untrained_model():
    model = small_embedder()
    first, second = (x1 for x1, _ in random_views(0, steps=2))
    bank = histcode.first_bank(model, [first, second], size=12)
    with torch.no_grad():
        assert torch.equal(bank, torch.cat([model(first), model(second)])[:12])


# ----- Feature aggregation: loops over tiles in float64, and the papers' formulas -----


def ragged(sizes, d=7, seed=0):
    """Bags of these sizes, padded with nan: h (B, T, d), mask (B, T)."""
    h = torch.full((len(sizes), max(sizes), d), torch.nan)
    mask = torch.zeros(len(sizes), max(sizes), dtype=torch.bool)
    for b, n in enumerate(sizes):
        h[b, :n] = torch.randn(n, d, generator=seeded(seed + b))
        mask[b, :n] = True
    return h, mask


def classifier(name, d=7):
    torch.manual_seed(0)
    return network_of(name, d)


def by_loop(name, model, h):
    """Outputs of every stream for one bag h (n, d), tile by tile."""
    p = {key: value.detach().double().numpy() for key, value in model.named_parameters()}
    h = h.double().numpy()

    def layer(key, x):
        return x @ p[f"{key}.weight"].T + p[f"{key}.bias"]

    def weighted(weights):
        return sum(w * x for w, x in zip(weights, h, strict=True)) / sum(weights)

    if name == "max":
        return [layer("classify", np.array([max(column) for column in h.T]))]
    if name == "mean":
        return [layer("classify", sum(h) / len(h))]
    if name in ("ABMIL", "HistCode"):
        weights = []
        for x in h:
            hidden = np.tanh(p["pooling.v.weight"] @ x)
            if name == "HistCode":
                hidden = hidden / (1 + np.exp(-(p["pooling.u.weight"] @ x)))
            weights.append(np.exp(p["pooling.w.weight"][0] @ hidden))
        return [layer("classify", weighted(weights))]
    scores = [layer("score", x) for x in h]
    if name == "DSMIL":
        best = [int(np.argmax([s[c] for s in scores])) for c in (0, 1)]
        vectors = []
        for b in best:
            q = layer("query", h[b])
            likeness = [layer("query", x) @ q / np.sqrt(histcode.QUERIES) for x in h]
            vectors.append(weighted(np.exp(likeness)))
        instance = np.array([scores[best[0]][0], scores[best[1]][1]])
        return [instance, layer("classify", np.concatenate(vectors))]
    order = sorted(range(len(h)), key=lambda i: scores[i][0] - scores[i][1])
    s = np.zeros(histcode.STATE)
    for i in order[: histcode.TOP_TILES]:
        s = np.maximum(0, layer("take", h[i]) + layer("keep", s))
    return [scores[order[0]], layer("classify", s)]


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_equal_loops_over_tiles(name):
    sizes = (1, 3, 12, 25)
    model = classifier(name)
    h, mask = ragged(sizes)
    outputs, a = model(h, mask)
    for b, n in enumerate(sizes):
        assert np.allclose(outputs[b].detach(), by_loop(name, model, h[b, :n]), atol=2e-6)
        assert a[b, :n].sum().item() == pytest.approx(1, abs=1e-6)
        assert (a[b] >= 0).all() and (a[b, n:] == 0).all()
    outputs[:, -1].square().sum().backward()  # padding of nan reaches no gradient
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", POOLINGS)
def test_order_of_tiles_and_padding_change_nothing(name):
    model = classifier(name, 64)
    h, mask = ragged((1, 9, 40), 64)
    outputs, a = model(h, mask)
    order = torch.randperm(40, generator=seeded())
    moved, b = model(h[:, order], mask[:, order])
    assert (moved - outputs).abs().max() < 1e-6 and (b - a[:, order]).abs().max() < 1e-6
    for filler in (torch.nan, torch.inf, 1e30):
        longer, c = model(F.pad(h, (0, 0, 0, 13), value=filler), F.pad(mask, (0, 13)))
        assert (longer - outputs).abs().max() < 1e-6
        assert (c[:, :40] - a).abs().max() < 1e-6 and (c[:, 40:] == 0).all()


@pytest.mark.parametrize("gated, count", [(True, 2 * 5 * 3 + 3), (False, 5 * 3 + 3)])
def test_attention_has_the_shapes_and_parts_of_its_equations(gated, count):
    h, mask = ragged((4, 2), 5)
    model = histcode.GatedAttention(5, 3, gated)
    z, a = model(h, mask)
    assert z.shape == (2, 5) and a.shape == (2, 4)
    assert sum(p.numel() for p in model.parameters()) == count
    assert torch.allclose(z, torch.einsum("bt,btd->bd", a, h.nan_to_num()), atol=1e-6)
    with torch.no_grad():
        model.w.weight.fill_(1e4)
    assert model(h, mask)[1].isfinite().all()  # a high logit does not overflow


# ----- Learning from slides: torch's losses, loops -----


def test_cross_entropy_is_torchs_over_the_streams():
    outputs = torch.randn(6, 2, 3, generator=seeded(), dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 1, 0, 2])
    want = (F.cross_entropy(outputs[:, 0], y, reduction="none")
            + F.cross_entropy(outputs[:, 1], y, reduction="none")) / 2  # fmt: skip
    assert torch.allclose(histcode.cross_entropy(outputs, y), want)
    assert torch.equal(histcode.mistakes(outputs, y), (outputs[:, 1].argmax(1) != y).float())


def test_squared_error_leaves_out_what_is_unknown():
    out = torch.randn(3, 4, 2, 5, generator=seeded(), dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 4, 5, generator=seeded(1), dtype=torch.float64)
    y[0, 1, 2:] = y[1, 0] = torch.nan
    got = histcode.squared_error(out, y)
    for m, b in itertools.product(range(3), range(4)):
        known = [g for g in range(5) if not y[m, b, g].isnan()]
        errors = [(out[m, b, 1, g] - y[m, b, g]).item() ** 2 for g in known]
        assert got[m, b].item() == pytest.approx(np.mean(errors) if errors else 0)
    got.sum().backward()
    assert out.grad.isfinite().all() and (out.grad[0, 1, 1, 2:] == 0).all()
    assert (out.grad[0, 1, 1, :2] != 0).all()


def test_the_epoch_kept_is_the_last_one_with_the_fewest_mistakes():
    bags, y = planted_bags(shift=1.0)
    order = np.random.default_rng(1).permutation(24)
    splits = []
    for i in range(4):
        train, valid = np.split(np.roll(order, 5 * i), [14])
        splits.append((train, valid, valid))  # the test bags show what was judged
    differ = 0
    done = learn("HistCode", bags, y, splits, [1, 2, 3, 4], epochs=25)
    for (_, valid, _), got in zip(splits, done, strict=True):
        truth = torch.from_numpy(y[valid])
        wrong = [(answers.argmax(1) != truth).sum().item() for answers in got["tests"]]
        losses = [F.cross_entropy(answers, truth).item() for answers in got["tests"]]
        assert np.allclose(losses, got["losses"], atol=1e-5)
        assert got["epoch"] == max(e for e, n in enumerate(wrong, 1) if n == min(wrong))
        differ += got["epoch"] != 1 + int(np.argmin(losses))
        model = SlideModel("HistCode", np.zeros(6), np.ones(6), 2, (), 8)
        model.load_state_dict(got["model"])  # and its weights are that epoch's
        answers = histcode.predict_slides(model, bags, valid)[:, 0]
        assert torch.allclose(answers, got["tests"][got["epoch"] - 1], atol=1e-5)
    assert differ  # or the mistakes chose nothing


def test_parts_keep_patients_whole_and_labels_spread():
    patients, y = [], []
    for i in range(60):  # 20 each with tumour, normal, both
        for label in ([1, 1], [0], [0, 1])[i % 3]:
            patients.append(f"P{i:02d}")
            y.append(label)
    order = np.random.default_rng(0).permutation(len(y))
    patients, y = np.array(patients)[order], np.array(y)[order]
    part = histcode.split_patients(patients, y, 10, [0, 0])
    assert all(len(set(part[patients == p])) == 1 for p in set(patients))
    kinds = np.array([int(p[1:]) % 3 for p in patients])
    for f, kind in itertools.product(range(10), range(3)):
        assert len(set(patients[(part == f) & (kinds == kind)])) == 2
    assert (part != histcode.split_patients(patients, y, 10, [0, 1])).any()


def test_each_part_tests_once_and_the_next_one_chooses():
    part = np.arange(40) % 10
    for f in range(10):
        train, valid, test = histcode.roles(part, f)
        assert (part[test] == f).all() and (part[valid] == (f + 1) % 10).all()
        assert sorted([*train, *valid, *test]) == list(range(40))
        leak = histcode.roles(part, f, stop_on_test=True)
        assert np.array_equal(leak[1], test) and np.array_equal(leak[0], train)


# ----- Differential expression: worked by hand, NumPy -----


def test_fold_changes_worked_by_hand():
    cases = [  # tumour, normal, fc, label
        (8, 1, 8, 1),
        (1, 8, 1 / 8, 1),
        (0, 2, 0, 1),
        (3, 0, np.nan, 1),  # infinite: no y
        (0, 0, np.nan, np.nan),
        (np.nan, 1, np.nan, np.nan),
        (2, np.nan, np.nan, np.nan),
        (2.83, 1, 2.83, 1),  # 2 ** 1.5 = 2.828
        (2.82, 1, 2.82, 0),
        (1, 2.83, 1 / 2.83, 1),
    ]
    tumour, normal, fc, want = np.array(cases).T
    y, label = histcode.fold_change(tumour, normal)
    assert np.allclose(y, np.log10(fc + 1), equal_nan=True)
    assert np.array_equal(label, want, equal_nan=True)


def test_a_predicted_fold_change_has_the_label_it_stands_for():
    fc = np.exp(np.random.default_rng(0).normal(0, 2, (40, 5)))
    y, label = histcode.fold_change(fc, np.ones_like(fc))
    assert (histcode.label_of(y) == label).all() and 0 < label.mean() < 1
    beyond = np.array([-3.0, 0, np.log10(2), np.log10(1 + 2**1.51), 9])  # the first no fc can give
    assert histcode.label_of(beyond).tolist() == [True, True, False, True, True]


def test_the_ends_of_the_attention_worked_by_hand():
    a = np.array([0.1, 0.3, 0.3, 0.05, 0.25])
    high, low = histcode.ends_of(a)
    assert high.tolist() == [1, 2] and low.tolist() == [0, 3]  # tile 4, in the middle, in neither
    assert [len(end) for end in histcode.ends_of(np.arange(300.0))] == [100, 100]
    h = np.random.default_rng(0).normal(size=(5, 3))
    x = histcode.end_features(h, a)
    assert np.allclose(x, [*(h[1] + h[2]) / 2, *(h[0] + h[3]) / 2])
    weights = np.arange(6.0)
    added = histcode.end_contributions(h, a, weights)
    assert np.isnan(added[4]) and np.nansum(added) == pytest.approx(x @ weights)
    assert added[3] == pytest.approx(h[3] @ weights[3:] / 2)


def test_labels_are_judged_beside_the_commoner_label():
    label = np.array([[1, 0, np.nan], [1, 0, np.nan], [0, np.nan, np.nan], [1, 1, np.nan]])
    guess = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 1]])
    found = histcode.judge_labels(guess, label)
    assert np.allclose(found["accuracy"], [3 / 4, 2 / 3, np.nan], equal_nan=True)
    assert np.allclose(found["positive"], [3 / 4, 1 / 3, np.nan], equal_nan=True)
    assert np.allclose(found["majority"], [3 / 4, 2 / 3, np.nan], equal_nan=True)


def test_attention_between_0_and_1_and_dice_worked_by_hand():
    assert np.allclose(histcode.scale_to_one(np.array([0.2, 0.1, 0.5])), [0.25, 0, 1])
    assert (histcode.scale_to_one(np.full(3, 0.3)) == 0).all()
    a, b = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)
    assert histcode.dice(a, b) == pytest.approx(4 / 6) and histcode.dice(a, a) == 1
    assert histcode.dice(a, ~a) == histcode.dice(~a & a, ~a & a) == 0
