"""The images of a split with their ids, labels and order: the .lst file, as im2rec.py makes it.

``im2rec.py --list --recursive`` (mxnet 1.9.1) walks the class directories and their files in sorted order, numbers the
images in that order, labels them by the index of their directory, and shuffles with Python's generator from seed
100. It also labels a flat directory 0 throughout, counts a folder within a class as one more class, and shifts all
labels where a class is missing. Here such a tree is an error, and all splits share one list of classes.

A set of 14 million images must fit in memory: names are kept in one string, numbers in arrays.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import unicodedata
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from ansible.module_utils.imagenet_ops.archive.images import (
    Beside,
    LeftOutFiles,
    has_image_suffix,
    is_class_name,
    is_desktop_file,
)
from ansible.module_utils.imagenet_ops.core.errors import SAMPLES, OpsError

_LINES_AT_ONCE = 1000
# What the .lst reader of im2rec.py would split or strip, and what is not UTF-8.
_UNFIT_NAME = re.compile(r"^\s|[\t\n\r]|\s$|[\ud800-\udfff]")


class LeftOut(TypedDict):
    """How many things were left out, and the names of a few."""

    count: int
    samples: list[str]


def left_out_files(*found: Beside) -> dict[str, LeftOut]:
    """Return what the manifest says of the files that were ``found`` beside the images; nothing for none."""
    count = sum(beside.files for beside in found)
    samples = sorted(sample for beside in found for sample in beside.samples)[:SAMPLES]
    return {"files": LeftOut(count=count, samples=samples)} if count else {}


class ImageNames:
    """The images of a split by class, in sorted order; row n is the n-th image and its id.

    ``where`` is their tree or archive. ``classes`` are the sorted names of the classes, empty ones too.
    ``sizes`` has each row's length in bytes, ``names_digest`` is a SHA-256 over all paths. ``left_out`` is what the
    manifest says of what is no record: a number and a few names for each kind.
    """

    def __init__(self, where: str, images_of_classes: Iterable[tuple[str, list[tuple[str, int]]]]) -> None:
        """Take each class, in sorted order, with the sorted names and the sizes of its images.

        Raises OpsError for a name that a .lst cannot hold.
        """
        self.where = where
        self.left_out: dict[str, LeftOut] = {}
        self.classes: list[str] = []
        self.sizes = array("Q")
        self._class_ends = array("Q")
        self._name_ends = array("Q")
        digest = hashlib.sha256()
        names: list[bytes] = []
        end = 0
        for name, files in images_of_classes:
            self._refuse_unfit(name, files)
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
        """Return the path of the image in ``row``, below its split."""
        begin = self._name_ends[row - 1] if row else 0
        return f"{self.classes[self.class_of(row)]}/{self._names[begin : self._name_ends[row]].decode()}"

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class directory."""
        begins = [0, *self._class_ends]
        return {name: end - begin for name, begin, end in zip(self.classes, begins, self._class_ends)}

    def _refuse_unfit(self, class_name: str, files: list[tuple[str, int]]) -> None:
        unfit = [name for name in (class_name, *(name for name, _ in files)) if _UNFIT_NAME.search(name)]
        if unfit:
            raise OpsError(
                f"Images of {self.where}",
                f"a .lst cannot have the name {unfit[0]!r} in {class_name!r}: no tabs, line breaks, white space at the"
                " ends, or bytes that are not UTF-8",
                "Rename the file",
            )


