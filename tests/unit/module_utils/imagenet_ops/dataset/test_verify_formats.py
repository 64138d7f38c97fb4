from __future__ import annotations

import importlib.util
import random
import shutil
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset.manifest import read_manifest
from ansible.module_utils.imagenet_ops.dataset.verify import verify_dataset

from tests.fakes.all_formats import ALL, pack, verified, write_images


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    root = tmp_path_factory.mktemp("whole")
    pack(root, folder / "tree", workers=1)
    return root


@pytest.mark.parametrize("full", [False, True])
def test_what_was_packed_is_verified_in_each_format(whole: Path, *, full: bool) -> None:
    found = verified(whole, full=full)
    assert found["formats"] == sorted(ALL)
    assert found["decoded"] == 3 * len(ALL)
    assert found["content_sha256"] == {"train": read_manifest(str(whole)).splits["train"].content_sha256}


@pytest.mark.parametrize("name", ALL)
def test_one_flipped_bit_in_any_file_is_found(tmp_path: Path, whole: Path, name: str) -> None:
    generator = random.Random(name)
    for path in sorted((whole / name).rglob("*")):
        if not path.is_file():
            continue
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        target = copy / path.relative_to(whole)
        content = bytearray(target.read_bytes())
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        target.write_bytes(content)
        with pytest.raises(OpsError, match=path.name.partition(".")[0]):
            verified(copy)
        shutil.rmtree(copy)


def test_formats_that_are_not_deployed_need_not_be_there(tmp_path: Path, whole: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    for name in ("recordio", "mds", "parquet"):
        shutil.rmtree(copy / name)
    assert verified(copy, "webdataset", "tfrecord")["decoded"] == 6
    with pytest.raises(OpsError, match="No such file"):
        verified(copy, "webdataset", "mds")
    with pytest.raises(OpsError) as caught:
        verified(copy, "beton")
    assert caught.value.why == "it does not have beton, but mds, parquet, recordio, tfrecord, webdataset"


def test_parquet_is_looked_at_where_pyarrow_is_missing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    assert verified(whole, "parquet")["decoded"] == 0
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    path = next((copy / "parquet" / "data").iterdir())
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    for full in (False, True):
        with pytest.raises(OpsError, match="the checksum of the footer is not that before it"):
            verified(copy, "parquet", full=full)


def test_an_image_that_does_not_decode_is_named(whole: Path) -> None:
    with pytest.raises(OpsError) as caught:
        verify_dataset(str(whole), None, True, -1, lambda _: "damaged", ["mds"])
    assert str(caught.value).startswith(f"Shards of mds in {whole}/mds: the image n0000000")
    assert "cannot be decoded: damaged." in str(caught.value)
