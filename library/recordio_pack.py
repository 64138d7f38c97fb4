#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: recordio_pack
short_description: Pack images into RecordIO files
description:
  - Packs each split into C(<split>.rec), C(<split>.idx) and C(<split>.lst) below C(<root>/recordio), writes
    C(<root>/labels.tsv) and finally C(<root>/manifest.json) with counts, sizes and SHA-256 of all files.
  - With O(resize_filter=linear) the files are byte-identical to those that C(im2rec.py) of MXNet 1.9.1 writes from the
    same tree and list, for any number of workers.
  - The label is the class index, the position of the class in the sorted list of classes; all splits share one list.
    Classes come from O(devkit), else from the directories of the first split. An unknown directory, images outside of a
    class directory and images in a directory within one are errors, because C(im2rec.py) would shift the labels.
  - Can be killed at any time and rerun. It resumes from its last checkpoint, at most a few seconds back, and gives the
    same bytes. Completed splits are not read again while names and sizes of the images, the settings and the record
    files are unchanged.
  - An image that crashes its decoder, or takes too long or too much memory, is a bad image like any other.
  - If settings or source have changed, the split is packed again and a warning says what changed. Old and new records
    are never mixed, and files are replaced only when their successors are complete. This takes space for both.
  - If a finished file was damaged or deleted, the split is packed again, with a warning.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  dataset:
    description: Name of the data set, as in the manifest.
    type: str
    required: true
  root:
    description: Folder of the data set. All files are written below it.
    type: path
    required: true
  state_dir:
    description: Folder for checkpoints and progress, on the same volume. Created if missing.
    type: path
    required: true
  splits:
    description: The splits to pack. The manifest describes only these.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the split and of its files.
        type: str
        required: true
      source:
        description: The tree, C(<source>/<class>/<image>). Files other than C(.JPEG), C(.jpg) and C(.png) are not
          packed. Either I(source) or I(archive) is required; the records are the same.
        type: path
      archive:
        description:
          - The archive with the images. It is read once, sequentially, without being unpacked. The transformed images
            are spooled in O(scratch_dir), which needs free space of up to twice the size of the records.
        type: path
      layout:
        description: Layout of the archive, as in M(imagenet_layout).
        type: str
        choices: [class_archives, class_directories, labelled_files]
        default: class_archives
      folder:
        description: The directory of the split in the archive, as in M(imagenet_layout).
        type: str
        default: ""
      labels:
        description: The file with the labels for C(labelled_files), as in M(imagenet_layout), instead of the O(devkit).
        type: path
      name_rules:
        description: Which names are valid in the archive, as in M(imagenet_layout).
        type: str
        aliases: [names]
        choices: [train, validation, any]
        default: any
      expected_images:
        description: Required number of images; V(0) for any number.
        type: int
        default: 0
      class_images_min:
        description: Required minimum of images in each class; V(0) for none.
        type: int
        default: 0
      class_images_max:
        description: Allowed maximum of images in each class; V(0) for any number.
        type: int
        default: 0
  expected_classes:
    description: Required number of classes; V(0) for any number.
    type: int
    default: 0
  devkit:
    description:
      - The ILSVRC development kit (C(ILSVRC2012_devkit_t12.tar.gz)). It lists the classes, and their words for
        C(labels.tsv).
      - Without it, the classes are those of the first split, and the words are empty.
      - Archives with the layout V(labelled_files) require it, or a file with labels.
    type: path
  label_order:
    description:
      - A text file with the classes in the order of their labels, one on each line; text after a tab (or after a
        space, in a line without a tab) is ignored. Without it, the classes are sorted, as in C(im2rec.py).
    type: path
  short_side_pixels:
    description: Length of the short side after resizing. V(0) keeps each image's size.
    type: int
    default: 256
  enlarge:
    description: Whether to enlarge images with a smaller short side, as C(im2rec.py) does.
    type: bool
    default: true
  channels:
    description: V(3) for colour or V(1) for grey JPEGs.
    type: int
    choices: [1, 3]
    default: 3
  pass_through:
    description:
      - Whether to pack the original bytes. Settings for size, quality and colour are ignored. Images that are not JPEG
        or PNG, empty, truncated, or larger than O(max_image_pixels) by their headers are bad, but none is decoded.
      - The EXIF orientation, which is applied otherwise, stays in the image for the reader to apply.
      - The size of the records is known before they are written. It is in the progress, and for trees in RV(bytes) of
        check mode.
    type: bool
    default: false
  quality:
    description: JPEG quality, 1 to 100.
    type: int
    default: 95
  resize_filter:
    description:
      - V(linear) gives the bytes of C(im2rec.py). V(area) averages, which looks better and takes about a third
        longer.
    type: str
    choices: [linear, area]
    default: linear
  max_image_pixels:
    description: An image with more pixels than this, before or after resizing, is bad. This bounds the memory for one
      image.
    type: int
    default: 100000000
  max_jpeg_scans:
    description: A JPEG with more scans than this is bad. Each scan costs as much time as a whole image; encoders write
      about ten.
    type: int
    default: 500
  jpeg_check:
    description:
      - With V(lenient) a JPEG is bad if a part of it is missing, such as the end of the file or half of a scan. With
        other damage it is packed as it decodes, as C(im2rec.py) does.
      - With V(strict) each JPEG is bad that the decoder calls corrupt, even if only extra bytes are in it. Neither
        finds damage that decodes as other pixels. Sound images take no more time than with V(lenient).
      - O(pass_through) decodes nothing, so only a missing end of the file is found there.
    type: str
    choices: [lenient, strict]
    default: lenient
  max_image_seconds:
    description:
      - An image whose decoding takes more seconds of the processor than this is bad.
      - This and O(max_image_memory_mib) hold for images that are decoded in a process of their own. These are all but
        sound PNGs and JPEGs of the usual kinds, whose work is bounded by their size and number of scans.
    type: int
    default: 15
  max_image_memory_mib:
    description: An image whose decoding takes more memory than this, in MiB, is bad.
    type: int
    default: 4096
  shuffle:
    description: Whether to shuffle the records, as C(im2rec.py) does. Otherwise they are in sorted order.
    type: bool
    default: true
  shuffle_seed:
    description: Seed of the shuffle. C(im2rec.py) always uses 100.
    type: int
    default: 100
  shards:
    description:
      - Number of files for each split in V(recordio). V(1) makes C(train.rec), V(16) makes C(train-00000-of-00016.rec)
        and so on, each with its own index and list.
    type: int
    default: 1
  formats:
    description:
      - What to write. Every image is decoded and encoded once, and all formats get the same images in the same order.
      - V(recordio) is C(recordio/<split>.rec) with its index and list, as C(im2rec.py) makes them.
      - V(webdataset) is C(webdataset/<split>-000000.tar) and so on, with members C(cls), C(jpg) and C(json), the index
        of DALI for each, and what timm and wids read beside them.
      - V(mds) is C(mds/<split>/) as MosaicML Streaming writes it, with the columns of its ImageNet (C(x), C(y), C(i))
        and C(name).
      - V(tfrecord) is C(tfrecord/<dataset>/1.0.0/) in the layout of TensorFlow Datasets, with the features of its
        C(imagenet2012).
      - V(parquet) is C(parquet/) as Hugging Face C(datasets) loads it, an image and a class label in each row.
    type: list
    elements: str
    choices: [recordio, webdataset, mds, tfrecord, parquet]
    default: [recordio]
  shard_mib:
    description:
      - Size of the shards in MiB of all formats besides V(recordio). A shard ends where the format's own library ends
        it for this size.
      - V(0) makes as many as O(shards).
    type: int
    default: 256
  scratch_dir:
    description: Folder where archives are spooled; C(<root>/.scratch) by default. It is empty at the end.
    type: path
  shuffle_memory_mib:
    description: How much of the page cache, in MiB, may be used to shuffle the images of an archive.
    type: int
    default: 256
  on_bad_image:
    description:
      - What to do with a file that is not a JPEG or PNG, is truncated, empty or damaged, or exceeds
        O(max_image_pixels) or another limit, or crashes the decoder.
      - V(fail) stops at the first one and reports it. Packing resumes there when it was replaced in the tree, or when
        this option was changed.
      - V(skip) leaves it out of the records and lists it in the manifest with the reason. All other ids stay the same.
      - V(quarantine) does the same as V(skip), and copies the image to C(<root>/quarantine/<split>/<class>/). The tree
        or archive is not changed.
      - CMYK and grey JPEGs and PNGs (with any extension) are not bad. They become three-channel JPEGs and are counted.
    type: str
    choices: [fail, skip, quarantine]
    default: fail
  workers:
    description: Number of threads; V(0) for all processors that affinity and cgroup quota allow.
    type: int
    default: 0
