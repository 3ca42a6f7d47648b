"""lab.tests.test_histcode_runs"""

import argparse
import json
import re
import shutil

import numpy as np
import pytest

import histcode
from lab.audit.choices import switches
from lab.cohort.samples import barcode
from lab.commands.histcode import main
from lab.commands.histcode.audit import UNSEEN
from lab.commands.histcode.options import layers
from lab.files import InputError
from lab.histcode.bags import bags_of_table, tissue_of
from lab.histcode.choices import CHOICES, TURNED
from lab.histcode.runs import load_run
from lab.tests.helpers import maps_of, read_csv, real, spoken_by_hand, swap


def test_follow_code_sets_the_authors_values_but_not_what_is_asked_for(settled, capsys):
    p = settled("pretrain")
    assert (
        p["lr"],
        p["in_batch"],
        p["momentum_encoder"],
        p["bank_tau"],
        p["cosine"],
        p["symmetric"],
    ) == (0.03, False, 0.999, p["tau"], False, False)
    assert p["code"] == [] and (
        p["bank_momentum"],
        p["bank_decay"],
        p["tiles_per_slide"],
        p["colour"],
    ) == (0.9, 1e-4, 256, None)
    c = settled("pretrain", "--follow", "code", "--lr", ".1", "--no-in-batch")
    assert (
        c["lr"],
        c["in_batch"],
        c["momentum_encoder"],
        c["bank_tau"],
        c["cosine"],
        c["tau"],
        c["bank_lr"],
    ) == (0.1, False, 0.999, 0.02, True, 0.12, 0.3)
    assert c["code"] == ["batch", "cosine", "bank-tau", "bank-size"] and (
        c["batch"],
        c["final_lr"],
        c["bank_size"],
    ) == (250, 0.0006, 318193)
    assert "--follow code: without lr, for --lr 0.1 is asked for" in capsys.readouterr().out
    assert settled("pretrain", "--follow", "paper")["code"] == ["colour", "tiles", "bank-step"]
    assert settled("expression", "--follow", "code")["code"] == ["model", "epochs", "stop", "embed"]
    assert (
        settled("diagnose", "--follow", "code")["code"] == ["embed"]
        and settled("diagnose", "--follow", "paper")["code"] == []
    )


@pytest.mark.parametrize("verb, name", [(c, name) for c in TURNED for name in switches(CHOICES, c)])
def test_a_choice_turns_its_options_and_no_other(settled, verb, name):
    own, p, c = TURNED[verb].get(name, {}), settled(verb), settled(verb, "--code", name)
    differ = {k: v for k, v in c.items() if p[k] != v and k != "code"}
    assert differ == own and c["code"] == [name] and (own or name == "stop")


def test_histcodes_choices_are_one_table(capsys):
    assert main(["choices"]) == 0
    said, names = capsys.readouterr().out, [row[:2] for row in CHOICES]
    assert (
        max(map(len, said.splitlines())) <= 120
        and len(set(names)) == len(names) == 23
        and "python histcode.py pretrain" in said
    )
    assert all(re.fullmatch(r"\[(HistCode|AdCo|ours).*\]", row[-1]) for row in CHOICES)
    assert {(c, name) for c in TURNED for name in TURNED[c]} | {
        ("diagnose", "stop"),
        ("expression", "stop"),
        ("diagnose", "--colour"),
        ("expression", "--colour"),
        ("pretrain", "--min-area"),
    } == set(names)
    assert all(name in TURNED[c] for c in UNSEEN for name in UNSEEN[c])
    for command, right in (
        ("pretrain", "tissue, colour, tiles, batch"),
        ("diagnose", "folds, stop, embed"),
        ("expression", "model, epochs, stop"),
        ("audit", "tissue, colour, tiles"),
    ):
        with pytest.raises(SystemExit):
            main([command, "x", "--code", "embed,bias"])
        assert f"bias: choose from {right}" in capsys.readouterr().err or command == "pretrain"


def test_musk1_has_its_92_bags_and_166_features():
    d = bags_of_table(argparse.Namespace(bags=str(real("mil", "musk1.csv")), positive=None))
    assert (
        len(d["names"]) == 92
        and d["y"].sum() == 47
        and d["bag"](0).shape[1] == 166
        and d["classes"] == ("0", "1")
    )
    assert sum(n for n, _, _ in d["sums"]) == 476


def test_slides_may_be_1_and_0_as_numbers_with_a_point(tmp_path):
    samples = [
        dict(slide=s, tumor=v) for s, v in (("a", "1.0"), ("b", "0.0"), ("c", "Tumor"), ("d", ""))
    ]
    assert tissue_of(samples, tmp_path) == [1, 0, 1, None]


@pytest.mark.parametrize(
    "text,want",
    [
        ("64,32", (64, 32)),
        ("0", ()),
        ("100000", (100000,)),
        ("64,0", "1 to 100,000 wide"),
        ("x", "x"),
        *((n, "1 to 100,000 wide|2..63") for n in ("100001", "8,100000000000", "1" * 25)),
    ],
)
def test_embed_is_layers_that_can_be(text, want):
    if isinstance(want, tuple):
        assert layers(text) == want
    else:
        with pytest.raises((argparse.ArgumentTypeError, ValueError), match=want):
            layers(text)


