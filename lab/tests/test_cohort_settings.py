"""settings.json of a cohort."""

import re

import pytest

from lab.commands.tiling import main
from lab.files import InputError, save_json


@pytest.mark.parametrize(
    "key, value",
    [
        ("tile_um", "x"),
        ("tile_um", None),
        ("tile_um", float("nan")),
        ("max_tiles", 5.5),
        ("seed", [1]),
        ("tissue", 3),
        ("tissue", []),
        ("tissue_threshold", "x"),
        ("min_area", True),
        ("mpp", "0.5"),
    ],
)
def test_settings_that_cannot_be_name_file_and_key(two_slides, key, value):
    save_json(
        two_slides / "tiles" / "settings.json",
        {"tile_um": 112, "mpp": 0.5, "max_tiles": 9} | {key: value},
    )
    for verb in ("doctor", "tiles"):
        with pytest.raises(
            InputError, match=re.escape(f"tiles/settings.json: {key} is {value!r}, which can't be")
        ):
            main([verb, str(two_slides)])
