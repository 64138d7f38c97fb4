from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imagenet_layout
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from lab.archives import DEVKIT, TRAIN, VALIDATION, prepare
from tests.conftest import ROOT
from tests.fakes.images import write_imagenette


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    prepare(folder, None)
    return folder


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        imagenet_layout.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def train(archives: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    options = {
        "name_rules": "train",
        "layout": "class_archives",
        "archive": str(archives / TRAIN),
        "dest": str(tmp_path / "train"),
        "state_dir": str(tmp_path / ".state"),
        **more,
    }
    return {name: value for name, value in options.items() if value is not None}


def test_training_twice(capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path) -> None:
    first = run_module(capsys, **train(archives, tmp_path, expected_classes=20))
    assert (first["changed"], first["split"], first["classes"]) == (True, "train", 20)
    assert len(list((tmp_path / "train").glob("n*/*.JPEG"))) == first["images"]
    second = run_module(capsys, **train(archives, tmp_path, expected_classes=20))
    assert (second["changed"], second["images"], second["bytes"]) == (False, first["images"], first["bytes"])


def test_validation_by_label(capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path) -> None:
    answer = run_module(
        capsys,
        split="validation",  # the alias
        layout="labelled_files",
        archive=str(archives / VALIDATION),
        devkit=str(archives / DEVKIT),
        dest=str(tmp_path / "validation"),
        state_dir=str(tmp_path / ".state"),
        expected_images=40,
    )
    assert (answer["changed"], answer["images"]) == (True, 40)
    truth = dict(line.split() for line in (archives / "validation_synsets.txt").read_text().splitlines())
    assert {path.name: path.parent.name for path in (tmp_path / "validation").glob("*/*")} == truth


def test_the_profile_of_imagenette(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    profile = yaml.safe_load((ROOT / "datasets" / "imagenette.yml").read_text())["dataset_profile"]
    trees = write_imagenette(tmp_path / "imagenette2.tgz")
    for name, split in profile["splits"].items():
        answer = run_module(
            capsys,
            name_rules="any",
            layout=split["layout"],
            archive=str(tmp_path / profile["archives"][split["archive"]]["name"]),
            folder=split["folder"],
            dest=str(tmp_path / name),
            state_dir=str(tmp_path / ".state"),
        )
        expected = trees[split["folder"].split("/")[1]]
        assert (answer["changed"], answer["images"], answer["classes"]) == (True, len(expected), 4)
        found = {
            path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in (tmp_path / name).glob("*/*")
        }
        assert found == expected


def test_check_mode_changes_nothing(capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path) -> None:
    answer = run_module(capsys, **train(archives, tmp_path), _ansible_check_mode=True, _ansible_diff=True)
    assert answer["changed"] is True
    assert answer["diff"]["before"] == "train: not laid out\n"
    assert list(tmp_path.iterdir()) == []


def test_what_failed_is_the_message(capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path) -> None:
    answer = run_module(capsys, **train(archives, tmp_path, archive=str(tmp_path / "none.tar")))
    assert answer["failed"] is True
    assert answer["msg"] == (
        f"Archive {tmp_path / 'none.tar'}: there is no such file. Fetch it first with archive_fetch"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archive": None}, "one of the following is required: archive, directory"),
        ({"directory": "/x"}, "parameters are mutually exclusive: archive|directory"),
        ({"layout": "labelled_files"}, "layout is labelled_files but any of the following are missing: devkit, labels"),
        ({"layout": "flat"}, "value of layout must be one of: class_archives, class_directories, labelled_files, got"),
        ({"name_rules": "test"}, "value of name_rules must be one of: train, validation, any, got: test"),
    ],
)
def test_options_that_do_not_fit_together(
    capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert run_module(capsys, **train(archives, tmp_path, **changes))["msg"].startswith(message)
