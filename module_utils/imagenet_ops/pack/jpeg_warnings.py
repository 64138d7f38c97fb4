"""What libjpeg says of a JPEG that is damaged and that it decodes nevertheless.

OpenCV gives pixels for such an image and no error. libjpeg prints a line on standard error, the first of each image,
and nobody can tell which thread's image it is about. So standard error is caught, and its length is compared before
and after each image, which costs a microsecond. An image during which it has grown is decoded once more, alone.
"""

from __future__ import annotations

import os
import sys

from ansible.module_utils.imagenet_ops.pack.image import STRICT

# Messages of libjpeg's jerror.h. These two are of an image of which a part is missing.
_TRUNCATED = ("Corrupt JPEG data: premature end of data segment", "Premature end of JPEG file")
# These are of any damage; extra bytes beside a whole image are among them.
_CORRUPT = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")


def damage(text: str, jpeg_check: str) -> str:
    """Return the first warning in ``text`` that makes an image bad by ``jpeg_check`` (of `Recipe`); "" for none."""
    wanted = _CORRUPT if jpeg_check == STRICT else _TRUNCATED
    return next((line for line in text.splitlines() if line.startswith(wanted)), "")


class CaughtStandardError:
    """Catches what this process writes to standard error. A context manager; at its end the rest is passed on.

    ``passed_on`` is the descriptor of the real one, for other processes.
    """

    def __enter__(self) -> CaughtStandardError:  # noqa: PYI034 (Self is newer than Python 3.9)
        """Begin."""
        sys.stderr.flush()
        self.passed_on = os.dup(2)
        self._caught = os.memfd_create("standard-error")
        os.dup2(self._caught, 2)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give standard error back."""
        sys.stderr.flush()
        os.dup2(self.passed_on, 2)
        self.take()
        os.close(self.passed_on)
        os.close(self._caught)

    def length(self) -> int:
        """Return how many bytes were caught since the last `take`."""
        return os.fstat(self._caught).st_size

    def take(self) -> str:
        """Return and forget what was caught; what libjpeg has not written is passed on. Not beside other threads."""
        size = self.length()
        text = os.pread(self._caught, size, 0).decode("utf-8", "backslashreplace")
        os.ftruncate(self._caught, 0)
        os.lseek(self._caught, 0, os.SEEK_SET)
        others = [line for line in text.splitlines(keepends=True) if not line.startswith(_CORRUPT)]
        if others:
            os.write(self.passed_on, "".join(others).encode())
        return text
