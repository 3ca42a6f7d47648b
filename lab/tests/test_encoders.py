"""Weights and encoders' files. Authorities: torchvision's names, and torch's own modules."""

import json
import re

import numpy as np
import pytest
import torch

import tiling
from lab.cohort.tiles import tiles_of
from lab.commands.tiling import main
from lab.files import InputError
from lab.tests.helpers import pixels_of, random_resnet, relative, swap, tiny_encoder
from lab.weights import load_weights, weights_identity

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")
FLOAT32 = ("--device", "cpu", "--precision", "float32")


def features(cohort, encoder, *argv, verb="features"):
    return main([verb, str(cohort), "--encoder", str(encoder), *FLOAT32, *argv])


def features_by(network, pixels, mean=tiling.IMAGENET_MEAN, std=tiling.IMAGENET_STD):
    """What a torch module makes of tiles (n, px, px, 3), normalised here."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        return network(x).numpy()


# ----- Weights -----------------------------------------------------------------------------------


def test_weights_file_loads_and_wrong_ones_are_refused(tmp_path):
    net = random_resnet()
    state = net.state_dict()
    old = {name: value for name, value in state.items() if "num_batches" not in name}
    assert len(old) == 267  # as torchvision's oldest files
    torch.save(state, tmp_path / "w.pth")
    torch.save(old, tmp_path / "old.pth")
    for stages in (3, 4):
        for name in ("w.pth", "old.pth"):
            loaded = load_weights(stages, str(tmp_path / name), 0)
            assert torch.equal(loaded.layer3[5].bn3.running_var, net.layer3[5].bn3.running_var)
    torch.save({**old, "conv1.weight": 3}, tmp_path / "number.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(net, tmp_path / "pickle.pth")  # a whole object: code would run on loading
    (tmp_path / "text.pth").write_text("no weights")
    for bad in ("text.pth", "other.pth", "number.pth", "pickle.pth"):
        with pytest.raises(InputError, match="--weights .*" + bad):
            load_weights(4, str(tmp_path / bad), 0)
    with pytest.raises(InputError, match=r"--weights .*absent.pth: No such file"):
        weights_identity(str(tmp_path / "absent.pth"), 0)


def test_imagenet_weights_without_network(monkeypatch, tmp_path):
    swap(monkeypatch, "lab.weights", "IMAGENET_URL", "http://127.0.0.1:9/resnet50-0676ba61.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    mend = "127.0.0.1:9.*put it at .*resnet50-0676ba61.pth.*--weights FILE"
    with pytest.raises(InputError, match=mend):
        load_weights(4, "imagenet", 0)
    place = tmp_path / "checkpoints" / "resnet50-0676ba61.pth"
    place.parent.mkdir(exist_ok=True)
    torch.save(random_resnet().state_dict(), place)  # put there by hand, but another file
    with pytest.raises(InputError, match=r"61.pth is another file .sha256 .*, not 0676ba61"):
        load_weights(4, "imagenet", 0)


# ----- Checkpoints of histcode.py pretrain -------------------------------------------------------

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.15)


def save_encoder(path, seed=0, **changes):
    """An encoder checkpoint as histcode.py pretrain writes it; returns its network."""
    net = random_resnet(3)
    torch.manual_seed(seed)
    torch.nn.init.normal_(net.layer3[5].bn3.bias, 0, 0.5)
    saved = {
        **{"version": 1, "encoder": net.state_dict(), "stages": 3, "n_features": 1024},
        **{"mean": MEAN, "std": STD, "tile_px": 256, "tile_um": 128.0, "colour": "none"},
        **changes,
    }
    torch.save({key: value for key, value in saved.items() if value is not None}, path)
    return net


def test_features_of_an_encoder_file(two_slides, capsys):
    """Tile size, colours and normalisation are the file's, unasked."""
    file = two_slides / "adco.pt"
    net = save_encoder(file, colour="macenko")
    assert features(two_slides, file, verb="doctor") == 0
    assert "resampled to 0.5; a tile is 128 µm = 256.0 px" in capsys.readouterr().out
    assert features(two_slides, file, verb="supertiles") == 0
    assert (two_slides / "supertiles" / "adco" / "a.npz").is_file()
    folder = two_slides / "features" / "adco"
    side = json.loads((folder / "a.json").read_text())
    assert tiles_of(two_slides, "a")[1]["tile_um"] == 128
    assert (side["encoder"], side["tile_px"], side["colour"]) == ("adco", 256, "macenko")
    assert side["weights"].startswith("adco.pt sha256 ")
    pixels, slide, coords, tile = pixels_of(two_slides, "a", 256)
    pixels, _ = tiling.macenko(pixels, tiling.slide_stains(slide, coords, tile, 256, 0))
    got = np.load(folder / "a.npy")
    assert relative(got, features_by(net, pixels, MEAN, STD)) < 1e-3
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert features(two_slides, file) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    capsys.readouterr()
    save_encoder(file, 1, colour="macenko")  # another file of the same name
    assert features(two_slides, file) == 0
    anew = r"2 slides are made anew: weights adco.pt sha256 .* -> adco.pt sha256"
    assert re.search(anew, capsys.readouterr().out)
    assert relative(np.load(folder / "a.npy"), got) > 0.01


