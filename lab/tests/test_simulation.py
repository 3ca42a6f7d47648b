"""The simulated cohort. Authorities: OpenSlide, Pillow's JPEG, and the cohort's own truth."""

import filecmp
import io
import itertools
import subprocess
import sys

import numpy as np
import openslide
import pytest
from PIL import Image
from scipy import ndimage

import he2rna
from lab import space
from lab.simulation.cohort import plan_cohort, planted_programmes, simulate_cohort
from lab.simulation.drawing import NUCLEI, SIM_MPP, draw_slide, trace, write_slide
from lab.simulation.genes import DENSITY_FLOOR, PROGRAMMES, simulate_expression
from lab.tests.helpers import SMALL, read_csv


def test_layout(drawn):
    rows = read_csv(drawn / "samples.csv")
    assert list(rows[0]) == ["slide", "patient", "project", "sample", "sample_type", "tumor", "msi"]
    assert len({r["slide"] for r in rows}) == len(rows) and {r["project"] for r in rows} == set(
        SIM_MPP
    )
    assert {r["sample_type"] for r in rows} == {"Primary Tumor", "Solid Tissue Normal"}
    for r in rows:
        assert r["sample"].split("-")[1] == ("01A" if r["tumor"] == "1" else "11A")
        assert (drawn / "slides" / f"{r['slide']}.tif").exists() and (
            drawn / "points" / f"{r['slide']}.csv"
        ).exists()
    assert {r["sample"] for r in read_csv(drawn / "expression.csv")} == {r["sample"] for r in rows}
    assert not list(drawn.rglob("*.tmp")) and "SIMULATED" in (drawn / "README.md").read_text()


def test_full_cohort_plan():
    slides = plan_cohort(48, 0)
    patients = {s["patient"]: (s["project"], s["msi"]) for s in slides}
    assert len(slides) == 68 and len(patients) == 48 and sum(not s["tumor"] for s in slides) == 12
    for project in SIM_MPP:
        msi = [m for p, m in patients.values() if p == project]
        assert [msi.count(m) for m in ("MSI-H", "MSI-L", "MSS")] == [5, 2, 17]
    genes = " ".join(PROGRAMMES.values()).replace("-", "").split()
    assert len(genes) == len(set(genes)) and 290 <= len(genes) <= 320


def test_a_normal_slide_for_each_patient():
    slides = plan_cohort(10, 0, normal_in=1)
    assert {s["patient"] for s in slides if not s["tumor"]} == {s["patient"] for s in slides}


