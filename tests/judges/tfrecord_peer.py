"""Answers for TensorFlow, TensorFlow Datasets, the tfrecord library and DALI: runs in .venv-judges."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# An Example is a map. This implementation writes it in the order in which it was made.
IN_ORDER = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
DESCRIPTION = {"image": "byte", "label": "int", "file_name": "byte"}


def write(path: str, samples: list[dict[str, Any]]) -> None:
    """Write ``samples`` with TensorFlow, the features of an Example in the order of their names."""
    tf: Any = importlib.import_module("tensorflow")
    with tf.io.TFRecordWriter(path) as writer:
        for sample in samples:
            features = {
                "image": _bytes(tf, base64.b64decode(sample["image"])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[sample["label"]])),
                "file_name": _bytes(tf, sample["file_name"].encode()),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString(deterministic=True))


def write_with_tfrecord(path: str, samples: list[dict[str, Any]]) -> None:
    """Write ``samples`` with the tfrecord library."""
    os.environ.update(IN_ORDER)
    tfrecord: Any = importlib.import_module("tfrecord")
    writer = tfrecord.TFRecordWriter(path)
    for sample in samples:
        writer.write(
            {
                "file_name": (sample["file_name"].encode(), "byte"),
                "image": (base64.b64decode(sample["image"]), "byte"),
                "label": (sample["label"], "int"),
            }
        )
    writer.close()


def read_with_tfrecord(paths: list[str]) -> list[Any]:
    """Return label, hash and file name of all that the tfrecord library reads."""
    os.environ.update(IN_ORDER)
    tfrecord: Any = importlib.import_module("tfrecord")
    read = [sample for path in paths for sample in tfrecord.tfrecord_loader(path, None, DESCRIPTION)]
    return [_told(int(sample["label"][0]), sample["image"], sample["file_name"]) for sample in read]


def read_with_tfds(folder: str, split: str) -> dict[str, Any]:
    """Return what TFDS says of the data set in a folder, and of every image of a split: label, hash, file name."""
    tfds: Any = importlib.import_module("tensorflow_datasets")
    return _read(tfds, tfds.builder_from_directory(folder), split)


def load_with_tfds(name: str, data_dir: str, split: str) -> dict[str, Any]:
    """Return the same of a data set that TFDS finds by its name."""
    tfds: Any = importlib.import_module("tensorflow_datasets")
    return _read(tfds, tfds.builder(name, data_dir=data_dir), split)


def decode_with_tfds(folder: str, split: str) -> list[list[int]]:
    """Return the shapes of all images of a split, decoded."""
    tfds: Any = importlib.import_module("tensorflow_datasets")
    builder = tfds.builder_from_directory(folder)
    return [list(image.shape) for image, _ in tfds.as_numpy(builder.as_dataset(split=split, as_supervised=True))]


def write_metadata(folder: str, name: str, splits: dict[str, list[list[int]]], classes: list[str]) -> None:
    """Write the metadata of the data set in ``folder`` as TFDS does; ``splits`` are lengths and bytes of the shards."""
    tfds: Any = importlib.import_module("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=classes),
            "file_name": tfds.features.Text(),
        }
    )
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix="tfrecord")
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[length for length, _ in shards],
                num_bytes=sum(size for _, size in shards),
                filename_template=template.replace(split=split),
            )
            for split, shards in splits.items()
        ],
        version="1.0.0",
        supervised_keys=("image", "label"),
    )


def dali_index(shard: str, index: str) -> None:
    """Write the index of a shard with DALI's own program."""
    subprocess.run([sys.executable, str(Path(sys.executable).with_name("tfrecord2idx")), shard, index], check=True)


def read_dali(shards: list[str], indices: list[str], count: int) -> list[Any]:
    """Return label, hash and file name of ``count`` samples, as DALI reads them by the indices."""
    dali: Any = importlib.import_module("nvidia.dali")
    tfrec: Any = importlib.import_module("nvidia.dali.tfrecord")
    features = {
        "image": tfrec.FixedLenFeature((), tfrec.string, ""),
        "label": tfrec.FixedLenFeature([1], tfrec.int64, -1),
        "file_name": tfrec.FixedLenFeature((), tfrec.string, ""),
    }
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        read = dali.fn.readers.tfrecord(path=shards, index_path=indices, features=features)
        pipeline.set_outputs(read["label"], read["image"], read["file_name"])
    pipeline.build()
    samples = []
    for _ in range(count):
        label, image, file_name = (output.at(0) for output in pipeline.run())
        samples.append(_told(int(label[0]), bytes(image), bytes(file_name)))
    return samples


def _read(tfds: Any, builder: Any, split: str) -> dict[str, Any]:
    decoders = {"image": tfds.decode.SkipDecoding()}
    config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, decoders=decoders, read_config=config, shuffle_files=False)
    return {
        "name": builder.info.full_name,
        "classes": builder.info.features["label"].names,
        "examples": {name: info.num_examples for name, info in builder.info.splits.items()},
        "read": [_told(int(one["label"]), one["image"], one["file_name"]) for one in tfds.as_numpy(dataset)],
    }


def _told(label: int, image: Any, file_name: Any) -> list[Any]:
    return [label, hashlib.sha256(bytes(image)).hexdigest(), bytes(file_name).decode()]


def _bytes(tf: Any, value: bytes) -> Any:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
