"""recordio_verify with MXNet's own reader, as Ansible runs it: in the environment that has MXNet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.conformance.conftest import ENVIRONMENT, ROOT
from tests.fakes.images import mixed_images, write_tree


@pytest.fixture(params=[{}, {"shards": 3}, {"channels": 1}, {"pass_through": True}], ids=str)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    changes = dict(request.param)
    shards = changes.pop("shards", 1)
    recipe = Recipe(24, 95, "linear", 10_000_000)._replace(**changes)
    splits = [SplitRequest(name, str(write_tree(tmp_path / name, mixed_images()))) for name in ("train", "validation")]
    asked = PackRequest("test", str(tmp_path), str(tmp_path / ".state"), splits, recipe, shards=shards)
    return tmp_path, pack_dataset(asked, check=False, warn=pytest.fail)


def recordio_verify(root: Path) -> dict[str, Any]:
    """Return what the module answers."""
    command = [str(Path(sys.executable).parent / "ansible"), "localhost", "-i", "localhost,", "-c", "local"]
    command += ["-m", "recordio_verify", "-a", f"root={root} reader=mxnet"]
    command += ["-e", f"ansible_python_interpreter={ENVIRONMENT}/bin/python"]
    settings = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]
    return answer


@pytest.mark.usefixtures("mxnet")
def test_mxnet_reads_what_we_packed(packed: tuple[Path, dict[str, Any]]) -> None:
    root, result = packed
    answer = recordio_verify(root)
    assert {name: answer.get(name) for name in ("changed", "dataset_version", "records", "decoded", "msg")} == {
        "changed": False,
        "dataset_version": result["dataset_version"],
        "records": {"train": 40, "validation": 40},
        "decoded": 80,
        "msg": None,
    }


@pytest.mark.usefixtures("mxnet")
@pytest.mark.parametrize(("place", "why"), [(0, "MXNet reads the label "), (32, "MXNet's reader ")])
def test_damage_is_an_error_though_mxnet_ends_the_process(
    packed: tuple[Path, dict[str, Any]], place: int, why: str
) -> None:
    """Without its magic MXNet skips a record in silence; without the beginning of its image it dies."""
    (rec, *_) = sorted((packed[0] / "recordio").glob("train*.rec"))
    content = bytearray(rec.read_bytes())
    content[place : place + 4] = b"XXXX"
    rec.write_bytes(content)
    answer = recordio_verify(packed[0])
    assert answer["failed"] is True
    assert answer["msg"].startswith(f"Record file {rec}: {why}")