def test_outlines_hold_just_the_pixels_of_the_mask():
    """Every pixel centre lies inside the polygons where the mask is True, and outside elsewhere."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((60, 80)), 3) > 0.05
    noise = rng.random((20, 30)) < 0.5  # touches at corners
    for mask in (blobs, noise, np.ones((3, 4), bool), np.eye(5, dtype=bool)):
        y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        centres = np.stack([x.ravel(), y.ravel()], 1)
        polygons = trace(mask)
        inside = space.inside(centres, polygons)
        np.testing.assert_array_equal(inside.reshape(mask.shape), mask)
        for ring in itertools.chain(*polygons):
            np.testing.assert_array_equal(ring[0], ring[-1])
    assert trace(np.zeros((4, 4), bool)) == []


def test_a_hole_follows_its_outline():
    """GeoJSON wants the outline first: area 25 less cut corners, then the hole."""
    square = np.ones((5, 5), bool)
    square[2, 2] = False
    ((outer, hole),) = trace(square)
    assert (outer.min(0) == 0).all() and (outer.max(0) == 5).all()
    assert (hole.min(0) == 2).all() and (hole.max(0) == 3).all()


def test_openslide_reads_slides(drawn):
    for r in read_csv(drawn / "samples.csv"):
        with openslide.OpenSlide(drawn / "slides" / f"{r['slide']}.tif") as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert slide.level_dimensions == ((600, 600), (300, 300), (150, 150))
            for axis in "xy":
                assert (
                    abs(float(slide.properties[f"openslide.mpp-{axis}"]) - SIM_MPP[r["project"]])
                    < 1e-3
                )


def test_colours_survive_the_file(tmp_path):
    rgb, *_ = draw_slide(0, 1, plan_cohort(6, 0)[0], 600)
    write_slide(tmp_path / "a.tif", rgb, 0.5)
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        for level, factor in enumerate((1, 2, 4)):
            drawn, buffer = Image.fromarray(rgb).reduce(factor), io.BytesIO()
            read = np.asarray(slide.read_region((0, 0), level, drawn.size).convert("RGB")).astype(
                float
            )
            assert np.abs((read - drawn).mean((0, 1))).max() < 0.5  # no colour cast
            drawn.crop((0, 0, 128, 128)).save(buffer, "JPEG", quality=85, subsampling="4:2:0")
            alone = np.asarray(Image.open(buffer)).astype(float)  # JPEG's own loss, and no other
            assert np.abs(read[:112, :112] - alone[:112, :112]).max() <= 1


def test_points_lie_on_dark_pixels_of_tissue(drawn):
    for r in read_csv(drawn / "samples.csv"):
        points = read_csv(drawn / "points" / f"{r['slide']}.csv")
        with openslide.OpenSlide(drawn / "slides" / f"{r['slide']}.tif") as slide:
            rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(
                int
            )
        colour = rgb[[int(p["y"]) for p in points], [int(p["x"]) for p in points]]
        assert (colour[:, 0] < 190).mean() > 0.99  # red is what haematoxylin takes away
        assert 0.5 < (rgb.min(2) < 225).mean() < 0.75 or r["tumor"] == "0"
        assert {p["cell"] for p in points} <= set(NUCLEI)
        assert (r["tumor"] == "1") == any(p["cell"] == "tumour" for p in points)


def test_truth_counts_the_points(drawn):
    for r in read_csv(drawn / "truth" / "slides.csv"):
        cells = [p["cell"] for p in read_csv(drawn / "points" / f"{r['slide']}.csv")]
        for cell in NUCLEI:
            assert int(r[cell]) == cells.count(cell)
            assert np.isclose(
                float(r[f"{cell}_per_mm2"]), cells.count(cell) / float(r["tissue_mm2"]), rtol=1e-4
            )


def test_same_bytes_for_any_number_of_workers(drawn, tmp_path):
    again = tmp_path / "again"
    simulate_cohort(again, workers=1, **SMALL)
    files = sorted(p.relative_to(drawn) for p in drawn.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert not filecmp.cmpfiles(drawn, again, files, shallow=False)[1]


def test_genes_follow_the_truth():
    rng = np.random.default_rng(1)  # densities as drawn slides have them, enough of them to see R
    truth = [
        dict(
            sample=f"s{i}",
            tumor=1,
            msi="MSI-H" if i % 5 == 0 else "MSS",
            **{f"{c}_per_mm2": 10 ** rng.uniform(2, 3.3) for c in NUCLEI},
        )
        for i in range(1500)
    ]
    expression, genes = simulate_expression(truth, 0)
    values = np.log10(1 + np.array([list(r.values())[1:] for r in expression], float))
    for programme in PROGRAMMES:
        content = np.array(
            [
                float(r["msi"] == "MSI-H")
                if programme == "msi"
                else np.log10(r.get(f"{programme}_per_mm2", 1) + DENSITY_FLOOR)
                for r in truth
            ]
        )
        content = content if content.std() else rng.standard_normal(len(truth))
        for j, gene in enumerate(genes):
            if gene["programme"] == programme:
                assert abs(np.corrcoef(content, values[:, j])[0, 1] - gene["true_r"]) < 0.11, gene
    assert all(
        np.median(values[:, j]) == 0 for j, g in enumerate(genes) if g["programme"] == "silent"
    )
    opposite = {name[1:] for names in PROGRAMMES.values() for name in names.split() if "-" in name}
    assert {gene["gene"] for gene in genes if gene["true_r"] < 0} == opposite != set()


def test_lymphocytes_predict_cd3(drawn):
    truth = read_csv(drawn / "truth" / "slides.csv")
    density, cd3 = [], []
    for row in read_csv(drawn / "expression.csv"):
        mine = [float(r["lymphocyte_per_mm2"]) for r in truth if r["sample"] == row["sample"]]
        density.append(np.mean(np.log10(np.array(mine) + DENSITY_FLOOR)))
        cd3.append(np.mean([np.log10(1 + float(row[g])) for g in ("CD3D", "CD3E", "CD3G")]))
    assert np.corrcoef(density, cd3)[0, 1] > 0.85  # 8 samples; > .95 in the full cohort


def test_refuses_a_foreign_folder_and_keeps_a_complete_one(drawn, tmp_path):
    (tmp_path / "mine.txt").write_text("data of somebody")
    with pytest.raises(ValueError, match="not a simulated cohort"):
        simulate_cohort(tmp_path, **SMALL)
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a simulated cohort"):
        simulate_cohort(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="other settings"):
        simulate_cohort(drawn, **{**SMALL, "seed": 1})
    with pytest.raises(ValueError, match="at least 4 patients"):
        simulate_cohort(tmp_path / "new", patients=1)
    before = (drawn / "samples.csv").stat().st_mtime_ns
    simulate_cohort(drawn, **SMALL)
    assert (drawn / "samples.csv").stat().st_mtime_ns == before


def test_from_simulated_slides_to_report(tmp_path):
    """The main job, whole, from slides to report; a second call adds nothing."""
    simulate_cohort(tmp_path / "c", patients=8, seed=1, edge_px=700)
    command = [
        sys.executable,
        he2rna.__file__,
        "train",
        str(tmp_path / "c"),
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
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "c" / "runs" / "he2rna"
    report = (run / "report.md").read_text()
    assert (
        "SIMULATED" in report
        and "random, seed 0" in report
        and "Against what was planted" in report
    )
    assert "slides of other sample types than primary tumour" in report and "(of 310)" in report
    first = (run / "genes.csv").read_bytes()
    stamps = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*.np[yz]") if "runs" not in p.parts
    }
    again = subprocess.run(
        [*command[:4], *command[6:]], capture_output=True, text=True
    )  # --weights as it was
    assert again.returncode == 0 and (run / "genes.csv").read_bytes() == first
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps} and len(stamps) > 20


def test_planted_programmes_are_those_of_the_simulated_cohort(drawn, tmp_path):
    rows = read_csv(drawn / "truth" / "genes.csv")
    genes = [r["gene"] for r in rows[::3]] + ["unheard"]
    of = planted_programmes(drawn, genes)
    assert (
        set(of) == {r["programme"] for r in rows[::3]}
        and sum(w.sum() for w in of.values()) == len(genes) - 1
    )
    assert all(of[r["programme"]][genes.index(r["gene"])] for r in rows[::3])
    assert planted_programmes(tmp_path, genes) is None


def test_the_report_of_a_simulated_cohort_says_what_was_planted(looked_at):
    report = (looked_at / "runs" / "expression" / "report.md").read_text()
    assert (
        "## Against what was planted" in report
        and "SIMULATED cohort" in report
        and "| lymphocyte | 2 |" in report
    )
    assert "## Gene sets of the 6 best genes" in report
    enriched = read_csv(looked_at / "runs" / "expression" / "enrichment.csv")
    genes = read_csv(looked_at / "runs" / "expression" / "genes.csv")
    assert len(enriched) == 2
    assert {row["provenance"] for row in (*enriched, *genes)} == {"SIMULATED cohort"}
