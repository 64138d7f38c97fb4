"""Reads a packed data set through MXNet's own ImageRecordIter, the reader that training uses.

Its C++ ends the whole process where it meets something that it does not expect, so each file is read in a process of
its own, and what that printed last is the reason. It needs an environment with MXNet 1.9.1, as role python_environment
makes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

from ansible.module_utils.imagenet_ops.core.concurrency import usable_processors
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset.manifest import RECORD_FOLDER, file_stems
from ansible.module_utils.imagenet_ops.dataset.verify import (
    checked_manifest,
    describe,
    open_text,
    read_labels,
    unreadable_files,
)
from ansible.module_utils.imagenet_ops.dataset.verify_formats import ADVICE
from ansible.module_utils.imagenet_ops.formats.lst import parse_list_line

# Every image is decoded and brought to this many pixels a side: they come in all sizes, and a batch has one.
_SIDE_PIXELS = 32
_BATCH_RECORDS = 256
_SHOWN_CHARACTERS = 500


def read_with_mxnet(root: str, dataset_version: str | None) -> dict[str, Any]:
    """Read every record of the data set in ``root`` with MXNet and return the result of the module recordio_verify.

    The number of records and the label of each must be those of the lists and of the manifest, whose version
    ``dataset_version``, if given, must be. Raises OpsError where MXNet gives others, or cannot read on.
    """
    if importlib.util.find_spec("mxnet") is None:
        raise OpsError(
            "MXNet's reader",
            f"{sys.executable} has no mxnet",
            "Run the module with the Python of an environment that has MXNet 1.9.1, as role python_environment makes "
            "it with python_environment_purpose=mxnet",
        )
    with unreadable_files(root):
        manifest = checked_manifest(root, dataset_version, full=False, formats=[RECORD_FOLDER])
        read_labels(root, manifest)
        for name, split in manifest.splits.items():
            stems = file_stems(name, manifest.settings.get("shards", 1))
            records = sum(_read_file(os.path.join(root, RECORD_FOLDER, stem)) for stem in stems)
            if records != split.records:
                why = f"MXNet reads {records} records, the manifest says {split.records}"
                raise OpsError(f"Split {name} in {root}", why, ADVICE)
    return describe(manifest, sum(split.records for split in manifest.splits.values()), [RECORD_FOLDER])


def _read_file(stem: str) -> int:
    """Return how many records MXNet reads from ``<stem>.rec``, in a process of its own."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    with tempfile.TemporaryFile() as printed, receiver:
        process = fork.Process(target=_answer, args=(stem, sender, printed))
        process.start()
        sender.close()
        try:
            answer: int | str = receiver.recv()
        except EOFError:
            answer = ""
        process.join()
        if isinstance(answer, int):
            return answer
        why = answer or f"MXNet's reader {_end(process.exitcode)}{_last_words(printed)}"
    raise OpsError(f"Record file {stem}.rec", why, f"recordio_verify with verify=full names the byte. {ADVICE}")


def _answer(stem: str, sender: Connection, printed: BinaryIO) -> None:
    """Send the number of records, or how they differ from the list; runs in the process of its own."""
    for descriptor in (1, 2):
        os.dup2(printed.fileno(), descriptor)
    sys.stdout = sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115 (it lives as long as the process)
    with open_text(f"{stem}.idx") as idx:
        indexed = sum(1 for _ in idx)
    with open_text(f"{stem}.lst") as lst:
        sender.send(_compare(_labels(stem, min(indexed, _BATCH_RECORDS)), lst, f"{stem}.lst"))


def _labels(stem: str, batch_size: int) -> Iterator[float]:
    """Yield the label of each record as MXNet reads it, after it has decoded the image.

    MXNet refuses a ``batch_size`` beyond the number of records; 0 is for a shard that has none.
    """
    if not batch_size:
        return
    mxnet: Any = importlib.import_module("mxnet")
    batches = mxnet.io.ImageRecordIter(
        path_imgrec=f"{stem}.rec",
        path_imgidx=f"{stem}.idx",
        data_shape=(3, _SIDE_PIXELS, _SIDE_PIXELS),
        resize=_SIDE_PIXELS,
        batch_size=batch_size,
        preprocess_threads=usable_processors(),
        verbose=False,
    )
    for batch in batches:
        # The last batch is filled up with records of the beginning.
        yield from batch.label[0].asnumpy()[: batch_size - batch.pad].tolist()


def _compare(labels: Iterable[float], lst: Iterable[str], lst_name: str) -> int | str:
    """Return how many ``labels`` there are, or how they differ from those of the lines of the list."""
    place = -1
    for place, (label, text) in enumerate(itertools.zip_longest(labels, lst)):
        if label is None or text is None:
            few, many = (lst_name, "MXNet") if text is None else ("MXNet", lst_name)
            return f"{few} has {place} records, {many} has more"
        line = parse_list_line(text, f"File {lst_name}, line {place + 1}")
        if label != line.label:
            return f"MXNet reads the label {label:g} of record {place}, {lst_name} says {line.label:g} ({line.path})"
    return place + 1


def _end(exitcode: int | None) -> str:
    return f"was ended by {signal.Signals(-exitcode).name}" if exitcode and exitcode < 0 else f"ended with {exitcode}"


def _last_words(printed: BinaryIO) -> str:
    """Return the last line that the process printed, as the end of a sentence."""
    printed.seek(0)
    lines = printed.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f", and the last that it said is {last[-_SHOWN_CHARACTERS:]!r}" if last else " and said nothing"
