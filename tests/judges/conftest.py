"""The libraries that write and read the formats, in the environment that `make judges` makes for them.

What runs there is in a file of its own beside the tests of a format, `<format>_peer.py`: functions that take and return
what JSON can hold. Each question has a process of its own, for not all of the libraries share one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.formats.format import DatasetInfo, Sample

from tests.fakes.images import grey_jpeg, jpeg, png

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = ROOT / ".venv-judges"
CALL = """
import json, sys
sys.path.insert(0, sys.argv[1])
answer = getattr(__import__(sys.argv[2]), sys.argv[3])(*json.load(sys.stdin))
print(f"\\n{json.dumps(answer)}")
"""
# Nothing is asked of a network or a GPU.
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_GCE_CHECK": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
INFO = DatasetInfo("imagenet", WNIDS, {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"})
ODD_NAMES = ["with space.jpg", "two.dots.jpg", "zażółć-図.jpeg", "100%.png", "x" * 240 + ".JPEG"]


class Judges:
    """Runs functions of the peers in .venv-judges."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, peer: str, function: str, *arguments: Any) -> Any:
        """Call ``function`` of ``<peer>.py`` and return its answer."""
        done = subprocess.run(
            [str(ENVIRONMENT / "bin" / "python"), "-c", CALL, str(Path(__file__).parent), peer, function],
            input=json.dumps(arguments, default=str),
            cwd=self._folder,
            env={**os.environ, **QUIET, "HOME": str(self._folder), "TMPDIR": str(self._folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def judges(tmp_path: Path) -> Judges:
    if not (ENVIRONMENT / ".stamp").exists():
        pytest.skip(f"{ENVIRONMENT.name} is missing (`make judges` makes it where there is Python 3.11 on x86_64)")
    folder = tmp_path / "judges"
    folder.mkdir()
    return Judges(folder)


@pytest.fixture(scope="session", params=["made", "photographs"])
def samples(request: pytest.FixtureRequest) -> list[Sample]:
    """Images of four classes in a mixed order: made ones with odd names, and real ones, PNG and CMYK among them."""
    images = _made() if request.param == "made" else _photographs()
    ordered = sorted(images.items(), key=lambda image: hashlib.sha256(image[0].encode()).digest())
    return [
        Sample(record_id, WNIDS.index(name.partition("/")[0]), name, image)
        for record_id, (name, image) in enumerate(ordered, 100)
    ]


def told(samples: Iterable[Sample]) -> list[list[Any]]:
    """Return what a reader should say of ``samples``: label and hash of each image."""
    return [[sample.label, hashlib.sha256(sample.image).hexdigest()] for sample in samples]


def _made() -> dict[str, bytes]:
    images = {
        f"{wnid}/{wnid}_{number}.JPEG": (jpeg if number % 3 else grey_jpeg)(40 + number, 30 + at, number)
        for at, wnid in enumerate(WNIDS)
        for number in range(12)
    }
    odd = {f"{WNIDS[0]}/{name}": png(seed=at) if "%" in name else jpeg(seed=at) for at, name in enumerate(ODD_NAMES)}
    return {**images, **odd}


def _photographs() -> dict[str, bytes]:
    archive = ROOT.parent / "shared" / "imagenet-sample" / "ILSVRC2012_img_train.tar"
    if not archive.exists():
        pytest.skip("shared/imagenet-sample beside the checkout is missing: the sample of real photographs")
    found: dict[str, bytes] = {}
    # The classes of the three odd images stand in for the first ones.
    wanted = {"n02105855": WNIDS[0], "n01739381": WNIDS[1], "n02077923": WNIDS[2], WNIDS[3]: WNIDS[3]}
    with tarfile.open(archive) as outer:
        for member in outer:
            wnid = wanted.get(member.name.partition(".")[0])
            if wnid:
                with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                    files = ((image.name, inner.extractfile(image)) for image in inner)
                    found.update({f"{wnid}/{name}": file.read() for name, file in files if file})
    assert len(found) > len(WNIDS)
    return found
