"""Regions of a COCO file: polygons and run-length encoded masks.

T.-Y. Lin et al.: Microsoft COCO: Common objects in context, 2014. The format
has no order of depth: crowds are painted first, then other regions from large
to small, so that small ones stay visible. Crowds (`iscrowd`) are ignored, as is
a category `__ignore__`.
"""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.importers import regions
from runtime import errors

_NOTES = (
  'coco: regions are painted from large to small, as the format has no order '
  'of depth',
)


def read_coco(path: pathlib.Path) -> regions.Annotations:
  """Reads a COCO file with `images`, `annotations` and `categories`.

  Raises:
    UserError: the file cannot be read, or an annotation is wrong.
  """
  images, annotations, categories = _read_tables(path)
  try:
    labels = _labels(categories)
    if len({image['id'] for image in images}) != len(images):
      raise errors.UserError(
        'expected images of different ids, got one twice: which of the two an '
        'annotation belongs to is unknown'
      )
    by_image = collections.defaultdict(list)
    for annotation in annotations:
      by_image[annotation['image_id']].append(annotation)
    other_shapes: list[str] = []
    annotated = tuple(
      _read_image(image, by_image.pop(image['id'], ()), labels, other_shapes)
      for image in images
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise errors.BadFile(
      path, f'expected the fields of COCO, got {describe_wrong_field(error)}'
    ) from error
  except errors.UserError as error:
    raise errors.BadFile(path, str(error)) from error
  if by_image:
    count = errors.format_count(
      len(by_image),
      'image has annotations, but is',
      'images have annotations, but are',
    )
    raise errors.BadFile(
      path,
      f'{count} not among `images`, the first with id {next(iter(by_image))}',
    )
  crowds = sum(bool(each.get('iscrowd')) for each in annotations)
  notes = [*_NOTES]
  if crowds:
    count = errors.format_count(
      crowds, 'crowd (iscrowd) is', 'crowds (iscrowd) are'
    )
    notes.append(f'coco: {count} ignored')
  return regions.Annotations(
    annotated,
    tuple(filter(None, map(regions.class_of_region_label, labels.values()))),
    tuple(notes),
    tuple(other_shapes),
  )


def _read_tables(path: pathlib.Path) -> tuple[list[dict], ...]:
  """Reads the images, annotations and categories of a COCO file.

  Raises:
    BadFile: the file cannot be read, or is no file of instances.
  """
  content = read_annotation_json(path)
  tables = [content.get(k) for k in ('images', 'annotations', 'categories')]
  if not all(isinstance(table, list) for table in tables):
    raise errors.BadFile(
      path,
      'expected lists `images`, `annotations` and `categories`, as in '
      'instances_train2017.json of COCO: export instances, not keypoints or '
      'captions',
    )
  images, annotations, categories = tables
  if not all(isinstance(each, dict) for table in tables for each in table):
    raise errors.BadFile(
      path, 'expected lists of objects, got another entry in one of them'
    )
  if any('segments_info' in each for each in annotations[:1]):
    raise errors.BadFile(
      path,
      'expected instances, got panoptic annotations, whose masks are PNG files '
      'already: export instances',
    )
  return images, annotations, categories


def read_annotation_json(path: pathlib.Path) -> Mapping[str, Any]:
  """Reads a file that holds a JSON object.

  Raises:
    BadFile: the file cannot be read, or holds anything else.
  """
  with errors.naming_file(path):
    data = path.read_bytes()
  try:
    content = json.loads(data)
  except (ValueError, RecursionError) as error:
    raise errors.BadFile(path, f'is no JSON file: {error}') from error
  if not isinstance(content, dict):
    raise errors.BadFile(
      path, f'expected a JSON object, got {type(content).__name__}'
    )
  return content


def describe_wrong_field(error: Exception) -> str:
  """Describes a field that is missing, or of another type."""
  if isinstance(error, KeyError):
    return f'an entry without {error}'
  return f'a field of another type: {error}'


def _labels(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
  """Returns the name of each category id, in the order of the ids."""
  labels = {
    category['id']: str(category['name'])
    for category in sorted(categories, key=lambda category: category['id'])
  }
  if not all(map(str.strip, labels.values())):
    raise errors.UserError('expected a name of each category, got an empty one')
  if len({*labels.values()}) != len(categories):
    raise errors.UserError(
      'expected categories of different ids and names, got one twice'
    )
  return labels


def _read_image(
  image: Mapping[str, Any],
  annotations: Sequence[Mapping[str, Any]],
  labels: Mapping[int, str],
  other_shapes: list[str],
) -> regions.AnnotatedImage:
  """Reads the regions of an image; lists annotations without one."""
  size = regions.parse_annotated_image_size(image['height'], image['width'])
  crowds, others = [], []
  for annotation in annotations:
    where = f'annotation {annotation.get("id")} of {image["file_name"]}'
    if annotation['category_id'] not in labels:
      raise errors.UserError(
        f'{where}: category {annotation["category_id"]} is not among '
        '`categories`'
      )
    label = regions.class_of_region_label(labels[annotation['category_id']])
    crowd = bool(annotation.get('iscrowd'))
    if not annotation.get('segmentation'):
      other_shapes.append(f'a box of {label!r} in {image["file_name"]}')
      continue
    try:
      region = _read_region(
        '' if crowd else label, annotation['segmentation'], size
      )
    except errors.UserError as error:
      raise errors.UserError(f'{where}: {error}') from error
    (crowds if crowd else others).append(region)
  others.sort(key=regions.Region.area, reverse=True)
  return regions.AnnotatedImage(
    (str(image['file_name']),),
    size,
    (*crowds, *others),
    f'image {image["id"]}',
  )


def _read_region(
  label: str, segmentation: Any, size: tuple[int, int]
) -> regions.Region:
  if isinstance(segmentation, list):
    polygons = []
    for numbers in segmentation:
      if not isinstance(numbers, list) or len(numbers) % 2:
        raise errors.UserError(
          'expected outlines as lists x, y, x, y, …, got another segmentation'
        )
      points = zip(numbers[::2], numbers[1::2], strict=True)
      polygons.append(regions.make_region_polygon(points))
    return regions.Region(label, tuple(polygons))
  if [*segmentation['size']] != [*size]:
    raise errors.UserError(
      f'expected a mask of height and width {[*size]}, got '
      f'{segmentation["size"]}'
    )
  counts = segmentation['counts']
  if isinstance(counts, str):
    # pycocotools would read runs that do not cover the image, too.
    counts = _decompress_run_lengths(counts)
  # The runs are in columns.
  bitmap = decode_run_lengths(counts, size[::-1]).T
  return regions.Region(label, bitmap=regions.encode_region_bitmap(bitmap))


def _decompress_run_lengths(text: str) -> list[int]:
  """Returns the lengths of runs that pycocotools compressed.

  Each is written in digits of 5 bits, the lowest first, with a sixth bit if
  more follow; from the fourth on, as its difference to the one two before.
  """
  runs: list[int] = []
  number = shift = 0
  for character in text:
    digit = ord(character) - 48
    if not 0 <= digit < 64 or shift > 30:
      raise errors.UserError(
        'expected a mask as compressed run lengths, got other characters'
      )
    number |= (digit & 31) << shift
    shift += 5
    if digit & 32:
      continue
    if digit & 16:
      number -= 1 << shift
    runs.append(number + runs[-2] if len(runs) > 2 else number)
    number = shift = 0
  if shift:
    raise errors.UserError(
      'expected a mask as compressed run lengths, got a part of one'
    )
  return runs


def decode_run_lengths(counts: Any, size: tuple[int, int]) -> np.ndarray:
  """Decodes the lengths of runs in rows, of which the first is outside.

  Args:
    counts: a number of pixels for each run.
    size: height and width.

  Returns:
    bool [H, W], True inside.

  Raises:
    UserError: the runs do not cover the shape.
  """
  try:
    runs = np.array([int(count) for count in counts], np.int64)
  except (TypeError, ValueError, OverflowError):
    raise errors.UserError(
      'expected a mask as run lengths, got no numbers'
    ) from None
  pixels = size[0] * size[1]
  if runs.min(initial=0) < 0 or sum(runs.tolist()) != pixels:
    raise errors.UserError(
      f'expected run lengths of {pixels:,} pixels together, got '
      f'{sum(runs.tolist()):,}'
    )
  inside = np.arange(len(runs)) % 2 == 1
  return np.repeat(inside, runs).reshape(size)
