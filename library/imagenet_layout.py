#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: imagenet_layout
short_description: Extract the images of an archive to a tree with a directory for each class
description:
  - Turns an archive of class archives (C(ILSVRC2012_img_train.tar)), a flat one whose images have labels
    (C(ILSVRC2012_img_val.tar)), or one with a directory for each class (C(imagenette2.tgz)) into the tree
    C(<dest>/<class>/<image>). The archive, a zip or a tar, is read once, sequentially; class archives are never written
    to the disk.
  - Can also move images that are already unpacked, by renaming them or their class directories.
  - Puts annotations, such as ILSVRC2012's bounding boxes, next to their images.
  - Labels are matched by file name, never by position.
  - The tree grows in C(<dest>.partial) and is renamed when it is complete. After a C(kill -9) or a power cut, the next
    run resumes from the last checkpoint and gives the same bytes.
  - Fails on paths outside of the archive, links, devices, names that are not valid for the split, duplicate names, and
    damage, with the name and offset of the archive's member.
  - A finished tree is recognized by its checkpoint in I(state_dir) and by its file counts; O(deep_check) checks every
    file.
  - Writes its progress to C(<state_dir>/imagenet_layout.progress.json).
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  name_rules:
    description:
      - Which names are valid. V(train) requires classes such as C(n01440764) and images such as
        C(n01440764_10026.JPEG); V(validation) requires images such as C(ILSVRC2012_val_00000001.JPEG); V(any) allows
        any plain name, and images with an extension of JPEG or PNG.
    type: str
    aliases: [split]
    choices: [train, validation, any]
    required: true
  layout:
    description:
      - V(class_archives) for an archive with a tar archive for each class.
      - V(class_directories) for an archive with a directory for each class.
      - V(labelled_files) for images whose classes are in a file with O(labels), or in the O(devkit).
    type: str
    choices: [class_archives, class_directories, labelled_files]
    required: true
  archive:
    description: The archive, a zip or a tar (plain, or in gzip, bzip2 or xz; not a zip for V(class_archives)). Either
      O(archive) or O(directory) is required.
    type: path
  folder:
    description:
      - The directory of the split in the archive, such as V(imagenette2/train); other directories are ignored. The
        whole archive by default.
      - With O(name_rules=any), files that are not images by their names, and metadata of desktops (C(.DS_Store),
        C(__MACOSX)), are left out of the tree, and a warning counts them.
    type: str
    default: ""
  directory:
    description:
      - A directory with images that are already unpacked. For V(labelled_files) it is flat, and the images are renamed
        into O(dest); otherwise it has a directory for each class, and these are renamed. O(dest) may be the same
        directory and must be on the same volume. All files are checked before the first one is moved.
    type: path
  devkit:
    description:
      - The development kit C(ILSVRC2012_devkit_t12.tar.gz), or the directory that was unpacked from it. Required for
        V(labelled_files) without I(labels).
    type: path
  labels:
    description:
      - A file with the classes for V(labelled_files), used instead of the I(devkit). Its format is detected. A list of
        WordNet ids has one on each line, in the order of the names of ILSVRC2012's validation images
        (C(imagenet_2012_validation_synset_labels.txt)). A CSV has the columns C(ImageId,PredictionString)
        (Kaggle's C(LOC_val_solution.csv)), or C(file,label) for any data set.
    type: path
  annotations:
    description:
      - An archive (zip, or tar in any compression) with a C(X.xml) for images C(X.JPEG), such as
        C(ILSVRC2012_bbox_train_v2.tar.gz) and C(ILSVRC2012_bbox_val_v3.tgz). Each is put next to its image; those
        whose image is not in the tree are counted and skipped.
    type: path
  annotations_folder:
    description: The directory of the annotations in their archive. The whole archive by default.
    type: str
    default: ""
  dest:
    description: Path of the tree. It must not have any files that this module did not put there.
    type: path
    required: true
  state_dir:
    description: Folder for checkpoint, lock and progress; on the data volume, so that they move with the data.
    type: path
    required: true
  expected_images:
    description: Required number of images; V(0) for any number.
    type: int
    default: 0
  expected_classes:
    description: Required number of classes; V(0) for any number.
    type: int
    default: 0
  deep_check:
    description:
      - Whether to check the type of every file of a finished tree, and the total size of each class, and not only the
        number of names. A million files take minutes on a spinning disk.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Writes nothing. The content of an archive is known only after reading it, so for a tree from an archive the
        expected counts are returned; a missing archive is assumed to be fetched by an earlier task.
    support: full
  diff_mode:
    description: Shows the counts of the tree before and after.
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
    name_rules: train
    layout: class_archives
    archive: /data/imagenet/archives/ILSVRC2012_img_train.tar
    dest: /data/imagenet/train
    state_dir: /data/imagenet/.state
    expected_images: 1281167
    expected_classes: 1000

- name: Lay out the training images of Imagenette, one of two splits in the same archive
  imagenet_layout:
    name_rules: any
    layout: class_directories
    archive: /data/imagenette/archives/imagenette2.tgz
    folder: imagenette2/train
    dest: /data/imagenette/train
    state_dir: /data/imagenette/.state

- name: Lay out the validation images with their bounding boxes
  imagenet_layout:
    name_rules: validation
    layout: labelled_files
    archive: /data/imagenet/archives/ILSVRC2012_img_val.tar
    labels: /data/imagenet/archives/imagenet_2012_validation_synset_labels.txt
    annotations: /data/imagenet/archives/ILSVRC2012_bbox_val_v3.tgz
    dest: /data/imagenet/validation
    state_dir: /data/imagenet/.state

- name: Lay out validation images that are already unpacked
  imagenet_layout:
    name_rules: validation
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
  description: The value of O(name_rules).
  returned: success
  type: str
  sample: train
images:
  description: Number of images in the tree.
  returned: success
  type: int
  sample: 1281167
classes:
  description: Number of classes in the tree.
  returned: success
  type: int
  sample: 1000
bytes:
  description: Total size of its images in bytes.
  returned: success
  type: int
annotations:
  description: Number of annotations next to its images; in check mode without those that would be added.
  returned: success
  type: int
  sample: 50000
annotations_without_image:
  description: Number of annotations in the archive without an image in the tree.
  returned: success
  type: int
  sample: 0
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name_rules": {
                "type": "str",
                "required": True,
                "choices": ["train", "validation", "any"],
                "aliases": ["split"],
            },
            "layout": {
                "type": "str",
                "required": True,
                "choices": ["class_archives", "class_directories", "labelled_files"],
            },
            "archive": {"type": "path"},
            "folder": {"type": "str", "default": ""},
            "directory": {"type": "path"},
            "devkit": {"type": "path"},
            "labels": {"type": "path"},
            "annotations": {"type": "path"},
            "annotations_folder": {"type": "str", "default": ""},
            "dest": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "expected_images": {"type": "int", "default": 0},
            "expected_classes": {"type": "int", "default": 0},
            "deep_check": {"type": "bool", "default": False},
        },
        mutually_exclusive=[("archive", "directory")],
        required_one_of=[("archive", "directory")],
        required_if=[("layout", "labelled_files", ["devkit", "labels"], True)],
        supports_check_mode=True,
    )
    options = dict(module.params)
    options.pop("split", None)  # Ansible keeps the alias beside the name
    request = LayoutRequest(**options)

    def work() -> dict[str, Any]:
        return lay_out(request, check_mode=module.check_mode, warn=module.warn)

    run(module, work)


if __name__ == "__main__":
    main()
