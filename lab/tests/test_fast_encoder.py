"""lab.tests.test_fast_encoder"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from lab.encoders import prepare_encoder
from lab.fast.encoder import encode, fold_batchnorm, rebatch
from lab.tests.helpers import random_resnet, relative


def functional_resnet(s, x):
    """ResNet50 v1.5 straight from a state_dict with torch.nn.functional: the authority for the module's wiring."""

    def bn(x, n):
        return F.batch_norm(
            x,
            s[n + ".running_mean"],
            s[n + ".running_var"],
            s[n + ".weight"],
            s[n + ".bias"],
            False,
            0,
            1e-5,
        )

    x = F.max_pool2d(F.relu(bn(F.conv2d(x, s["conv1.weight"], None, 2, 3), "bn1")), 3, 2, 1)
    for layer, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for b in range(blocks):
            n, stride = f"layer{layer}.{b}.", 2 if b == 0 and layer > 1 else 1
            y = F.relu(bn(F.conv2d(x, s[n + "conv1.weight"]), n + "bn1"))
            y = F.relu(bn(F.conv2d(y, s[n + "conv2.weight"], None, stride, 1), n + "bn2"))
            y = bn(F.conv2d(y, s[n + "conv3.weight"]), n + "bn3")
            if b == 0:
                x = bn(F.conv2d(x, s[n + "downsample.0.weight"], None, stride), n + "downsample.1")
            x = F.relu(x + y)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def test_resnet50_forward_folded_and_bfloat16():
    net, rng = random_resnet(), np.random.default_rng(0)
    tiles = ndimage.gaussian_filter(
        rng.integers(0, 256, (5, 224, 224, 3)).astype(float), (0, 3, 3, 0)
    )
    tiles = ((tiles - tiles.min()) / np.ptp(tiles) * 255).astype(np.uint8)
    x = (
        torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
        - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    ) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        plain = net(x).numpy()
        assert relative(plain, functional_resnet(net.state_dict(), x)) < 1e-5
        folded = fold_batchnorm(copy.deepcopy(net))
        assert relative(folded(x), plain) < 1e-4 and not any(
            isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()
        )
    exact = encode(prepare_encoder(copy.deepcopy(net), torch.device("cpu"), "float32"), [tiles])
    fast = prepare_encoder(copy.deepcopy(net), torch.device("cpu"), "bfloat16")
    short = encode(fast, [tiles])
    assert exact.dtype == np.float16 and exact.shape == (5, 2048)
    assert (
        relative(exact, plain) < 1e-3 and relative(short, plain) < 0.01
    )  # float16 of storage; bfloat16
    assert (encode(fast, [tiles[:1], tiles[1:4], tiles[4:]]) == short).all()  # however it is cut
    assert encode(fast, []).shape == (0, 2048)


def test_rebatch():
    rows = np.arange(23)
    for cut in ([23], [1] * 23, [9, 0, 9, 5], [8, 8, 7], []):
        pieces = list(rebatch(np.split(rows[: sum(cut)], np.cumsum(cut)[:-1]) if cut else [], 8))
        assert [len(p) for p in pieces] == ([8, 8, 7] if cut else []) and (
            not cut or (np.concatenate(pieces) == rows).all()
        )
