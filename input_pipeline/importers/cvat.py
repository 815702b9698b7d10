"""Regions of CVAT: the XML file of "CVAT for images".

Polygons, ellipses and masks are painted by their `z_order`, and in the order of
the file where that is equal: later ones lie over earlier ones. Boxes, lines,
points and cuboids are no regions. The label `__ignore__` means no class.
"""

import pathlib
from xml.etree import ElementTree

from input_pipeline.importers import coco, regions
from runtime import errors

_NOTE = (
  'cvat: regions are painted by their z_order, and later ones over earlier ones'
)
_REGIONS = ('polygon', 'ellipse', 'mask')
# A class of the whole image.
_TAG = 'tag'
# An XML file can define entities that expand to any size.
_ENTITY = b'<!ENTITY'


def read_cvat(path: pathlib.Path) -> regions.Annotations:
  """Reads `annotations.xml`, as exported in the format "CVAT for images".

  The labels are in the order of the task, or of their first use.

  Raises:
    UserError: the file cannot be read, or a shape is wrong.
  """
  with errors.naming_file(path):
    data = path.read_bytes()
  if _ENTITY in data:
    raise errors.BadFile(path, 'defines entities, as no file of CVAT does')
  try:
    root = ElementTree.fromstring(data)
  except (ElementTree.ParseError, ValueError, LookupError) as error:
    raise errors.BadFile(path, f'is no XML file: {error}') from error
  if root.find('track') is not None:
    raise errors.BadFile(
      path, 'holds tracks of a video: export it as "CVAT for images"'
    )
  elements = root.findall('image')
  if root.tag != 'annotations' or not elements:
    raise errors.BadFile(
      path,
      'expected the elements <image> of "CVAT for images", got none: export it '
      'in that format',
    )
  other_shapes: list[str] = []
  images = tuple(
    _read_image(element, path, other_shapes) for element in elements
  )
  labels = [
    name.text.strip()
    for name in root.iterfind('meta//labels/label/name')
    if name.text
  ]
  labels += [region.label for image in images for region in image.regions]
  classes = dict.fromkeys(
    filter(None, map(regions.class_of_region_label, labels))
  )
  return regions.Annotations(
    images, tuple(classes), (_NOTE,), tuple(other_shapes)
  )


def _read_image(
  element: ElementTree.Element, path: pathlib.Path, other_shapes: list[str]
) -> regions.AnnotatedImage:
  name = element.get('name', '')
  try:
    size = regions.parse_annotated_image_size(
      element.attrib['height'], element.attrib['width']
    )
    ordered = []
    for shape in element:
      label = shape.get('label', '')
      if not label and shape.tag in _REGIONS:
        raise errors.UserError(f'expected a label of the {shape.tag}, got none')
      if shape.tag in _REGIONS:
        order = int(shape.get('z_order', '0'))
        region = _read_shape(shape, regions.class_of_region_label(label))
        ordered.append((order, region))
      elif shape.tag != _TAG:
        other_shapes.append(f'a {shape.tag} of {label!r} in {name}')
  except KeyError as error:
    raise errors.BadFile(
      path, f'{name}: expected the attributes of CVAT, got none {error}'
    ) from error
  except (ValueError, errors.UserError) as error:
    raise errors.BadFile(path, f'{name}: {error}') from error
  ordered.sort(key=lambda item: item[0])  # Stable: equal ones keep their order.
  return regions.AnnotatedImage(
    (name,), size, tuple(region for _, region in ordered), str(path)
  )


def _read_shape(shape: ElementTree.Element, label: str) -> regions.Region:
  attributes = shape.attrib
  if shape.tag == 'polygon':
    points = [
      point.split(',') for point in attributes['points'].split(';') if point
    ]
    return regions.Region(label, (regions.make_region_polygon(points),))
  if shape.tag == 'ellipse':
    cx, cy, rx, ry = (float(attributes[k]) for k in ('cx', 'cy', 'rx', 'ry'))
    degrees = float(attributes.get('rotation', '0'))
    polygon = regions.make_region_ellipse((cx, cy), (rx, ry), degrees)
    return regions.Region(label, (polygon,))
  left, top, width, height = (
    int(attributes[k]) for k in ('left', 'top', 'width', 'height')
  )
  if min(width, height) < 1:
    raise errors.UserError(f'expected a mask with pixels, got {width}x{height}')
  bitmap = coco.decode_run_lengths(
    attributes['rle'].split(','), (height, width)
  )
  return regions.Region(
    label, bitmap=regions.encode_region_bitmap(bitmap), corner=(left, top)
  )
