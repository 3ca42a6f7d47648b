"""conftest"""

import argparse
import copy
import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import lab.commands.histcode as commands_histcode
import tiling
from he2rna import evaluate
from lab.commands.he2rna import main as he2rna_main
from lab.commands.histcode import main as histcode_main
from lab.files import digest, save_text
from lab.he2rna.evaluation import write_genes
from lab.histcode.choices import settle_choices
from lab.histcode.settings import settle_options
from lab.simulation.cohort import simulate_cohort
from lab.tests.helpers import (
    GENES,
    MODELS,
    SMALL,
    drawn_run,
    express,
    gmt_of,
    painted,
    small_encoder,
    swap,
    write_pairs,
    write_pyramid,
)
from lab.weights import calibrate as encoders_calibrate


@pytest.fixture(scope="session", autouse=True)
def quick():
    """What --weights random takes 3 s for is done once for each network and seed of this process; plots are drawn without the search for
    margins, half of their time."""
    calibrate, known, save = encoders_calibrate, {}, Figure.savefig

    def once(net, seed):
        key = (
            net.stages,
            seed,
            digest(net.conv1.weight.detach().numpy(), net.layer3[0].conv1.weight.detach().numpy()),
        )
        if key not in known:
            known[key] = copy.deepcopy(calibrate(net, seed))
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        swap(patch, "lab.weights", "calibrate", once)
        patch.setattr(
            Figure,
            "savefig",
            lambda fig, *where, **how: fig.set_layout_engine("none") or save(fig, *where, **how),
        )
        yield


@pytest.fixture(scope="session")
def smooth_slide(tmp_path_factory):
    """A pyramid of a smooth picture, so that a right resample can be told from a shifted one."""
    y, x = np.mgrid[:1500, :1800]
    rgb = np.stack([x / 8, y / 7, 128 + 100 * np.sin(x / 60) * np.cos(y / 45)], 2).astype(np.uint8)
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    write_pyramid(path, rgb, 0.25)
    return path, rgb


@pytest.fixture()
def two_slides(tmp_path):
    (tmp_path / "slides").mkdir()
    for i, name in enumerate("ab"):
        rgb = np.array(
            Image.fromarray(painted((243 - 5 * i,) * 3)[0]).resize(
                (1600, 1280), Image.Resampling.NEAREST
            )
        )
        write_pyramid(tmp_path / "slides" / f"{name}.tif", rgb)
    return tmp_path


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "demo"
    simulate_cohort(folder, workers=2, **SMALL)
    return folder


@pytest.fixture
def judged(tmp_path):
    """A run folder as signatures and enrich read it: 300 genes in two cancers, the first 40 well predicted in both."""
    rng, genes = np.random.default_rng(0), [f"GENE{i}" for i in range(300)]
    n = 60
    y = rng.normal(size=(n, 300)) + 3
    prediction = y * 0 + rng.normal(size=y.shape)
    prediction[:, :40] += 2 * y[:, :40]
    prediction[:, 299] = 1  # no R
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
    lines = [
        "IN\tx\t" + "\t".join(genes[:25]),
        "OUT\tx\t" + "\t".join(genes[100:130]),
        "NOWHERE\tx\tZZZ1\tZZZ2",
        "EMPTY\tx",
        "HOUSEKEEPING\tx\t" + "\t".join(genes[200:260]),
        "HALF\tx\t" + "\t".join(genes[20:60]),
    ]
    (tmp_path / "sets.gmt").write_bytes("\r\n".join(lines).encode() + b"\r\n")
    return tmp_path, results


