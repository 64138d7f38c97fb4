"""Which images there are, under which id and label, and in which order: the .lst file, made as im2rec.py makes it.

``im2rec.py --list --recursive`` (mxnet 1.9.1) walks the class directories and their files in sorted order, numbers the
images as it meets them, labels them by the index of their directory, and shuffles with Python's generator from seed
100. It also labels a flat directory 0 throughout, counts a folder within a class as one more class, and shifts all
labels where a class is missing. Here a tree that would do so is an error, and all splits share one list of classes.

A set of 14 million images must fit in memory: names are kept in one string, numbers in arrays.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ansible.module_utils.imagenet_ops.errors import OpsError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")  # im2rec.py --exts
SAMPLES = 5  # how many names an error or a warning shows

_LINES_AT_ONCE = 10_000
# What im2rec.py's reader of the .lst would split or strip, and what is not UTF-8.
_UNFIT_NAME = re.compile(r"^\s|[\t\n\r]|\s$|[\ud800-\udfff]")


class ListLine(NamedTuple):
    """A line of a .lst: the image's id, its label and its path below the split's directory."""

    record_id: int
    label: float
    path: str


class Tree:
    """The images of ``directory``/<class>/, in sorted order; row n is the n-th image and its id.

    ``classes`` are the sorted names of the class directories, empty ones too. ``sizes`` has each row's length in
    bytes, ``names_digest`` is a SHA-256 over all paths. ``ignored`` counts the files that are no images by name,
    ``ignored_samples`` names a few of them.
    """

    def __init__(self, directory: str) -> None:
        """Read the directories. Raises OpsError for what im2rec.py would label wrongly, naming it."""
        self.directory = directory
        self.classes: list[str] = []
        self.ignored = 0
        self.ignored_samples: list[str] = []
        self.sizes = array("Q")
        self._class_ends = array("Q")
        self._name_ends = array("Q")
        digest = hashlib.sha256()
        names: list[bytes] = []
        end = 0
        for name, files in self._read():
            digest.update("".join(f"{name}/{file}\n" for file, _ in files).encode())
            self.sizes.extend(size for _, size in files)
            encoded = [file.encode() for file, _ in files]
            for file_name in encoded:
                end += len(file_name)
                self._name_ends.append(end)
            names.append(b"".join(encoded))
            self.classes.append(name)
            self._class_ends.append(len(self._name_ends))
        self._names = b"".join(names)
        self.names_digest = digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._name_ends)

    def class_of(self, row: int) -> int:
        """Return the index in ``classes`` of the image in ``row``."""
        return bisect_right(self._class_ends, row)

    def path(self, row: int) -> str:
        """Return the path of the image in ``row``, below ``directory``."""
        begin = self._name_ends[row - 1] if row else 0
        return f"{self.classes[self.class_of(row)]}/{self._names[begin : self._name_ends[row]].decode()}"

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class directory."""
        begins = [0, *self._class_ends]
        return {name: end - begin for name, begin, end in zip(self.classes, begins, self._class_ends)}

    def _read(self) -> Iterator[tuple[str, list[tuple[str, int]]]]:
        """Yield each class and the names and sizes of its images."""
        try:
            for name in self._class_directories():
                yield name, self._images_of(name)
        except OSError as error:
            raise OpsError(
                f"Tree {self.directory}",
                f"{error.filename} cannot be read ({error.strerror})",
                "Lay the images out as <class>/<image> there, readable for this user",
            ) from error

    def _class_directories(self) -> list[str]:
        directories = []
        images = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    directories.append(entry.name)
                elif _is_image(entry.name):
                    images.append(entry.name)
                else:
                    self._ignore(entry.name)
        if images:
            raise OpsError(
                f"Tree {self.directory}",
                f"{len(images)} images lie in it directly (such as {min(images)}), so their class is not known",
                "Move each into the directory of its class; imagenet_layout does it for the validation images",
            )
        return sorted(directories)

    def _images_of(self, class_name: str) -> list[tuple[str, int]]:
        """Return names and sizes of a class's images, sorted by name."""
        directory = os.path.join(self.directory, class_name)
        images = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    self._refuse_images_within(entry.path)
                elif _is_image(entry.name) and entry.is_file():
                    images.append((entry.name, entry.stat().st_size))
                else:
                    self._ignore(f"{class_name}/{entry.name}")
        unfit = [name for name in (class_name, *(name for name, _ in images)) if _UNFIT_NAME.search(name)]
        if unfit:
            raise OpsError(
                f"Tree {self.directory}",
                f"a .lst cannot hold the name {unfit[0]!r} in {class_name!r}: tabs, line ends, white space at the ends"
                " and bytes that are not UTF-8 are not possible there",
                "Rename it",
            )
        return sorted(images)

    def _refuse_images_within(self, directory: str) -> None:
        for path, _, files in os.walk(directory, followlinks=True):
            if any(_is_image(name) for name in files):
                raise OpsError(
                    f"Tree {self.directory}",
                    f"there are images in {path}, a directory within a class, which would count as one more class",
                    "Move them into the directory of their class, or away",
                )

    def _ignore(self, path: str) -> None:
        self.ignored += 1
        if len(self.ignored_samples) < SAMPLES:
            self.ignored_samples.append(os.fsencode(path).decode(errors="backslashreplace"))


