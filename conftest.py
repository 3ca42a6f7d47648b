"""Fixtures that several test files share.

Rooms are imported inside the fixtures, so that a room that does not import fails its own tests
only.
"""

import lab  # first: it settles how torch's threads wait

# isort: split
import contextlib
import copy
import importlib
import pkgutil
import shutil
import signal

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

import tiling
from lab.files import digest, save_text
from lab.tests.helpers import SMALL, copy_of, painted, small_encoder, swap, write_pyramid
from lab.tests.helpers_histcode import (
    GENES,
    MODELS,
    data_of,
    drawn_run,
    express,
    gmt_of,
    write_pairs,
)

FEW_PIXELS = 50  # an inch
signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup` and `&` leave it ignored


def import_rooms():
    """Every room at once: one that is imported while a name is swapped would keep the other."""
    for room in pkgutil.walk_packages(lab.__path__, "lab."):
        if not room.name.startswith("lab.tests."):
            with contextlib.suppress(ImportError):
                importlib.import_module(room.name)


@pytest.fixture(scope="session", autouse=True)
def quick():
    """What takes long and is the same each time is done once: random weights take 3 s to calibrate.

    Plots are drawn as SVG, without the search for margins; their PNG is as large but empty.
    """
    import_rooms()
    from lab.weights import calibrate

    known, save = {}, Figure.savefig

    def once(net, seed):
        start = (net.conv1.weight, net.layer3[0].conv1.weight)
        key = net.stages, seed, digest(*(w.detach().numpy() for w in start))
        if key not in known:
            known[key] = copy.deepcopy(calibrate(net, seed))
        return copy.deepcopy(known[key])

    def savefig(fig, file, **how):
        fig._layout_engine = None  # set_layout_engine("none") leaves one that draws twice
        if (how.get("format"), how.get("dpi")) == ("png", FEW_PIXELS):
            width, height = fig.get_size_inches() * FEW_PIXELS
            Image.new("RGB", (int(width), int(height)), "white").save(file, "PNG")
        else:
            save(fig, file, **how)

    with pytest.MonkeyPatch.context() as patch:
        swap(patch, "lab.weights", "calibrate", once)
        patch.setattr(Figure, "savefig", savefig)
        swap(patch, "lab.show.plots", "PICTURE_DPI", FEW_PIXELS)
        yield


@pytest.fixture(autouse=True)
def same_draws():
    """torch's own generator starts anew: what a test draws from it doesn't depend on those before.

    pytest-randomly does so with Python's and NumPy's.
    """
    torch.manual_seed(0)


@pytest.fixture
def printed(monkeypatch):
    """Pictures are drawn as users get them; those that a test leaves open are closed."""
    swap(monkeypatch, "lab.show.plots", "PICTURE_DPI", 300)
    yield
    pyplot.close("all")


def pytest_make_parametrize_id(val, argname):
    """Bytes get a number in the names of tests: packed ones hold the time, -n compares names."""
    return argname if isinstance(val, bytes) else None


# ----- Slides -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smooth_slide(tmp_path_factory):
    """A pyramid of a smooth picture, so that a right resample can be told from a shifted one."""
    y, x = np.mgrid[:1500, :1800]
    green_wave = 128 + 100 * np.sin(x / 60) * np.cos(y / 45)
    rgb = np.stack([x / 8, y / 7, green_wave], 2).astype(np.uint8)
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    write_pyramid(path, rgb, 0.25)
    return path, rgb


@pytest.fixture
def two_slides(tmp_path):
    """A folder with slides/a.tif and b.tif, their light a little different."""
    (tmp_path / "slides").mkdir()
    for i, name in enumerate("ab"):
        picture = Image.fromarray(painted((243 - 5 * i,) * 3)[0])
        rgb = np.array(picture.resize((1600, 1280), Image.Resampling.NEAREST))
        write_pyramid(tmp_path / "slides" / f"{name}.tif", rgb)
    return tmp_path


# ----- The simulated cohort -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A small simulated cohort; tests may read it only."""
    from lab.simulation.cohort import simulate_cohort

    folder = tmp_path_factory.mktemp("simulated") / "demo"
    simulate_cohort(folder, workers=2, **SMALL)
    return folder


@pytest.fixture(scope="session")
def mapped_once(drawn, tmp_path_factory):
    """A run on the simulated cohort (random encoder, few epochs), for what is done with a run."""
    from lab.commands.he2rna import main

    cohort = tmp_path_factory.mktemp("mapped") / "c"
    shutil.copytree(drawn, cohort)
    encoder = "--weights random --encoder resnet50-stage3"
    learn = "--folds 3 --epochs 2 --hidden 32 --device cpu"
    assert main(["train", str(cohort), *encoder.split(), *learn.split()]) == 0
    return cohort


mapped = copy_of("mapped_once")


@pytest.fixture(scope="session")
def unlabelled_once(drawn, tmp_path_factory):
    """The simulated cohort, its slides and points only, and weights to start from."""
    folder, weights = (tmp_path_factory.mktemp(name) / "c" for name in ("pretrain", "weights"))
    for part in ("slides", "points"):
        shutil.copytree(drawn / part, folder / part)
    shutil.copy(drawn / "samples.csv", folder)
    torch.manual_seed(0)
    net = tiling.ResNet50(3)
    for m in net.modules():
        if isinstance(m, tiling.Bottleneck):  # damped as --weights random is, without its seconds
            torch.nn.init.constant_(m.bn3.weight, 0.2)
    torch.save(net.state_dict(), weights)
    (folder / "start.pth").symlink_to(weights)  # it is large
    data_of(folder)  # cuts the tiles
    return folder


unlabelled = copy_of("unlabelled_once")


@pytest.fixture(scope="session")
def looked_at_once(tmp_path_factory):
    """A simulated cohort whose patients all have normal tissue, and runs on a small encoder."""
    from lab.simulation.cohort import simulate_cohort

    cohort = tmp_path_factory.mktemp("looked") / "demo"
    simulate_cohort(cohort, normal_in=1, workers=2, **SMALL)
    for seed, name in enumerate(("one.pt", "two.pt")):
        small_encoder(cohort.parent / name, seed)
    encoder = ["--encoder", str(cohort.parent / "one.pt")]
    genes = ["--genes", GENES]
    per_gene = ["--model", "attention", "--per-gene", "--name", "per-gene"]
    with pytest.MonkeyPatch.context() as patch:
        swap(patch, "lab.histcode.diagnose_report", "draw_curves", lambda *_: None)
        assert drawn_run("diagnose", cohort, "--rotate", *encoder) == 0
        gmt = ["--gmt", str(gmt_of(cohort))]
        assert drawn_run("expression", cohort, *encoder, *genes, *gmt) == 0
        assert drawn_run("expression", cohort, *encoder, *genes, *per_gene) == 0
    return cohort


looked_at = copy_of("looked_at_once")


# ----- Runs on drawn numbers ----------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path):
    """A run's folder as signatures and enrich read it, and its results.

    300 genes in two cancers, the first 40 well predicted in both, the last without R.
    """
    from he2rna import evaluate
    from lab.he2rna.evaluation import write_genes

    rng = np.random.default_rng(0)
    genes, n = [f"GENE{i}" for i in range(300)], 60
    y = rng.normal(size=(n, 300)) + 3
    prediction = rng.normal(size=y.shape)
    prediction[:, :40] += 2 * y[:, :40]
    prediction[:, 299] = 1
    projects, fold = np.repeat(["A", "B"], n // 2), np.arange(n) % 3
    results = evaluate(prediction, y, fold, projects, 3)
    write_genes(tmp_path / "genes.csv", genes, results)
    np.savez(
        tmp_path / "predictions.npz",
        truth=y,
        prediction=prediction,
        genes=np.array(genes),
        fold=fold,
        project=projects,
        patient=np.arange(n).astype(str),
    )
    sets = {
        "IN": genes[:25],
        "OUT": genes[100:130],
        "NOWHERE": ["ZZZ1", "ZZZ2"],
        "EMPTY": [],
        "HOUSEKEEPING": genes[200:260],
        "HALF": genes[20:60],
    }
    lines = ["\t".join([name, "x", *members]) for name, members in sets.items()]
    (tmp_path / "sets.gmt").write_bytes("\r\n".join(lines).encode() + b"\r\n")
    return tmp_path, results


@pytest.fixture(scope="session")
def changed_once(tmp_path_factory):
    """A finished run of histcode.py expression for each model, on one cohort."""
    cohort = write_pairs(tmp_path_factory.mktemp("changed") / "c")

    def only_text(folder, *_):
        save_text(folder / "report.md", ["done"])

    with pytest.MonkeyPatch.context() as patch:
        swap(
            patch, "lab.histcode.expression", "networks_at_once", lambda *_: 2
        )  # the networks of three genes in two lots
        swap(patch, "lab.histcode.ends", "SHUFFLES", 2000)
        for name, argv in MODELS.items():
            if name == "linear":  # whose pictures are looked at
                swap(patch, "lab.histcode.expression_plots", "SHOWN", ["NO1"])
            else:
                swap(patch, "lab.histcode.expression_report", "write_report", only_text)
            assert express(cohort, "--name", name, *argv) == 0
    return cohort


changed = copy_of("changed_once")


# ----- Pictures -----------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in the place of their files."""
    seen = []
    swap(monkeypatch, "lab.show.plots", "save_picture", lambda path, fig: seen.append(fig))
    return seen


# ----- Options ------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """MSI's networks made small: what they compute is tested elsewhere."""
    import he2rna
    import lab.he2rna.msi

    monkeypatch.setattr(lab.he2rna.msi, "EPOCHS_CODE", 5)
    for name, value in {"HIDDEN": (16, 8), "CLASSIFIER": (8, 6), "EPOCHS": 3}.items():
        monkeypatch.setattr(he2rna, f"MSI_{name}", value)


@pytest.fixture
def settled(monkeypatch):
    """A function of a histcode command's words: what its options come to, by name."""
    from lab.commands import histcode
    from lab.histcode.choices import settle_choices
    from lab.histcode.settings import settle_options

    seen = {}

    def look(o):
        if o.verb == "pretrain":
            settle_options(o, 1)
        else:
            settle_choices(o)
        seen.update(vars(o))

    for verb in ("pretrain", "diagnose", "expression"):
        monkeypatch.setattr(f"lab.commands.histcode.{verb}.run", look)

    def settle(verb, *argv):
        seen.clear()
        histcode.main([verb, "x", *argv])
        return {k: v for k, v in seen.items() if k not in ("function", "parse")}

    return settle