class Tree(ImageNames):
    """The images of ``directory``/<class>/.

    ``beside`` has the files that are not images by their names.
    """

    def __init__(self, directory: str) -> None:
        """List the directories. Raises OpsError for what im2rec.py would label wrongly."""
        self.directory = directory
        self._left_out = LeftOutFiles()
        super().__init__(directory, self._read())
        self.beside = Beside((), self._left_out.count, self._left_out.samples)

    def _read(self) -> Iterator[tuple[str, list[tuple[str, int]]]]:
        """Yield each class and the names and sizes of its images."""
        try:
            for name in self._class_directories():
                yield name, self._images_of(name)
        except OSError as error:
            raise OpsError(
                f"Tree {self.directory}",
                f"{error.filename} cannot be read ({error.strerror})",
                "Lay out the images as <class>/<image> there, readable for this user",
            ) from error

    def _class_directories(self) -> list[str]:
        directories = []
        images = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    if is_class_name(entry.name):
                        directories.append(entry.name)
                    else:
                        self._refuse_images_within(entry.path, "whose name cannot be a class")
                elif _is_image(entry.name):
                    images.append(entry.name)
                else:
                    self._left_out.add(entry.name)
        if images:
            raise OpsError(
                f"Tree {self.directory}",
                f"{len(images)} images are not in a class directory (such as {min(images)}), so their class is unknown",
                "Move each into the directory of its class; imagenet_layout does that for the validation images",
            )
        return sorted(directories)

    def _images_of(self, class_name: str) -> list[tuple[str, int]]:
        """Return names and sizes of a class's images, sorted by name."""
        directory = os.path.join(self.directory, class_name)
        images = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    self._refuse_images_within(
                        entry.path, "a directory within a class, which would become another class"
                    )
                elif _is_image(entry.name):
                    if not entry.is_file():
                        raise self._no_file(entry)
                    images.append((entry.name, entry.stat().st_size))
                else:
                    self._left_out.add(f"{class_name}/{entry.name}")
        return sorted(images)

    def _no_file(self, entry: os.DirEntry[str]) -> OpsError:
        kind = "a symbolic link to nothing" if entry.is_symlink() else "no file"
        return OpsError(f"Tree {self.directory}", f"{entry.path} is {kind}", "Replace it by the image, or delete it")

    def _refuse_images_within(self, directory: str, what: str) -> None:
        for path, _, files in os.walk(directory, followlinks=True):
            for name in files:
                self._left_out.add(os.path.relpath(os.path.join(path, name), self.directory))
            if any(_is_image(name) for name in files):
                raise OpsError(
                    f"Tree {self.directory}",
                    f"there are images in {path}, {what}",
                    "Move them into the directory of their class, or away",
                )


