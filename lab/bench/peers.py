"""Other people's packages beside this program, on the same slide and on the same bags.

Each is imported only where it is installed. A row of the table is for one of them: what is done,
ours and theirs in turn, how far both agree, and what the peer lacks or does more.
"""

import importlib
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

import histcode
import tiling
from lab.bench.timing import say, side_by_side, timed
from lab.cohort.slides import open_slide, slide_mpp
from lab.histcode.bags import BAGS, read_bag_table
from lab.histcode.heads import mean_and_sd, sums_of
from lab.histcode.networks import SlideModel

INSTALL = {
    "hs2p": "pip install hs2p (it imports wandb)",
    "trident": "pip install git+https://github.com/mahmoodlab/TRIDENT",
    "torchmil": "pip install torchmil",
    "sklearn": "pip install -r requirements.txt",
}
HEADER = ("what", "ours", "the peer's", "agreement", "the peer lacks, or does more")
BAG_SIZES = (12, 900, 80, 2000, 300, 40, 1500, 160)  # tiles: slides differ as much
FEATURES = 1024
GRID = 16  # cells of a tile's edge, by which areas are compared


def bench_peers(slide=None, mpp=None, bags=None):
    """The table: of a slide (else one is drawn) and of a table of bags (else they are drawn)."""
    for line in (HEADER, ["---"] * len(HEADER)):
        say(f"| {' | '.join(line)} |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(slide or drawn_slide(Path(folder) / "demo"))
        for package, row in {
            "hs2p": partial(tiles_row, path, mpp),
            "trident": partial(reading_row, path, mpp),
            "torchmil": attention_row,
            "sklearn": partial(baseline_row, bags),
        }.items():
            try:
                importlib.import_module(package)
            except ImportError as e:
                say(f"| {package} | | | not measured: {e} | {INSTALL[package]} |")
                continue
            say(f"| {' | '.join(row())} |")


def drawn_slide(folder):
    """The largest slide of a small simulated cohort."""
    from lab.simulation.cohort import simulate_cohort

    simulate_cohort(folder, patients=2, edge_px=2000)
    return max((folder / "slides").iterdir(), key=lambda path: path.stat().st_size)


# ----- Slides -------------------------------------------------------------------------------------


def our_tiles(path, mpp):
    """An open slide, its coords (n, 2) and the edge of a tile; and its tissue (h, w)."""
    slide = open_slide(path)
    mpp, _ = slide_mpp(slide, mpp, path.stem)
    tissue = tiling.tissue_mask(*tiling.thumbnail(slide, mpp))
    tile = tiling.TILE_UM / mpp
    return slide, tiling.tile_grid(tissue, slide.dimensions, tile), tile, tissue


def tiles_row(path, mpp):
    """Tissue and tiles, against hs2p: CLAM's way (saturation, median, Otsu), in today's clothes."""
    from hs2p import api

    _, coords, tile, tissue = our_tiles(path, mpp)
    wanted = api.TilingConfig(
        requested_spacing_um=tiling.TILE_UM / tiling.TILE_PX,
        requested_tile_size_px=tiling.TILE_PX,
        tolerance=0.05,
        overlap=0.0,
        backend="openslide",
    )
    half = api.MaskSamplingConfig(
        pixel_mapping={"background": (0,), "tissue": (1,)},
        min_coverage={"tissue": tiling.MIN_TISSUE},
    )
    spec = api.SlideSpec(sample_id=path.stem, image_path=path, spacing_at_level_0=mpp)
    otsu = api.SegmentationConfig(method="otsu")
    theirs = partial(api.tile_slide, spec, tiling=wanted, segmentation=otsu, masks=half)
    found = theirs()
    pair = side_by_side(partial(our_tiles, path, mpp), theirs, 3)
    there = np.stack([found.tiles.x, found.tiles.y], 1)
    areas = [covered(c, edge, tile) for c, edge in ((coords, tile), (there, found.tile_size_lv0))]
    masks = tissue, at_size(found.contours.mask > 0, tissue.shape)
    return (
        f"tissue and tiles, `{path.name}`: hs2p, as CLAM",
        f"{len(coords)} tiles, {pair.ours:.2f} s",
        f"{len(there)} tiles, {pair.direct:.2f} s",
        f"IoU of tissue {overlap(*masks):.2f}, of the tiles' area {jaccard(*areas):.2f}",
        "no glass colour, ink or shadow; more: SAM2, annotation masks, blur",
    )


def at_size(mask, shape):
    """A mask at another size, by its nearest pixels."""
    rows, columns = ((np.arange(n) * m // n) for n, m in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def covered(coords, edge, tile):
    """The cells, a GRID-th of a tile wide, whose centres lie in squares at coords: a set."""
    inside = (np.arange(GRID) + 0.5) * edge / GRID
    x, y = (coords[:, axis, None] + inside for axis in (0, 1))
    cells = np.stack(np.broadcast_arrays(x[:, :, None], y[:, None]), -1) // (tile / GRID)
    return set(map(tuple, cells.reshape(-1, 2).astype(int)))


def jaccard(a, b):
    return len(a & b) / len(a | b)


def reading_row(path, mpp):
    """The pixels of the same tiles, against TRIDENT's patcher."""
    import trident

    slide, coords, tile, _ = our_tiles(path, mpp)
    level_0 = tiling.TILE_UM / tile
    patcher = trident.WSIPatcher(
        trident.load_wsi(str(path), lazy_init=False, mpp=level_0),
        tiling.TILE_PX,
        src_pixel_size=level_0,
        dst_pixel_size=tiling.TILE_UM / tiling.TILE_PX,
        custom_coords=coords,
    )
    ours, theirs = partial(tiling.read_tiles, slide, coords, tile), lambda: [x for x, *_ in patcher]
    off = np.abs(ours().astype(float) - np.array(theirs())).mean()
    pair = side_by_side(ours, theirs)
    return (
        f"pixels of {len(coords)} tiles, `{path.name}`: TRIDENT",
        f"{len(coords) / pair.ours:.0f} tiles/s",
        f"{len(coords) / pair.direct:.0f} tiles/s",
        f"{off:.1f} of 255 apart; a tile is {tile:.2f} px here, {patcher.patch_size_src} there",
        "tiles of whole pixels, one sample for each; more: its encoders, networks for tissue",
    )


# ----- Bags ---------------------------------------------------------------------------------------


def attention_row():
    """A step of gated attention on a batch of slides of different size, against torchmil's."""
    from torchmil.nn import AttentionPool

    torch.manual_seed(0)
    pool = histcode.GatedAttention(FEATURES)
    peer = AttentionPool(FEATURES, histcode.ATTENTION, gated=True)
    tanh = peer.fc1.module
    for theirs, layer in ((tanh, pool.v), (peer.fc_gated.module, pool.u), (peer.fc2, pool.w)):
        theirs.weight.data = layer.weight.data.clone()
        if theirs.bias is not None:
            theirs.bias.data.zero_()
    h, mask = histcode.padded([torch.rand(n, FEATURES).numpy() for n in BAG_SIZES])

    def step(network):
        network.zero_grad()
        z = network(h, mask)
        z = z[0] if isinstance(z, tuple) else z
        z.square().sum().backward()
        return z.detach()

    off = (step(pool) - step(peer)).abs().max() / step(pool).abs().max()
    slope = (pool.v.weight.grad - tanh.weight.grad).norm() / pool.v.weight.grad.norm()
    pair = side_by_side(partial(step, pool), partial(step, peer))
    h[~mask] = torch.nan
    dirty = [torch.isfinite(step(network)).all().item() for network in (pool, peer)]
    return (
        f"a step of gated attention, {len(BAG_SIZES)} slides of {min(BAG_SIZES)} to "
        f"{max(BAG_SIZES):,} tiles x {FEATURES:,}: torchmil",
        f"{pair.ours * 1e3:.0f} ms",
        f"{pair.direct * 1e3:.0f} ms",
        f"outputs within {off:.0e}, gradients within {slope:.0e}",
        f"{'' if dirty[1] else 'nan in the padding spoils it; '}more: some 15 other models, graphs",
    )


def baseline_row(path):
    """Logistic regression on the means of the bags, against networks, on the same ten folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    bags, y = bags_of(path)
    means = np.stack([bag.mean(0) for bag in bags])
    part = histcode.split_patients(np.arange(len(y)), y, histcode.PARTS, 0)
    parts = [histcode.roles(part, f) for f in range(histcode.PARTS)]
    right = {}

    def networks():
        right["ours"] = accuracy_of_networks(bags, y, parts)

    def regression():
        answers = np.empty_like(y)
        for train, valid, test in parts:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            learned = np.r_[train, valid]  # it has no epoch to choose
            answers[test] = model.fit(means[learned], y[learned]).predict(means[test])
        right["theirs"] = np.mean(answers == y)

    ours, theirs = timed(networks), timed(regression)
    return (
        f"ten folds of {len(y)} bags, `{Path(path).name if path else 'drawn'}`: gated attention "
        "against scikit-learn's LogisticRegression on means",
        f"accuracy {right['ours']:.3f}, {ours:.1f} s",
        f"accuracy {right['theirs']:.3f}, {theirs:.2f} s",
        "the same test folds; theirs learns from the validation part too",
        "which tiles matter; more: seconds in the place of minutes, nothing to choose",
    )


def bags_of(path):
    """Bags (T_i, D) and labels (n,) of a table; else 92 drawn ones with one instance that tells."""
    if path:
        words, names, x = read_bag_table(path)
        _, first, which = np.unique(names, return_index=True, return_inverse=True)
        y = np.unique(np.array(words)[first], return_inverse=True)[1]
        return [x[which == i] for i in range(len(first))], y
    rng = np.random.default_rng(0)
    y = np.arange(92) % 2
    bags = [rng.normal(size=(rng.integers(2, 20), 40)).astype(np.float32) for _ in y]
    for bag, label in zip(bags, y, strict=True):
        bag[0, :3] += 3 * label
    return bags, y


def accuracy_of_networks(bags, y, parts):
    """Of the test bags, by a network of each fold, as `diagnose --bags` has it."""
    sums, right = [sums_of(bag) for bag in bags], 0
    rule = {name: BAGS[name] for name in ("lr", "weight_decay", "epochs")}
    for seed, (train, valid, test) in enumerate(parts):
        torch.manual_seed(seed)
        shape = BAGS["embed"], BAGS["hidden"]
        model = SlideModel("HistCode", *mean_and_sd(sums, train), 2, *shape)
        labels = torch.from_numpy(y)
        *_, state = histcode.train_slide_epochs(
            model, bags, labels, train, valid, seed=seed, **rule
        )
        model.load_state_dict(state["best"])
        answers = histcode.predict_slides(model, bags, test)[:, 0]
        right += (answers.argmax(1).numpy() == y[test]).sum()
    return right / len(y)