attributes:
  check_mode:
    description: Lists the trees, compares the counts, and reports whether anything would be packed and how many
      records; for an archive that was not packed yet, the expected numbers.
    support: full
  diff_mode:
    description: Shows version, settings and numbers of records before and after.
    support: full
requirements:
  - numpy
  - opencv-python-headless
  - google-crc32c (for V(tfrecord) in O(formats))
  - pyarrow (for V(parquet) in O(formats))
  - scipy (for O(devkit))
"""

EXAMPLES = r"""
- name: Pack ImageNet
  recordio_pack:
    dataset: imagenet
    root: /data/imagenet
    state_dir: /data/imagenet/.state
    devkit: /data/imagenet/archives/ILSVRC2012_devkit_t12.tar.gz
    expected_classes: 1000
    splits:
      - name: train
        source: /data/imagenet/train
        expected_images: 1281167
        class_images_min: 732
        class_images_max: 1300
      - name: validation
        source: /data/imagenet/validation
        expected_images: 50000
        class_images_min: 50
        class_images_max: 50
  register: packed

- name: Pack directly from the archives, in 16 shards
  recordio_pack:
    dataset: imagenet
    root: /data/imagenet
    state_dir: /data/imagenet/.state
    devkit: /data/imagenet/archives/ILSVRC2012_devkit_t12.tar.gz
    shards: 16
    splits:
      - name: train
        archive: /data/imagenet/archives/ILSVRC2012_img_train.tar
        name_rules: train
      - name: validation
        archive: /data/imagenet/archives/ILSVRC2012_img_val.tar
        layout: labelled_files
        name_rules: validation

