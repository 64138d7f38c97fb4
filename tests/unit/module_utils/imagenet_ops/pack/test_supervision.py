from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.state_file import Warn
from ansible.module_utils.imagenet_ops.pack import decoder, supervision
from ansible.module_utils.imagenet_ops.pack.decoder import Limits
from ansible.module_utils.imagenet_ops.pack.in_hand import InHand
from ansible.module_utils.imagenet_ops.pack.supervision import supervised

from tests.fakes import faulty_decoder
from tests.fakes.archive_packing import Workplace
from tests.fakes.images import jpeg, with_comment


class Supervised(Workplace):
    """A workplace whose decoder has faults, in the threads of a run and in the processes that it starts."""

    def pack(self, kind: str, *, check: bool = False, into: str = "", **changes: Any) -> dict[str, Any]:
        def work(warn: Warn) -> dict[str, Any]:
            faulty_decoder.install()
            result = Workplace.pack(self, kind, check=check, into=into, on_bad_image="skip", **changes)
            for text in self.warnings:
                warn(text)
            return result

        return supervised(work, str(self.folder / into / ".state"), 2.0, self.warnings.append)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervised:
    monkeypatch.setattr(decoder, "_PROGRAM", faulty_decoder.PRELUDE + decoder._PROGRAM)
    monkeypatch.setattr(supervision, "_LOOK_SECONDS", 0.1)
    return Supervised(tmp_path)


def fault(name: str) -> bytes:
    """Return a JPEG that a thread decodes, and what happens then."""
    return with_comment(jpeg(seed=len(name)), f"fault:{name};".encode())


@pytest.mark.parametrize("kind", ["tree", "archive"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_crash_in_a_thread_costs_one_image(workplace: Supervised, workers: int, kind: str) -> None:
    names = sorted(workplace.images)
    workplace.damage(names[3], fault("SIGSEGV"))
    workplace.damage(names[20], fault("SIGABRT"))
    runs = []
    for into in ("first", "second"):
        result = workplace.pack(kind, into=into, workers=workers)
        assert sorted(result["samples"]) == [
            f"train/{names[3]}: damaged: the decoder crashed (SIGSEGV)",
            f"train/{names[20]}: damaged: the decoder crashed (SIGABRT)",
        ]
        assert result["records"] == {"train": len(names) - 2}
        runs.append(workplace.files(into))
    assert runs[0] == runs[1]
    assert workplace.warnings[0].startswith("The decoder was ended by SIG")
    assert workplace.pack(kind, into="first", workers=workers)["changed"] is False


def test_a_thread_that_never_returns_costs_one_image(workplace: Supervised) -> None:
    names = sorted(workplace.images)
    workplace.damage(names[3], fault("sleep"))
    result = workplace.pack("tree", into="first", limits=Limits(1))
    assert result["samples"] == [f"train/{names[3]}: too slow: decoding it takes more than 1 seconds"]


@pytest.mark.parametrize("kind", ["tree", "archive"])
def test_a_run_after_a_kill_in_the_middle_of_a_bad_image_names_it(workplace: Supervised, kind: str) -> None:
    names = sorted(workplace.images)
    workplace.damage(names[3], fault("SIGKILL"))
    with pytest.raises(OpsError, match="Packing: its process was ended by SIGKILL"):
        workplace.pack(kind, into="killed")
    result = workplace.pack(kind, into="killed")
    assert result["samples"] == [f"train/{names[3]}: damaged: the decoder crashed (SIGKILL)"]


def test_an_image_that_a_run_was_killed_at_is_packed_if_it_decodes(workplace: Supervised) -> None:
    names = sorted(workplace.images)
    workplace.damage(names[3], fault(f"once:{workplace.folder}/killed once"))
    with pytest.raises(OpsError, match="SIGKILL"):
        workplace.pack("tree", into="killed")
    assert workplace.pack("tree", into="killed")["bad_images"] == 0
    workplace.pack("tree", into="whole")
    assert workplace.files("killed") == workplace.files("whole")


def test_errors_and_warnings_come_through(tmp_path: Path) -> None:
    def fail(warn: Warn) -> dict[str, Any]:
        warn("first")
        raise OpsError("Image a.jpg", "it is bad", "Replace it")

    warnings: list[str] = []
    with pytest.raises(OpsError, match=r"^Image a.jpg: it is bad. Replace it$"):
        supervised(fail, str(tmp_path), 1.0, warnings.append)
    assert warnings == ["first"]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        supervised(lambda _: {"": 1 // 0}, str(tmp_path), 1.0, pytest.fail)


def test_a_crash_that_comes_again_and_again_is_an_error(tmp_path: Path) -> None:
    def crash(warn: Warn) -> dict[str, Any]:
        warn("each time")
        with InHand(str(tmp_path), 1, warn).slot() as write:
            write("/t/a/1.jpg")
            os.kill(os.getpid(), signal.SIGSEGV)
        return {}

    warnings: list[str] = []
    with pytest.raises(OpsError, match="Packing: its process was ended by SIGSEGV"):
        supervised(crash, str(tmp_path), 1.0, warnings.append)
    apart = "The decoder was ended by SIGSEGV; the images that it had in hand are decoded apart from now on"
    assert warnings == ["each time", apart]
    with pytest.raises(OpsError, match="Packing: its process was ended by exit status 3"):
        supervised(lambda _: os._exit(3), str(tmp_path), 1.0, pytest.fail)


def test_a_machine_that_crashes_on_any_image_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_MOST_STARTS", 3)

    def crash(warn: Warn) -> dict[str, Any]:
        with InHand(str(tmp_path), 1, warn).slot() as write:
            write(f"/t/a/{os.getpid()}.jpg")
            os.kill(os.getpid(), signal.SIGSEGV)
        return {}

    with pytest.raises(OpsError, match="Packing: the decoder crashed 3 times"):
        supervised(crash, str(tmp_path), 1.0, lambda _: None)