def test_options_that_gainsay_an_encoder_file_are_refused(two_slides):
    file = two_slides / "adco.pt"
    save_encoder(file, colour="macenko")
    for argv, words in (
        (("--colour", "none"), "--colour none: .*adco.pt learned from --colour macenko"),
        (("--weights", "random"), "adco.pt is network and weights"),
        (("--tile-um", "112"), "learned from tiles of 128 µm, .* 112: --tile-um 128 cuts them"),
    ):
        with pytest.raises(InputError, match=words):
            features(two_slides, file, *argv)
    assert main(["tiles", str(two_slides), "--tile-um", "112"]) == 0
    with pytest.raises(InputError, match=r"tiles are of 112: --tile-um 128 cuts them anew"):
        features(two_slides, file)
    assert features(two_slides, file, "--tile-um", "128") == 0  # the mend works


NO_ENCODERS = {
    "text": ("no weights", "text.pt: not a whole encoder file"),
    "nothing": ("", "not a whole encoder file"),
    "new": ({"version": 2}, "of version 2, this program reads version 1"),
    "mean": ({"mean": None}, "mean None can't be meant"),
    "short": ({"mean": [0.5]}, r"mean .0.5. can't"),
    "std": ({"std": (0, 1, 1)}, "std "),
    "colour": ({"colour": "reinhard"}, "colour 'reinhard' can't be meant"),
    "px": ({"tile_px": "x"}, "tile_px 'x' can't"),
    "px0": ({"tile_px": 0}, "tile_px 0 "),
    "um": ({"tile_um": [1]}, r"tile_um .1. can't"),
    "nine": ({"stages": 9}, "stages 9 can't be meant"),
    "stages": ({"stages": 4}, r"stages.pt: [0-9]+ of [0-9]+ entries are missing"),
    "resnet50": ({}, "rename it"),
}


@pytest.mark.parametrize("name", NO_ENCODERS)
def test_files_that_are_no_encoder_say_one_line(two_slides, name):
    content, words = NO_ENCODERS[name]
    file = two_slides / f"{name}.pt"
    if isinstance(content, str):
        file.write_text(content)
    else:
        save_encoder(file, **content)
    with pytest.raises(InputError, match=words) as e:
        features(two_slides, file)
    assert "\n" not in str(e.value)
    assert not (two_slides / "features").exists()
    assert not (two_slides / "tiles").exists()


def test_other_files_of_torch_are_no_encoder(two_slides, tmp_path):
    save_encoder(tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:9999])
    torch.save(random_resnet(3).state_dict(), tmp_path / "state.pt")
    torch.save(random_resnet(3), tmp_path / "object.pt")
    torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(tmp_path / "map.pt")
    for name, words in (
        ("half", "half.pt: not a whole encoder file"),
        ("object", "not a whole encoder file"),
        ("state", "no encoder's checkpoint.* --weights .*state.pt"),
        ("map", "map.pt: can't map .* to .B, D."),
        ("absent", "no such file, nor one of resnet50, resnet50-stage3"),
    ):
        with pytest.raises(InputError, match=words):
            features(two_slides, tmp_path / f"{name}.pt")


# ----- TorchScript -------------------------------------------------------------------------------


