from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.backup.tar_shards import Shard, ShardReader, plan_shards
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KIB = 1 << 10
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(os.fsencode(name)) < 250
)
TREES = st.dictionaries(st.tuples(NAMES, NAMES), st.binary(max_size=3000), min_size=1, max_size=12)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of two classes with three images each."""
    write_tree(
        tmp_path / "train", {(f"n{c}", f"n{c}_{i}.JPEG"): bytes([c, i]) * 500 for c in (1, 2) for i in (1, 2, 3)}
    )
    return tmp_path / "train"


def write_tree(tree: Path, files: dict[tuple[str, str], bytes]) -> None:
    for (folder, name), content in files.items():
        (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / folder / name).write_bytes(content)


def read(tree: Path, shard: Shard, buffer_bytes: int = 700) -> bytes:
    """Return the bytes of a shard, read into a buffer of an odd size."""
    reader, content = ShardReader(str(tree), shard), b""
    while True:
        buffer = bytearray(buffer_bytes)
        count = reader.readinto(buffer)
        content += buffer[:count]
        if count < buffer_bytes:
            return content


def unpacked(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(files=TREES, shard_bytes=st.integers(1, 20_000), buffer_bytes=st.integers(1, 5000))
def test_every_file_is_in_one_shard_whatever_its_name(
    tmp_path: Path, files: dict[tuple[str, str], bytes], shard_bytes: int, buffer_bytes: int
) -> None:
    tree = tmp_path / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    write_tree(tree, files)
    found: list[tuple[str, bytes]] = []
    for shard in plan_shards(str(tree), shard_bytes):
        content = read(tree, shard, buffer_bytes)
        assert len(content) == shard.size_bytes
        members = unpacked(content)
        assert len(members) == shard.files
        assert shard.size_bytes <= shard_bytes or shard.files == 1
        found += members.items()
    assert found == sorted(
        ((f"{folder}/{name}", content) for (folder, name), content in files.items()),
        key=lambda file: [os.fsencode(part) for part in file[0].split("/")],
    )


def test_gnu_tar_unpacks_them(tree: Path, tmp_path: Path) -> None:
    (tree / "n1" / f"{'long' * 40}.JPEG").write_bytes(b"long")
    (tmp_path / "unpacked").mkdir()
    for shard in plan_shards(str(tree), 4 * KIB):
        subprocess.run(["tar", "-x", "-C", tmp_path / "unpacked"], input=read(tree, shard), check=True)
    subprocess.run(["diff", "-r", tree, tmp_path / "unpacked"], check=True)


def test_the_bytes_depend_on_names_and_contents_alone(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in sorted(tree.rglob("*.JPEG"), reverse=True):  # another order on the disk
        (copy / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy / path.relative_to(tree))
        (copy / path.relative_to(tree)).chmod(0o600)
        os.utime(copy / path.relative_to(tree), (1, 1))
    ours, theirs = (
        b"".join(read(where, shard) for shard in plan_shards(str(where), 3 * KIB)) for where in (tree, copy)
    )
    assert ours == theirs
    # And forever: a shard that another release made is proved by its SHA-256.
    assert hashlib.sha256(ours).hexdigest() == "19693d92961a9c84fe1e261a43321e00c223a62c5ea31728a3fa0020f4c10ada"


def test_names_sizes_and_times_tell_whether_a_tree_is_the_same(tree: Path) -> None:
    before = [shard.tree_sha256 for shard in plan_shards(str(tree), 4 * KIB)]
    assert [shard.tree_sha256 for shard in plan_shards(str(tree), 4 * KIB)] == before
    assert len(set(before)) == len(before) == 3
    os.utime(tree / "n2" / "n2_3.JPEG", (1, 1))
    after = [shard.tree_sha256 for shard in plan_shards(str(tree), 4 * KIB)]
    assert after[:2] == before[:2]
    assert after[2] != before[2]


def changed_size(path: Path) -> None:
    path.write_bytes(b"another")


def changed_time(path: Path) -> None:
    os.utime(path, (1, 1))


def renamed(path: Path) -> None:
    path.rename(path.with_name("n1_2x.JPEG"))


@pytest.mark.parametrize(
    ("change", "name"), [(changed_size, "n1_2.JPEG"), (changed_time, "n1_2.JPEG"), (renamed, "n1_2x.JPEG")]
)
def test_a_file_that_is_another_than_it_was_is_named(tree: Path, change: object, name: str) -> None:
    (shard,) = plan_shards(str(tree), 100 * KIB)
    change(tree / "n1" / "n1_2.JPEG")  # type: ignore[operator]
    with pytest.raises(OpsError) as caught:
        read(tree, shard)
    assert str(caught.value) == (
        f"File {tree}/n1/{name}: its name, size or time is another than when the backup began, so its shard was not "
        "uploaded. Let nothing write to the tree during the backup, and run again"
    )


def test_a_file_that_changes_while_it_is_read_is_named(tree: Path) -> None:
    (shard,) = plan_shards(str(tree), 100 * KIB)
    reader = ShardReader(str(tree), shard)
    reader.readinto(bytearray(600))  # its header, and the begin of what was read already
    with (tree / "n1" / "n1_1.JPEG").open("ab") as file:
        file.write(b"more")
    with pytest.raises(OpsError, match=r"n1/n1_1\.JPEG: its size or time changed while it was read"):
        reader.readinto(bytearray(100 * KIB))


def test_files_that_are_gone(tree: Path) -> None:
    (shard,) = plan_shards(str(tree), 100 * KIB)
    (tree / "n2" / "n2_3.JPEG").unlink()
    with pytest.raises(OpsError, match="n2/: files of this folder are gone"):
        read(tree, shard)
    shutil.rmtree(tree / "n1")
    with pytest.raises(OpsError, match=r"n1: it cannot be read any more \(No such file or directory\)"):
        read(tree, shard)


def test_a_file_that_cannot_be_read_is_named(tree: Path) -> None:
    (shard,) = plan_shards(str(tree), 100 * KIB)
    (tree / "n1" / "n1_1.JPEG").unlink()
    (tree / "n1" / "n1_1.JPEG").symlink_to("n1_2.JPEG")
    with pytest.raises(OpsError, match=r"^File .*n1/n1_1\.JPEG: it cannot be read \(Too many levels of symbolic links"):
        read(tree, shard)


def test_what_is_no_tree(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(OpsError) as caught:
        plan_shards(str(tmp_path / "validation"), KIB)
    assert str(caught.value) == (
        f"Tree {tmp_path}/validation: {tmp_path}/validation/ cannot be read (No such file or directory). Lay the tree "
        "out first (playbooks/steps/layout.yml), or do not ask for its backup"
    )
    (tmp_path / "empty" / "n1").mkdir(parents=True)
    with pytest.raises(OpsError, match="empty: there is no file in it"):
        plan_shards(str(tmp_path / "empty"), KIB)
    (tree / "n1" / "link.JPEG").symlink_to("n1_1.JPEG")
    with pytest.raises(OpsError, match=r"link\.JPEG: it is neither a regular file nor a folder"):
        plan_shards(str(tree), KIB)
