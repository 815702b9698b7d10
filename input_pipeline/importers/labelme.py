"""Regions of LabelMe: a JSON file for each image.

Polygons, rectangles, circles and masks are painted in the order of the file, as
LabelMe itself does: later ones lie over earlier ones. Points and lines are no
regions. The label `__ignore__` means no class.
"""

import base64
import binascii
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline.importers import coco, regions
from input_pipeline.sources import archives, image_files
from runtime import errors

_NOTE = (
  'labelme: regions are painted in the order of each file, later ones over '
  'earlier ones'
)
# Exceptions of fields that are missing, or of another type.
_WRONG_FIELDS = (
  AttributeError,
  LookupError,
  OverflowError,
  TypeError,
  ValueError,
)


def read_labelme(folder: pathlib.Path) -> regions.Annotations:
  """Reads the JSON files of a folder and its subfolders.

  The labels are in alphabetical order.

  Raises:
    UserError: a file cannot be read, or a shape is wrong.
  """
  if not folder.is_dir():
    raise errors.UserError(
      f'annotations: expected the folder of the JSON files of LabelMe, got '
      f'{folder}, which is {"a file" if folder.exists() else "missing"}'
    )
  paths = [
    path
    for path in archives.list_folder_files(folder)[0]
    if path.suffix.lower() == '.json'
  ]
  if not paths:
    raise errors.UserError(
      f'annotations: expected JSON files of LabelMe in {folder}, got none'
    )
  other_shapes: list[str] = []
  images = tuple(_read_file(path, folder, other_shapes) for path in paths)
  labels = {region.label for image in images for region in image.regions}
  return regions.Annotations(
    images, tuple(sorted(labels - {''})), (_NOTE,), tuple(other_shapes)
  )


def _read_file(
  path: pathlib.Path, folder: pathlib.Path, other_shapes: list[str]
) -> regions.AnnotatedImage:
  content = coco.read_annotation_json(path)
  try:
    size = regions.parse_annotated_image_size(
      content['imageHeight'], content['imageWidth']
    )
    shapes = content['shapes']
    image_path = str(content.get('imagePath') or '').replace('\\', '/')
    read = []
    for number, shape in enumerate(shapes, 1):
      label = '' if shape['label'] is None else str(shape['label'])
      try:
        if not label.strip():
          raise errors.UserError('expected a label, got none')
        region = _read_shape(shape, regions.class_of_region_label(label))
      except errors.UserError as error:
        raise errors.BadFile(
          path, f'shape {number}, {label!r}: {error}'
        ) from error
      if region is None:
        other_shapes.append(
          f'a {shape["shape_type"]} of {label!r} in {path.name}'
        )
      else:
        read.append(region)
  except errors.BadFile:
    raise
  except errors.UserError as error:
    raise errors.BadFile(path, str(error)) from error
  except _WRONG_FIELDS as error:
    raise errors.BadFile(
      path,
      f'expected the fields of LabelMe, got {coco.describe_wrong_field(error)}',
    ) from error
  # The path is relative to the file; or the image has the name of the file.
  names = (
    os.path.normpath(path.parent / image_path) if image_path else '',
    path.relative_to(folder).with_suffix('').as_posix(),
  )
  return regions.AnnotatedImage(
    tuple(filter(None, names)), size, tuple(read), str(path)
  )


def _read_shape(shape: Mapping[str, Any], label: str) -> regions.Region | None:
  """Returns the region of a shape; None if it is none."""
  points = shape['points']
  match shape.get('shape_type') or 'polygon':
    case 'polygon':
      polygon = regions.make_region_polygon(points)
    case 'rectangle':
      first, second = points
      polygon = regions.make_region_box(first, second)
    case 'circle':
      (x, y), edge = points
      radius = float(np.hypot(edge[0] - x, edge[1] - y))
      polygon = regions.make_region_ellipse((x, y), (radius, radius))
    case 'mask':
      left, top = (round(part) for part in points[0])
      bitmap = regions.encode_region_bitmap(_decode(shape['mask']))
      return regions.Region(label, bitmap=bitmap, corner=(left, top))
    case _:
      return None
  return regions.Region(label, (polygon,))


def _decode(text: str) -> np.ndarray:
  """Decodes the PNG file of a mask."""
  try:
    data = base64.b64decode(text, validate=True)
  except (binascii.Error, TypeError):
    raise errors.UserError(
      'expected a mask as a PNG file in base64, got other characters'
    ) from None
  return (
    np.asarray(image_files.decode_image_file(data, ('PNG',)).convert('L')) > 0
  )
