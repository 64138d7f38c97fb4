from __future__ import annotations

import os

import pytest
from ansible.module_utils.imagenet_ops.pack.jpeg_warnings import CaughtStandardError, damage

PREMATURE = "Corrupt JPEG data: premature end of data segment"
EXTRA = "Corrupt JPEG data: 95 extraneous bytes before marker 0xd9"


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ("", "", ""),
        (f"hello\n{PREMATURE}\n", PREMATURE, PREMATURE),
        (f"{EXTRA}\n", "", EXTRA),
        ("Warning: unknown JFIF revision number 3.01\n", "", ""),
    ],
)
def test_which_warning_makes_an_image_bad(text: str, lenient: str, strict: str) -> None:
    assert (damage(text, "lenient"), damage(text, "strict")) == (lenient, strict)


def test_what_libjpeg_has_not_written_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with CaughtStandardError() as caught:
        assert caught.length() == 0
        os.write(2, f"hello\n{EXTRA}\n".encode())
        assert caught.length() == len(f"hello\n{EXTRA}\n")
        assert caught.take() == f"hello\n{EXTRA}\n"
        assert caught.length() == 0
        os.write(2, b"world\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "hello\nworld\nafter\n"
