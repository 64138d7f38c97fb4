"""Reads a data set once through a PyTorch DataLoader, in .venv-judges: `python -m bench.read_once READER FOLDER`.

READER is recordio (contrib/recordio_reader.py), webdataset, streaming or litdata. All decode the same JPEGs with the
same calls in two worker processes, in the order on the disk. Prints images a second, from the first batch on: before
it, the workers start.
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
_SIDE = 224

image_module: Any = importlib.import_module("PIL.Image")
numpy: Any = importlib.import_module("numpy")
data: Any = importlib.import_module("torch.utils.data")


def pixels(image: Any) -> Any:
    """Return the pixels of a picture that is open, as a batch takes them."""
    image.draft("RGB", (_SIDE, _SIDE))  # libjpeg scales while it decodes, so that the reader itself shows
    return numpy.array(image.convert("RGB").resize((_SIDE, _SIDE)))


def decode(content: bytes) -> Any:
    """Return the pixels of an encoded picture."""
    return pixels(image_module.open(io.BytesIO(content)))


def of_webdataset(sample: dict[str, bytes]) -> tuple[Any, int]:
    """Return image and label of a sample of webdataset."""
    return decode(sample["jpg"]), int(sample["cls"])


def of_streaming(samples: list[dict[str, Any]]) -> list[tuple[Any, int]]:
    """Return image and label of samples of Streaming, which opens the pictures itself."""
    return [(pixels(sample["x"]), sample["y"]) for sample in samples]


def of_litdata(samples: list[dict[str, Any]]) -> list[tuple[Any, int]]:
    """Return image and label of samples of LitData."""
    return [(decode(sample["x"]), sample["y"]) for sample in samples]


def collate_streaming(samples: list[dict[str, Any]]) -> Any:
    """Return a batch of Streaming."""
    return data.default_collate(of_streaming(samples))


def collate_litdata(samples: list[dict[str, Any]]) -> Any:
    """Return a batch of LitData."""
    return data.default_collate(of_litdata(samples))


def loader(reader: str, folder: Path) -> Any:
    """Return what yields the batches."""
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": WORKERS}
    if reader == "recordio":
        ours: Any = importlib.import_module("recordio_reader")
        return data.DataLoader(ours.RecordIODataset(sorted(folder.glob("*.rec")), transform=decode), **options)
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
