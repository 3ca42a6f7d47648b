"""python histcode.py probe COHORT ENCODER...: how well frozen features tell the cells in a tile.

R2 of each kind of cell (points/, or the fractions in spots/) by ridge regression on the features of
each encoder; `random` is where a run with --weights random starts. Patients, or slides with
--hold-out, are never divided between fit and test, and the penalty is chosen inside the fit. It
costs a pass of each encoder over --tiles-per-slide tiles of each slide; --csv keeps the table.
`between` is the share of the features' variance that lies between slides: more of it without a
better R2 means that the encoder has learned stains.
"""

from pathlib import Path

import numpy as np

from lab.cohort.samples import read_samples
from lab.cohort.slides import open_slide
from lab.cohort.truth import cells_of
from lab.commands.histcode.pretrain import STAGES, TILE_PX
from lab.commands.slide_options import add_options
from lab.devices import pick_device
from lab.encoders import encoder_wants, load_encoder, prepare_encoder
from lab.fast.encoder import encode
from lab.files import InputError, save_csv
from lab.histcode.epochs import pieces_of, read_pieces
from lab.histcode.options import check_ranges
from lab.histcode.probe import cell_content, linear_probe, untrained
from lab.histcode.tiles import EDGES, TILES_PER_SLIDE, find_data
from lab.histcode.watching import between_slides, chance_between
from lab.progress import counted, report_failures, say_left_out
from lab.provenance import marked, of_cohort


def options(parser):
    parser.set_defaults(within="")
    a = parser.add_argument
    a("cohort", help="a cohort folder: slides/ and samples.csv")
    a(
        "files",
        nargs="+",
        metavar="ENCODER",
        help="encoder files of pretrain, runs/NAME/NAME.pt, or the word random",
    )
    a(
        "--tiles-per-slide",
        type=int,
        default=TILES_PER_SLIDE,
        help=f"random tiles of each slide, at most (default {TILES_PER_SLIDE})",
    )
    a("--tile-px", type=int, help="edge of a tile, px (default: as the encoders were trained)")
    a(
        "--hold-out",
        choices=("patient", "slide"),
        default="patient",
        help="what is never divided between fit and test: patients (default); slides, where "
        "patients are few: asks whether features hold the cells, not whether they carry over to "
        "other patients' stains",
    )
    a("--csv", metavar="FILE", help="write the table there too")
    add_options(parser, encoder=None)


def settle_tiles(o):
    """Take what the tiles must be from the encoders' files -> {encoder: what it wants}."""
    wants = {"random": None}
    for name in o.files:
        if name != "random":
            o.encoder = name  # refused where options or tiles/ gainsay it
            wants[name] = encoder_wants(o)
    kinds = {(w["tile_px"], w["tile_um"], w["colour"]) for w in wants.values() if w}
    if len(kinds) > 1:
        each = "; ".join(f"{px} px, {um} µm, colour {colour}" for px, um, colour in kinds)
        raise InputError(f"encoders of different tiles ({each}): probe them one by one")
    px, um, colour = kinds.pop() if kinds else (TILE_PX, None, None)
    o.tile_px = o.tile_px or px
    o.colour = o.colour or colour
    if not (Path(o.cohort) / "tiles" / "settings.json").exists():
        o.tile_um = o.tile_um or um
    return wants


def contents_of(data, o):
    """What is known of the tiles of each slide, or None; which slides fail, and what they lack."""
    contents, failed, lacks, without = [], {}, {}, []
    for s, name in enumerate(counted("cells", data["slides"], "slides")):
        where = data["coords"][s], data["tiles"][s]
        content = None
        try:
            slide = open_slide(data["paths"][s])
            truth = cells_of(Path(o.cohort), name, slide, data["mpp"][s], *where)
            content = cell_content(truth.cells, truth.spots, *where)
            if truth.lacks:
                lacks[name] = "; ".join(truth.lacks)
            if content is None:
                without.append(name)
        except (InputError, OSError) as e:
            failed[name] = str(e)
        contents.append(content)
    say_left_out({"slides have no file in points/ or spots/": without})
    return contents, failed, lacks


