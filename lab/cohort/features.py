"""lab.cohort.features"""

from pathlib import Path

import numpy as np

import tiling
from lab.cohort.steps import TILE_UM
from lab.encoders import features_folder
from lab.exchange.clam import features_file, foreign, source_name
from lab.files import InputError, load_json, whole_arrays


def load_features(cohort, source, name, check=True):
    """(features (n, D) float16, memory-mapped where ours; coords (n, 2) level-0 pixels) of one slide; source as above.

    Made elsewhere (`foreign`): of any float type (float64 becomes float32), coords None where no file has them. Raises
    InputError on what is missing, of the wrong shape or type, or (unless check is False: it reads all) not finite.
    """
    if not isinstance(source, Path):
        path = Path(cohort) / "features" / source / f"{name}.npy"
        coords = whole_arrays(Path(cohort) / "tiles" / f"{name}.npz", coords="inx")["coords"]
        try:
            features = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as e:  # of a damaged header anything may come
            raise InputError(
                f"{path}: not a whole array ({e}); delete it to have it made again"
            ) from None
    else:
        path, features, coords, _ = foreign(source, name)
        if features.dtype not in (np.float16, np.float32):
            with np.errstate(over="ignore"):  # beyond float32: infinite, and refused below
                features = features.astype(np.float32)
    if (
        features.ndim != 2
        or features.dtype.kind not in "fiu"
        or coords is not None
        and (coords.shape != (len(features), 2) or coords.dtype.kind not in "fiu")
    ):
        raise InputError(
            f"{path}: features {features.shape} and coords {np.shape(coords)} don't fit; wanted are numbers "
            "(n, D) and (n, 2)"
        )
    if 0 in features.shape:
        raise InputError(f"{path}: no tiles, or no features: {features.shape}")
    if check and not np.isfinite(features).all():
        raise InputError(
            f"{path}: NaN or infinite feature in tile {np.argmin(np.isfinite(features).all(1))}"
        )
    if coords is not None and not np.isfinite(coords).all():
        raise InputError(f"{path}: NaN or infinite coords")
    return features, coords


def provenance(cohort, o, slides):
    """What a run's features are, for its config and report: encoder, weights and their hash, precision, tiles, seeds."""
    kmeans = load_json(Path(cohort) / "supertiles" / source_name(o) / "settings.json")
    if o.features:
        made = features_file(features_of(o), slides[0]).suffix
        return dict(source=source_name(o), made=f"elsewhere ({made})", supertiles=kmeans)
    side = load_json(Path(cohort) / "features" / source_name(o) / f"{slides[0]}.json")
    return dict(
        source=source_name(o),
        weights=side["weights"],
        precision=side["precision"],
        colour=side["colour"],
        supertiles=kmeans,
        **{k: v for k, v in side["tiles"].items() if k not in ("mpp", "file")},
        tile_px=side.get("tile_px", tiling.TILE_PX),
    )


def features_of(o):
    """Where features come from, as load_features wants it: an encoder's name, or the Path of the folder --features."""
    if o.features and not Path(o.features).is_dir():
        raise InputError(f"--features {o.features}: no such folder")
    if o.features and not 1 <= (o.tile_um or TILE_UM) <= 1e4:
        raise InputError(f"--tile-um {o.tile_um:g}: must lie between 1 and 10000")
    return Path(o.features).resolve() if o.features else features_folder(o)
