"""What lies in place of a state file is used, discarded with a warning, or an error, but never a traceback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.state_file import Kind, StateFile, fits, hexadecimal, natural
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.state_files import signed

FIELDS = {"done": [(natural, natural)], "name": str, "counts": {str: natural}, "more": object}
RIGHT = {"done": [[0, 5], [7, 9]], "name": "val.tar", "counts": {"n01440764": 3}, "more": None}
CHECKPOINT = Kind("checkpoint of tests", 3, FIELDS, starts_over="the test starts over")
RECORD = replace(CHECKPOINT, starts_over="", todo="Remove it and run again")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


class Workplace:
    """A state file of either kind, and what was warned of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []

    def file(self, kind: Kind = CHECKPOINT) -> StateFile:
        return StateFile(str(self.path), kind, self.warnings.append)

    def holds(self, content: str | bytes | dict[str, Any]) -> None:
        text = json.dumps(content) if isinstance(content, dict) else content
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "state.json")


def test_what_was_written_comes_back(place: Workplace) -> None:
    assert place.file().read() is None
    place.file().write(RIGHT)
    assert place.file().read() == RIGHT
    assert place.warnings == []
    written = json.loads(place.path.read_text())
    assert (written["kind"], written["format"]) == ("checkpoint of tests", 3)
    assert written == signed({"kind": "checkpoint of tests", "format": 3, **RIGHT})


@pytest.mark.parametrize("before", [{}, {"format": 3}])
def test_what_a_version_without_kinds_wrote_is_read(place: Workplace, before: dict[str, Any]) -> None:
    place.holds({**RIGHT, **before})
    assert place.file().read() == RIGHT


def test_what_had_another_form_then_is_read(place: Workplace) -> None:
    kind = Kind("counts", 1, {"counts": {str: natural}}, "they are counted again", upgrade=lambda old: {"counts": old})
    place.holds({"n01440764": 3})
    assert place.file(kind).read() == {"counts": {"n01440764": 3}}
    place.holds("[1]")
    assert place.file(kind).read() is None
    assert "its fields are not those of the counts; they are counted again" in place.warnings[0]


SIGNED = signed({"kind": "checkpoint of tests", "format": 3, **RIGHT})
UNFIT = [
    (b"", "it is not JSON (Expecting value: line 1 column 1 (char 0))"),
    (b'{"done": [[0, 5]', "it is not JSON (Expecting ',' delimiter: line 1 column 17 (char 16))"),
    (b"\xff\xfe", "it is not JSON ("),
    (b"[" * 100_000, "it is not JSON (maximum recursion depth exceeded"),
    (b"[]", "it is damaged: it is no checkpoint of tests"),
    ({**RIGHT, "done": None}, "it is damaged: its fields are not those of the checkpoint of tests"),
    ({**RIGHT, "surplus": 1}, "it is damaged: its fields are not those of the checkpoint of tests"),
    ({**RIGHT, "format": 2}, "its format is 2, and this version reads 3"),
    ({**RIGHT, "format": "3"}, "its format is '3', and this version reads 3"),
    ({**RIGHT, "format": True}, "its format is True, and this version reads 3"),
    ({"kind": "record of tests", **RIGHT}, "it is no checkpoint of tests, but one of the kind 'record of tests'"),
    ({"kind": "checkpoint of tests", "format": 3, **RIGHT}, "it is damaged: checksum mismatch"),
    (
        {**signed({"kind": "checkpoint of tests", "format": 3, **RIGHT}), "name": "x"},
        "it is damaged: checksum mismatch",
    ),
]


@pytest.mark.parametrize(("content", "why"), UNFIT)
def test_what_is_unfit_is_discarded_with_a_warning(place: Workplace, content: Any, why: str) -> None:
    place.holds(content)
    file = place.file()
    assert file.read() is None
    assert file.read() is None
    (warning,) = place.warnings
    assert warning.startswith(f"State file {place.path}: {why}")
    assert warning.endswith("; the test starts over")
    file.write(RIGHT)
    assert place.file().read() == RIGHT


@pytest.mark.parametrize(("content", "why"), UNFIT)
def test_what_is_unfit_is_an_error_where_a_person_has_to_decide(place: Workplace, content: Any, why: str) -> None:
    place.holds(content)
    with pytest.raises(OpsError) as caught:
        place.file(RECORD).read()
    assert str(caught.value).startswith(f"State file {place.path}: {why}")
    assert caught.value.todo == "Remove it and run again"
    assert place.warnings == []


@pytest.mark.parametrize("kind", [CHECKPOINT, RECORD])
def test_what_a_newer_version_wrote_is_never_touched(place: Workplace, kind: Kind) -> None:
    place.holds({"kind": kind.name, "format": kind.format + 1, "of": "tomorrow"})
    before = place.path.read_bytes()
    with pytest.raises(OpsError) as caught:
        place.file(kind).read()
    assert str(caught.value) == (
        f"State file {place.path}: a newer version of imagenet-ops wrote it: its format is {kind.format + 1}, and this "
        f"version reads {kind.format}. Run the newer version, or remove the file to start over"
    )
    assert place.path.read_bytes() == before


def test_what_cannot_be_read_is_an_error(place: Workplace) -> None:
    place.path.mkdir()
    with pytest.raises(OpsError, match=r"state\.json: it cannot be read \(Is a directory\)\. Check the disk"):
        place.file().read()


@given(value=JSON_VALUES)
def test_no_json_at_all_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    place = Workplace(tmp_path_factory.mktemp("state") / "state.json")
    place.path.write_text(json.dumps(value))
    assert place.file().read() is None
    assert len(place.warnings) == 1


@given(name=st.sampled_from([*RIGHT, "kind", "format"]), value=JSON_VALUES)
def test_no_edit_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, name: str, value: Any) -> None:
    place = Workplace(tmp_path_factory.mktemp("state") / "state.json")
    place.file().write(RIGHT)
    edited = json.loads(place.path.read_text())
    unchanged = json.dumps(edited[name]) == json.dumps(value)
    edited[name] = value
    place.holds(edited)
    try:
        found = place.file().read()
    except OpsError as error:
        assert name == "format" and "a newer version" in error.why  # noqa: PT017, PT018  an outcome of several
    else:
        assert found == (RIGHT if unchanged else None)


# --- shapes


@pytest.mark.parametrize(
    ("value", "shape", "fitting"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (True, bool, True),
        ({"a": [None]}, object, True),
        (0, natural, True),
        (-1, natural, False),
        (False, natural, False),
        ("0f", hexadecimal(2), True),
        ("0F", hexadecimal(2), False),
        ("0f\n", hexadecimal(2), False),
        (15, hexadecimal(2), False),
        ([], [str], True),
        (["a", 1], [str], False),
        ("ab", [str], False),
        (["a", 1], (str, int), True),
        (["a"], (str, int), False),
        ({}, {str: int}, True),
        ({"a": 1, "b": "2"}, {str: int}, False),
        ({"a": 1}, {"a": int}, True),
        ({"a": 1, "b": 1}, {"a": int}, False),
        ({}, {"a": int}, False),
        ([], {"a": int}, False),
        (None, {str: int}, False),
    ],
)
def test_shapes(value: Any, shape: Any, fitting: bool) -> None:
    assert fits(value, shape) is fitting
