"""python histcode.py probe COHORT ENCODER...: how well frozen features tell the cells in a tile.

R2 of each kind of cell (points/, or the fractions in spots/) by ridge regression on the features of
each encoder; `random` is where a run with --weights random starts. Patients, or slides with
--hold-out, are never divided between fit and test, and the penalty is chosen inside the fit. It
costs a pass of each encoder over --tiles-per-slide tiles of each slide; --csv keeps the table.
"""

from pathlib import Path

import numpy as np

from lab.cohort.samples import read_samples
from lab.cohort.slides import open_slide
from lab.commands.histcode.pretrain import STAGES, TILE_PX
from lab.commands.slide_options import add_options
from lab.devices import pick_device
from lab.encoders import load_encoder, prepare_encoder, read_encoder
from lab.exchange.qupath import qupath_frame
from lab.fast.encoder import encode
from lab.files import InputError, few, load_json, save_csv
from lab.histcode.epochs import read_pieces
from lab.histcode.options import check_ranges
from lab.histcode.probe import cell_content, linear_probe, untrained
from lab.histcode.tiles import EDGES, TILES_PER_SLIDE, find_data
from lab.progress import counted, progress


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
    a(
        "--tile-px",
        type=int,
        help="edge of a tile as the encoders see it, px (default: as they were trained)",
    )
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


def check_files(o):
    """InputError where a file is missing or can't be written, before anything is read."""
    check_ranges(o, ("tiles_per_slide", 1, 1e9), ("tile_px", *EDGES))
    if o.csv and Path(o.csv).is_dir():
        raise InputError(f"--csv {o.csv}: a folder; wanted is the name of a file")
    gone = [name for name in o.files if name != "random" and not Path(name).is_file()]
    if gone:
        raise InputError(
            f"{few(gone)}: no such file; give encoder files of pretrain, or the word random"
        )


def settle_tiles(o):
    """Take edge, µm and colour of the tiles from the encoders' files; refuse what gainsays them."""
    wants = set()
    for name in o.files:
        if name != "random":
            encoder = read_encoder(name)
            wants.add((encoder["tile_px"], encoder["tile_um"], encoder["colour"]))
    if len(wants) > 1:
        each = [f"{px} px = {um:g} µm, colour {colour}" for px, um, colour in sorted(wants)]
        raise InputError(f"encoders of different tiles ({'; '.join(each)}): probe them one by one")
    if not wants:
        o.tile_px = o.tile_px or TILE_PX
        return
    px, um, colour = wants.pop()
    cut = load_json(Path(o.cohort) / "tiles" / "settings.json") or {}
    there = o.tile_um or cut.get("tile_um", um)
    if there != um:
        whose = "--tile-um is" if o.tile_um else f"those of {o.cohort}/tiles are of"
        raise InputError(
            f"the encoders learned from tiles of {um:g} µm, {whose} {there:g}: --tile-um {um:g} "
            "cuts them anew"
        )
    if o.colour not in (None, colour):
        raise InputError(
            f"--colour {o.colour}: the encoders learned from --colour {colour}; leave --colour out"
        )
    o.tile_px, o.tile_um, o.colour = o.tile_px or px, um, colour


def known_tiles(data, o, patients):
    """Tiles whose cells are known, drawn from each slide.

    Returns chosen (N, 2), slide and tile; of each slide their number n and {class: (n,)}; groups (N,).
    """
    chosen, contents, groups = [], [], []
    for s, name in enumerate(counted("cells", data["slides"], "slides")):
        coords = data["coords"][s]
        frame = qupath_frame(open_slide(data["paths"][s]), data["mpp"][s])
        content = cell_content(o.cohort, name, coords, data["tiles"][s], *frame)
        if content is None:
            continue
        known = np.isfinite(np.array([*content.values()]).reshape(len(content), len(coords)))
        usable = np.flatnonzero(known.all(0))  # all of them where the table has no points
        drawn = np.random.default_rng([o.seed, s]).permutation(usable)[: o.tiles_per_slide]
        keep = np.sort(drawn)
        chosen.append(np.stack([np.full(len(keep), s), keep], 1))
        contents.append((len(keep), {kind: values[keep] for kind, values in content.items()}))
        groups += [name if o.hold_out == "slide" else patients[name]] * len(keep)
    if len(set(groups)) < 3 or not any(content for _, content in contents):
        raise InputError(
            f"{o.cohort}: points/<slide>.csv or spots/<slide>.csv with fraction:... columns are "
            f"there for {len(set(groups))} {o.hold_out}s; a probe needs 3"
        )
    return np.concatenate(chosen), contents, groups


def table_of(contents):
    """Names of the classes, and what each tile holds of them (N, C); 0 where a slide has none."""
    classes = sorted({kind for _, content in contents for kind in content})
    columns = [
        np.concatenate([content.get(kind, np.zeros(n)) for n, content in contents])
        for kind in classes
    ]
    return classes, np.stack(columns, 1)


def features_of(name, data, chosen, o, device):
    """Frozen features (N, D) of the chosen tiles."""
    if name == "random":
        net = untrained(data, STAGES, o.seed, device, o.workers)
    else:
        net = load_encoder(name, None, o.seed, device).to(device)
    tick = progress(f"features of {Path(name).parent.name or name}", len(chosen), "tiles")

    def tiles():
        for rows, read in read_pieces(data, chosen, np.arange(len(chosen)), o.workers):
            yield read
            tick(len(rows))

    try:
        return encode(prepare_encoder(net, device, "float32"), tiles())
    except ValueError as e:
        raise InputError(f"{name}: {e}") from None


def run(o):
    """R2 of the cells in a tile from the frozen features of each encoder, by ridge regression."""
    device = pick_device(o.device)
    check_files(o)
    settle_tiles(o)
    patients = {row["slide"]: row["patient"] for row in read_samples(Path(o.cohort))}
    data, failed = find_data(Path(o.cohort), list(patients), o)
    chosen, contents, groups = known_tiles(data, o, patients)
    classes, y = table_of(contents)
    n_groups = len(set(groups))
    print(
        f"{len(y):,} tiles ({o.tile_um:g} µm, {o.tile_px} px) of {n_groups} {o.hold_out}s; R2 on "
        f"held-out {o.hold_out}s"
    )
    width = max(len(name) for name in [*o.files, "encoder"])
    titles = "".join(f"  {kind[:12]:>12s}" for kind in classes)
    print(f"{'encoder':{width}s}  {'mean':>8s}{titles}", flush=True)
    rows = []
    for name in o.files:
        r2 = linear_probe(features_of(name, data, chosen, o, device), y, groups, seed=o.seed)
        rows.append((name, len(y), n_groups, np.nanmean(r2), *r2))
        values = "".join(f"  {value:12.3f}" for value in r2)
        print(f"{name:{width}s}  {np.nanmean(r2):8.3f}{values}", flush=True)
    if o.csv:
        save_csv(o.csv, ("encoder", "tiles", f"{o.hold_out}s", "mean", *classes), rows)
    return 1 if failed else 0