class Listing:
    """The images of a tree with their labels, in the order of the records.

    ``order`` has, for each record, the row of its image, which is its id.
    """

    def __init__(self, tree: Tree, classes: Sequence[str], shuffle_seed: int | None) -> None:
        """Label by the place in ``classes`` and shuffle from ``shuffle_seed``, or keep the sorted order if it is None.

        Raises OpsError where ``tree`` has a class that is not in ``classes``.
        """
        self.tree = tree
        self.classes = classes
        index_of = {name: index for index, name in enumerate(classes)}
        unknown = [name for name in tree.classes if name not in index_of]
        if unknown:
            raise OpsError(
                f"Tree {tree.directory}",
                f"{len(unknown)} of its directories are no known class: {_some(unknown)}",
                "Move them away, or see that the classes come from the right place (the devkit, else the first split)",
            )
        self._indices = [index_of[name] for name in tree.classes]
        self.order = array("I", range(len(tree)))
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(self.order)  # noqa: S311 (im2rec.py's order, not a secret)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.order)

    def label(self, row: int) -> int:
        """Return the class index of the image in ``row``."""
        return self._indices[self.tree.class_of(row)]

    def sizes_digest(self, places: int) -> str:
        """Return a SHA-256 over the sizes of the files of the first ``places`` records: whether one of them changed."""
        rows = np.frombuffer(self.order, np.uint32)[:places]
        return hashlib.sha256(np.frombuffer(self.tree.sizes, np.uint64)[rows].tobytes()).hexdigest()

    def lines(self, left_out: Collection[str]) -> Iterator[bytes]:
        """Yield the text of the .lst, many lines at a time, without the images whose paths are ``left_out``."""
        for begin in range(0, len(self.order), _LINES_AT_ONCE):
            lines = []
            for row in self.order[begin : begin + _LINES_AT_ONCE]:
                path = self.tree.path(row)
                if path not in left_out:
                    lines.append(f"{row}\t{self.label(row):f}\t{path}\n")
            yield "".join(lines).encode()


def choose_classes(first: Tree, known: Collection[str] | None) -> list[str]:
    """Return the classes in the order of their labels: sorted.

    They are the ``known`` ones (from a devkit) or, where that is None, the directories of the ``first`` split. An empty
    directory there is an error, because im2rec.py would skip it and shift the labels of all that follow.
    """
    if known is not None:
        return sorted(known)
    empty = [name for name, count in first.counts().items() if count == 0]
    if empty:
        raise OpsError(
            f"Tree {first.directory}",
            f"{len(empty)} of its directories hold no image: {_some(empty)}; the data set's labels come from them",
            "Fill or remove them, or name the devkit that lists the classes",
        )
    return first.classes


def check_counts(split: str, listing: Listing, classes: Sequence[str], total: int, least: int, most: int) -> None:
    """Compare the images of ``listing`` with what is expected; 0 means not checked.

    ``total`` images, and ``least`` to ``most`` in each of ``classes``. Raises OpsError with the names of some classes.
    """
    counts = {**dict.fromkeys(classes, 0), **listing.tree.counts()}
    odd = [
        f"{name} ({count})" for name, count in counts.items() if (least and count < least) or (most and count > most)
    ]
    faults = []
    if total and len(listing) != total:
        faults.append(f"{len(listing)} images are there, {total} are expected")
    if odd:
        bounds = str(least) if least == most else f"{least} to {most}" if most else f"at least {least}"
        faults.append(f"{len(odd)} classes have not {bounds} images: {_some(odd)}")
    if faults:
        raise OpsError(
            f"Split {split} in {listing.tree.directory}",
            "; ".join(faults),
            "Lay the archive out again (nothing was packed), or correct the expected numbers",
        )


def parse_list_line(line: str, where: str) -> ListLine:
    """Return what a ``line`` of a .lst says; raises OpsError naming ``where`` (file and line) if it is not one."""
    fields = line.rstrip("\n").split("\t")
    try:
        record_id, label, path = fields
        return ListLine(int(record_id), float(label), path)
    except ValueError as error:
        raise OpsError(
            where,
            f"it does not hold an id, a label and a path: {line[:80]!r}",
            "The file is damaged; restore it from the backup or pack the data set again",
        ) from error


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SAMPLES]) + (", ..." if len(names) > SAMPLES else "")
