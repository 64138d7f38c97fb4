from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from ansible.module_utils.imagenet_ops.pack import image
from ansible.module_utils.imagenet_ops.pack.image import (
    BadImageError,
    Header,
    Recipe,
    inspect,
    plan_all,
    resized,
    transform,
    transform_all,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.images import (
    CMYK_JPEG,
    Picture,
    animated_png,
    encode,
    grey_jpeg,
    huge_png,
    jpeg,
    pixels,
    png,
    rotated_jpeg,
    with_comment,
)

RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=100_000_000)


def decoded(data: bytes | memoryview) -> Picture:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture.astype(np.uint8)


def reason(data: bytes, recipe: Recipe = RECIPE) -> str:
    with pytest.raises(BadImageError) as caught:
        transform(data, recipe)
    return str(caught.value)


# --- what an image says of itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (jpeg(50, 40), Header(50, 40, "")),
        (grey_jpeg(50, 40), Header(50, 40, "grey")),
        (CMYK_JPEG, Header(12, 9, "cmyk")),
        (png(50, 40), Header(50, 40, "png")),
        (encode(".png", pixels(50, 40, 1)[:, :, 0]), Header(50, 40, "png")),
        (rotated_jpeg(6, 50, 40), Header(50, 40, "")),
        (encode(".jpg", pixels(50, 40, 1), cv2.IMWRITE_JPEG_PROGRESSIVE, 1), Header(50, 40, "")),
    ],
)
def test_size_and_kind_are_read_from_the_header(data: bytes, header: Header) -> None:
    assert image.inspect(data) == header


def test_bytes_between_the_markers_and_markers_without_length_are_passed_over() -> None:
    plain = jpeg(50, 40)
    assert image.inspect(plain[:2] + b"\xff\xff\xff\xd0" + plain[2:]) == Header(50, 40, "")


# --- what comes out --------------------------------------------------------------------------------------------------


@given(st.integers(1, 60000), st.integers(1, 60000), st.integers(1, 1000))
def test_the_short_side_is_as_asked_and_the_long_side_rounded_down(width: int, height: int, side: int) -> None:
    result = resized(width, height, RECIPE._replace(short_side_pixels=side))
    assert min(result) == side
    assert max(result) == side * max(width, height) // min(width, height)
    assert (result[0] > result[1]) <= (width > height)
    assert (result[0] < result[1]) <= (width < height)


@given(st.integers(1, 60000), st.integers(1, 60000))
def test_no_short_side_keeps_the_size(width: int, height: int) -> None:
    assert resized(width, height, RECIPE._replace(short_side_pixels=0)) == (width, height)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (jpeg(101, 64), (32, 50, 3)),
        (jpeg(64, 101), (50, 32, 3)),
        (jpeg(10, 16), (51, 32, 3)),
        (grey_jpeg(64, 64), (32, 32, 3)),
        (CMYK_JPEG, (32, 42, 3)),
        (png(64, 128), (64, 32, 3)),
        (rotated_jpeg(1, 101, 64), (32, 50, 3)),
        (rotated_jpeg(6, 101, 64), (50, 32, 3)),
    ],
)
def test_every_kind_becomes_a_jpeg_with_three_channels(data: bytes, shape: tuple[int, ...]) -> None:
    result, _ = transform(data, RECIPE)
    assert result[:3] == b"\xff\xd8\xff"
    assert decoded(result).shape == shape


def test_the_kinds_that_are_converted_are_told() -> None:
    assert [transform(data, RECIPE)[1] for data in (jpeg(), png(), CMYK_JPEG, grey_jpeg())] == [
        "",
        "png",
        "cmyk",
        "grey",
    ]


def test_a_cmyk_image_keeps_its_colours() -> None:
    picture = decoded(transform(CMYK_JPEG, RECIPE._replace(short_side_pixels=0))[0])
    blue, green, red = (int(value) for value in picture[4, 2])
    assert red > 200
    assert max(green, blue) < 120
    blue, green, red = (int(value) for value in picture[4, 10])
    assert blue > 180
    assert red < 90