@pytest.fixture(scope="session")
def mapped(drawn, tmp_path_factory):
    """A run on the simulated cohort (random encoder, few epochs), for what is done with a run."""
    cohort = tmp_path_factory.mktemp("mapped") / "c"
    shutil.copytree(drawn, cohort)
    assert (
        he2rna_main(
            [
                "train",
                str(cohort),
                "--weights",
                "random",
                "--encoder",
                "resnet50-stage3",
                "--folds",
                "3",
                "--epochs",
                "2",
                "--hidden",
                "32",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return cohort


@pytest.fixture()
def small(monkeypatch):
    """The study's networks made small: what they compute is tested elsewhere, here what they are given."""
    for name, value in dict(
        MSI_HIDDEN=(16, 8), MSI_CLASSIFIER=(8, 6), MSI_EPOCHS=3, MSI_EPOCHS_CODE=5
    ).items():
        swap(monkeypatch, "lab.he2rna.msi", name, value)


@pytest.fixture(scope="session")
def unlabelled(drawn, tmp_path_factory):
    """The simulated cohort, its slides and points only."""
    folder = tmp_path_factory.mktemp("pretrain") / "c"
    for part in ("slides", "points"):
        shutil.copytree(drawn / part, folder / part)
    shutil.copy(drawn / "samples.csv", folder)
    torch.manual_seed(0)
    net = tiling.ResNet50(3)
    for m in net.modules():
        if isinstance(m, tiling.Bottleneck):
            torch.nn.init.constant_(
                m.bn3.weight, 0.2
            )  # damped as --weights random is, without its seconds
    torch.save(net.state_dict(), folder / "start.pth")
    return folder


@pytest.fixture
def settled(monkeypatch):
    """What the options of a command come to."""
    seen = {}
    for verb in ("pretrain", "diagnose", "expression"):

        def run(o):
            settle_options(o, 1) if o.verb == "pretrain" else settle_choices(o)
            seen.clear()
            seen.update({k: v for k, v in vars(o).items() if k not in ("function", "parse")})

        run.__name__ = verb
        monkeypatch.setitem(
            commands_histcode.VERBS,
            verb,
            (argparse.Namespace(options=commands_histcode.VERBS[verb][0].options, run=run), verb),
        )
    return lambda *argv: histcode_main([argv[0], "x", *argv[1:]]) or dict(seen)


@pytest.fixture(scope="session")
def changed(tmp_path_factory):
    """A finished run of each model on one cohort."""
    cohort, patch = write_pairs(tmp_path_factory.mktemp("changed") / "c"), pytest.MonkeyPatch()
    swap(
        patch, "lab.commands.histcode.expression", "GENES_AT_ONCE", 2
    )  # the networks of three genes in two lots
    swap(patch, "lab.histcode.pairs", "SHUFFLES", 2000)
    for name, argv in MODELS.items():
        if name != "linear":  # whose pictures are looked at
            swap(
                patch,
                "lab.commands.histcode.expression",
                "write_expression",
                lambda folder, *_: save_text(folder / "report.md", ["done"]),
            )
        else:
            swap(patch, "lab.commands.histcode.expression", "SHOWN", ["NO1"])
        assert express(cohort, "--name", name, *argv) == 0
    patch.undo()
    return cohort


@pytest.fixture(scope="session")
def looked_at(tmp_path_factory):
    """A simulated cohort whose patients all have normal tissue, and runs on a small encoder."""
    cohort, patch = tmp_path_factory.mktemp("looked") / "demo", pytest.MonkeyPatch()
    simulate_cohort(cohort, normal_in=1, workers=2, **SMALL)
    for seed, name in enumerate(("one.pt", "two.pt")):
        small_encoder(cohort.parent / name, seed)
    swap(patch, "lab.commands.histcode.diagnose", "draw_curves", lambda *_: None)
    one, argv = str(cohort.parent / "one.pt"), ["--genes", GENES]
    assert drawn_run("diagnose", cohort, "--rotate", "--encoder", one) == 0
    assert (
        drawn_run("expression", cohort, "--encoder", one, *argv, "--gmt", str(gmt_of(cohort))) == 0
    )
    argv += ["--model", "attention", "--per-gene", "--name", "per-gene"]
    assert drawn_run("expression", cohort, "--encoder", one, *argv) == 0
    patch.undo()
    return cohort
