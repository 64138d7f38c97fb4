from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.pack import decoder
from ansible.module_utils.imagenet_ops.pack.decoder import Limits, Transformer
from ansible.module_utils.imagenet_ops.pack.image import BadImageError, Recipe, transform
from ansible.module_utils.imagenet_ops.pack.in_hand import InHand

from tests.fakes import faulty_decoder
from tests.fakes.archive_packing import Workplace
from tests.fakes.images import animated_png, jpeg, png, png_of, with_comment

RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=100_000_000)
LIMITS = Limits(seconds=1, memory_mib=512)
Make = Callable[..., Transformer]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return what makes a transformer whose processes have a decoder with faults."""
    monkeypatch.setattr(decoder, "_PROGRAM", faulty_decoder.PRELUDE + decoder._PROGRAM)
    with ExitStack() as stack:

        def make(recipe: Recipe = RECIPE, limits: Limits = LIMITS, in_hand: InHand | None = None) -> Transformer:
            return stack.enter_context(Transformer(recipe, limits, in_hand))

        yield make


def fault(name: str) -> bytes:
    """Return an image that no thread decodes, with a fault in its text."""
    return animated_png(note=f"fault:{name};".encode())


def texts(transformer: Transformer, *images: bytes) -> list[str]:
    outcomes = transformer.transform_all([f"a/{number}" for number in range(len(images))], images)
    return [str(outcome) if isinstance(outcome, BadImageError) else "" for outcome in outcomes]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SIGSEGV", "damaged: the decoder crashed (SIGSEGV)"),
        ("SIGABRT", "damaged: the decoder crashed (SIGABRT)"),
        ("SIGKILL", "damaged: the decoder crashed (SIGKILL)"),
        ("loop", "too slow: decoding it takes more than 1 seconds"),
        ("memory", "too large: decoding it takes more than 512 MiB of memory"),
        ("exit", "damaged: the decoder exited with status 3"),
    ],
)
def test_what_a_decoder_does_costs_one_image(make: Make, name: str, reason: str) -> None:
    sound = animated_png()
    assert texts(make(), sound, fault(name), sound, jpeg()) == ["", reason, "", ""]


def test_a_decoder_that_only_waits_is_too_slow(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "CLOCK_SECONDS", 1)
    assert texts(make(), fault("sleep"), animated_png()) == ["too slow: decoding it takes more than 1 seconds", ""]


def test_an_image_is_not_blamed_for_a_kill_that_does_not_come_again(make: Make, tmp_path: Path) -> None:
    transformer = make()
    assert texts(transformer, fault(f"once:{tmp_path}/in a new process")) == [""]
    assert texts(transformer, fault(f"once:{tmp_path}/in one that was used")) == [""]


def test_the_other_process_makes_the_same_bytes(make: Make, tmp_path: Path) -> None:
    images = [jpeg(300, 200), png(), with_comment(jpeg(), b"hello")]
    names = [f"a/{number}" for number in range(len(images))]
    in_hand = InHand(str(tmp_path), 1, pytest.fail)
    in_hand.suspects = frozenset(names)
    results = make(in_hand=in_hand).transform_all(names, images)
    in_hand.close()
    assert results == [transform(data, RECIPE) for data in images]


def test_memory_that_opencv_itself_wants_is_limited(make: Make) -> None:
    header = struct.pack(">IIBBBBB", 9900, 9900, 8, 2, 0, 0, 0)
    bomb = png_of((b"IHDR", header), (b"acTL", bytes(8)), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    found = texts(make(limits=Limits(30, 256)), bomb, animated_png())
    assert found == ["too large: decoding it takes more than 256 MiB of memory", ""]


def test_a_process_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_PROGRAM", "raise SystemExit(7)")
    with Transformer(RECIPE) as transformer:
        with pytest.raises(OpsError, match=r"Decoder process: it ended before the first image \(status 7\)"):
            transformer.transform_all(["a"], [animated_png()])
        monkeypatch.setattr(sys, "executable", "/there/is/none")
        with pytest.raises(OpsError, match="Decoder process: it cannot be started"):
            transformer.transform_all(["a"], [animated_png()])


def test_passing_through_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    recipe = RECIPE._replace(pass_through=True, jpeg_check="strict")
    with Transformer(recipe) as transformer:
        assert transformer.transform_all(["a"], [animated_png()]) == [(animated_png(), "")]


@pytest.mark.parametrize("check", ["lenient", "strict"])
def test_sound_images_of_the_usual_kinds_start_no_process(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    images = [jpeg(), png()]
    with Transformer(RECIPE._replace(jpeg_check=check)) as transformer:
        assert transformer.transform_all(["a", "b"], images) == [transform(data, RECIPE) for data in images]


# --- what libjpeg warns of ------------------------------------------------------------------------------------------


def half() -> bytes:
    whole = jpeg(320, 240)
    return whole[: len(whole) // 2] + b"\xff\xd9"


def hole() -> bytes:
    whole = jpeg(320, 240)
    return whole[: len(whole) // 2] + bytes(4096) + whole[len(whole) // 2 + 4096 :]


def extra_bytes() -> bytes:
    return jpeg(320, 240)[:-2] + bytes(100) + b"\xff\xd9"


PREMATURE = "damaged: the decoder says Corrupt JPEG data: premature end of data segment"


def test_half_of_a_scan_is_bad_at_any_number_of_threads(make: Make) -> None:
    transformer = make(limits=Limits())
    images = [half() if number in (3, 40, 41) else jpeg(320, 240) for number in range(64)]

    def of(number: int) -> str:
        (outcome,) = transformer.transform_all([str(number)], [images[number]])
        return str(outcome) if isinstance(outcome, BadImageError) else ""

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(of, range(64)))
    assert found == [PREMATURE if number in (3, 40, 41) else "" for number in range(64)]


def test_half_of_a_scan_is_bad_in_the_other_process_too(make: Make, tmp_path: Path) -> None:
    in_hand = InHand(str(tmp_path), 1, pytest.fail)
    in_hand.suspects = frozenset(["a/0"])
    assert texts(make(limits=Limits(), in_hand=in_hand), half()) == [PREMATURE]
    in_hand.close()


def test_lenient_packs_a_whole_image_with_more_bytes_as_im2rec_does(make: Make) -> None:
    outcomes = make(limits=Limits()).transform_all(["a"], [extra_bytes()])
    assert outcomes == [transform(extra_bytes(), RECIPE)]


def test_strict_refuses_what_libjpeg_calls_corrupt(make: Make) -> None:
    images = [jpeg(320, 240), half(), hole(), extra_bytes(), jpeg(), png()]
    found = texts(make(RECIPE._replace(jpeg_check="strict"), Limits()), *images)
    assert [text.partition(": the decoder says ")[2] for text in found] == [
        "",
        "Corrupt JPEG data: premature end of data segment",
        "Corrupt JPEG data: premature end of data segment",
        "Corrupt JPEG data: 95 extraneous bytes before marker 0xd9",
        "",
        "",
    ]


def test_other_text_on_standard_error_arrives_and_makes_no_image_bad(capfd: pytest.CaptureFixture[str]) -> None:
    with Transformer(RECIPE._replace(jpeg_check="strict"), Limits()) as transformer:
        os.write(2, b"hello\n")
        assert texts(transformer, half(), jpeg()) == [PREMATURE, ""]
        os.write(2, b"world")
    assert capfd.readouterr().err == "hello\nworld"


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("make")
@pytest.mark.parametrize("kind", ["tree", "archive"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_run_names_the_image_that_crashes_the_decoder(tmp_path: Path, workers: int, kind: str) -> None:
    workplace = Workplace(tmp_path)
    names = sorted(workplace.images)
    workplace.damage(names[5], fault("SIGSEGV"))
    workplace.damage(names[17], animated_png(frame=b""))
    runs = []
    for into in ("first", "second"):
        result = workplace.pack(kind, into=into, on_bad_image="quarantine", workers=workers)
        assert (result["records"], result["bad_images"]) == ({"train": len(names) - 2}, 2)
        assert sorted(result["samples"]) == [
            f"train/{names[5]}: damaged: the decoder crashed (SIGSEGV)",
            f"train/{names[17]}: damaged: its chunk fdAT is too short",
        ]
        runs.append(workplace.files(into))
    assert runs[0] == runs[1]
    assert runs[0][f"quarantine/train/{names[5]}"] == fault("SIGSEGV")
    error = workplace.error(kind, into="third", on_bad_image="fail", workers=workers)
    assert names[5] in error or names[17] in error
