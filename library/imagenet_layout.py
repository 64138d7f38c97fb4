#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: imagenet_layout
short_description: Lay out the images of an archive as a tree with a directory for each class
description:
  - Turns an archive of class archives (C(ILSVRC2012_img_train.tar)), or a flat one whose images have labels
    (C(ILSVRC2012_img_val.tar)), into the tree C(<dest>/<class>/<image>). The archive is read once, forwards; no class
    archive is ever written to the disk.
  - Also reorganises flat images that are unpacked already, by renaming them.
  - Labels go by the name of a file, never by its position.
  - The tree grows in C(<dest>.partial) and gets its name when it is complete. After a C(kill -9) or a power cut the
    next run goes on from the last journal point; what it makes is the same to the byte.
  - Refuses paths, links, devices, names that do not belong to the split, names that are there twice, and damage, each
    with the name of the entry and its offset in the archive.
  - A finished tree is recognised by its journal in I(state_dir) and by counting its files.
  - Shows its progress in C(<state_dir>/imagenet_layout.progress.json).
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  split:
    description:
      - Which names are right. C(train) wants classes such as C(n01440764) and images such as C(n01440764_10026.JPEG);
        C(validation) wants images such as C(ILSVRC2012_val_00000001.JPEG); C(any) takes any plain name, and images with
        an extension of JPEG or PNG.
    type: str
    choices: [train, validation, any]
    required: true
  layout:
    description:
      - C(class_archives) for an archive that holds an archive for each class.
      - C(labelled_files) for images whose classes are in a file with I(labels), or in the I(devkit).
    type: str
    choices: [class_archives, labelled_files]
    required: true
  archive:
    description: The archive, a tar file (or one in gzip). One of I(archive) and I(directory) is needed.
    type: path
  directory:
    description:
      - A directory with the unpacked images, flat, for C(labelled_files). Its images are renamed into I(dest), which
        may be the same directory and must be on the same volume. Nothing is moved before every image has its place.
    type: path
  devkit:
    description:
      - The development kit C(ILSVRC2012_devkit_t12.tar.gz), or the directory that was unpacked from it. Needed for
        C(labelled_files) without I(labels).
    type: path
  labels:
    description:
      - A file with the classes of C(labelled_files), used in place of the I(devkit). Its form is recognised. A list of
        WordNet ids has one in each line, in the order of the names of ILSVRC2012's validation images
        (C(imagenet_2012_validation_synset_labels.txt)). A CSV has the columns C(ImageId,PredictionString)
        (Kaggle's C(LOC_val_solution.csv)), or C(file,label) for any data set.
    type: path
  dest:
    description: Path of the tree. It must not hold anything that this module did not put there.
    type: path
    required: true
  state_dir:
    description: Where the journal, locks and progress are kept; on the data volume, so that they travel with the data.
    type: path
    required: true
  expected_images:
    description: How many images the tree must have; 0 for any number.
    type: int
    default: 0
  expected_classes:
    description: How many classes the tree must have; 0 for any number.
    type: int
    default: 0
attributes:
  check_mode:
    description:
      - Writes nothing. What an archive holds is known only after reading it, so where the tree would come from one, the
        expected counts are returned; an archive that is not there is taken to be fetched by an earlier task.
    support: full
  diff_mode:
    description: Shows the counts of the tree that would come, or has come.
    support: full
requirements:
  - numpy and scipy, for I(devkit)
seealso:
  - module: archive_fetch
  - module: recordio_pack
"""

EXAMPLES = r"""
- name: Lay out the training images
  imagenet_layout:
    split: train
    layout: class_archives
    archive: /data/imagenet/archives/ILSVRC2012_img_train.tar
    dest: /data/imagenet/train
    state_dir: /data/imagenet/.state
    expected_images: 1281167
    expected_classes: 1000

- name: Lay out validation images that were unpacked long ago
  imagenet_layout:
    split: validation
    layout: labelled_files
    directory: /data/imagenet/validation
    devkit: /data/imagenet/archives/ILSVRC2012_devkit_t12.tar.gz
    dest: /data/imagenet/validation
    state_dir: /data/imagenet/.state
    expected_images: 50000
    expected_classes: 1000
"""

RETURN = r"""
split:
  description: The split, as asked for.
  returned: success
  type: str
  sample: train
images:
  description: How many images the tree has.
  returned: success
  type: int
  sample: 1281167
classes:
  description: How many classes the tree has.
  returned: success
  type: int
  sample: 1000
bytes:
  description: How many bytes its images have, taken together.
  returned: success
  type: int
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.layout import LayoutRequest, lay_out
from ansible.module_utils.imagenet_ops.module import run


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "split": {"type": "str", "required": True, "choices": ["train", "validation", "any"]},
            "layout": {"type": "str", "required": True, "choices": ["class_archives", "labelled_files"]},
            "archive": {"type": "path"},
            "directory": {"type": "path"},
            "devkit": {"type": "path"},
            "labels": {"type": "path"},
            "dest": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "expected_images": {"type": "int", "default": 0},
            "expected_classes": {"type": "int", "default": 0},
        },
        mutually_exclusive=[("archive", "directory")],
        required_one_of=[("archive", "directory")],
        required_if=[
            ("layout", "labelled_files", ["devkit", "labels"], True),
            ("layout", "class_archives", ["archive"]),
        ],
        supports_check_mode=True,
    )
    request = LayoutRequest(**module.params)

    def work() -> dict[str, Any]:
        return lay_out(request, check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