- name: Pack both splits of Imagenette directly from their common archive
  recordio_pack:
    dataset: imagenette
    root: /data/imagenette
    state_dir: /data/imagenette/.state
    splits:
      - name: train
        archive: /data/imagenette/archives/imagenette2.tgz
        layout: class_directories
        folder: imagenette2/train
      - name: validation
        archive: /data/imagenette/archives/imagenette2.tgz
        layout: class_directories
        folder: imagenette2/val

- name: Pack with a short side of 480 pixels and skip bad images
  recordio_pack:
    dataset: flowers
    root: /data/flowers
    state_dir: /data/flowers/.state
    short_side_pixels: 480
    quality: 90
    on_bad_image: skip
    splits:
      - name: train
        source: /data/flowers/train
"""

RETURN = r"""
dataset_version:
  description:
    - The first 12 hex digits of the manifest's SHA-256. The same archives with the same settings give the same version
      on every machine.
    - Empty in check mode if a split would be packed.
  returned: success
  type: str
  sample: 3fb2a90c41d7
manifest_sha256:
  description: SHA-256 of C(manifest.json); empty if RV(dataset_version) is.
  returned: success
  type: str
records:
  description: Number of records of each split; in check mode the number of images if the split would be packed.
  returned: success
  type: dict
  sample: {"train": 1281167, "validation": 50000}
classes:
  description: Number of classes.
  returned: success
  type: int
  sample: 1000
bytes:
  description: Total size of the record files in bytes. In check mode, a split that would be packed counts with the size
    of its C(.rec) if that is known (a tree, O(pass_through)).
  returned: success
  type: int
bad_images:
  description: Number of bad images, which have no record.
  returned: success
  type: int
samples:
  description: A few of the bad images, with the reason. The manifest lists all.
  returned: success
  type: list
  elements: str
