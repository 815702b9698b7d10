"""Writes the masks and the class list of a folder from annotations.

  options = ImportOptions('coco', 'instances.json')
  result = convert_annotations(options, folder)
  result.lines  # What was read and written, for the user.

Masks are PNG files of values in the folder of the masks, beside a marker file
that lists them: masks of other origin are never overwritten.
"""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image

from input_pipeline.builders import class_list
from input_pipeline.importers import coco, cvat, labelme, regions
from input_pipeline.sources import image_ids, masks, pairing
from runtime import errors, files, progress, threads

READERS = {
  'coco': coco.read_coco,
  'labelme': labelme.read_labelme,
  'cvat': cvat.read_cvat,
}
# The kind of data set that is made, and where its parts are by default.
DATA_SET = 'image_mask_folder'
DEFAULTS = {'images': 'images', 'masks': 'masks', 'classes': 'classes.txt'}
# Values of `other_shapes`: refuse boxes, lines and points, or leave them out.
OTHER_SHAPES = ('error', 'skip')
# Values of `without_shapes`: an image in which nothing is annotated is all
# background, or has no mask.
WITHOUT_SHAPES = ('background', 'unlabeled')

_BACKGROUND = 'background'
_MARKER = '.imported.json'
_MAX_8_BIT, _MAX_16_BIT = 255, 65535


@dataclasses.dataclass(frozen=True)
class ImportOptions:
  """Locates annotations and says what to do with what is no region.

  Attributes:
    tool: 'coco', 'labelme' or 'cvat'.
    annotations: file (COCO, CVAT) or folder (LabelMe), in the source; '' for
      LabelMe is the folder of the images.
    other_shapes: 'error' refuses boxes, lines and points; 'skip' leaves them
      out.
    without_shapes: an image in which nothing is annotated is all 'background',
      or 'unlabeled': no mask is written for it.
  """

  tool: str
  annotations: str = ''
  other_shapes: str = 'error'
  without_shapes: str = 'background'

  def __post_init__(self):
    for name, allowed in (
      ('tool', tuple(READERS)),
      ('other_shapes', OTHER_SHAPES),
      ('without_shapes', WITHOUT_SHAPES),
    ):
      if getattr(self, name) not in allowed:
        raise errors.UserError(
          f'{name}: expected one of {allowed}, got {getattr(self, name)!r}'
        )
    if not self.annotations and self.tool != 'labelme':
      raise errors.UserError(
        f'annotations is empty: give the file that {self.tool} exported'
      )


@dataclasses.dataclass(frozen=True)
class Folder:
  """Locates the images, and what is written.

  Attributes:
    source: the folder of the data set.
    images: folder of the images in it.
    masks: folder of the masks in it.
    classes: file of the class list in it; a new one is written unless it
      exists.
    ignore: value of ignored pixels; None for the largest of the masks.
    endings: ends of the names of images and masks that are no part of ids.
  """

  source: str
  images: str
  masks: str
  classes: str
  ignore: int | None = None
  endings: pairing.Endings = pairing.Endings()

  def path(self, name: str) -> pathlib.Path:
    """Returns the path of something in the source."""
    return pathlib.Path(self.source).expanduser() / name

  def __post_init__(self):
    ending = self.endings.mask.lower()
    if ending.endswith(pairing.MASK_SUFFIXES) and not ending.endswith('.png'):
      raise errors.UserError(
        'mask_suffix: expected the end of a PNG file, which are written, got '
        f'{self.endings.mask!r}'
      )

  def mask_path(self, id: str) -> pathlib.Path:
    """Returns the path of the mask of an image."""
    ending = self.endings.mask
    if not ending.lower().endswith('.png'):
      ending += '.png'
    return self.path(self.masks) / f'{id}{ending}'


@dataclasses.dataclass(frozen=True)
class Result:
  """Ignored value of the written masks, and the report to print.

  Attributes:
    ignore: value of ignored pixels.
    lines: report for the user of what was read and written.
  """

  ignore: int
  lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Values:
  """Values that are written into the masks.

  Attributes:
    by_label: value of the regions of each label.
    background: value outside of all regions.
    ignored: value of pixels without a class.
  """

  by_label: Mapping[str, int]
  background: int
  ignored: int


