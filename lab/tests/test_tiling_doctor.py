"""lab.tests.test_tiling_doctor"""

import shutil

import numpy as np
import pytest

from lab.cohort.slides import open_slide
from lab.commands.tiling import main
from lab.files import InputError
from lab.tests.helpers import real


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--weights", "none.pth"], "none.pth: No such file"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--features", "none"], "no such folder"),
    ],
)
def test_doctor_looks_at_what_features_would_need(two_slides, argv, words):
    with pytest.raises(InputError, match=words):
        main(["doctor", str(two_slides), *argv])


def test_real_slides(tmp_path, capsys):
    shutil.copytree(real("slides"), tmp_path / "slides", copy_function=shutil.copyfile)
    (tmp_path / "slides").chmod(0o755)
    assert main(["doctor", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert (
        "mpp 0.4990 µm from the slide" in said.out
        and "224.4 px" in said.out
        and "tcga-cr-7395-01a-01-ts1: no µm per pixel" in said.err
    )
    assert main(["tiles", str(tmp_path), "--mpp", "0.25"]) == 0
    a = np.load(tmp_path / "tiles" / "CMU-1-Small-Region.npz")
    b = np.load(tmp_path / "tiles" / "tcga-cr-7395-01a-01-ts1.npz")
    assert (
        0.30 < a["tissue"] < 0.45 and 0.58 < b["tissue"] < 0.70
    )  # outlines looked at; see the pictures
    assert 40 <= len(a["coords"]) <= 55 and 42 <= len(b["coords"]) <= 52 and float(b["tile"]) == 448
    slide = open_slide(tmp_path / "slides" / "CMU-1-Small-Region.svs")
    for x, y in a["coords"]:  # most of each tile is stained, by plain brightness
        assert (
            np.asarray(slide.read_region((int(x), int(y)), 0, (224, 224)).convert("L")) < 225
        ).mean() > 0.33
