"""lab.commands.tiling.doctor"""

import json

import openslide

import tiling
from lab.cohort.features import features_of
from lab.cohort.slides import find_slides, has_profile, open_slide, orientation
from lab.cohort.steps import find_tiles, table_mpp, tile_settings
from lab.devices import pick_device
from lab.encoders import ENCODERS, encoder_wants, load_encoder
from lab.files import TISSUE
from lab.progress import counted, ordered_map
from lab.weights import weights_identity


# Commands
def doctor(cohort, slides, o):
    """Say what is seen in each slide, without writing anything."""
    pick_device(o.device)  # these three refuse what features would
    features_of(o)
    weights_identity(o.weights or "random", o.seed)
    found, failed, shared, given = (
        find_slides(cohort),
        {},
        tile_settings(cohort, o),
        table_mpp(cohort),
    )
    jobs, px, rule = (
        [name for name in slides if name in found],
        encoder_wants(o)["tile_px"],
        {**TISSUE, **shared},
    )
    net = (
        tiling.ResNet50(ENCODERS[o.encoder])
        if o.encoder in ENCODERS
        else load_encoder(o.encoder, None, 0, pick_device(o.device))
    )
    cut = ("Otsu" if rule["tissue_threshold"] == "otsu" else "fixed") + " threshold {:.3g} "
    cut += "OD" if rule["tissue"] == "stain" else "of saturation"
    failed.update({name: f"no file {name}.* in {cohort}" for name in slides if name not in found})

    def one(name):
        slide, mpp = open_slide(found[name]), given.get(name, shared["mpp"])
        arrays, _ = find_tiles(found[name], name, dict(shared, mpp=mpp))
        own = json.loads(str(arrays["settings"]))["mpp"] is None
        source = "the slide" if own else "samples.csv" if name in given else "--mpp"
        return slide, source, arrays, *tiling.best_level(slide, float(arrays["tile"]) / px)

    for name, got in counted("doctor", ordered_map(one, jobs, o.workers), "slides", len(jobs)):
        if isinstance(got, Exception):
            failed[name] = str(got)
            continue
        slide, source, a, level, d = got
        n, wanted = len(a["coords"]), shared["tile_um"] / px
        print(
            f"{name}: {slide.dimensions[0]:,} x {slide.dimensions[1]:,} px, "
            f"{slide.properties.get('openslide.vendor', 'plain image')}, {slide.level_count} level(s)\n"
            f"  mpp {a['mpp']:.4f} µm from {source}; read at level {level} "
            f"(downsample {d:g}, {a['mpp'] * d:.3f} µm/px), "
            f"{'resampled' if d * a['mpp'] <= wanted * 1.01 else 'RESAMPLED UP'} to {wanted:g}; "
            f"a tile is {shared['tile_um']:g} µm = {a['tile']:.1f} px\n"
            f"  {cut.format(a['threshold'])}, tissue {a['tissue']:.0%}; {a['found']:,} tiles"
            f"{f', {n:,} of them sampled' if n < a['found'] else ''}; features {n * net.n_features * 2 / 2**20:.1f} MiB"
            + "; ICC profile present: not applied" * has_profile(slide)
            + f"; turned upright: its orientation tag is {orientation(found[name])}"
            * (isinstance(slide, openslide.ImageSlide) and orientation(found[name]) > 1)
            + (
                "; scanned: {2:,} x {3:,} px from ({0:,}, {1:,})".format(
                    *tiling.slide_bounds(slide)
                )
                if tiling.slide_bounds(slide) != (0, 0, *slide.dimensions)
                else ""
            )
        )
    return failed
