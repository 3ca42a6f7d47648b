"""lab.encoders"""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

import tiling
from lab.cohort.slides import MPP_RANGE
from lab.files import InputError, few, load_json, within

COLOURS = (
    "none",
    "macenko",
    "stretch",
)  # of a tile. HE2RNA: paper silent, stretch [HE2RNA code]; HistCode: "color
#                                normalization", method unnamed, none in the code. Default none     [ours]


IMAGENET_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"  # torchvision's IMAGENET1K_V1 [ours]


BATCH = {
    "cpu": 8,
    "cuda": 256,
}  # tiles per pass; 8 stay in a CPU's cache: 88 tiles/s, 59 with 64   [ours]


ENCODERS = {
    "resnet50": 4,
    "resnet50-stage3": 3,
}  # name -> stages; 3: "the first four main layers" [HistCode Methods]


RANGES = dict(
    tile_um=(1.0, 1e4),
    min_tissue=(0.0, 1.0),
    max_tiles=(1, 10**9),
    mpp=MPP_RANGE,
    min_area=(0.0, 1e9),
    tissue_threshold=(0.0, 255.0),
    seed=(0, 2**63 - 1),
    k=(1, 10**4),
)  # whole where the ends are  [ours]


ENCODER_VERSION = (
    1  # of the checkpoints that histcode.py pretrain writes                        [ours]
)


# Optical density of pure stain in R, G, B: haematoxylin, eosin [Ruifrok & Johnston 2001], eosin [Macenko 2009].
# The first eosin alone is more magenta than tissue is, so each slide's lies between the two.      [ours]
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.216, 0.801, 0.558]])


def weights_identity(weights, seed):
    """What says which weights these are, for the settings of features and for reports. Cheap: nothing is loaded."""
    if weights == "random":
        return f"random, seed {seed}"
    if weights == "imagenet":
        return f"imagenet {Path(IMAGENET_URL).stem}"
    try:
        whole = Path(weights).read_bytes()
        whole += (
            side_file(weights).read_bytes()
            if side_file(weights).is_file() and is_script(weights)
            else b""
        )
        return f"{Path(weights).name} sha256 {hashlib.sha256(whole).hexdigest()[:16]}"
    except OSError as e:
        raise InputError(
            f"--weights {weights}: {e.strerror}; it takes imagenet, random or a file"
        ) from None


def load_weights(stages, weights, seed):
    """ResNet50 with its weights: imagenet (fetched once, its hash checked), random (seeded), or a state_dict file."""
    torch.manual_seed(seed)
    net = tiling.ResNet50(stages)
    if weights == "random":
        return calibrate(net, seed)
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(IMAGENET_URL).name
    try:
        if weights == "imagenet":
            state = torch.hub.load_state_dict_from_url(
                IMAGENET_URL, map_location="cpu", check_hash=True, weights_only=True
            )
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as e:  # the network's, torch's and pickle's errors share no class
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(
            f"--weights imagenet: {IMAGENET_URL} can't be had ({why}); fetch it elsewhere and put it at "
            f"{place}, or pass --weights FILE, or --weights random to try the program out"
            if weights == "imagenet"
            else f"--weights {weights}: not a file of weights ({why}); give a torchvision resnet50 state_dict"
        ) from None
    if weights == "imagenet":  # torch.hub checks only what it fetches itself
        want, sha = place.stem.rpartition("-")[2], hashlib.sha256(place.read_bytes()).hexdigest()
        if not sha.startswith(want):
            raise InputError(
                f"--weights imagenet: {place} is another file (sha256 {sha[:8]}..., not {want}...): delete it"
            )
    return fill(net, state, f"--weights {weights}", "give a torchvision resnet50 state_dict")


def fill(net, state, option, mend):
    """The network with the entries of a state_dict; InputError where it is another network's."""
    # torchvision's oldest files lack num_batches_tracked, which only training uses; fc is not needed for features
    wanted = {
        k: v
        for k, v in net.state_dict().items()
        if not k.startswith("fc.") and not k.endswith("num_batches_tracked")
    }
    state = (
        {k: v for k, v in state.items() if k in wanted and torch.is_tensor(v)}
        if isinstance(state, dict)
        else {}
    )
    bad = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if bad:
        raise InputError(
            f"{option}: {len(bad)} of {len(wanted)} entries are missing or of another shape, first {bad[0]}; "
            f"{mend}"
        )
    net.load_state_dict(state, strict=False)
    return net


