"""A video as a number of its frames, evenly spaced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trainer.data.formats.fields import Images
from trainer.data.prompts.checks import IMAGE_SUFFIXES, DataError, check_text, shown


def frames_of(where: str, value: Any, images: Images, count: int) -> tuple[str, ...]:
    """The paths of at most `count` frames of a video, which is a folder of images, taken in the order of their names, or a list of
    images. Of more than `count` the first, the last, and what lies evenly between them is taken.

    Raises:
        DataError: a video file, which is not decoded, an empty folder, or an image that is not there.
    """
    if isinstance(value, list):
        names = list(value)
    else:
        folder = images.folder / check_text(where, value)
        if not os.path.isdir(folder):  # also where the name is longer than the system allows
            what = f"{folder} is a file" if os.path.isfile(folder) else f"no folder at {folder.absolute()}"
            raise DataError(
                f"{where}: {what}; videos are read as folders of frames: write them with ffmpeg -i VIDEO -vf fps=1 "
                f"FOLDER/%05d.png, and name the folder"
            )
        names = sorted(str(each) for each in folder.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
        names = [str(Path(each).absolute()) for each in names]
    if not names:
        raise DataError(f"{where}: {shown(value)} holds no image in {', '.join(IMAGE_SUFFIXES)}")
    return tuple(images.path(where, names[place]) for place in _spaced(len(names), count))


def _spaced(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, the first and the last among them; all where there are not more."""
    if total <= count:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [round(n * (total - 1) / (count - 1)) for n in range(count)]
