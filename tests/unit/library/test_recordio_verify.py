from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recordio_verify
from ansible.module_utils.imagenet_ops.pack import decoder
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset
from ansible.module_utils.testing import patch_module_args

from tests.fakes import faulty_decoder
from tests.fakes.images import jpeg, mixed_images, with_comment, write_tree


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        recordio_verify.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    answer.pop("invocation", None)  # ansible-core 2.21 leaves it to the action plugin
    return answer


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("packed")
    tree = write_tree(root / "train", mixed_images(classes=6, images_per_class=12))
    recipe = Recipe(24, 95, "linear", 10_000_000)
    request = PackRequest("test", str(root), str(root / ".state"), [SplitRequest("train", str(tree))], recipe)
    return str(root), pack_dataset(request, check=False, warn=pytest.fail)


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(
    ("options", "decoded"),
    [({}, 32), ({"decode_samples": 5}, 5), ({"verify": "full"}, 32), ({"verify": "full", "decode_samples": -1}, 72)],
)
def test_a_whole_data_set_is_described(
    capsys: pytest.CaptureFixture[str],
    packed: tuple[str, dict[str, Any]],
    options: dict[str, Any],
    decoded: int,
    *,
    check_mode: bool,
) -> None:
    root, result = packed
    answer = run_module(
        capsys, root=root, dataset_version=result["dataset_version"], **options, _ansible_check_mode=check_mode
    )
    assert (answer.pop("mib_s") > 0) == (options.get("verify") == "full")
    assert answer == {
        "changed": False,
        "dataset_version": result["dataset_version"],
        "manifest_sha256": result["manifest_sha256"],
        "records": {"train": 72},
        "classes": 6,
        "bytes": result["bytes"],
        "decoded": decoded,
        "formats": ["recordio"],
        "content_sha256": {"train": ""},
    }


def test_another_version_is_an_error(capsys: pytest.CaptureFixture[str], packed: tuple[str, dict[str, Any]]) -> None:
    answer = run_module(capsys, root=packed[0], dataset_version="0123456789ab")
    assert answer["failed"] is True
    assert f"it is version {packed[1]['dataset_version']}, not 0123456789ab" in answer["msg"]


def test_only_a_full_read_finds_a_changed_byte(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "train", mixed_images(classes=2, images_per_class=12))
    recipe = Recipe(24, 95, "linear", 10_000_000)
    request = PackRequest("test", str(tmp_path), str(tmp_path / ".state"), [SplitRequest("train", str(tree))], recipe)
    pack_dataset(request, check=False, warn=pytest.fail)
    rec = tmp_path / "recordio" / "train.rec"
    content = bytearray(rec.read_bytes())
    content[200] ^= 1
    rec.write_bytes(content)
    assert "failed" not in run_module(capsys, root=str(tmp_path), decode_samples=0)
    assert "its SHA-256 is" in run_module(capsys, root=str(tmp_path), decode_samples=0, verify="full")["msg"]


def test_a_record_that_crashes_the_decoder_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    faulty = with_comment(jpeg(), b"fault:SIGSEGV;")
    tree = write_tree(tmp_path / "train", {"a/1.jpg": jpeg(), "a/2.jpg": faulty, "a/3.jpg": jpeg()})
    recipe = Recipe(24, 95, "linear", 10_000_000, pass_through=True)
    request = PackRequest("test", str(tmp_path), str(tmp_path / ".state"), [SplitRequest("train", str(tree))], recipe)
    pack_dataset(request, check=False, warn=pytest.fail)
    monkeypatch.setattr(decoder, "_PROGRAM", faulty_decoder.PRELUDE + decoder._PROGRAM)
    for _ in range(2):
        answer = run_module(capsys, root=str(tmp_path))
        assert "its image (a/2.jpg) cannot be decoded: damaged: the decoder crashed (SIGSEGV)" in answer["msg"]


def test_a_host_without_opencv_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(recordio_verify, "IMPORT_ERROR", "No module named 'cv2'")
    answer = run_module(capsys, root="/data")
    assert answer["msg"].startswith("Failed to import the required Python library (numpy and opencv-python-headless)")