def convert_annotations(options: ImportOptions, folder: Folder) -> Result:
  """Writes a mask for each annotated image, and the class list.

  Args:
    options: tool and location of the annotations.
    folder: images, and where masks and class list are written.

  Raises:
    UserError: an annotation or a file is wrong; then nothing is written.
  """
  annotations = READERS[options.tool](_find(options, folder))
  if annotations.other_shapes and options.other_shapes == 'error':
    raise errors.UserError(_describe_other_shapes(annotations.other_shapes))
  annotated = _match_images(annotations.images, folder)
  without_shapes = [id for id, image in annotated.items() if not image.regions]
  if options.without_shapes == 'unlabeled':
    annotated = {id: i for id, i in annotated.items() if i.regions}
  target = folder.path(folder.masks)
  _check_overwrites(folder, annotated)
  values = _assign_values(annotations.labels, folder)
  empty = _write_masks(folder, annotated, values)
  count = errors.format_count(len(annotated), 'mask is', 'masks are')
  lines = [
    *annotations.notes,
    f'{options.tool}: {count} in {target}, the class list is '
    f'{folder.path(folder.classes)}',
  ]
  if annotations.other_shapes:
    count = errors.format_count(
      len(annotations.other_shapes),
      'shape that is no region is',
      'shapes that are no regions are',
    )
    lines.append(
      f'{options.tool}: {count} left out, the first '
      f'{annotations.other_shapes[0]}'
    )
  if without_shapes:
    meaning = {'background': 'all background', 'unlabeled': 'without a mask'}
    count = errors.format_count(
      len(without_shapes),
      'image has no region and is',
      'images have no region and are',
    )
    lines.append(
      f'{options.tool}: {count} {meaning[options.without_shapes]}, the first '
      f'{without_shapes[0]}'
    )
  if empty:
    count = errors.format_count(empty, 'region covers', 'regions cover')
    lines.append(f'{options.tool}: {count} no pixel')
  return Result(values.ignored, tuple(map(errors.format_on_one_line, lines)))


def _find(options: ImportOptions, folder: Folder) -> pathlib.Path:
  """Returns the path of the annotations, in the source or where it says."""
  if not options.annotations:
    return folder.path(folder.images)
  path = folder.path(options.annotations)
  elsewhere = pathlib.Path(options.annotations).expanduser()
  return elsewhere if elsewhere.exists() and not path.exists() else path


def _describe_other_shapes(shapes: Sequence[str]) -> str:
  return errors.format_problem_lines(
    [
      f'annotations: expected regions, got {len(shapes):,} boxes, lines or '
      'points, which have no pixels of a class: draw regions, or leave these '
      'out with --other_shapes=skip',
      *shapes,
    ]
  )


def _match_images(
  annotated: Sequence[regions.AnnotatedImage], folder: Folder
) -> dict[str, regions.AnnotatedImage]:
  """Returns the annotations of images by their ids, sorted."""
  images, ending = folder.path(folder.images), folder.endings.image
  listing = pairing.list_image_examples(
    images, endings=pairing.Endings(image=ending)
  )
  ids = [example.id for example in listing.examples]
  index = image_ids.IdIndex(
    ids, image_ids.IdRule(os.path.abspath(images), ending)
  )
  by_id: dict[str, regions.AnnotatedImage] = {}
  problems = []
  for image in annotated:
    matches = next(filter(None, map(index.find, image.names)), [])
    if len(matches) != 1:
      count = f'{len(matches)} images' if matches else 'no image'
      similar = index.similar(image.names[0])
      there = f'; similar is {similar[0]!r}' if similar else ''
      problems.append(
        f'{image.source}: expected an image of {images}, got '
        f'{image.names[0]!r}, which names {count}{there}'
      )
    elif (id := ids[matches[0]]) in by_id:
      problems.append(
        f'{image.source}: annotates {id!r} as {by_id[id].source} does: keep '
        'one of them'
      )
    else:
      by_id[id] = image
  if problems:
    raise errors.UserError(errors.format_problem_lines(problems))
  return dict(sorted(by_id.items()))