class Listing:
    """The images of a split with their labels, in the order of the records.

    ``order`` has, for each record, the row of its image, which is its id.
    """

    def __init__(self, names: ImageNames, classes: Sequence[str], shuffle_seed: int | None) -> None:
        """Label by the place in ``classes`` and shuffle from ``shuffle_seed``, or keep the sorted order if it is None.

        Raises OpsError where ``names`` has a class that is not in ``classes``.
        """
        self.names = names
        self.classes = classes
        index_of = {name: index for index, name in enumerate(classes)}
        refuse_unknown_classes(names.where, names.classes, classes)
        self._indices = [index_of[name] for name in names.classes]
        self.order = array("I", range(len(names)))
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(self.order)  # noqa: S311 (im2rec.py's order, not a secret)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.order)

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """What the manifest says of what is no record."""
        return self.names.left_out

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class."""
        return dict.fromkeys(self.classes, 0) | self.names.counts()

    def key(self, places: int) -> dict[str, Any]:
        """Return what the first ``places`` records depend on: all names, and the sizes of their files."""
        return {"names": self.names.names_digest, "sizes": self.sizes_digest(places)}

    def label(self, row: int) -> int:
        """Return the class index of the image in ``row``."""
        return self._indices[self.names.class_of(row)]

    def sizes_digest(self, places: int) -> str:
        """Return a SHA-256 over the sizes of the files of the first ``places`` records, which shows a changed one."""
        rows = np.frombuffer(self.order, np.uint32)[:places]
        return hashlib.sha256(np.frombuffer(self.names.sizes, np.uint64)[rows].tobytes()).hexdigest()

    def lines(self, begin: int, stop: int, left_out: Collection[str]) -> Iterator[bytes]:
        """Yield the lines of a .lst with the records from place ``begin`` to before ``stop``, many at a time.

        Images whose paths are in ``left_out`` get no line.
        """
        for first in range(begin, stop, _LINES_AT_ONCE):
            lines = []
            for row in self.order[first : min(first + _LINES_AT_ONCE, stop)]:
                path = self.names.path(row)
                if path not in left_out:
                    lines.append(f"{row}\t{self.label(row):f}\t{path}\n")
            yield "".join(lines).encode()


def refuse_unknown_classes(where: str, found: Iterable[str], classes: Collection[str]) -> None:
    """Raise OpsError if a class ``found`` in tree or archive ``where`` is not one of ``classes``."""
    known = set(classes)
    unknown = [name for name in found if name not in known]
    if unknown:
        forms = {_form(name): name for name in classes}
        alike = [f"{name!a} is {forms[_form(name)]!a} there" for name in unknown if _form(name) in forms]
        form = f" (in another Unicode form: {_some(alike)})" if alike else ""
        raise OpsError(
            f"Images of {where}",
            f"{len(unknown)} of their classes are unknown: {_some(unknown)}{form}",
            "Move them away, or check the list of classes (label_order, the devkit, or the first split)",
        )


def choose_classes(first: Mapping[str, int], where: str, known: Sequence[str] | None) -> list[str]:
    """Return the classes in the order of their labels.

    They are the ``known`` ones or, where that is None, those of the ``first`` split (the number of images of each) in
    sorted order. A class without an image is an error then, because im2rec.py would skip it and shift all
    following labels, and so is one that comes twice in different Unicode forms; ``where`` is the location of the first
    split. Raises OpsError.
    """
    if known is not None:
        return list(known)
    empty = [name for name, count in first.items() if count == 0]
    if empty:
        raise OpsError(
            f"Images of {where}",
            f"{len(empty)} classes have no image: {_some(empty)}; the labels of the data set come from this split",
            "Add images or delete the directories, or set devkit or label_order",
        )
    forms: dict[str, str] = {}
    for name in sorted(first):
        other = forms.setdefault(_form(name), name)
        if other != name:
            raise OpsError(
                f"Images of {where}",
                f"the classes {other!a} and {name!a} differ in their Unicode form alone, and would get two labels",
                "Give both directories the same name, or list both classes in label_order",
            )
    return sorted(first)


def read_label_order(path: str) -> list[str]:
    """Return the classes that the file at ``path`` lists, a line for each, in the order of their labels.

    Text after a tab is a description, and so is text after a space if the line has no tab, as in the common lists of
    ImageNet's synsets. Raises OpsError for a duplicate class, or if there is none at all.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 text (byte {error.start})"
        raise OpsError(f"Label order {path}", why, "Save it as UTF-8 and rerun") from error
    except OSError as error:
        raise OpsError(f"Label order {path}", f"it cannot be read ({error.strerror})", "Use a text file") from error
    classes = [line.split("\t")[0] if "\t" in line else line.split()[0] for line in lines if line.strip()]
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice or not classes:
        why = f"{len(twice)} classes are listed more than once: {_some(twice)}" if twice else "it lists no class"
        raise OpsError(f"Label order {path}", why, "It must have one line for each class")
    return classes


@dataclass(frozen=True)
class Expected:
    """How many images a split must have in all, and each class at least and at most; 0 means that it is not checked."""

    images: int = 0
    class_images_min: int = 0
    class_images_max: int = 0

    def check(self, split: str, where: str, found: Mapping[str, int], classes: Sequence[str]) -> None:
        """Compare the numbers of images ``found`` in each class. Raises OpsError with the names of some ``classes``."""
        least, most = self.class_images_min, self.class_images_max
        counts = {**dict.fromkeys(classes, 0), **found}
        odd = [
            f"{name} ({count})"
            for name, count in counts.items()
            if (least and count < least) or (most and count > most)
        ]
        total = sum(counts.values())
        faults = []
        if self.images and total != self.images:
            faults.append(f"it has {total} images, expected {self.images}")
        if odd:
            bounds = str(least) if least == most else f"{least} to {most}" if most else f"at least {least}"
            faults.append(f"{len(odd)} classes do not have {bounds} images: {_some(odd)}")
        if faults:
            raise OpsError(
                f"Split {split} in {where}",
                "; ".join(faults),
                "Fetch or lay out the archive again, or correct the expected numbers; no record was written",
            )


def _form(name: str) -> str:
    """Return ``name`` in the Unicode form that texts have in common."""
    return unicodedata.normalize("NFC", name)


def _is_image(name: str) -> bool:
    return has_image_suffix(name) and not name.startswith(".") and not is_desktop_file(name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SAMPLES]) + (", ..." if len(names) > SAMPLES else "")
