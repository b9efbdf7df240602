"""Reader of keypoint results in COCO's format, as MMPose, Detectron2, Ultralytics (`predictions.json`) and others write them.

`[{"image_id": 12, "category_id": 1, "keypoints": [x0, y0, c0, ...], "score": 0.9}, ...]`; `track_id` is used where every result has
one. Which clip and frame an image belongs to follows from

- a COCO file in the same folder with `{"images": [{"id": 12, "file_name": "wave_01/000012.jpg"}, ...]}`; if its `categories` name
  the key points, these give the layout,
- or image ids that are such names,
- or one file of results per clip, `wave_01.json`, whose image ids are frame numbers.

The clip of `wave_01/000012.jpg` and of `wave_01_000012.jpg` is `wave_01`, the frame is 12.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from shapmix.data.sources.bounded import show
from shapmix.data.sources.pose_clips import (
    AGAIN,
    TABLE,
    Clip,
    PoseFiles,
    brief,
    flat_pose,
    frame_number,
    named_layout,
    read_json,
    track_id,
)
from shapmix.data.sources.registry import source
from shapmix.data.sources.table import Labels, read_labels
from shapmix.data.sources.tracks import Frame, Pose
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout

ALPHAPOSE = "alphapose-results.json"


class Result(NamedTuple):
    """One person of one image."""

    image: int | str
    pose: Pose
    where: str


def read_results(content: Any, file: Path, id_key: str = "track_id") -> Iterator[Result]:
    """The results of a list in COCO's format.

    Raises:
        DataError: not such a list; the message names the number of the result, the image and the joint.
    """
    if not isinstance(content, list):
        raise DataError(f"{file}: {brief(content)} is not a list of results; {AGAIN}")
    for row, entry in enumerate(content):
        if not isinstance(entry, dict) or "keypoints" not in entry:
            raise DataError(f"{file}: result {row} is {brief(entry)}, without 'keypoints'; {AGAIN}")
        image = entry.get("image_id")
        if isinstance(image, bool) or not isinstance(image, (int, str)) or (isinstance(image, int) and image < 0):
            raise DataError(f"{file}: result {row}: 'image_id' is {brief(image)}, not a number or a name; {AGAIN}")
        where = f"{file}: result {row}, image {brief(image)}"
        yield Result(image, flat_pose(entry["keypoints"], 3, where, track_id(entry.get(id_key))), where)


def by_frame(results: Iterator[Result]) -> Iterator[Frame]:
    """Frames of one clip, whose image ids are frame numbers or names that end in one.

    Raises:
        DataError: an image id without a number, or names of several clips.
    """
    frames: dict[int, Frame] = {}
    first: tuple[str, str] | None = None
    for image, pose, where in results:
        number = image if isinstance(image, int) else _in_clip(image, where)[2]
        if isinstance(image, str):
            parent, prefix, _ = _in_clip(image, where)
            first = first or (parent, prefix)
            if first != (parent, prefix):
                raise DataError(f"{where}: the file also has images of {show('/'.join(first))}; give a folder with {TABLE}")
        frames.setdefault(number, Frame(number, [], where)).poses.append(pose)
    yield from frames.values()


def _in_clip(image: str, where: str) -> tuple[str, str, int]:
    """Folder, name without number, and frame number of an image file."""
    path = PurePosixPath(image.replace("\\", "/"))
    number = frame_number(path.stem, where)
    parent = "" if str(path.parent) == "." else str(path.parent)
    return parent, path.stem.rstrip("0123456789").removesuffix("_"), number


def writer_of(file: Path) -> str | None:
    """The format, `alphapose` or `coco_results`, of a JSON file that begins like a list of results; None for other files."""
    try:
        with file.open("rb") as content:
            begin = content.read(1 << 16).lstrip()
    except OSError:
        return None
    if not begin.startswith(b"[") or b'"image_id"' not in begin or b'"keypoints"' not in begin:
        return None
    return "alphapose" if file.name == ALPHAPOSE or b'"idx"' in begin or b'"box"' in begin else "coco_results"


def holds_results(path: Path, format: str) -> bool:
    """Whether a file, or the first files of a folder and its folders, were written in that format."""
    files = [path] if path.is_file() else [file for depth in ("", "*/", "*/*/") for file in islice(path.glob(f"{depth}*.json"), 3)]
    return any(file.suffix == ".json" and writer_of(file) == format for file in files)


def _is_list(file: Path) -> bool:
    """Whether a JSON file holds a list, from its first character."""
    with file.open("rb") as content:
        return content.read(64).lstrip()[:1] == b"["


@source(
    "coco_results",
    "keypoint results in COCO's format, one list for all clips or one per clip",
    fits=lambda path: holds_results(path, "coco_results"),
    asks_layout=lambda path: True,
)
class CocoResults(PoseFiles):
    """Clips of result lists: (x, y, score) in pixels of the image; people are joined by `track_id`, else by distance."""

    def is_frame(self, file: Path) -> bool:
        """A file holds at least one clip."""
        return False

    def frames(self, clip: Clip) -> Iterator[Frame]:
        """The frames that have results."""
        if self._whole is None:
            yield from by_frame(read_results(read_json(clip.files[0]), clip.files[0]))
        else:
            yield from self._whole.get(clip.name, ())

    def _find(self, path: Path) -> tuple[list[Clip], Labels | None]:
        self._whole: dict[str, list[Frame]] | None = None
        self._names: list[str] = []
        listed = [file for file in sorted(path.glob("*.json")) if _is_list(file)] if path.is_dir() else []
        table = path / TABLE
        labels = read_labels(table) if path.is_dir() and table.is_file() else None
        if len(listed) != 1 or (labels and (path / f"{labels.names[0]}.json").is_file()):
            return super()._find(path)
        images = next((file for file in sorted(path.glob("*.json")) if file not in listed), None)
        coco = None if images is None else read_json(images)
        self._names = [] if images is None else _joint_names(coco)
        name_of = {} if images is None else _image_names(coco, images)
        self._whole = _by_clip(listed[0], name_of, labels.names if labels else None)
        names = labels.names if labels else list(self._whole)
        for name in names:
            if name not in self._whole:
                raise DataError(
                    f"{table}: clip '{name}': no image of it is in {listed[0].name}; correct the name or remove the line"
                )
        return [Clip(name, (listed[0],) if images is None else (listed[0], images)) for name in names], labels

    def _skeleton(self) -> str | Layout:
        return named_layout(self._names, self._path) if self._names else super()._skeleton()

    @property
    def files(self) -> list[Path]:
        """The files that are read, each once."""
        return list(dict.fromkeys(super().files))


def _joint_names(content: Any) -> list[str]:
    """The key points of the category that has any; empty if there is none."""
    categories = content.get("categories") if isinstance(content, dict) else None
    for category in categories if isinstance(categories, list) else []:
        names = category.get("keypoints") if isinstance(category, dict) else None
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return names
    return []


def _by_clip(file: Path, name_of: Mapping[int, str], names: Sequence[str] | None) -> dict[str, list[Frame]]:
    """The frames of each clip; of several readings of an image's name, the one that the table has."""
    known = None if names is None else set(names)
    clips: dict[str, dict[int, Frame]] = {}
    image_of: dict[tuple[str, int], str] = {}
    for image, pose, where in read_results(read_json(file, "write one file of results per clip"), file):
        name = name_of.get(image) if isinstance(image, int) else image
        if name is None:
            raise DataError(
                f"{where}: which clip the image belongs to is not known; put the COCO file with 'images' into the same folder, or "
                "write one file of results per clip"
            )
        parent, prefix, number = _in_clip(name, where)
        readings = [parent, PurePosixPath(parent).name, prefix, f"{parent}/{prefix}"]
        clip = next((one for one in readings if one and (known is None or one in known)), None)
        if clip is not None:
            if (other := image_of.setdefault((clip, number), name)) != name:
                raise DataError(
                    f"{where}: frame {number} of clip '{clip}' would be {show(name)} and {show(other)}; write one file of results "
                    f"per clip, or name the clips in {TABLE}"
                )
            frames = clips.setdefault(clip, {})
            frames.setdefault(number, Frame(number, [], where)).poses.append(pose)
    return {clip: list(frames.values()) for clip, frames in clips.items()}


def _image_names(content: Any, file: Path) -> dict[int, str]:
    """Image id -> file name, from the content of a COCO file."""
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{file}: has no list 'images'; put the COCO file of the images there")
    names: dict[int, str] = {}
    for row, entry in enumerate(content["images"]):
        number = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if type(number) is not int or not isinstance(name, str):
            raise DataError(f"{file}: image {row} is {brief(entry)}, without 'id' and 'file_name'; {AGAIN}")
        if number in names:
            raise DataError(f"{file}: image {row}: id {number} is also that of {show(names[number])}; ids must differ")
        names[number] = name
    return names