def calibrate(net, seed):
    """Make an untrained network useful: damp its residual branches and let BatchNorm see drawn pictures once. In place.

    Without it the signal grows block by block and 94 % of the features' variance is one direction (overall darkness); a
    linear probe of the true tumour density of simulated slides rises from R = .57 to .92. Only for --weights random. [ours]
    """
    rng, pictures = np.random.default_rng(seed), []
    for _ in range(48):  # blobs of all sizes in the colours of H&E
        amount = sum(
            w * ndimage.zoom(rng.normal(size=(n, n, 2)), (224 / n, 224 / n, 1), order=1)
            for n, w in ((3, 0.5), (14, 0.4), (40, 0.5), (112, 0.4))
        )
        od = (amount * rng.uniform(0.1, 0.5) + rng.uniform(0, 0.6, 2)).clip(0) @ STAINS[[0, 2]]
        pictures.append(245 * 10**-od)
    for m in net.modules():
        if isinstance(m, tiling.Bottleneck):
            nn.init.constant_(m.bn3.weight, 0.2)
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # running statistics = those of one batch
    with torch.no_grad():
        net.train()(tiling.normalise(torch.from_numpy(np.stack(pictures).astype(np.uint8))))
    return net.eval()


class Script(nn.Module):
    """A TorchScript file as an encoder: (B, 3, px, px) normalised RGB -> (B, D); bfloat16 by autocast. ValueError where two
    tiles, or one, don't give as many rows of finite numbers. [ours]"""

    def __init__(self, net, device, px=tiling.TILE_PX):
        super().__init__()
        self.net, self.precision, self.n_features = net.eval(), "float32", None
        self.place = nn.Parameter(
            torch.zeros(1, device=device), requires_grad=False
        )  # a frozen script has no parameter
        with torch.inference_mode():
            for n in (2, 1):  # the last batch has one: .squeeze() breaks
                y = net(torch.zeros(n, 3, px, px, device=device))
                if not torch.is_tensor(y):
                    raise ValueError(f"it gives a {type(y).__name__}, not one tensor")
                if y.ndim != 2 or y.shape != (n, self.n_features or y.shape[1]):
                    raise ValueError(f"{n} tile{'s' * (n > 1)} of {px} px give {tuple(y.shape)}")
                if not y.isfinite().all():
                    raise ValueError("a black tile gives NaN or infinite features")
                self.n_features = y.shape[1]

    def forward(self, x):  # (B, 3, px, px)
        try:
            with torch.autocast(
                x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
            ):
                y = self.net(x)  # (B, D)
        except RuntimeError as e:
            raise InputError(
                f"the encoder fails on {len(x)} tiles: {str(e).strip().splitlines()[-1]}"
            ) from None
        if y.shape != (len(x), self.n_features):
            raise InputError(
                f"the encoder gives {tuple(y.shape)} for {len(x)} tiles, not {(len(x), self.n_features)}"
            )
        return y


def side_file(path):
    """The .json beside a TorchScript file that says what it wants."""
    return Path(f"{path}.json")


def wrong_wants(said):
    """What of {tile_px, mean, std, tile_um, colour}, or some of them, no encoder can want: ["name value"]."""
    three = lambda v: (
        isinstance(v, (list, tuple)) and len(v) == 3 and all(within(c, -255.0, 255.0) for c in v)
    )
    known = dict(
        tile_px=lambda v: within(v, 8, 4096),
        mean=three,
        std=lambda v: three(v) and min(v) > 0,
        tile_um=lambda v: within(v, *RANGES["tile_um"]),
        colour=lambda v: v in COLOURS,
    )
    return [f"{k} {v!r}" for k, v in said.items() if k not in known or not known[k](v)]


def script_wants(path):
    """What a TorchScript file wants, by the <file>.json beside it, if there is one: a dict of tile_px, mean, std, tile_um
    and colour, or some of them. InputError where it says anything else. [ours]"""
    side = side_file(path)
    if not side.is_file():
        return {}
    said = load_json(side)
    wrong = ["it"] if said is None else wrong_wants(said)
    if wrong:
        raise InputError(
            f"{side}: {few(wrong)} can't be meant: wanted a JSON object of tile_px (pixels), tile_um, mean and "
            f"std (three numbers each, of RGB in 0..1) and colour ({', '.join(COLOURS)}), or some of them"
        )
    return said


def encoder_name(encoder):
    """Of the folder of an encoder's features: its own name, or that of its file without the ending."""
    return encoder if encoder in ENCODERS else Path(encoder).stem


def features_folder(o):
    """The folder under features/ that options name: the encoder's. Features of stretched tiles lie beside those of tiles as
    they are, so that both can be had at once."""
    return encoder_name(o.encoder) + "-stretch" * (o.colour == "stretch")


