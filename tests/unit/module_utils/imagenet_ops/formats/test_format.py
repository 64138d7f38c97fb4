from __future__ import annotations

import pytest
from ansible.module_utils.imagenet_ops.formats.format import Sample, content_lines, entry_of, utf8_refusal

# SHA-256 of "abc", of FIPS 180-2.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("image", [b"abc", memoryview(b"abc")])
def test_an_entry_has_the_length_and_the_hash_of_the_image(image: bytes | memoryview) -> None:
    assert entry_of(Sample(7, 2, "n01440764/a.JPEG", image)) == (7, 2, "n01440764/a.JPEG", 3, ABC)


def test_the_content_is_a_line_for_each_record_in_order() -> None:
    samples = [Sample(7, 2, "b/é.JPEG", b"abc"), Sample(1, 0, "a/1", b"abc")]
    assert b"".join(content_lines(map(entry_of, samples))) == f"b/é.JPEG\t2\t{ABC}\na/1\t0\t{ABC}\n".encode()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], ""),
        (["a/é", "b/\U0001f600"], ""),
        (["a/\udce9", "b/\udcff"], r"the name 'a/\udce9' is not UTF-8, and names in tar are"),
        (["a/1", "b/1\udcff"], r"the name 'b/1\udcff' is not UTF-8, and names in tar are"),
    ],
)
def test_names_are_refused_where_they_are_not_utf8(names: list[str], reason: str) -> None:
    assert utf8_refusal(names, "tar") == reason
