from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recordio_pack
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules
from ansible.module_utils.imagenet_ops.pack.decoder import Limits
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest
from ansible.module_utils.testing import patch_module_args

from tests.fakes.images import mixed_images, write_tree


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        recordio_pack.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    answer.pop("invocation", None)  # ansible-core 2.21 leaves it to the action plugin
    return answer


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    tree = write_tree(tmp_path / "train", mixed_images(classes=2, images_per_class=12))
    return {
        "dataset": "test",
        "root": str(tmp_path),
        "state_dir": str(tmp_path / ".state"),
        "splits": [{"name": "train", "source": str(tree)}],
        "short_side_pixels": 24,
    }


def test_options_reach_the_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    requests = []

    def fake(request: PackRequest, **_: Any) -> dict[str, Any]:
        requests.append(request)
        return {"changed": False}

    monkeypatch.setattr(recordio_pack, "pack_dataset", fake)
    monkeypatch.setattr(recordio_pack, "supervised", lambda pack, _state_dir, _seconds, warn: pack(warn))
    run_module(capsys, dataset="a", root="/r", state_dir="/s", splits=[{"name": "train", "source": "/t"}])
    run_module(
        capsys,
        dataset="a",
        root="/r",
        state_dir="/s",
        splits=[
            {
                "name": "train",
                "source": "/t",
                "expected_images": 9,
                "class_images_min": 1,
                "class_images_max": 2,
            },
            {"name": "validation", "archive": "/v.tar", "layout": "labelled_files", "name_rules": "validation"},
            {"name": "alias", "archive": "/a.tar", "names": "train"},
        ],
        expected_classes=3,
        devkit="/d",
        short_side_pixels=480,
        quality=90,
        resize_filter="area",
        max_image_pixels=1000,
        max_jpeg_scans=9,
        jpeg_check="strict",
        max_image_seconds=8,
        max_image_memory_mib=700,
        shuffle_seed=7,
        on_bad_image="skip",
        workers=5,
        label_order="/o",
        enlarge=False,
        channels=1,
        pass_through=True,
        shards=4,
        formats=["mds", "recordio"],
        shard_mib=64,
        scratch_dir="/x",
        shuffle_memory_mib=3,
    )
    run_module(capsys, dataset="a", root="/r", state_dir="/s", splits=[], shuffle=False)
    assert requests == [
        PackRequest(
            "a",
            "/r",
            "/s",
            [SplitRequest("train", "/t", rules=ArchiveRules("any", "class_archives"))],
            Recipe(256, 95, "linear", 100_000_000),
        ),
        PackRequest(
            "a",
            "/r",
            "/s",
            [
                SplitRequest("train", "/t", None, ArchiveRules("any", "class_archives", "/d"), 9, 1, 2),
                SplitRequest("validation", None, "/v.tar", ArchiveRules("validation", "labelled_files", "/d")),
                SplitRequest("alias", None, "/a.tar", ArchiveRules("train", "class_archives", "/d")),
            ],
            Recipe(
                480,
                90,
                "area",
                1000,
                enlarge=False,
                channels=1,
                pass_through=True,
                max_jpeg_scans=9,
                jpeg_check="strict",
            ),
            devkit="/d",
            expected_classes=3,
            shuffle_seed=7,
            on_bad_image="skip",
            workers=5,
            label_order="/o",
            shards=4,
            formats=("mds", "recordio"),
            shard_bytes=64 << 20,
            scratch_dir="/x",
            bucket_bytes=3 << 20,
            limits=Limits(8, 700),
        ),
        PackRequest("a", "/r", "/s", [], Recipe(256, 95, "linear", 100_000_000), shuffle_seed=None),
    ]


def test_the_first_run_packs_and_the_second_changes_nothing(
    capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]
) -> None:
    predicted = run_module(capsys, **arguments, _ansible_check_mode=True)
    assert (predicted["changed"], predicted["records"]) == (True, {"train": 24})
    first = run_module(capsys, **arguments)
    assert (first["changed"], first["records"], first["classes"]) == (True, {"train": 24}, 2)
    assert first["dataset_version"] == first["manifest_sha256"][:12]
    second = run_module(capsys, **arguments)
    assert {**second, "diff": None} == {**first, "changed": False, "diff": None}


def test_an_error_is_the_modules_message(capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]) -> None:
    answer = run_module(capsys, **arguments, quality=0)
    assert answer["failed"] is True
    assert answer["msg"] == "Options of recordio_pack: quality is 0, it must be 1 to 100. Correct it and rerun"


def test_warnings_reach_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]
) -> None:
    # Where a test has imported Ansible's controller, AnsibleModule.warn goes there and not into the result.
    warnings: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _, warning: warnings.append(warning))
    (Path(arguments["root"]) / "train" / "readme.txt").write_text("not an image")
    run_module(capsys, **arguments)
    assert [warning for warning in warnings if "1 files in" in warning] == warnings != []


def test_a_host_without_opencv_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]
) -> None:
    monkeypatch.setattr(recordio_pack, "IMPORT_ERROR", "No module named 'cv2'")
    answer = run_module(capsys, **arguments)
    assert answer["msg"].startswith("Failed to import the required Python library (numpy and opencv-python-headless)")