def known_tiles(data, o, patients, contents):
    """Tiles whose cells are known, drawn from each slide.

    Names of the classes; chosen (N, 2), slide and tile; what each holds of them (N, C), 0 of those
    that its slide has not; its patient or slide.
    """
    classes = sorted({kind for content in contents for kind in content or ()})
    chosen, held, groups = [], [], []
    for s, content in enumerate(contents):
        if content is not None and classes:
            none = np.zeros(len(data["coords"][s]))
            y = np.stack([content.get(kind, none) for kind in classes], 1)  # (n, C)
            known = np.flatnonzero(np.isfinite(y).all(1))
            drawn = np.random.default_rng([o.seed, s]).permutation(known)[: o.tiles_per_slide]
            keep = np.sort(drawn)
            chosen.append(np.stack([np.full(len(keep), s), keep], 1))
            held.append(y[keep])
            name = data["slides"][s]
            groups += [name if o.hold_out == "slide" else patients[name]] * len(keep)
    if len(set(groups)) < 3:
        raise InputError(
            f"{o.cohort}: points/<slide>.csv or spots/<slide>.csv with fraction:... columns are "
            f"there for {len(set(groups))} {o.hold_out}s; a probe needs 3"
        )
    return classes, np.concatenate(chosen), np.concatenate(held), groups


def features_of(name, wants, data, chosen, o, device):
    """Frozen features (N, D) of the chosen tiles."""
    if wants is None:
        net = untrained(data, STAGES, o.seed, device, o.workers)
        scale = ()
    else:
        net = load_encoder(name, None, o.seed, device).to(device)
        scale = wants["mean"], wants["std"]
    pieces = counted(name, pieces_of(chosen, np.arange(len(chosen))), "pieces of slides")
    tiles = (read for _, read in read_pieces(data, chosen, pieces, o.workers))
    try:
        return encode(prepare_encoder(net, device, "float32"), tiles, *scale)
    except ValueError as e:
        raise InputError(f"{name}: {e}") from None


def run(o):
    """R2 of the cells in a tile from the frozen features of each encoder, by ridge regression."""
    device = pick_device(o.device)
    check_ranges(o, ("tiles_per_slide", 1, 1e9), ("tile_px", *EDGES))
    if o.csv and Path(o.csv).is_dir():
        raise InputError(f"--csv {o.csv}: a folder; wanted is the name of a file")
    wants = settle_tiles(o)
    patients = {row["slide"]: row["patient"] for row in read_samples(Path(o.cohort))}
    data, failed = find_data(Path(o.cohort), list(patients), o)
    contents, bad, lacks = contents_of(data, o)
    status = report_failures(bad, len(contents), lacks=lacks)
    classes, chosen, y, groups = known_tiles(data, o, patients, contents)
    n_groups, drawn = len(set(groups)), of_cohort(o.cohort)
    print(
        f"{len(y):,} tiles ({o.tile_um:g} µm, {o.tile_px} px) of {n_groups} {o.hold_out}s; R2 on "
        f"held-out {o.hold_out}s{''.join(f' of a {word}' for word in drawn)}; between: "
        "share of the features' variance between slides (by chance "
        f"{chance_between(chosen[:, 0]):.3f})"
    )
    width = max(len(name) for name in [*o.files, "encoder"])
    titles = [f"{kind[:12]:>12s}" for kind in ["mean", *classes, "between"]]
    print("  ".join([f"{'encoder':{width}s}", *titles]), flush=True)
    rows = []
    for name in o.files:
        x = features_of(name, wants[name], data, chosen, o, device)
        r2 = linear_probe(x, y, groups, seed=o.seed)
        figures = [np.nanmean(r2), *r2, between_slides(x, chosen[:, 0])]
        rows.append((name, len(y), n_groups, *figures))
        words = [f"{value:12.3f}" for value in figures]
        print("  ".join([f"{name:{width}s}", *words]), flush=True)
    if o.csv:
        header = ("encoder", "tiles", f"{o.hold_out}s", "mean", *classes, "between")
        save_csv(o.csv, *marked(header, rows, drawn))
    return 1 if failed else status
