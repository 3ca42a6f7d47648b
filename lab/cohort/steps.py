"""What the three steps over a cohort's slides share: tiles, features, super-tiles.

A step makes what is missing and skips what is there. What was made with other settings is made
anew, and that is said. It returns {slide: why it failed}; the others go on.
"""

from lab.cohort.slides import MPP_RANGE
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
}


def settle(path, asked, usual):
    """Settings of a folder: what is asked for, else what its settings.json says, else the usual.

    So a later command without options goes on as the folder was begun. [ours]
    """
    before = load_json(path) or {}
    settings = {}
    for key, default in usual.items():
        value, where = asked.get(key), option_of(key)
        if value is None:
            value, where = before.get(key, default), f"{path}: {key}"
        if value != default:
            check_setting(key, value, where)
        settings[key] = value
    return settings


def option_of(key):
    return "--" + key.replace("_", "-")


def check_setting(key, value, where):
    """InputError where a setting can't be; where: the option or the file that says it."""
    if key in RANGES:
        right = within(value, *RANGES[key])
        wanted = "a number from {:g} to {:g}".format(*RANGES[key])
    elif key in WORDS:
        right = value in WORDS[key]
        wanted = " or ".join(WORDS[key])
    else:
        right = isinstance(value, str)
        wanted = "a word"
    if not right:
        raise InputError(f"{where} is {value!r}, which can't be: wanted is {wanted}")


def begin(folder, share, settings, anew):
    """Hold a folder, say what is made anew [(made as, wanted)], and keep the settings."""
    hold(folder, share)
    say_anew(folder, anew)
    save_json(folder / "settings.json", settings)


def work_through(what, function, names, workers, failed):
    """Yield (name, function(name)) in order, read ahead by threads; what fails goes to `failed`."""
    tick = progress(what, len(names), "slides")
    for name, got in ordered_map(function, names, workers):
        tick()
        if isinstance(got, Exception):
            failed[name] = str(got) or type(got).__name__
        else:
            yield name, got
