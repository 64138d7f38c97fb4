"""MXNet itself is asked in tests/conformance; here one stands in for it that can be made to fail in its ways."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset.verify_mxnet import read_with_mxnet
from ansible.module_utils.imagenet_ops.formats.recordio import RecordReader, parse_image_data
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import mixed_images, write_tree

ADVICE = (
    "recordio_verify with verify=full names the byte. Restore it from the backup, create the volume again from a "
    "snapshot, or pack the data set again"
)


@pytest.fixture(scope="module", params=[1, 3, 70])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Make a data set of some shards, at the most more of them than it has records."""
    root = tmp_path_factory.mktemp("packed")
    splits = [SplitRequest(name, str(write_tree(root / name, mixed_images()))) for name in ("train", "validation")]
    recipe = Recipe(short_side_pixels=16, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
    asked = PackRequest("test", str(root), str(root / ".state"), splits, recipe, shards=request.param)
    return root, pack_dataset(asked, check=False, warn=pytest.fail)


def batches(labels: list[float], size: int) -> Iterator[SimpleNamespace]:
    """Yield the labels as MXNet does: the last batch is filled up from the beginning."""
    for begin in range(0, len(labels), size):
        part = labels[begin : begin + size]
        pad = size - len(part)
        array = np.array(part + labels[:pad], np.float32)
        yield SimpleNamespace(pad=pad, label=[SimpleNamespace(asnumpy=lambda array=array: array)])


@pytest.fixture
def mxnet(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[float]], list[float]]], None]:
    """Return what puts a reader in the place of MXNet's that changes the labels that it reads."""

    def install(change: Callable[[list[float]], list[float]]) -> None:
        def reader(path_imgrec: str, batch_size: int, **_: Any) -> Iterator[SimpleNamespace]:
            labels = []
            with open(path_imgrec, "rb") as file:
                records = RecordReader(file, path_imgrec)
                while (data := records.read()) is not None:
                    labels.append(float(parse_image_data(data).label))
            assert 0 < batch_size <= len(labels), "number of input images must be bigger than the batch size"
            return batches(change(labels), batch_size)

        module = SimpleNamespace(io=SimpleNamespace(ImageRecordIter=reader))
        monkeypatch.setitem(sys.modules, "mxnet", module)
        found = importlib.util.spec_from_loader("mxnet", loader=None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "mxnet" else None)

    return install


def error(root: Path) -> str:
    with pytest.raises(OpsError) as caught:
        read_with_mxnet(str(root), None)
    return str(caught.value)


def test_a_whole_data_set_is_described(packed: tuple[Path, dict[str, Any]], mxnet: Any) -> None:
    mxnet(lambda labels: labels)
    root, result = packed
    assert read_with_mxnet(str(root), result["dataset_version"]) == {
        "changed": False,
        "dataset_version": result["dataset_version"],
        "manifest_sha256": result["manifest_sha256"],
        "records": {"train": 40, "validation": 40},
        "classes": 5,
        "bytes": result["bytes"],
        "decoded": 80,
        "formats": ["recordio"],
        "content_sha256": {"train": "", "validation": ""},
    }


def test_another_version_is_an_error(packed: tuple[Path, dict[str, Any]], mxnet: Any) -> None:
    mxnet(lambda labels: labels)
    with pytest.raises(OpsError, match="not 0123456789ab"):
        read_with_mxnet(str(packed[0]), "0123456789ab")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda labels: [9.0, *labels[1:]], "MXNet reads the label 9 of record 0, "),
        (lambda labels: labels[:-1], "MXNet has "),
        (lambda labels: [*labels, 1.0], "train"),
    ],
    ids=["another label", "one less", "one more"],
)
def test_what_mxnet_reads_otherwise_is_an_error(
    packed: tuple[Path, dict[str, Any]], mxnet: Any, change: Callable[[list[float]], list[float]], why: str
) -> None:
    mxnet(change)
    text = error(packed[0])
    assert text.startswith(f"Record file {packed[0]}/recordio/train")
    assert why in text
    assert text.endswith(f". {ADVICE}")


def ended(labels: list[float]) -> list[float]:
    os.write(2, b"[06:40:59] recordio.cc:125: Check failed: pbegin_ <= pend_\n\n")
    os.kill(os.getpid(), signal.SIGKILL)
    return labels


def failed(labels: list[float]) -> list[float]:
    raise RuntimeError(f"{len(labels)} images, none of which decodes")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (ended, "was ended by SIGKILL, and the last that it said is '[06:40:59] recordio.cc:125: Check failed: "),
        (failed, "ended with 1, and the last that it said is 'RuntimeError: "),
        (lambda _: os._exit(3), "ended with 3 and said nothing"),
    ],
    ids=["killed", "failed", "gone"],
)
def test_a_reader_that_ends_is_quoted(
    packed: tuple[Path, dict[str, Any]], mxnet: Any, change: Callable[[list[float]], list[float]], why: str
) -> None:
    mxnet(change)
    assert f".rec: MXNet's reader {why}" in error(packed[0])


def test_an_environment_without_mxnet_is_said_to_have_none(packed: tuple[Path, dict[str, Any]]) -> None:
    assert error(packed[0]) == (
        f"MXNet's reader: {sys.executable} has no mxnet. Run the module with the Python of an environment that has "
        "MXNet 1.9.1, as role python_environment makes it with python_environment_purpose=mxnet"
    )


def test_a_file_that_is_missing_is_named(packed: tuple[Path, dict[str, Any]], mxnet: Any, tmp_path: Path) -> None:
    mxnet(lambda labels: labels)
    (tmp_path / "manifest.json").write_bytes((packed[0] / "manifest.json").read_bytes())
    assert error(tmp_path).startswith(f"File {tmp_path}/labels.tsv: it cannot be read (No such file or directory).")
