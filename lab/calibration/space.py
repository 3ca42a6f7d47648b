"""p of a correlation over tiles and spots (`lab.space.spatial_p`), where the two have nothing in
common: smooth fields, trends, counts of cells, outlines, on grids, in pieces, on spots.
"""

import numpy as np
from scipy import fft

from lab import space
from lab.calibration import share

RANGES = (0, 4, 8, 12)  # tiles over which a field's correlation falls to 1 / e
FIELDS = 400  # pairs of fields of a row


def smooth(n, shape, reach, rng, sharp=False):
    """n Gaussian fields (n, h, w) of correlation exp(-(d / reach)^2), or exp(-d / reach)."""
    if not reach:
        return rng.normal(size=(n, *shape))
    wide = [fft.next_fast_len(side + 7 * reach) for side in shape]
    away = [np.minimum(np.arange(side), side - np.arange(side)) for side in wide]
    d = np.hypot(away[0][:, None], away[1]) / reach
    power = fft.fft2(np.exp(-d if sharp else -d * d)).real.clip(0)
    fields = []
    for _ in range((n + 1) // 2):
        noise = rng.normal(size=wide) + 1j * rng.normal(size=wide)
        two = fft.fft2(np.sqrt(power / power.size) * noise)[: shape[0], : shape[1]]
        fields += [two.real, two.imag]
    return np.array(fields[:n])


def sloped(fields, rng):
    """The fields and a plane of the same variance on each, rising to any side."""
    n, *shape = fields.shape
    y, x = np.indices(shape)
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    plane = np.cos(angle) * (x - x.mean()) + np.sin(angle) * (y - y.mean())
    return fields + plane / plane.std((1, 2), keepdims=True)


def domed(fields, rng):
    """The fields and a hill or a hollow of the same variance anywhere on each."""
    n, *shape = fields.shape
    y, x = np.indices(shape)
    top = rng.random((2, n, 1, 1)) * np.reshape(shape, (2, 1, 1, 1))
    hill = (y - top[0]) ** 2 + (x - top[1]) ** 2
    hill -= hill.mean((1, 2), keepdims=True)
    return fields + rng.choice([-1, 1], (n, 1, 1)) * hill / hill.std((1, 2), keepdims=True)


def ragged():
    """Tissue with a ragged edge and holes, and a piece apart: (40, 60) bool."""
    y, x = np.indices((40, 60))
    waves = np.sin(x / 2.1) + np.sin(y / 1.7) + np.sin((x + y) / 2.9)
    body = ((y - 20) / 17) ** 2 + ((x - 18) / 14) ** 2 < 1 + 0.15 * waves
    return (body & (waves < 1.6)) | ((abs(y - 25) < 7) & (abs(x - 50) < 6))


def hexagons():
    """Spots in offset rows, as Visium's, on fine pixels, four to a pitch: (88, 84) bool, 462."""
    y, x = np.indices((88, 84))
    return (y % 4 == 0) & ((x + 2 * (y // 4 % 2)) % 4 == 0)


def scattered():
    """Places on no grid: (80, 80) bool, 400 of them."""
    at = np.random.default_rng(0).choice(6400, 400, replace=False)
    return np.isin(np.arange(6400), at).reshape(80, 80)


def p_of(a, b, mask):
    """p of each pair of fields (n, h, w) at the places of a mask."""
    places = np.argwhere(mask)[:, ::-1] * 448.0
    return space.spatial_p(a[:, mask].T, b[:, mask].T, [places])[1]


def counts(fields, rng):
    """Cells on each tile, few and clumped, of the exponential of a field."""
    return rng.poisson(0.5 * np.exp(1.5 * fields)).astype(float)


def outlines(fields, rng):
    """0 and 1: where a field is above a quantile between .3 and .8 of itself."""
    cut = [np.quantile(f, q) for f, q in zip(fields, rng.uniform(0.3, 0.8, len(fields)))]
    return (fields > np.reshape(cut, (-1, 1, 1))).astype(float)


def study(runs, rng):
    """Nothing in common: p < .05 in 5 % of pairs; then how often a true likeness is found."""
    n = max(2, round(FIELDS * runs))
    whole = {f"{h} x {w}": np.ones((h, w), bool) for h, w in ((10, 10), (20, 26), (40, 40))}
    for name, mask in whole.items():
        for reach in RANGES:
            for what, change in (("", None), (", trends", sloped)):
                yield null_row(f"{name} tiles, range {reach}{what}", mask, reach, n, rng, change)
    others = {
        "ragged tissue": (ragged(), 1),
        "hexagons": (hexagons(), 4),
        "no grid": (scattered(), 4),
    }
    for name, (mask, pitch) in others.items():
        for reach in RANGES[:3]:
            yield null_row(f"{name}, range {reach}, trends", mask, reach * pitch, n, rng, sloped)
    tissue = whole["20 x 26"]
    yield null_row("hills and hollows, range 4", tissue, 4, n, rng, domed)
    for kind, of in (("counts of cells", counts), ("outlines", outlines)):
        yield null_row(f"{kind}, range 6, trends", tissue, 6, n, rng, sloped, of)
    yield several_slides(n, rng)
    for reach in RANGES[:3]:
        yield power_row(reach, n, rng)


def null_row(name, mask, reach, n, rng, change=None, of=None):
    """The row of pairs of fields that have nothing in common; `of` makes the second one."""
    a, b = (smooth(n, mask.shape, reach, rng, sharp=i % 2) for i in (0, 1))
    if change:
        a, b = change(a, rng), change(b, rng)
    p = p_of(a, of(b, rng) if of else b, mask)
    return found(f"nothing in common: {name}", 0.05, p)


def found(name, nominal, p):
    without = np.isnan(p).mean()
    hits = np.where(np.isnan(p), np.nan, p < 0.05)
    return share(name, nominal, hits, f"{without:.1%} without p" if without else "")


def several_slides(n, rng):
    """The row of six slides together, each with trends."""
    mask = np.ones((10, 12), bool)
    slides = [[sloped(smooth(n, mask.shape, 4, rng), rng) for _ in "ab"] for _ in range(6)]
    a, b = (np.concatenate([pair[i][:, mask].T for pair in slides]) for i in (0, 1))
    p = space.spatial_p(a, b, [np.argwhere(mask)] * 6)[1]
    return found("nothing in common: six slides of 10 x 12, range 4, trends", 0.05, p)


def power_row(reach, n, rng):
    """The row of fields that share half of their variance, each with a trend of its own."""
    mask = np.ones((20, 26), bool)
    own = [sloped(smooth(n, mask.shape, reach, rng), rng) for _ in "ab"]
    common = smooth(n, mask.shape, reach, rng)
    p = p_of(own[0] + common, own[1] + common, mask)
    return found(f"half of the variance in common, range {reach}: found", np.nan, p)
