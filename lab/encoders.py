"""Which network describes tiles, a ResNet50 by its name or an encoder's file; what it wants."""

from pathlib import Path

import torch

import tiling
from lab.fast import encoder as fast_encoder
from lab.files import InputError, few, load_json, reason, within
from lab.torchscript import Script, is_script, load_script, side_file
from lab.weights import fill, load_weights
from lab.words import fits

ENCODERS = {"resnet50": 4, "resnet50-stage3": 3}  # name -> stages; 3: HistCode's
# Of a tile. HE2RNA's paper is silent, its code has stretch; HistCode's paper has "color
# normalization" without a method, its code none. The default is none.  [ours]
COLOURS = ("none", "macenko", "stretch")
TILE_UM_RANGE = (1.0, 1e4)  # [ours]
WANTS = {  # what an encoder's file can say; three numbers for mean and std  [ours]
    "tile_px": (8, 4096),
    "mean": (-255.0, 255.0),
    "std": (1e-6, 255.0),
    "tile_um": TILE_UM_RANGE,
    "colour": COLOURS,
}
ENCODER_VERSION = 1  # of the checkpoints that histcode.py pretrain writes  [ours]
ANOTHER = "give a checkpoint of histcode.py pretrain or a TorchScript file"


def encoder_name(encoder):
    """The name of an encoder's folders: its own, or that of its file without the ending."""
    return encoder if encoder in ENCODERS else Path(encoder).stem


def features_folder(o):
    """The folder under features/ that options name.

    Features of stretched tiles lie beside those of tiles as they are: both can be had at once.
    """
    name = encoder_name(o.encoder)
    return f"{name}-stretch" if o.colour == "stretch" else name


def encoder_wants(o):
    """What an encoder must be given: a dict of tile_px, mean, std, tile_um, colour (None: any).

    InputError where options gainsay its file.
    """
    wants = {
        "tile_px": tiling.TILE_PX,
        "mean": tiling.IMAGENET_MEAN,
        "std": tiling.IMAGENET_STD,
        "tile_um": None,
        "colour": None,
    }
    if o.encoder in ENCODERS:
        return wants
    name = encoder_name(o.encoder)
    if not Path(o.encoder).is_file():
        raise InputError(f"--encoder {o.encoder}: no such file, nor one of {', '.join(ENCODERS)}")
    if not fits(name) or name.lower().removesuffix("-stretch") in ENCODERS:
        raise InputError(
            f"--encoder {o.encoder}: rename it; {name} is another network's name "
            "or can be no folder's"
        )
    if o.weights not in (None, o.encoder):
        raise InputError(
            f"--weights {o.weights}: the file {o.encoder} is network and weights; leave it out"
        )
    said = script_wants(o.encoder) if is_script(o.encoder) else read_encoder(o.encoder)
    wants.update((key, said[key]) for key in wants if key in said)
    if o.colour and wants["colour"] not in (None, o.colour):
        raise InputError(
            f"--colour {o.colour}: {o.encoder} learned from --colour {wants['colour']}; leave it "
            "out"
        )
    return wants


def script_wants(path):
    """What the .json beside a TorchScript file says: some of encoder_wants. [ours]"""
    side = side_file(path)
    if not side.is_file():
        return {}
    said = load_json(side)
    wrong = ["it"] if said is None else wrong_wants(said)
    if wrong:
        raise InputError(
            f"{side}: {few(wrong)} can't be meant: wanted a JSON object of tile_px (pixels), "
            "tile_um, mean and std (three numbers each, of RGB in 0..1) and colour "
            f"({', '.join(COLOURS)}), or some of them"
        )
    return said


def read_encoder(path):
    """A checkpoint of `histcode.py pretrain`, as its dict. InputError says what else a file is."""
    option = f"--encoder {path}"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch's and pickle's errors share no class
        raise InputError(f"{option}: not a whole encoder file ({reason(e)}); {ANOTHER}") from None
    version = saved.get("version") if isinstance(saved, dict) else None
    if version != ENCODER_VERSION or not isinstance(saved.get("encoder"), dict):
        raise InputError(
            f"{option}: no encoder's checkpoint, or of version {version}, this program reads "
            f"version {ENCODER_VERSION}; {ANOTHER}, or a state_dict of resnet50 as --weights {path}"
        )
    wrong = wrong_wants({key: saved.get(key) for key in ("stages", *WANTS)})
    if wrong:
        raise InputError(f"{option}: {few(wrong)} can't be meant; {ANOTHER}")
    return saved


def wrong_wants(said):
    """What no encoder can want, of a dict of its wants: ["name value"]."""
    wrong = []
    for key, value in said.items():
        numbers = [value]
        if key in ("mean", "std"):
            whole = isinstance(value, (list, tuple)) and len(value) == 3
            numbers = value if whole else [None]
        limits = WANTS.get(key)
        if key == "stages":
            right = value in list(ENCODERS.values())
        elif key == "colour":
            right = value in COLOURS
        else:
            right = limits and all(within(number, *limits) for number in numbers)
        if not right:
            wrong.append(f"{key} {value!r}")
    return wrong


def load_encoder(encoder, weights, seed, device):
    """The network of a name with its weights, or of a file."""
    if encoder in ENCODERS:
        return load_weights(ENCODERS[encoder], weights, seed)
    if is_script(encoder):
        px = script_wants(encoder).get("tile_px", tiling.TILE_PX)
        return load_script(encoder, device, px)
    saved = read_encoder(encoder)
    network = tiling.ResNet50(saved["stages"])
    return fill(network, saved["encoder"], f"--encoder {encoder}", "pretrain it anew")


def prepare_encoder(network, device, precision):
    """The network as it runs fastest, in place; another program's keeps its weights as they are."""
    if isinstance(network, Script):
        network.precision = precision
        return network.to(device)
    return fast_encoder.prepare(network, device, precision)


def patients_seen(encoder):
    """The patients from whom a checkpoint of `histcode.py pretrain` learned; None: not known."""
    if encoder in ENCODERS or is_script(encoder):
        return None
    return read_encoder(encoder).get("patients")