"""

import traceback
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.imagenet_ops.core.module import run

try:
    from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules
    from ansible.module_utils.imagenet_ops.pack.decoder import CLOCK_SECONDS, Limits
    from ansible.module_utils.imagenet_ops.pack.image import Recipe
    from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset
    from ansible.module_utils.imagenet_ops.pack.supervision import supervised
except ImportError:
    IMPORT_ERROR = traceback.format_exc()
else:
    IMPORT_ERROR = ""


def _split(options: dict[str, Any], devkit: str | None) -> SplitRequest:
    rules = ArchiveRules(options["name_rules"], options["layout"], devkit, options["labels"], options["folder"])
    counts = {name: options[name] for name in ("expected_images", "class_images_min", "class_images_max")}
    return SplitRequest(options["name"], options["source"], options["archive"], rules, **counts)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "dataset": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "splits": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "source": {"type": "path"},
                    "archive": {"type": "path"},
                    "layout": {
                        "type": "str",
                        "choices": ["class_archives", "class_directories", "labelled_files"],
                        "default": "class_archives",
                    },
                    "folder": {"type": "str", "default": ""},
                    "labels": {"type": "path"},
                    "name_rules": {
                        "type": "str",
                        "choices": ["train", "validation", "any"],
                        "default": "any",
                        "aliases": ["names"],
                    },
                    "expected_images": {"type": "int", "default": 0},
                    "class_images_min": {"type": "int", "default": 0},
                    "class_images_max": {"type": "int", "default": 0},
                },
                "mutually_exclusive": [("source", "archive")],
                "required_one_of": [("source", "archive")],
            },
            "expected_classes": {"type": "int", "default": 0},
            "devkit": {"type": "path"},
            "label_order": {"type": "path"},
            "short_side_pixels": {"type": "int", "default": 256},
            "quality": {"type": "int", "default": 95},
            "enlarge": {"type": "bool", "default": True},
            "channels": {"type": "int", "choices": [1, 3], "default": 3},
            # Ansible takes the name for a password.
            "pass_through": {"type": "bool", "default": False, "no_log": False},
            "resize_filter": {"type": "str", "choices": ["linear", "area"], "default": "linear"},
            "max_image_pixels": {"type": "int", "default": 100_000_000},
            "max_jpeg_scans": {"type": "int", "default": 500},
            "jpeg_check": {"type": "str", "choices": ["lenient", "strict"], "default": "lenient"},
            "max_image_seconds": {"type": "int", "default": 15},
            "max_image_memory_mib": {"type": "int", "default": 4096},
            "shuffle": {"type": "bool", "default": True},
            "shuffle_seed": {"type": "int", "default": 100},
            "shards": {"type": "int", "default": 1},
            "formats": {
                "type": "list",
                "elements": "str",
                "choices": ["recordio", "webdataset", "mds", "tfrecord", "parquet"],
                "default": ["recordio"],
            },
            "shard_mib": {"type": "int", "default": 256},
            "scratch_dir": {"type": "path"},
            "shuffle_memory_mib": {"type": "int", "default": 256},
            "on_bad_image": {"type": "str", "choices": ["fail", "skip", "quarantine"], "default": "fail"},
            "workers": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("numpy and opencv-python-headless"), exception=IMPORT_ERROR)

    options = module.params
    limits = Limits(options["max_image_seconds"], options["max_image_memory_mib"])

    def pack(warn: Callable[[str], None]) -> dict[str, Any]:
        request = PackRequest(
            dataset=options["dataset"],
            root=options["root"],
            state_dir=options["state_dir"],
            splits=[_split(split, options["devkit"]) for split in options["splits"]],
            recipe=Recipe(**{name: options[name] for name in Recipe._fields}),
            devkit=options["devkit"],
            label_order=options["label_order"],
            expected_classes=options["expected_classes"],
            shuffle_seed=options["shuffle_seed"] if options["shuffle"] else None,
            shards=options["shards"],
            formats=tuple(options["formats"]),
            shard_bytes=options["shard_mib"] * 1024 * 1024,
            on_bad_image=options["on_bad_image"],
            workers=options["workers"],
            scratch_dir=options["scratch_dir"],
            bucket_bytes=options["shuffle_memory_mib"] * 1024 * 1024,
            limits=limits,
        )
        return pack_dataset(request, check=module.check_mode, warn=warn)

    def work() -> dict[str, Any]:
        if module.check_mode:
            return pack(module.warn)
        return supervised(pack, options["state_dir"], limits.seconds * CLOCK_SECONDS, module.warn)

    run(module, work)


if __name__ == "__main__":
    main()