def test_a_rotated_image_is_turned_upright() -> None:
    upright = decoded(transform(rotated_jpeg(3, 64, 48), RECIPE._replace(short_side_pixels=0))[0])
    lying = decoded(jpeg(64, 48))
    assert np.abs(upright[::-1, ::-1].astype(int) - lying).max() < 20


def test_pixels_that_need_no_resizing_are_encoded_as_they_are() -> None:
    picture = decoded(jpeg(50, 32))
    expected = encode(".jpg", picture, cv2.IMWRITE_JPEG_QUALITY, 95)
    assert transform(jpeg(50, 32), RECIPE) == (expected, "")
    assert transform(jpeg(50, 32), RECIPE._replace(short_side_pixels=0)) == (expected, "")


def test_of_many_images_each_bad_one_has_its_reason_in_its_place() -> None:
    cut = jpeg(400, 300)[:-200]
    results = transform_all([jpeg(), b"", cut, png()], RECIPE)
    assert [str(result) if isinstance(result, BadImageError) else result for result in results] == [
        transform(jpeg(), RECIPE),
        "zero bytes long",
        reason(cut),
        transform(png(), RECIPE),
    ]


@pytest.mark.parametrize(("name", "filter_number"), [("linear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA)])
def test_filter_and_quality_are_those_of_the_recipe(name: str, filter_number: int) -> None:
    small = cv2.resize(decoded(jpeg(300, 200)), (48, 32), interpolation=filter_number)
    expected = encode(".jpg", small, cv2.IMWRITE_JPEG_QUALITY, 71)
    assert transform(jpeg(300, 200), RECIPE._replace(resize_filter=name, quality=71)) == (expected, "")


# --- animations and scans --------------------------------------------------------------------------------------------


def scans(data: bytes) -> int:
    return data.count(b"\xff\xda")


def progressive(width: int = 64, height: int = 48) -> bytes:
    return encode(".jpg", pixels(width, height, 1), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def test_of_an_animation_the_default_image_is_packed() -> None:
    data = animated_png(40, 30)
    picture = decoded(transform(data, RECIPE._replace(short_side_pixels=0, quality=100))[0])
    with PIL.Image.open(io.BytesIO(data)) as judge:
        expected = np.asarray(judge.convert("RGB"))[:, :, ::-1]
    assert np.abs(picture.astype(int) - expected).max() < 20
    assert picture.mean() < 100


def test_what_follows_the_end_of_a_png_is_not_looked_at() -> None:
    assert transform(png() + animated_png(), RECIPE) == transform(png(), RECIPE)


@pytest.mark.parametrize(
    ("frame", "text"),
    [(b"", "damaged: its chunk fdAT is too short"), (b"\0\0\0", "damaged: its chunk fdAT is too short")],
)
def test_a_damaged_animation_is_a_bad_image(frame: bytes, text: str) -> None:
    assert reason(animated_png(frame=frame)) == text
    assert reason(animated_png(frame=frame), RECIPE._replace(pass_through=True)) == text


def test_a_wrong_checksum_in_an_animation_is_damage() -> None:
    data = bytearray(animated_png())
    data[data.find(b"fdAT") + 10] ^= 1
    assert reason(bytes(data)) == "damaged: its chunk fdAT is damaged"


def test_the_number_of_scans_is_limited() -> None:
    data = progressive()
    recipe = RECIPE._replace(max_jpeg_scans=scans(data))
    assert transform(data, recipe) == transform(data, RECIPE)
    text = f"too many scans: it has {scans(data)}, the limit is {scans(data) - 1}"
    assert reason(data, recipe._replace(max_jpeg_scans=scans(data) - 1)) == text


def test_bytes_that_look_like_a_scan_are_not_counted_beside_the_scans() -> None:
    data = with_comment(jpeg(), b"\xff\xda" * 1000)
    assert transform(data + b"\xff\xda" * 1000, RECIPE) == transform(jpeg(), RECIPE)
    data = with_comment(progressive(), b"\xff\xda" * 1000)
    assert transform(data + b"\xff\xda" * 1000, RECIPE) == transform(progressive(), RECIPE)


@pytest.mark.parametrize("data", [jpeg(), progressive(), grey_jpeg(), CMYK_JPEG, rotated_jpeg(6)])
def test_a_jpeg_with_nothing_in_its_scan_is_bad(data: bytes) -> None:
    at = data.find(b"\xff\xda")
    begin = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    empty = data[:begin] + b"\xff\xd9"
    assert reason(empty) == "damaged: its scan is empty"
    assert reason(empty, RECIPE._replace(pass_through=True)) == "damaged: its scan is empty"


@pytest.mark.parametrize(
    ("data", "is_usual"),
    [
        (jpeg(), True),
        (progressive(), True),
        (CMYK_JPEG, True),
        (png(), True),
        (animated_png(), False),
        (png()[:-1] + b"\0", False),
        (jpeg().replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11"), False),
        (progressive(4000, 3000), True),
        (progressive(6000, 4000), False),
    ],
)
def test_what_is_usual(data: bytes, *, is_usual: bool) -> None:
    (plan,) = plan_all([data], RECIPE)
    assert not isinstance(plan, BadImageError)
    assert plan.is_usual == is_usual


def test_earlier_manifests_stay_as_they_are() -> None:
    assert not {"max_jpeg_scans", "jpeg_check"} & RECIPE.settings().keys()
    changed = RECIPE._replace(max_jpeg_scans=100, jpeg_check="strict").settings()
    assert (changed["max_jpeg_scans"], changed["jpeg_check"]) == (100, "strict")


# --- bad images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "zero bytes long"),
        (bytes(1000), "not an image: nothing but zeros"),
        (b"<html><title>404", "not an image: neither JPEG nor PNG, it begins with b'<html><title'"),
        (b"GIF89a", "not an image: neither JPEG nor PNG, it begins with b'GIF89a'"),
        (jpeg()[:3], "truncated: it ends within the header"),
        (jpeg()[:100], "truncated: it ends within the header"),
        (png()[:20], "truncated: it ends within the header"),
        (jpeg()[:-2], "truncated: the end of the JPEG is missing"),
        (rotated_jpeg(3)[:-20], "truncated: the end of the JPEG is missing"),
        (png()[:-12], "truncated: the end of the PNG is missing"),
        (jpeg()[:2] + b"\xff\xda\x00\x02" + bytes(20), "damaged: it has a scan but no frame header"),
        (jpeg(16, 16).replace(b"\0\x10\0\x10\3", b"\0\x10\0\0\3"), "damaged: its header says 0 x 16 pixels"),
        (huge_png(90000, 90000), "too large: its header says 90000 x 90000 pixels, the limit is 100000000"),
        (encode(".png", pixels(3000, 1, 0)), "too long: 96000 x 32 pixels, a JPEG's side has at most 65500"),
    ],
)
def test_a_bad_image_has_a_reason(data: bytes, text: str) -> None:
    assert reason(data) == text


def test_an_image_that_enlarging_would_blow_up_is_too_large() -> None:
    recipe = RECIPE._replace(max_image_pixels=100_000)
    text = "too large: resized it would have 3200 x 32 pixels, the limit is 100000"
    assert reason(encode(".png", pixels(100, 1, 0)), recipe) == text


def test_the_pixel_limit_is_the_recipes() -> None:
    assert transform(jpeg(60, 60), RECIPE._replace(max_image_pixels=3600))
    assert reason(jpeg(60, 61), RECIPE._replace(max_image_pixels=3600)).startswith("too large: its header says 60 x 61")


def test_a_png_with_a_wrong_checksum_is_damaged() -> None:
    data = bytearray(png())
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)) == "damaged: it does not decode"


@pytest.mark.parametrize("kept_percent", range(0, 100, 7))
@pytest.mark.parametrize("data", [jpeg(200, 150), png(200, 150), rotated_jpeg(8, 200, 150), CMYK_JPEG])
def test_an_image_that_was_cut_is_never_packed(data: bytes, kept_percent: int) -> None:
    text = reason(data[: len(data) * kept_percent // 100])
    assert text.startswith(("truncated", "zero bytes", "not an image: neither"))


@given(st.sampled_from([jpeg(), png(), grey_jpeg(), CMYK_JPEG, rotated_jpeg(5)]), st.integers(0), st.integers(1, 20))
def test_any_damage_gives_an_image_or_a_reason(data: bytes, seed: int, bytes_changed: int) -> None:
    generator = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(bytes_changed):
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
    try:
        result, _ = transform(bytes(damaged), RECIPE._replace(max_image_pixels=1_000_000))
    except BadImageError as error:
        text = str(error)
    else:
        text = f"{min(decoded(result).shape[:2])} pixels"
    assert text.startswith(("32 pixels", "truncated", "damaged", "not an image", "too "))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_give_a_reason(data: bytes, begin: bytes) -> None:
    assert reason(begin + data)


# --- other recipes ---------------------------------------------------------------------------------------------------


def test_without_enlarging_small_images_keep_their_size() -> None:
    recipe = RECIPE._replace(short_side_pixels=200, enlarge=False)
    assert decoded(transform(jpeg(300, 150), recipe)[0]).shape == (150, 300, 3)
    assert decoded(transform(jpeg(300, 400), recipe)[0]).shape == (266, 200, 3)


@pytest.mark.parametrize("data", [jpeg(40, 30), grey_jpeg(), png(), CMYK_JPEG])
def test_one_channel_makes_grey_jpegs(data: bytes) -> None:
    result, _ = transform(data, RECIPE._replace(channels=1))
    assert inspect(bytes(result)).converted == "grey"


@pytest.mark.parametrize("data", [jpeg(40, 30), grey_jpeg(), png(), CMYK_JPEG, rotated_jpeg(6)])
def test_passing_through_changes_nothing(data: bytes) -> None:
    assert transform(data, RECIPE._replace(pass_through=True)) == (data, "")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes long"),
        (b"<html>", "not an image: neither JPEG nor PNG, it begins with b'<html>'"),
        (jpeg()[:-2], "truncated: the end of the JPEG is missing"),
        (png()[:-12], "truncated: the end of the PNG is missing"),
        (huge_png(60_000, 60_000), "too large: its header says 60000 x 60000 pixels, the limit is 10000000"),
    ],
)
def test_passing_through_refuses_what_is_no_image(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError) as caught:
        transform(data, RECIPE._replace(pass_through=True, max_image_pixels=10_000_000))
    assert str(caught.value) == reason


def test_a_header_that_does_not_say_what_the_data_holds_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    # OpenCV itself believes the header, so that only another reader of it could say otherwise.
    monkeypatch.setattr(image, "inspect", lambda _: Header(20, 10, ""))
    with pytest.raises(BadImageError) as caught:
        transform(jpeg(40, 30), RECIPE)
    assert str(caught.value) == "damaged: its header says 20 x 10 pixels, its data has 40 x 30"


def test_the_manifest_says_what_became_of_the_exif_orientation() -> None:
    assert RECIPE.settings()["exif_orientation"] == "applied"
    passed = RECIPE._replace(pass_through=True).settings()
    assert passed == {"pass_through": True, "max_image_pixels": RECIPE.max_image_pixels, "exif_orientation": "kept"}


def test_importing_starts_no_thread_that_only_spins() -> None:
    code = (
        "import os, sys, ansible.module_utils; ansible.module_utils.__path__.append(sys.argv[1]); "
        "import ansible.module_utils.imagenet_ops.pack.image; print(len(os.listdir('/proc/self/task')))"
    )
    utils = Path(__file__).resolve().parents[5] / "module_utils"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS")}
    command = [sys.executable, "-c", code, str(utils)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff\xd8" + b"\xff" * 30_000_000, "truncated: it ends within the header"),
        (b"\xff\xd8" + b"\xff\x01" * 15_000_000, "damaged: more than 100000 segments come before its picture"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 8_000_000, "damaged: more than 100000 segments come before its picture"),
        (png()[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 3_000_000, "damaged: more than 100000 chunks come before its end"),
    ],
)
def test_an_image_of_countless_pieces_takes_no_time(data: bytes, expected: str) -> None:
    began = time.process_time()
    assert reason(data) == expected
    assert time.process_time() - began < 5


def test_fill_bytes_before_a_marker_are_passed_over() -> None:
    whole = jpeg()
    assert transform(whole[:2] + b"\xff" * 500 + whole[2:], RECIPE) == transform(whole, RECIPE)