def _assign_values(labels: Sequence[str], folder: Folder) -> _Values:
  """Reads the class list, or writes that of the labels.

  Raises:
    UserError: the list lacks a label, or cannot hold it.
  """
  names = dict.fromkeys(map(_class_name, labels))
  path = folder.path(folder.classes)
  if not path.exists():
    others = [name for name in names if name != _BACKGROUND]
    files.write_atomically(
      path, ''.join(f'{name}\n' for name in (_BACKGROUND, *others))
    )
  classes = class_list.read_class_list(path, folder.ignore)
  values = dict(zip(classes.names, classes.values, strict=True))
  values = {_class_name(name): value for name, value in values.items()}
  if missing := [name for name in names if name not in values]:
    raise errors.UserError(
      errors.format_on_one_line(
        f'classes: expected a line for each label, got none for '
        f'{", ".join(map(repr, missing))} in {path}: add them, or remove the '
        'file, so that a new one is written'
      )
    )
  ignored = folder.ignore
  if ignored is None:
    largest = max(values.values())
    ignored = _MAX_8_BIT if largest < _MAX_8_BIT else _MAX_16_BIT
  by_label = {label: values[_class_name(label)] for label in labels}
  return _Values(
    {**by_label, '': ignored}, values.get(_BACKGROUND, ignored), ignored
  )


def _class_name(label: str) -> str:
  """Returns the name of a class in lists."""
  name = image_ids.compose_unicode(' '.join(label.split()))
  return _BACKGROUND if name.strip('_').casefold() == _BACKGROUND else name


def _check_overwrites(folder: Folder, ids: Mapping[str, object]) -> None:
  """Raises UserError if a mask exists that was not imported."""
  target = folder.path(folder.masks)
  imported = {*_read_marker(target)}
  paths = [folder.mask_path(id) for id in ids if id not in imported]
  foreign = [path for path in paths if path.exists()]
  if foreign:
    raise errors.UserError(
      errors.format_on_one_line(
        f'masks: expected a folder without masks, got {target} with '
        f'{foreign[0]} and {len(foreign) - 1:,} more: choose another folder of '
        'masks'
      )
    )


def _write_masks(
  folder: Folder,
  annotated: Mapping[str, regions.AnnotatedImage],
  values: _Values,
) -> int:
  """Writes all masks; returns the number of regions without a pixel."""
  palette, largest = _palette(), max(values.by_label.values())
  largest = max(largest, values.background)

  def write(item: tuple[str, regions.AnnotatedImage]) -> int:
    id, image = item
    mask, empty = image.paint(values.by_label, values.background)
    files.write_atomically(
      folder.mask_path(id), _encode(mask, largest, palette), durable=False
    )
    return empty

  marker = folder.path(folder.masks) / _MARKER
  before = _read_marker(marker.parent)
  # Before the masks, so that those of an interrupted import can be overwritten.
  files.write_atomically(
    marker, json.dumps(sorted({*before, *annotated}), indent=0)
  )
  total = sum(
    progress.progress_bar(
      threads.map_in_threads(write, annotated.items()),
      desc='writing masks',
      total=len(annotated),
    )
  )
  for id in {*before} - {*annotated}:
    folder.mask_path(id).unlink(missing_ok=True)
  files.write_atomically(marker, json.dumps(sorted(annotated), indent=0))
  return total


def _encode(mask: np.ndarray, largest: int, palette: bytes) -> bytes:
  """Encodes values as a palette PNG, or as 16-bit gray above 255."""
  if largest > _MAX_8_BIT:
    image = PIL.Image.fromarray(mask.astype(np.uint16))
  else:
    image = PIL.Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette)
  content = io.BytesIO()
  image.save(content, format='PNG')
  return content.getvalue()


def _palette() -> bytes:
  colors = masks.voc_palette(_MAX_8_BIT + 1)
  return bytes(part for color in colors for part in color)


def _read_marker(target: pathlib.Path) -> list[str]:
  """Returns the ids of the masks that were imported before."""
  path = target / _MARKER
  try:
    ids = list(map(str, json.loads(path.read_text('utf-8'))))
  except FileNotFoundError:
    return []
  except (OSError, TypeError, ValueError) as error:
    raise errors.BadFile(path, f'cannot be read: {error}') from error
  # Masks are removed by this file, which somebody may have written by hand.
  parts = {id: pathlib.PurePosixPath(id) for id in ids}
  return [
    id
    for id, path in parts.items()
    if not path.is_absolute() and '..' not in path.parts
  ]
