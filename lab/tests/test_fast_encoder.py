"""The encoder's fast twin. Authorities: torch.nn.functional, and the plain tiling.encode."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

import tiling
from lab.fast.encoder import encode, fold_batchnorm, prepare, rebatch
from lab.tests.helpers import random_resnet, relative

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    return random_resnet()


@pytest.fixture(scope="module")
def tiles():
    """Smooth noise, (5, 224, 224, 3) uint8."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3)).astype(float)
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def plain(network, tiles):
    return tiling.encode(network, tiles, batch=3)


def batchnorm(s, x, name):
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], False, 0, 1e-5)


def functional_resnet(s, x):
    """ResNet50 v1.5 straight from a state_dict: the authority for the module's wiring."""
    x = F.relu(batchnorm(s, F.conv2d(x, s["conv1.weight"], None, 2, 3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for b in range(blocks):
            n = f"layer{layer}.{b}."
            stride = 2 if b == 0 and layer > 1 else 1
            y = F.relu(batchnorm(s, F.conv2d(x, s[n + "conv1.weight"]), n + "bn1"))
            y = F.conv2d(y, s[n + "conv2.weight"], None, stride, 1)
            y = F.relu(batchnorm(s, y, n + "bn2"))
            y = batchnorm(s, F.conv2d(y, s[n + "conv3.weight"]), n + "bn3")
            if b == 0:
                x = F.conv2d(x, s[n + "downsample.0.weight"], None, stride)
                x = batchnorm(s, x, n + "downsample.1")
            x = F.relu(x + y)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def test_plain_encoder_equals_torchs_functions(network, tiles, plain):
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        want = functional_resnet(network.state_dict(), x)
    assert plain.shape == (5, 2048)
    assert plain.dtype == np.float32
    assert relative(plain, want) < 1e-5


def test_folding_batchnorm_changes_nothing(network, tiles, plain):
    folded = fold_batchnorm(copy.deepcopy(network))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert relative(tiling.encode(folded, tiles), plain) < 1e-4


@pytest.mark.parametrize("precision, error", [("float32", 1e-3), ("bfloat16", 0.01)])
def test_fast_encoder_equals_the_plain_one(network, tiles, plain, precision, error):
    """To float16, in which features are kept, or to bfloat16; however the tiles are cut."""
    fast = prepare(copy.deepcopy(network), CPU, precision)
    got = encode(fast, [tiles])
    assert got.dtype == np.float16
    assert relative(got, plain) < error
    pieces = [tiles[:1], tiles[1:4], tiles[4:]]
    assert np.array_equal(encode(fast, pieces), got)
    assert encode(fast, []).shape == (0, 2048)


def test_features_that_are_no_numbers_are_refused(network, tiles):
    broken = copy.deepcopy(network)
    broken.layer4[2].bn3.bias.data[7] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite features"):
        encode(prepare(broken, CPU, "float32"), [tiles[:1]])


@pytest.mark.parametrize("cut", [[23], [1] * 23, [9, 0, 9, 5], [8, 8, 7]])
def test_rebatch_cuts_arrays_laid_end_to_end(cut):
    rows = np.arange(23)
    pieces = list(rebatch(np.split(rows, np.cumsum(cut)[:-1]), 8))
    assert [len(piece) for piece in pieces] == [8, 8, 7]
    assert np.array_equal(np.concatenate(pieces), rows)
    assert list(rebatch([], 8)) == []
