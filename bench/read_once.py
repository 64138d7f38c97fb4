"""Reads a data set once through a PyTorch DataLoader, in .venv-judges: `python -m bench.read_once READER FOLDER`.

READER is ours (contrib/image_reader.py, of RecordIO), webdataset, streaming or litdata. All decode the same images with
the same calls in two worker processes, in the order on the disk. Prints images a second, from the first batch on:
before it, the workers start.
"""

from __future__ import annotations

import importlib
import io
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "contrib"))

BATCH = 32
WORKERS = 2
_SIDE = 64  # libjpeg scales to this while it decodes, so that the reader itself shows

image_module: Any = importlib.import_module("PIL.Image")
numpy: Any = importlib.import_module("numpy")
data: Any = importlib.import_module("torch.utils.data")


def pixels(image: Any) -> Any:
    """Return the pixels of a picture that is open, as a batch takes them."""
    image.draft("RGB", (_SIDE, _SIDE))
    return numpy.array(image.convert("RGB").resize((_SIDE, _SIDE)))


def decode(content: bytes) -> Any:
    """Return the pixels of an encoded picture."""
    return pixels(image_module.open(io.BytesIO(content)))


def of_webdataset(sample: dict[str, bytes]) -> tuple[Any, int]:
    """Return image and label of a sample of webdataset."""
    return decode(sample["jpg"] if "jpg" in sample else sample["png"]), int(sample["cls"])


def collate_streaming(samples: list[dict[str, Any]]) -> Any:
    """Return a batch of samples of Streaming, which opens the pictures itself."""
    return data.default_collate([(pixels(sample["x"]), sample["y"]) for sample in samples])


def collate_litdata(samples: list[dict[str, Any]]) -> Any:
    """Return a batch of samples of LitData."""
    return data.default_collate([(decode(sample["x"]), sample["y"]) for sample in samples])


def loader(reader: str, folder: Path) -> Any:
    """Return what yields the batches."""
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": WORKERS}
    if reader == "ours":
        ours: Any = importlib.import_module("image_reader")
        return data.DataLoader(ours.ImageDataset(folder, "train", format="recordio", transform=decode), **options)
    peer: Any = importlib.import_module(reader)
    if reader == "webdataset":
        samples = peer.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False).map(of_webdataset)
        return data.DataLoader(samples, **options)
    if reader == "streaming":
        samples = peer.StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)
        return data.DataLoader(samples, collate_fn=collate_streaming, **options)
    samples = peer.StreamingDataset(str(folder), shuffle=False)
    return peer.StreamingDataLoader(samples, collate_fn=collate_litdata, **options)


def main() -> None:
    """Read as the arguments say."""
    began, images = 0.0, 0
    for number, (batch, _) in enumerate(loader(sys.argv[1], Path(sys.argv[2]))):
        if number:
            images += len(batch)
        else:
            began = time.monotonic()
    print(images, images / (time.monotonic() - began))


if __name__ == "__main__":
    main()
