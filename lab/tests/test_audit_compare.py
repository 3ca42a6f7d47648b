"""The table of an audit."""

import pytest

from lab.audit.compare import run_audit
from lab.files import InputError, save_text
from lab.locks import release
from lab.runs import claim_folder


@pytest.mark.parametrize(
    "row",
    [
        "train,default",
        "train,default,x,R,.1,0,",
        "train,nosuch,0,R,.1,0,",
        "x,default,0,R,.1,0,",
        "train,bias,0,R,.1,0,",
        "train,default,0,R,.1,0,\ntrain,bias,0,HS,.1,0,",
    ],
)
def test_a_table_of_an_audit_with_a_row_that_is_none_of_ours_is_refused(tmp_path, row):
    claim_folder(tmp_path, dict(command="audit"), "audit.csv")
    save_text(tmp_path / "audit.csv", ["command,choice,seed,measure,value,change,seconds", row])
    with pytest.raises(
        InputError, match="audit.csv: not whole, or not of this program: delete it to begin again"
    ):
        run_audit(tmp_path, {}, {"train": {"bias": "none"}}, {}, "")
    release()
