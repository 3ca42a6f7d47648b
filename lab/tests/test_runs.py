"""A run's folder: its settings, checkpoints and tables."""

import json
from functools import partial

import pytest
import torch

from lab.files import InputError, load_json, save_csv, save_file
from lab.locks import release
from lab.runs import (
    claim_folder,
    load_checkpoint,
    mark_of,
    read_config,
    read_folds,
    read_log,
    versions,
    write_log,
)

SETTINGS = {"command": "train", "version": 3, "folds": 5, "ks": (1, 5), "data": "12ab"}


@pytest.fixture
def run(tmp_path):
    """The folder of a run with one checkpoint."""
    folder = tmp_path / "run"
    claim_folder(folder, SETTINGS, "fold*.pt", workers=2)
    save(folder / "fold0.pt", {"model": torch.nn.Linear(2, 3).state_dict()})
    release()
    return folder


def save(path, saved):
    save_file(path, lambda f: torch.save({**saved, "run": mark_of(path)}, f))


def claim(folder, **change):
    try:
        return claim_folder(folder, {**SETTINGS, **change}, "fold*.pt", workers=4)
    finally:
        release()


def test_a_run_goes_on_with_its_settings_and_is_refused_with_others(run):
    config = claim(run)
    assert config == load_json(run / "config.json")
    assert config["ks"] == [1, 5] and config["workers"] == 4  # what may change
    assert {name: config[name] for name in versions()} == versions()
    with pytest.raises(InputError, match=r"other settings \(folds 5 -> 3\): choose another --name"):
        claim(run, folds=3)
    with pytest.raises(InputError, match=r"data 12ab -> 34cd; data: slides, labels, expression"):
        claim(run, data="34cd")
    (run / "config.json").unlink()
    with pytest.raises(InputError, match=r"has fold\*.pt but no config.json"):
        claim(run)


@pytest.mark.parametrize("change", [{"folds": 4}, {"id": "0" * 16}, {"data": None}])
def test_settings_changed_by_hand_are_refused(run, change):
    path = run / "config.json"
    path.write_text(json.dumps({**load_json(path), **change}))
    for look in (claim, read_config):
        with pytest.raises(InputError, match=r"config.json was changed since its run was made"):
            look(run)


def test_what_may_change_and_other_versions_are_not_looked_at(run):
    path = run / "config.json"
    path.write_text(json.dumps({**load_json(path), "workers": 9}))
    assert read_config(run)["workers"] == 9
    path.write_text(json.dumps({**load_json(path), "version": 2}))
    assert read_config(run, version=3)["version"] == 2  # the caller refuses it by its version
    assert read_config(run.parent) is None


def test_a_checkpoint_fills_its_network(run):
    model = torch.nn.Linear(2, 3)
    saved = load_checkpoint(run / "fold0.pt", "cpu", model)
    assert torch.equal(model.weight, saved["model"]["weight"])


@pytest.mark.parametrize(
    "saved, words",
    [
        ({"model": {}, "run": ["another", "fold0.pt"]}, "of another run or fold"),
        ({"weights": {}}, "without model"),
        ([1, 2], "without model"),
        ({"model": torch.nn.Linear(3, 3).state_dict()}, "of another network"),
        ({"model": 5}, "of another network"),
        ({"model": {}, "odd": print}, "UnpicklingError"),
    ],
)
def test_a_checkpoint_that_is_not_this_runs_is_refused(run, saved, words):
    torch.save(saved, run / "fold0.pt")
    with pytest.raises(InputError, match=f"fold0.pt: not a whole checkpoint of this run .*{words}"):
        load_checkpoint(run / "fold0.pt", "cpu", torch.nn.Linear(2, 3))


def test_a_fold_copied_from_another_run_or_fold_is_refused(run):
    """It may have learned from the patients that this run tests with it."""
    whole = (run / "fold0.pt").read_bytes()
    (run / "fold1.pt").write_bytes(whole)
    other = run.parent / "other"
    claim(other, folds=3)
    (other / "fold0.pt").write_bytes(whole)
    for path in (run / "fold1.pt", other / "fold0.pt"):
        with pytest.raises(InputError, match="of another run or fold"):
            load_checkpoint(path, "cpu")
    (run.parent / "fold0.pt").write_bytes(whole)  # in no run
    load_checkpoint(run.parent / "fold0.pt", "cpu")
    (run / "fold0.pt").write_bytes(whole[:-200])
    with pytest.raises(InputError, match=r"fold0.pt: not a whole checkpoint"):
        load_checkpoint(run / "fold0.pt", "cpu")


def test_folds_of_unknown_patients_are_refused(run):
    rows = [("s0", "a", "0"), ("s1", "b", "1")]
    save_csv(run / "folds.csv", ("slide", "patient", "test_fold"), rows)
    known = read_folds(run, {"a": 0, "b": 1})
    assert [row["patient"] for row in known] == ["a", "b"]
    with pytest.raises(InputError, match="no model of the run knows the patients b; bring it back"):
        read_folds(run, {"a": 0})
    save_csv(run / "folds.csv", ("slide", "who"), [])
    with pytest.raises(InputError, match="wanted are rows with slide and patient; it has slide, w"):
        read_folds(run, {})


def test_a_log_is_read_of_all_processes_without_half_lines(run):
    (run / "log.jsonl").write_text('{"fold": 0}\n[1]\n{"fold": 1}\n{"fo')
    (run / "log-1-of-2.jsonl").write_text('{"fold": 2}\n')
    entries = read_log(run)
    assert entries == [{"fold": 0}, {"fold": 1}, {"fold": 2}]
    write_log(run, entries)
    assert read_log(run) == entries and len(list(run.glob("log*"))) == 1


def test_what_goes_on_from_a_checkpoint_saves_the_same_bytes(tmp_path):
    def learner():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def save(name, model, optimizer):
        state = {"lr": 0.1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_file(tmp_path / name, partial(torch.save, state))
        return (tmp_path / name).read_bytes()

    model, optimizer = learner()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = save("before.pt", model, optimizer)
    again, going_on = learner()
    saved = load_checkpoint(tmp_path / "before.pt", "cpu", again, ("model", "optimizer"))
    going_on.load_state_dict(saved["optimizer"])
    assert save("after.pt", again, going_on) == before