def test_a_torchscript_file_gives_its_modules_features(two_slides):
    net = tiny_encoder(two_slides / "plain.pt")
    torch.jit.freeze(torch.jit.script(net)).save(two_slides / "frozen.pt")  # no parameters left
    torch.jit.trace(net, torch.zeros(1, 3, 224, 224)).save(two_slides / "traced.pt")
    for name, precision, error in (
        ("plain", "float32", 1e-3),
        ("frozen", "bfloat16", 0.02),
        ("frozen", "float32", 1e-3),
        ("traced", "bfloat16", 0.02),
    ):
        assert features(two_slides, two_slides / f"{name}.pt", "--precision", precision) == 0
        pixels, _, _, tile = pixels_of(two_slides, "b")
        got = np.load(two_slides / "features" / name / "b.npy")
        assert tile == pytest.approx(224)
        assert got.shape == (len(pixels), 7)
        assert relative(got, features_by(net, pixels)) < error


class Odd(torch.nn.Module):
    """A network that is no encoder, of one kind or another."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        y = x.flatten(1)[:, :5]
        if self.kind == "four":
            y = y[:, :, None, None]
        if self.kind == "batch":
            y = y[:1]
        if self.kind == "squeeze":
            y = y.squeeze(0)
        if self.kind == "few" and x.shape[0] > 2:
            y = y[:2]
        if self.kind == "nan":
            y = y / 0
        if self.kind == "fails" and x.shape[0] > 2:
            y = y.view(7, 7)
        return y


class Two(torch.nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    "network, words",
    [
        (Odd("four"), r"2 tiles of 224 px give \(2, 5, 1, 1\)"),
        (Odd("batch"), r"2 tiles of 224 px give \(1, 5\)"),
        (Odd("squeeze"), r"1 tiles of 224 px give \(5,\)"),
        (Two(), "give tuple"),
    ],
    ids=["four axes", "one row", "squeezed", "two tensors"],
)
def test_a_torchscript_that_gives_no_features_says_why(two_slides, tmp_path, network, words):
    torch.jit.script(network).save(tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd.pt: can't map \(B, 3, 224, 224\) .*" + words):
        features(two_slides, tmp_path / "odd.pt")
    assert not (two_slides / "tiles").exists()


@pytest.mark.parametrize(
    "kind, words",
    [
        ("few", r"failed: a: the encoder gives \(2, 5\) for 8 tiles"),
        ("nan", "failed: a: the encoder gives NaN or infinite features"),
        ("fails", "failed: a: the encoder fails on 8 tiles: "),
    ],
)
def test_a_torchscript_that_fails_on_tiles_fails_slide_by_slide(two_slides, capsys, kind, words):
    torch.jit.script(Odd(kind)).save(two_slides / "odd.pt")
    assert features(two_slides, two_slides / "odd.pt") == 1
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert "2 of 2 slides failed" in said
    assert not list((two_slides / "features").rglob("*.npy"))


WANTS = {"mean": MEAN, "std": STD, "tile_px": 192, "tile_um": 128}


def test_a_json_beside_a_torchscript_says_what_it_wants(two_slides, capsys):
    file, side = two_slides / "tiny.pt", two_slides / "tiny.pt.json"
    net = tiny_encoder(file)
    side.write_text(json.dumps(WANTS))
    assert features(two_slides, file) == 0
    pixels, _, _, tile = pixels_of(two_slides, "a", 192)
    got = np.load(two_slides / "features" / "tiny" / "a.npy")
    assert tile == pytest.approx(256)
    assert relative(got, features_by(net, pixels, MEAN, STD)) < 1e-3
    capsys.readouterr()
    side.write_text(json.dumps(WANTS | {"mean": [0.5] * 3}))  # one network, other features
    assert features(two_slides, file) == 0
    anew = r"2 slides are made anew: weights tiny.pt sha256 .* -> tiny.pt sha256"
    assert re.search(anew, capsys.readouterr().out)
    with pytest.raises(InputError, match=r"tiny.pt learned from tiles of 128 µm, .* 112"):
        features(two_slides, file, "--tile-um", "112")


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "no",
        '{"mean": [1, 2]}',
        '{"std": [0, 1, 1]}',
        '{"tile_px": 224.5}',
        '{"tile_um": "112"}',
        '{"colour": "reinhard"}',
        '{"means": [1, 1, 1]}',
        '{"mean": [NaN, 1, 1]}',
        '{"tile_px": true}',
    ],
)
def test_a_json_that_cannot_be_meant_is_refused(two_slides, said):
    tiny_encoder(two_slides / "tiny.pt")
    (two_slides / "tiny.pt.json").write_text(said)
    with pytest.raises(InputError, match=r"tiny.pt.json: .* can't be meant: wanted a JSON object"):
        features(two_slides, two_slides / "tiny.pt")