def is_script(path):
    """TorchScript files are zip archives with code in them; opening one does not run it."""
    try:
        return zipfile.is_zipfile(path) and any(
            name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()
        )
    except (
        Exception
    ):  # a damaged one: zip's errors share no class, and read_encoder says that it is not whole
        return False


def read_encoder(path):
    """An encoder checkpoint of `histcode.py pretrain`, as its dict. InputError says what else a file is."""
    option, mend = (
        f"--encoder {path}",
        "give a checkpoint of histcode.py pretrain or a TorchScript file",
    )
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch's and pickle's errors share no class
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{option}: not a whole encoder file ({why}); {mend}") from None
    if not isinstance(saved, dict) or "version" not in saved:
        raise InputError(
            f"{option}: no encoder's checkpoint; {mend}, or a state_dict of resnet50 as --weights {path}"
        )
    if saved["version"] != ENCODER_VERSION:
        raise InputError(
            f"{option}: of version {saved['version']}, this program reads version {ENCODER_VERSION}; {mend}"
        )
    wants = ("mean", "std", "tile_px", "tile_um", "colour")
    missing = [k for k in ("encoder", "stages", *wants) if k not in saved]
    if missing:
        raise InputError(f"{option}: the checkpoint has no {', '.join(missing)}; {mend}")
    wrong = wrong_wants({k: saved[k] for k in wants}) + [f"stages {saved['stages']!r}"] * (
        saved["stages"] not in list(ENCODERS.values())
    )
    if wrong:
        raise InputError(f"{option}: {few(wrong)} can't be meant; {mend}")
    return saved


def encoder_wants(o):
    """What an encoder must be given: tile_px, mean and std, and tile_um and colour (None: any). InputError where options
    gainsay its file."""
    wants = dict(
        tile_px=tiling.TILE_PX,
        mean=tiling.IMAGENET_MEAN,
        std=tiling.IMAGENET_STD,
        tile_um=None,
        colour=None,
    )
    if o.encoder in ENCODERS:
        return wants
    if not Path(o.encoder).is_file():
        raise InputError(f"--encoder {o.encoder}: no such file, nor one of {', '.join(ENCODERS)}")
    if encoder_name(o.encoder) in ENCODERS:
        raise InputError(
            f"--encoder {o.encoder}: rename it; {encoder_name(o.encoder)} is the name of another network"
        )
    if o.weights not in (None, o.encoder):
        raise InputError(
            f"--weights {o.weights}: the file {o.encoder} is network and weights; leave --weights out"
        )
    if not is_script(o.encoder):
        saved = read_encoder(o.encoder)
        wants = {k: saved[k] for k in wants}
    else:
        wants.update(script_wants(o.encoder))
    if o.colour and wants["colour"] not in (None, o.colour):
        raise InputError(
            f"--colour {o.colour}: {o.encoder} learned from --colour {wants['colour']}; leave --colour out"
        )
    return wants


def load_encoder(encoder, weights, seed, device):
    """The network of a name with its weights, or of a file."""
    if encoder in ENCODERS:
        return load_weights(ENCODERS[encoder], weights, seed)
    if not is_script(encoder):
        saved = read_encoder(encoder)
        return fill(
            tiling.ResNet50(saved["stages"]),
            saved["encoder"],
            f"--encoder {encoder}",
            "pretrain it anew",
        )
    px = script_wants(encoder).get("tile_px", tiling.TILE_PX)
    try:
        return Script(torch.jit.load(encoder, map_location=device), device, px)
    except Exception as e:  # the errors of a foreign network share no class
        why = (str(e).strip() or type(e).__name__).splitlines()[-1]
        raise InputError(
            f"--encoder {encoder}: can't map (B, 3, {px}, {px}) to (B, D): {why}"
        ) from None


def pick_device(name="auto"):
    """auto: the GPU when there is one; under torchrun each process has its own."""
    own = f"cuda:{os.environ.get('LOCAL_RANK', '')}".strip(":")  # of a process under torchrun
    if name == "auto":
        return torch.device(own if torch.cuda.is_available() else "cpu")
    name = own if name == "cuda" else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as e:
        raise InputError(
            f"--device {name}: not to be had here ({str(e).splitlines()[0]}); try --device auto"
        ) from None
    if device.type not in BATCH:
        raise InputError(f"--device {name}: only {' and '.join(BATCH)} are supported")
    return device


def pick_precision(name, device):
    """auto: bfloat16 where the processor multiplies it in hardware (features within 1 %), else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities()
    return (
        "bfloat16"
        if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16")
        else "float32"
    )