# ----- What a cohort says --------------------------------------------------------------------------------------------
def test_tissue_is_read_from_columns_then_from_barcodes(tmp_path):
    of = lambda column, *words: tissue_of(
        [{"slide": f"s{i}", column: w} for i, w in enumerate(words)], tmp_path
    )
    assert of("tumor", "1", "0", "Tumor", "normal", "yes", "", "NA", "unknown") == [
        1,
        0,
        1,
        0,
        1,
        None,
        None,
        None,
    ]
    assert of("sample_type", "Primary Tumor", "Solid Tissue Normal", "Metastatic") == [1, 0, None]
    with pytest.raises(
        InputError, match="samples.csv: tumor of slide s1 is 'maybe'; wanted 1 or 0"
    ):
        of("tumor", "1", "maybe")
    names = (
        ("TCGA-AA-0001-11A-DX1", ""),
        ("x", "TCGA-AA-0001-01A"),
        ("TCGA-AA-0001-06A", ""),
        ("x", ""),
    )
    rows = [dict(slide=slide, sample=sample) for slide, sample in names]
    assert tissue_of(rows, tmp_path) == [0, 1, None, None]
    with pytest.raises(
        InputError, match="no column tumor .1, 0. or sample_type, and no TCGA barcode"
    ):
        tissue_of(rows[3:], tmp_path)
    both = dict(slide="TCGA-AA-0001-11A", tumor="1", sample_type="Solid Tissue Normal")
    assert tissue_of([both], tmp_path) == [1]
    for name, want in (
        ("TCGA-AB-12CD-01A-DX1", ("TCGA-AB-12CD", 1)),
        ("TCGA-AB-12CD-11", ("TCGA-AB-12CD", 0)),
        ("TCGA-AB-12CD-06A", ("TCGA-AB-12CD", None)),
        ("xTCGA-AB-12CD-01A", (None, None)),
        ("TCGA-AB-12C-01A", (None, None)),
    ):
        assert barcode(name) == want


def test_a_folder_that_is_no_finished_run_is_told(changed, tmp_path):
    run = tmp_path / "c" / "runs" / "r"
    shutil.copytree(changed / "runs" / "linear", run)
    whole = (run / "config.json").read_text()
    config = json.loads(whole)
    del config["id"]  # which holds for what was written with it
    for text, words in (
        ({**config, "version": 0}, "version 0 of this program's files, this one reads version 1"),
        ({**config, "command": "pretrain"}, "not a run on slides"),
        ({**config, "command": "diagnose", "bags": "x.csv"}, "not a run on slides"),
    ):
        (run / "config.json").write_text(json.dumps(text))
        with pytest.raises(InputError, match=words):
            load_run(run)
    (run / "config.json").write_text(whole)
    assert load_run(run)["cohort"] == changed  # the copy has no samples.csv: where it was
    with pytest.raises(InputError, match="--pooling max: .* is a run of expression, which has one"):
        load_run(run, "max")
    fold_of = load_run(run)["fold_of"]
    assert sorted(map(tuple, fold_of.values())) == sorted((f,) for f in range(3) for _ in range(3))
    for name in ("report.md", "fold1.pt"):
        data = (run / name).read_bytes()
        (run / name).unlink()
        with pytest.raises(
            InputError, match=f"{name} is missing: the run is not finished; the command that began"
        ):
            load_run(run)
        (run / name).write_bytes(data)
    for folder in (tmp_path, changed, tmp_path / "nowhere"):
        with pytest.raises(
            InputError, match="not a run on slides of diagnose or expression; give a folder such as"
        ):
            load_run(folder)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_gene_maps_of_a_linear_and_of_per_gene_networks(looked_at, monkeypatch, capsys):
    slide, h = "S002-01A-DX1", np.load(looked_at / "features" / "one" / "S002-01A-DX1.npy")
    monkeypatch.setattr(histcode.ends_of, "__defaults__", (4,))  # so that most tiles are at no end
    assert maps_of(looked_at, "expression", slide, "--genes", "CD3E") == 0
    run = load_run(looked_at / "runs" / "expression")
    (m,) = run["fold_of"]["S002"]
    rows = read_csv(run["folder"] / "heatmaps" / "CD3E" / slide / "tiles.csv")
    score = [float(r["contribution"]) for r in rows if r["contribution"]]
    assert len(score) == 8 < len(rows) == len(h)
    assert (
        "8 tiles have one"
        in (run["folder"] / "heatmaps" / "CD3E" / slide / "report.md").read_text()
    )
    swap(monkeypatch, "histcode", "ENDS", 4)
    want = spoken_by_hand(run["folds"][m], h)[0][1]
    assert sum(score) + run["folds"][m]["bias"][1].item() == pytest.approx(want, abs=1e-3)
    assert maps_of(looked_at, "per-gene", slide, "--genes", "CD3D,ZG16") == 0
    assert maps_of(looked_at, "per-gene", slide, "--genes", "ZG16", "--score", "contribution") == 0
    per = load_run(looked_at / "runs" / "per-gene")
    a, maps = spoken_by_hand(per["folds"][m], h)[1], per["folder"] / "heatmaps"
    for gene, j in (("CD3D", 0), ("ZG16", 4)):  # attention of the gene's own network
        got = [float(r["attention"]) for r in read_csv(maps / gene / slide / "tiles.csv")]
        assert np.allclose(got, (a[j] - a[j].min()) / np.ptp(a[j]), atol=2e-4)
    assert {p.name for p in maps.iterdir()} == {"CD3D", "ZG16", "ZG16-contribution"}
    for argv, words in (
        (["per-gene", slide], "has a network for each gene: name some with --genes"),
        (["expression", slide, "--genes", "CD3F"], "no gene 'CD3F'; nearest: CD3"),
        (["expression", slide, "--score", "contribution"], "to which gene. name it with --genes"),
        (["expression", "nobody"], "neither a slide file nor a slide of the run"),
    ):
        with pytest.raises(InputError, match=words):
            maps_of(looked_at, *argv)
