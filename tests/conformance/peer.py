"""Answers for MXNet: runs in .venv-conformance, reads a line of JSON for each question, writes one with the answer.

One process serves all tests, for it takes seconds to import MXNet.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

mx: Any = importlib.import_module("mxnet")


def write(rec: str, records: list[str]) -> None:
    """Write ``records`` (hex) with MXNet's writer."""
    writer = mx.recordio.MXRecordIO(rec, "w")
    for record in records:
        writer.write(bytes.fromhex(record))
    writer.close()


def read(rec: str) -> list[str]:
    """Return the records of a file (hex)."""
    reader = mx.recordio.MXRecordIO(rec, "r")
    records = []
    while (record := reader.read()) is not None:
        records.append(record.hex())
    reader.close()
    return records


def write_images(rec: str, idx: str, images: list[tuple[int, Any, str]]) -> None:
    """Write image records of id, label (or labels) and image (hex) with their index."""
    writer = mx.recordio.MXIndexedRecordIO(idx, rec, "w")
    for record_id, label, image in images:
        header = mx.recordio.IRHeader(0, label, record_id, 0)
        writer.write_idx(record_id, mx.recordio.pack(header, bytes.fromhex(image)))
    writer.close()


def read_images(rec: str, idx: str) -> list[Any]:
    """Return key, flag, label, id, id2, image (hex) of each record, found by the index from the last to the first."""
    reader = mx.recordio.MXIndexedRecordIO(idx, rec, "r")
    images = []
    for key in reversed(reader.keys):
        header, image = mx.recordio.unpack(reader.read_idx(key))
        images.append([key, header.flag, float(header.label), header.id, header.id2, image.hex()])
    reader.close()
    return images[::-1]


def iterate(rec: str, idx: str, side: int) -> list[Any]:
    """Return label and pixels (RGB, base64) of each image that ImageRecordIter gives, cropped in the centre."""
    batches = mx.io.ImageRecordIter(
        path_imgrec=rec, path_imgidx=idx, data_shape=(3, side, side), batch_size=1, preprocess_threads=1, verbose=False
    )
    images = []
    for batch in batches:
        pixels = batch.data[0].asnumpy()[0].transpose(1, 2, 0)
        images.append([float(batch.label[0].asnumpy()[0]), base64.b64encode(pixels.astype("uint8").tobytes()).decode()])
    return images


QUESTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (write, read, write_images, read_images, iterate)
}


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what MXNet prints must not get between the answers
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(QUESTIONS[name](*arguments)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
