from __future__ import annotations

import json

import pytest
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample, classes_json, content_lines, entry_of
from ansible.module_utils.imagenet_ops.formats.mds import MDS
from ansible.module_utils.imagenet_ops.formats.webdataset import WEBDATASET

# SHA-256 of "abc", of FIPS 180-2.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("image", [b"abc", memoryview(b"abc")])
def test_an_entry_has_the_length_and_the_hash_of_the_image(image: bytes | memoryview) -> None:
    assert entry_of(Sample(7, 2, "n01440764/a.JPEG", image)) == (7, 2, "n01440764/a.JPEG", 3, ABC)


def test_the_content_is_a_line_for_each_record_in_order() -> None:
    samples = [Sample(7, 2, "b/é.JPEG", b"abc"), Sample(1, 0, "a/1", b"abc")]
    assert b"".join(content_lines(map(entry_of, samples))) == f"b/é.JPEG\t2\t{ABC}\na/1\t0\t{ABC}\n".encode()


def test_what_the_labels_mean_is_the_same_file_in_every_format() -> None:
    info = DatasetInfo("pets", ["n2", "n1"], {"n1": "dog"})
    assert json.loads(classes_json(info)) == {
        "name": "pets",
        "classes": [{"label": 0, "name": "n2", "words": ""}, {"label": 1, "name": "n1", "words": "dog"}],
    }
    assert MDS.index_files(info, {})["classes.json"] == WEBDATASET.index_files(info, {})["classes.json"]
