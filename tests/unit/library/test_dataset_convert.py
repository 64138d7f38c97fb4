from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dataset_convert
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.fakes.all_formats import pack, write_images


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        dataset_convert.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    answer.pop("invocation", None)  # ansible-core 2.21 leaves it to the action plugin
    return answer


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    root = tmp_path_factory.mktemp("packed")
    return root, pack(root, folder / "tree", formats=["recordio"])["dataset_version"]


def test_check_mode_says_what_a_run_then_does(
    tmp_path: Path, packed: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, version = packed
    root = tmp_path / "out"
    shutil.copytree(source, root)
    options = {"root": str(root), "state_dir": str(root / ".state"), "formats": ["webdataset"], "shard_mib": 1}
    foreseen = run_module(capsys, **options, _ansible_check_mode=True)
    done = run_module(capsys, **options)
    assert (foreseen["changed"], done["changed"]) == (True, True)
    assert foreseen["formats"] == done["formats"] == ["recordio", "webdataset"]
    assert done["dataset_version"] not in ("", version)
    assert done["records"] == {"train": 38}
    assert foreseen["diff"]["before"] == done["diff"]["before"]
    for check_mode in (True, False):
        again = run_module(capsys, **options, _ansible_check_mode=check_mode)
        assert (again["changed"], again["dataset_version"]) == (False, done["dataset_version"])


def test_what_it_cannot_do_is_an_error(packed: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    root = str(packed[0])
    answer = run_module(capsys, root=root, state_dir=f"{root}/.state", formats=["mds"], source="parquet")
    assert answer["failed"]
    assert answer["msg"] == (
        "Options of dataset_convert: source is parquet, and the data set has recordio. Correct it and rerun"
    )
