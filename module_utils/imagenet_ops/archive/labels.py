"""Reads files with the class of each image of a flat archive; the first line shows the format.

* A synset list: a WNID a line, in ascending order of the image files' names. For ILSVRC2012's validation images that is
  ``imagenet_2012_validation_synset_labels.txt`` of the TensorFlow models repository, whose preprocessing script
  pairs its lines with ``ILSVRC2012_val_00000001.JPEG`` and so on.
* A CSV with the columns ``ImageId`` and ``PredictionString``, as Kaggle's ``LOC_val_solution.csv``: a file name without
  ``.JPEG``, and five words for each object, ``<wnid> <x_min> <y_min> <x_max> <y_max>``; all have the image's class.
* A CSV with the columns ``file`` and ``label``, for any data set.
"""

from __future__ import annotations

import codecs
import csv
import re
import unicodedata
from collections.abc import Mapping

from ansible.module_utils.imagenet_ops.core.errors import OpsError

# Kaggle's list of the training images has 1.3 million lines and 60 MB.
_LARGEST_FILE_BYTES = 1024 * 1024 * 1024
_KAGGLE = ("ImageId", "PredictionString")
_GENERIC = ("file", "label")
_WNID = re.compile(r"n\d{8}")
_OBJECT_WORDS = 5


def read_label_file(path: str) -> dict[str, str]:
    """Return the class of each image by its file name. Raises OpsError, with the line, for an invalid label."""
    lines = _lines(path)
    if not lines:
        raise _broken(path, "it has no labels")
    if _WNID.fullmatch(lines[0].strip()):
        return _synset_list(path, lines)
    return _table(path, lines)


def find_label(labels: Mapping[str, str], name: str) -> str | None:
    """Return the label of the image ``name``; None where there is none.

    A name that was typed on one system and unpacked on another may be the same text in another Unicode form.
    """
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((labels[form] for form in forms if form in labels), None)


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise _broken(path, f"it cannot be read ({error.strerror})") from error
    if len(content) > _LARGEST_FILE_BYTES:
        raise _broken(path, f"it has more than {_LARGEST_FILE_BYTES} bytes, which is too large for labels")
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = " but UTF-16" if is_utf_16 else ""
        raise _broken(path, f"it is not UTF-8 text{found} (byte {error.start})") from error


def _synset_list(path: str, lines: list[str]) -> dict[str, str]:
    labels = {}
    for number, line in enumerate(lines, start=1):
        wnid = line.strip()
        if not _WNID.fullmatch(wnid):
            raise _broken(path, f"line {number} is {wnid[:40]!r}, not a WordNet id such as n01440764")
        labels[f"ILSVRC2012_val_{number:08d}.JPEG"] = wnid
    return labels


def _table(path: str, lines: list[str]) -> dict[str, str]:
    rows = csv.reader(lines, strict=True)
    labels: dict[str, str] = {}
    try:
        header = [column.strip() for column in next(rows)]
        wanted = next((pair for pair in (_KAGGLE, _GENERIC) if set(pair) <= set(header)), None)
        if wanted is None:
            raise _broken(path, f"its first line is {lines[0][:60]!r}: neither a WordNet id nor a known CSV header")
        columns = [header.index(name) for name in wanted]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise _broken(path, f"line {rows.line_num} has {len(row)} columns, the header has {len(header)}")
            name, label = (row[column].strip() for column in columns)
            if wanted == _KAGGLE:
                name, label = f"{name}.JPEG", _class_of_objects(path, rows.line_num, label)
            if not name or not label:
                raise _broken(path, f"line {rows.line_num} has no file name or no label")
            if labels.setdefault(name, label) != label:
                raise _broken(path, f"line {rows.line_num} has another class for {name} than an earlier line")
    except csv.Error as error:
        raise _broken(path, f"line {rows.line_num} is not valid CSV ({error})") from error
    if not labels:
        raise _broken(path, "it has no labels")
    return labels


def _class_of_objects(path: str, line: int, objects: str) -> str:
    words = objects.split()
    classes = set(words[::_OBJECT_WORDS])
    if len(words) % _OBJECT_WORDS or len(classes) != 1:
        raise _broken(path, f"line {line} must have boxes of exactly one class")
    return classes.pop()


def _broken(path: str, why: str) -> OpsError:
    return OpsError(
        f"Labels {path}",
        why,
        "Use a list of WordNet ids, a CSV with ImageId,PredictionString, or a CSV with file,label",
    )
