"""Labels by name from every form that people have; what is no label is named with its line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.archive import labels as labels_module
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules, labels_for
from ansible.module_utils.imagenet_ops.archive.labels import read_label_file
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from hypothesis import given
from hypothesis import strategies as st

FIRST, SECOND = "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"


@pytest.mark.parametrize(
    "content",
    [
        "n01751748\nn09193705\n",
        "n01751748\r\nn09193705",
        (
            "ImageId,PredictionString\n"
            "ILSVRC2012_val_00000002,n09193705 85 1 499 272 n09193705 131 0 499 254 \n"
            "ILSVRC2012_val_00000001,n01751748 9 14 498 374\n"
        ),
        f"\ufefffile,label\n{SECOND},n09193705\n\n{FIRST},n01751748\n",
        f"label,width,file\nn01751748,10,{FIRST}\nn09193705,20,{SECOND}\n",
    ],
    ids=["synset list", "of Windows", "Kaggle", "file and label", "with other columns"],
)
def test_every_form(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content.encode())
    expected = {FIRST: "n01751748", SECOND: "n09193705"}
    assert read_label_file(str(path)) == expected
    assert labels_for(ArchiveRules("validation", "labelled_files", labels=str(path))) == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has no labels"),
        (b"file,label\n", "it has no labels"),
        (b"n01751748\ntench\n", "line 2 is 'tench', not a WordNet id such as n01440764"),
        (b"n01751748\n\nn01751748\n", "line 2 is '', not a WordNet id"),
        (b"name,class\na,b\n", "its first line is 'name,class': neither a WordNet id nor a known CSV header"),
        (b"file,label\na.jpg,x\nb.jpg\n", "line 3 has 1 columns, the header has 2"),
        (b"file,label\na.jpg,x\n,y\n", "line 3 has no file name or no label"),
        (b"file,label\na.jpg,x\na.jpg,y\n", "line 3 has another class for a.jpg than an earlier line"),
        (b'file,label\n"a.jpg"x,y\n', "line 2 is not valid CSV"),
        (b"ImageId,PredictionString\na,n01751748 1 2 3\n", "line 2 must have boxes of exactly one class"),
        (
            b"ImageId,PredictionString\na,n01751748 1 2 3 4 n09193705 1 2 3 4\n",
            "line 2 must have boxes of exactly one class",
        ),
        (b"ImageId,PredictionString\na,\n", "line 2 must have boxes of exactly one class"),
        (b"file,label\n\xff,x\n", "it is not UTF-8 text (byte 11)"),
        ("file,label\n1.png,x\n".encode("utf-16"), "it is not UTF-8 text but UTF-16 (byte 0)"),
    ],
)
def test_what_is_no_label(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(OpsError) as caught:
        read_label_file(str(path))
    assert str(caught.value).startswith(f"Labels {path}: {why}")
    assert str(caught.value).endswith("or a CSV with file,label")


def test_files_that_cannot_be_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpsError, match=r"it cannot be read \(No such file or directory\)"):
        read_label_file(str(tmp_path / "none"))
    monkeypatch.setattr(labels_module, "_LARGEST_FILE_BYTES", 10)
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(OpsError, match="it has more than 10 bytes, which is too large for labels"):
        read_label_file(str(tmp_path / "long"))


_PLAIN = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters=" ,\"'._-"), min_size=1).filter(
    lambda text: text == text.strip()
)


@given(st.dictionaries(_PLAIN, _PLAIN, min_size=1))
def test_any_table(tmp_path_factory: pytest.TempPathFactory, labels: dict[str, str]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("file", "label"), *labels.items()])
    path = tmp_path_factory.getbasetemp() / "labels.csv"
    path.write_bytes(buffer.getvalue().encode())
    assert read_label_file(str(path)) == labels
