"""What an earlier version began is resumed, or begun again with a word of it, and ends with the right bytes."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from ansible.module_utils.imagenet_ops.backup import backup, restore, tree_backup, tree_restore, verified_files
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile
from ansible.module_utils.imagenet_ops.dataset import warm
from ansible.module_utils.imagenet_ops.download import fetch
from ansible.module_utils.imagenet_ops.layout import checkpoint
from ansible.module_utils.imagenet_ops.pack import spool, writer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.fakes import begun
from tests.fakes.begun import FILES, FINISH, FOLDER, IMAGES, Outcome, Place

# The version of OpenCV that packed the fixtures; another one may give other bytes, so its work is not resumed.
OPENCV = "4.13.0"


@pytest.fixture(autouse=True)
def _small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with begun.small_files_are_large():
        yield


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What comes of each work where nothing was begun before."""

    @functools.cache
    def outcome(name: str) -> Outcome:
        place = Place(tmp_path_factory.mktemp("whole"))
        place.begin("")
        found = FINISH[name](place)
        assert place.warnings == []
        return found

    return outcome


@pytest.mark.parametrize("name", FINISH)
def test_it_ends_with_the_bytes_of_a_run_that_was_not_killed(
    place: Place, whole: Callable[[str], Outcome], name: str
) -> None:
    place.begin(name)
    assert FINISH[name](place).files == whole(name).files
    if name.startswith("pack") and cv2.__version__ != OPENCV:
        assert len(place.warnings) <= 1
    else:
        assert place.warnings == []


@pytest.mark.parametrize("name", ["fetch", "backup", "backup_trees", "restore", "restore_tree", "copy", "warm"])
def test_it_is_resumed(place: Place, whole: Callable[[str], Outcome], name: str) -> None:
    place.begin(name)
    assert 0 < FINISH[name](place).done < whole(name).done


def test_a_backup_of_an_earlier_version_comes_back(place: Place) -> None:
    place.begin("")
    assert place.restore_tree().files == {
        **FILES,
        "manifest.json": place.dataset["manifest.json"],
        **{f"train/{name}": content for name, content in IMAGES.items()},
    }


# --- state files that something else wrote

# Every state file of the fixtures, with its kind.
STATE_FILES: dict[str, Kind] = {
    "fetch/archives/val.tar.part.json": fetch._CHECKPOINT,
    "layout/.state/imagenet_layout.train.json": checkpoint.checkpoint_kind("the tree"),
    "pack_tree/.state/recordio_pack.train.part.json": writer.CHECKPOINT,
    "pack_renaming/.state/recordio_pack.train.part.json": writer.CHECKPOINT,
    "pack_archive/.state/recordio_pack.train.spool.json": spool.CHECKPOINT,
    "pack_dealing/.state/recordio_pack.train.spool.json": spool.CHECKPOINT,
    "backup/.state/s3_backup.uploads.json": backup._UPLOADS,
    "backup_trees/.state/s3_backup.etags.json": backup._ETAGS,
    "backup_trees/.state/s3_backup.trees.json": tree_backup._RECORD,
    "restore/archives/val.tar.part.json": restore._CHECKPOINT,
    "restore_tree/.state/s3_restore.json": verified_files._RECORD,
    "restore_tree/.state/s3_restore.train.json": tree_restore._CHECKPOINT,
    "warm/.state/dataset_warm.vol-1.json": warm.CHECKPOINT,
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list in a value of JSON, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places_in(value[key])


@st.composite
def edited(draw: st.DrawFn, text: str, *, is_signed: bool) -> str:
    """``text`` with a field replaced or removed, or one more.

    A value of its own type is not put in place of another where no checksum would tell.
    """
    value = copy.deepcopy(json.loads(text))
    holder, key = draw(st.sampled_from(list(places_in(value))))
    before, now = holder[key], draw(JSON_VALUES)
    change = draw(st.sampled_from(["replace", "remove", "add"]))
    if change == "replace":
        assume(is_signed or type(now) is not type(before))
        holder[key] = now
    elif change == "remove":
        assume(is_signed or isinstance(holder, dict))
        del holder[key]
    else:
        value[draw(st.text(max_size=9))] = now
    assume(value != json.loads(text))
    return json.dumps(value)


def spoiled(name: str, text: str, *, is_signed: bool) -> st.SearchStrategy[bytes]:
    """What may lie in the place of the state file ``name``, which had ``text``."""
    content = text.encode()
    others = [path.read_bytes() for path in map(FOLDER.joinpath, STATE_FILES) if path.name != Path(name).name]
    return st.one_of(
        edited(text, is_signed=is_signed).map(str.encode),
        JSON_VALUES.map(lambda value: json.dumps(value).encode()),
        st.integers(0, len(content) - 2).map(lambda length: content[:length]),
        st.binary(max_size=50),
        st.sampled_from(others),
    )


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("name", STATE_FILES)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_lies_there_the_work_ends_right_or_with_an_error_for_people(
    tmp_path_factory: pytest.TempPathFactory,
    whole: Callable[[str], Outcome],
    name: str,
    is_signed: bool,
    data: st.DataObject,
) -> None:
    place = Place(tmp_path_factory.mktemp("begun"))
    work, _, path = name.partition("/")
    expected = whole(work)
    place.begin(work)
    if is_signed:
        file = StateFile(str(place.root / path), STATE_FILES[name])
        file.write(file.read() or {})
    content = data.draw(spoiled(name, (place.root / path).read_text(), is_signed=is_signed))
    (place.root / path).write_bytes(content)
    try:
        finished = FINISH[work](place)
    except OpsError as error:
        assert str(place.root) in error.what  # noqa: PT017  one of two outcomes
    else:
        assert finished.files == expected.files
        # An object without fields is what a version without kinds wrote before it had done anything.
        assert not is_signed or place.warnings or content == b"{}"


def test_an_index_that_is_damaged_is_an_error(place: Place) -> None:
    place.begin("pack_dealing")
    index = place.root / ".scratch" / "train" / "index.tsv"
    first, *rest = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(first + b"torn\n" + b"".join(rest))
    with pytest.raises(OpsError) as caught:
        place.pack_archive()
    assert str(caught.value) == (
        f"Spool {place.root}/.scratch/train: line 2 of its index is damaged. Delete it and rerun: the archive is "
        "read again"
    )
