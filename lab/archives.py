"""The archives that the lab's origin serves: those of a folder, or synthetic ones of the same shape.

The synthetic set is small and has what the real one has: a tar of tars whose image numbers are neither of one width nor
consecutive, a PNG named .JPEG, CMYK and grey JPEGs; a validation tar that is not in the order of its names; and a
development kit with a real ``meta.mat``, whose IDs are in no order of WNIDs and which has inner nodes too. It is the
same to the byte wherever the pinned packages are the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ansible.module_utils
import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

_MODULE_UTILS = str(Path(__file__).resolve().parent.parent / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # Where Ansible puts the project's code on a host.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils.imagenet_ops.archive.devkit import read_validation_labels  # noqa: E402 (needs the path above)

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_FILES = {"train": TRAIN, "validation": VALIDATION, "devkit": DEVKIT}
# Where the facts of a folder are kept; beside the synthetic archives, never in a folder of the user's.
_FACTS = "archives.json"
# Raised when the synthetic archives change, so that old ones are not taken for new ones.
_VERSION = 1

# Classes of the real set, so that a reader recognises them.
_WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n01484850": "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    "n01491361": "tiger shark, Galeocerdo cuvieri",
    "n01494475": "hammerhead, hammerhead shark",
    "n01496331": "electric ray, crampfish, numbfish, torpedo",
    "n01498041": "stingray",
    "n01514668": "cock",
    "n01514859": "hen",
    "n01518878": "ostrich, Struthio camelus",
    "n01530575": "brambling, Fringilla montifringilla",
    "n01531178": "goldfinch, Carduelis carduelis",
    "n01532829": "house finch, linnet, Carpodacus mexicanus",
    "n01534433": "junco, snowbird",
    "n01537544": "indigo bunting, indigo finch, indigo bird, Passerina cyanea",
    "n01739381": "vine snake",
    "n02077923": "sea lion",
    "n02105855": "Shetland sheepdog, Shetland sheep dog, Shetland",
    "n03063599": "coffee mug",
    "n07753592": "banana",
}
# The odd files of the real set that fall into these classes, under their real numbers.
_PNG = ("n02105855", 2933)
_CMYK = [("n01739381", 1309), ("n02077923", 14822)]
_VALIDATION_IMAGES = 40
# Every so many images a grey one.
_GREY_EVERY = 9
# The fields of meta.mat, in the order in which the development kit's readme describes them.
_SYNSET_FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)
# The time that the real archives' entries carry, near enough: a fixed one makes fixed bytes.
_TIME = 1338480000


def prepare(directory: Path, source: Path | None) -> dict[str, Any]:
    """Return where the archives are and what is in them: those in ``source``, or synthetic ones made in ``directory``.

    ``files`` has name, size and MD5 of "train", "validation" and "devkit"; the counts are taken from the archives. For
    the real ones that takes an hour once; what was found is kept in ``directory``, by sizes and times. Raises
    FileNotFoundError where ``source`` lacks an archive.
    """
    directory.mkdir(parents=True, exist_ok=True)
    folder = directory if source is None else source
    known = _known_facts(directory, folder)
    if known is not None:
        return known
    if source is None:
        _make(directory)
    missing = [name for name in _FILES.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    facts = _facts(folder)
    _write(directory / _FACTS, json.dumps({"identity": _identity(folder), "facts": facts}, indent=1).encode())
    return facts


def _identity(folder: Path) -> dict[str, Any]:
    """Return what changes when an archive in ``folder`` does."""
    status = {name: (folder / name).stat() for name in _FILES.values() if (folder / name).is_file()}
    files = {name: [found.st_size, found.st_mtime_ns] for name, found in status.items()}
    return {"version": _VERSION, "folder": str(folder), "files": files}


def _known_facts(directory: Path, folder: Path) -> dict[str, Any] | None:
    """Return the facts of ``folder`` that an earlier call kept, where they still hold."""
    try:
        kept = json.loads((directory / _FACTS).read_bytes())
    except FileNotFoundError:
        return None
    facts: dict[str, Any] = kept["facts"]
    return facts if kept["identity"] == _identity(folder) else None


def _facts(folder: Path) -> dict[str, Any]:
    train = _class_counts(folder / TRAIN)
    labels = read_validation_labels(str(folder / DEVKIT))
    with tarfile.open(folder / VALIDATION) as archive:
        validation = Counter(labels[member.name] for member in archive)
    return {
        "directory": str(folder),
        "files": {key: _file_facts(folder / name) for key, name in _FILES.items()},
        "train_images": sum(train.values()),
        "validation_images": sum(validation.values()),
        "classes": len(train),
        "class_images_min": min(train.values()),
        "class_images_max": max(train.values()),
        # A class without a validation image counts as one with none.
        "validation_class_images_min": min(validation[wnid] for wnid in train),
        "validation_class_images_max": max(validation.values()),
    }


def _class_counts(path: Path) -> dict[str, int]:
    """Return the number of images of each class in a tar of class tars; only headers are read."""
    counts = {}
    with tarfile.open(path) as archive:
        for member in archive:
            with tarfile.open(fileobj=archive.extractfile(member)) as images:
                counts[member.name.removesuffix(".tar")] = sum(1 for _ in images)
    return counts


def _file_facts(path: Path) -> dict[str, Any]:
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            md5.update(chunk)
    return {"name": path.name, "size_bytes": path.stat().st_size, "md5": md5.hexdigest()}


def _make(directory: Path) -> None:
    """Write the synthetic archives and ``validation_synsets.txt``, each whole or not at all."""
    chance = random.Random(_VERSION)  # noqa: S311 (reproducible on purpose)
    ids = list(range(1, len(_WORDS) + 1))
    chance.shuffle(ids)
    ids_by_wnid = dict(zip(_WORDS, ids))
    _write(directory / TRAIN, _train_archive(chance))
    shown = list(_WORDS) * (_VALIDATION_IMAGES // len(_WORDS))
    chance.shuffle(shown)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(shown) + 1)]
    images = [(name, _jpeg(wnid, f"validation {name}")) for name, wnid in zip(names, shown)]
    chance.shuffle(images)
    _write(directory / VALIDATION, _tar(images))
    _write(directory / DEVKIT, _devkit(ids_by_wnid, [ids_by_wnid[wnid] for wnid in shown]))
    lines = [f"{name} {wnid}\n" for name, wnid in zip(names, shown)]
    _write(directory / "validation_synsets.txt", "".join(lines).encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _tar(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar of ``entries`` (name and content), in their order, in the format of the real ones."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(content), _TIME, 0o644
            member.uname = member.gname = "imagenet"
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _train_archive(chance: random.Random) -> bytes:
    classes = []
    drawn = 0
    for wnid in _WORDS:
        numbers = chance.sample(range(1, 30000), chance.randint(5, 7))
        odd = [number for odd_wnid, number in [_PNG, *_CMYK] if odd_wnid == wnid]
        entries = []
        for number in [*odd, *(number for number in numbers if number not in odd)]:
            drawn += 1
            seed = f"train {wnid} {number}"
            if (wnid, number) == _PNG:
                content = _png(wnid, seed)
            elif (wnid, number) in _CMYK:
                content = _cmyk(wnid, seed)
            else:
                content = _jpeg(wnid, seed, grey=drawn % _GREY_EVERY == 0)
            entries.append((f"{wnid}_{number}.JPEG", content))
        classes.append((f"{wnid}.tar", _tar(entries)))
    return _tar(classes)


def _pixels(wnid: str, seed: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an image of its own for ``seed``, in the colours of its class: ``(height, width, 3)``, BGR."""
    random_numbers = np.random.default_rng(list(seed.encode()))
    height, width = random_numbers.integers(120, 400, 2)
    colour = np.random.default_rng(list(wnid.encode())).integers(32, 224, 3)
    coarse = colour + random_numbers.integers(-32, 32, (7, 9, 3))
    fine = random_numbers.integers(-12, 12, (int(height), int(width), 3))
    smooth = cv2.resize(coarse.astype(np.float32), (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + fine, 0, 255).astype(np.uint8)


def _jpeg(wnid: str, seed: str, *, grey: bool = False) -> bytes:
    pixels = _pixels(wnid, seed)
    return _encoded(".jpg", pixels[:, :, 1] if grey else pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def _png(wnid: str, seed: str) -> bytes:
    return _encoded(".png", _pixels(wnid, seed), [])


def _encoded(extension: str, pixels: np.ndarray[Any, np.dtype[np.uint8]], settings: list[int]) -> bytes:
    succeeded, encoded = cv2.imencode(extension, np.ascontiguousarray(pixels), settings)
    if not succeeded:
        raise RuntimeError(f"OpenCV cannot write {extension}")
    return encoded.tobytes()


def _cmyk(wnid: str, seed: str) -> bytes:
    buffer = io.BytesIO()
    rgb = np.ascontiguousarray(_pixels(wnid, seed)[:, :, ::-1])
    Image.fromarray(rgb).convert("CMYK").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _devkit(ids_by_wnid: dict[str, int], ground_truth: list[int]) -> bytes:
    truth = "".join(f"{ilsvrc_id}\n" for ilsvrc_id in ground_truth)
    archive = _tar(
        [
            ("ILSVRC2012_devkit_t12/readme.txt", b"A development kit in the form of ILSVRC2012's, for the lab.\n"),
            ("ILSVRC2012_devkit_t12/data/meta.mat", _meta(ids_by_wnid)),
            ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        ]
    )
    return gzip.compress(archive, mtime=0)


def _meta(ids_by_wnid: dict[str, int]) -> bytes:
    """Return a MATLAB 5 file with the struct array ``synsets``: the classes, then nodes that have them as children."""
    wnid_by_id = {ilsvrc_id: wnid for wnid, ilsvrc_id in ids_by_wnid.items()}
    rows: list[tuple[Any, ...]] = [
        (ilsvrc_id, wnid_by_id[ilsvrc_id], _WORDS[wnid_by_id[ilsvrc_id]], "", 0, np.empty(0), 0, 6)
        for ilsvrc_id in sorted(wnid_by_id)
    ]
    root_id = len(rows) + 1
    inner = [("n00015388", "animal", [1, 2, 3]), ("n00021939", "artifact", [4, 5])]
    rows.append((root_id, "n00001740", "entity", "", 2, np.array([root_id + 1.0, root_id + 2.0]), 2, 0))
    for number, (wnid, words, children) in enumerate(inner, start=root_id + 1):
        rows.append((number, wnid, words, "", len(children), np.array(children, dtype=float), 1, 0))
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in _SYNSET_FIELDS])
    for index, row in enumerate(rows):
        synsets[index, 0] = row
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    # The text at the head of the file (116 bytes, MAT-File Format, "Level 5 MAT-File Header") holds the time of day.
    return b"MATLAB 5.0 MAT-file, synthetic".ljust(116) + buffer.getvalue()[116:]
