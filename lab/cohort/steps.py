"""What the three steps over a cohort's slides share: tiles, features, super-tiles.

A step makes what is missing and skips what is there. What was made with other settings is made
anew, and that is said. It returns {slide: why it failed}; the others go on.
"""

from lab.cohort.slides import MPP_RANGE, unnameable
from lab.encoders import COLOURS, TILE_UM_RANGE
from lab.files import InputError, load_json, save_json, within
from lab.locks import hold
from lab.progress import ordered_map, progress
from lab.runs import say_anew

RANGES = {  # of settings; whole numbers where the ends are  [ours]
    "tile_um": TILE_UM_RANGE,
    "min_tissue": (0.0, 1.0),
    "max_tiles": (1, 10**9),
    "mpp": MPP_RANGE,
    "min_area": (0.0, 1e9),
    "tissue_threshold": (0.0, 255.0),
    "seed": (0, 2**63 - 1),
    "k": (1, 10**4),
}
WORDS = {
    "tissue": ("stain", "saturation"),
    "colour": COLOURS,
    "precision": ("float32", "bfloat16"),
    "force_mpp": (True, False),
}


def settle(path, asked, usual):
    """Settings of a folder: what is asked for, else what its settings.json says, else the usual.

    So a later command without options goes on as the folder was begun. [ours]
    """
    settings = {**usual, **(load_json(path) or {})}
    for key, default in usual.items():
        where = f"{path}: {key} is"
        if asked.get(key) is not None:
            settings[key] = asked[key]
            where = "--" + key.replace("_", "-")
        if settings[key] != default:
            check_setting(key, settings[key], where)
    return {key: settings[key] for key in usual}


def check_setting(key, value, where):
    """InputError where a setting can't be; where: the option or the file that says it."""
    wanted, right = "a word", isinstance(value, str)
    if key in RANGES:
        low, high = RANGES[key]
        wanted, right = f"a number from {low:g} to {high:g}", within(value, low, high)
    if key in WORDS:
        wanted, right = " or ".join(map(str, WORDS[key])), value in WORDS[key]
    if not right:
        raise InputError(f"{where} {value!r}, which can't be: wanted is {wanted}")


def begin(folder, share, settings, anew):
    """Hold a folder, say what is made anew [(made as, wanted)], and keep the settings."""
    hold(folder, share)
    say_anew(folder, anew)
    save_json(folder / "settings.json", settings)


def work_through(what, function, names, workers, failed):
    """Yield (name, function(name)) in order, read ahead by threads; what fails goes to `failed`."""

    def work(name):
        if unnameable(name):
            raise InputError(unnameable(name))
        return function(name)

    tick = progress(what, len(names), "slides")
    for name, got in ordered_map(work, names, workers):
        tick()
        if isinstance(got, Exception):
            failed[name] = str(got) or type(got).__name__
        else:
            yield name, got
