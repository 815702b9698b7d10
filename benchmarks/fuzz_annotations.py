"""Annotations of labeling tools with one mutation: COCO, LabelMe, CVAT.

Besides bytes, values of JSON and attributes of XML are replaced by others: of
another type, negative, huge, not finite, empty, or missing.
"""

import copy
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np

from input_pipeline.importers import conversion, regions

_SIZE = (14, 18)
_OUTLINE = [2, 2, 12, 2, 12, 9, 2, 9]
# In place of a value.
_ODD = (
  *(None, True, -1, 0, 1.5, 10**9, 2**63, 10**400, float('nan'), float('inf')),
  *(
    '',
    'x',
    '\0',
    'ä',
    '../../x',
    [],
    [[]],
    {},
    [None],
    {'size': 3},
    'a' * 300,
  ),
)
_ODD_TEXTS = (
  *('', 'x', '-1', '0', '1.5', '1000000000', '9' * 400, 'nan', 'inf', '1e999'),
  *(',', ';', '1,2', '1,2;', '1,2;3,4;nan,5', '../../x', 'ä', '%s', 'a' * 300),
)


def _bitmap() -> np.ndarray:
  bitmap = np.zeros(_SIZE, bool)
  bitmap[3:7, 4:9] = True
  return bitmap


def coco_document() -> dict[str, Any]:
  """Returns annotations with an outline, runs, and an encoded mask."""
  encoded = regions.encode_region_bitmap(_bitmap())['counts'].decode()
  runs = [4 * 14 + 3, 4, 14 * _SIZE[1] - 4 * 14 - 7]
  size = [*_SIZE]
  segmentations = [
    [[*_OUTLINE]],
    {'size': size, 'counts': runs},
    {'size': size, 'counts': encoded},
  ]
  return {
    'images': [
      {'id': i, 'file_name': f'{i}.png', 'height': size[0], 'width': size[1]}
      for i in range(2)
    ],
    'categories': [{'id': 1, 'name': 'road'}, {'id': 2, 'name': 'car'}],
    'annotations': [
      {
        'id': i,
        'image_id': i % 2,
        'category_id': 1 + i % 2,
        'segmentation': each,
        'iscrowd': int(i == 1),
        'bbox': [1, 2, 3, 4],
        'area': 9.0,
      }
      for i, each in enumerate(segmentations)
    ],
  }


def labelme_document() -> dict[str, Any]:
  """Returns the annotations of an image, of each kind of region."""
  points = [_OUTLINE[i : i + 2] for i in range(0, 8, 2)]
  shapes = (
    ('polygon', points),
    ('rectangle', [[1, 1], [5, 6]]),
    ('circle', [[8, 8], [10, 8]]),
  )
  return {
    'imagePath': '0.png',
    'imageHeight': _SIZE[0],
    'imageWidth': _SIZE[1],
    'imageData': None,
    'shapes': [
      {'label': 'road', 'shape_type': kind, 'points': each, 'group_id': None}
      for kind, each in shapes
    ],
  }


def cvat_document() -> ElementTree.Element:
  """Returns annotations of each kind of region."""
  root = ElementTree.Element('annotations')
  size = {'height': str(_SIZE[0]), 'width': str(_SIZE[1])}
  image = ElementTree.SubElement(root, 'image', id='0', name='0.png', **size)
  points = ';'.join(f'{_OUTLINE[i]},{_OUTLINE[i + 1]}' for i in range(0, 8, 2))
  common = {'label': 'road', 'z_order': '1'}
  ElementTree.SubElement(image, 'polygon', points=points, **common)
  ellipse = {'cx': '5', 'cy': '6', 'rx': '3', 'ry': '2', 'rotation': '20'}
  ElementTree.SubElement(image, 'ellipse', **ellipse, **common)
  box = {'left': '2', 'top': '2', 'width': '4', 'height': '3'}
  ElementTree.SubElement(image, 'mask', rle='2,5,3,2', **box, **common)
  return root


def _places(value: Any) -> list[tuple[Any, Any]]:
  """Returns container and key of every value within another."""
  items = []
  if isinstance(value, dict):
    items = [*value.items()]
  elif isinstance(value, list):
    items = [*enumerate(value)]
  places = [(value, key) for key, _ in items]
  return places + [place for _, each in items for place in _places(each)]


def _mutate_json(rng: random.Random, document: Any) -> str:
  container, key = rng.choice(_places(document))
  kind = rng.choice(('replace', 'replace', 'replace', 'remove', 'double'))
  if kind == 'replace':
    container[key] = rng.choice(_ODD)
  elif kind == 'remove':
    del container[key]
  elif isinstance(container, list):
    container.append(copy.deepcopy(container[key]))
  return f'{kind} {key!r}'


def _mutate_xml(rng: random.Random, root: ElementTree.Element) -> str:
  element = rng.choice([*root.iter()])
  name = rng.choice([*element.attrib, 'tag'])
  if name == 'tag':
    element.tag = rng.choice(('image', 'mask', 'polygon', 'box', 'x'))
  elif rng.random() < 0.2:
    del element.attrib[name]
  else:
    element.set(name, rng.choice(_ODD_TEXTS))
  return f'{element.tag} {name}'


def write(
  rng: random.Random,
  source: pathlib.Path,
  mutate_bytes: Callable[[random.Random, bytes], tuple[bytes, str]],
) -> tuple[conversion.ImportOptions, conversion.Folder, str]:
  """Writes a file of mutated annotations.

  Args:
    rng: random generator of the mutation.
    source: a new folder for the images and the annotations.
    mutate_bytes: function that mutates the content of a file.

  Returns:
    The options to import them with, the folder, and a description.
  """
  tool = rng.choice(('coco', 'labelme', 'cvat'))
  if tool == 'cvat':
    root = cvat_document()
    text = _mutate_xml(rng, root)
    data = ElementTree.tostring(root)
  else:
    document = coco_document() if tool == 'coco' else labelme_document()
    text = _mutate_json(rng, document)
    data = json.dumps(document).encode()
  if rng.random() < 0.3:
    data, more = mutate_bytes(rng, data)
    text += f', {more}'
  name = {'coco': 'a.json', 'labelme': 'json/0.json', 'cvat': 'a.xml'}[tool]
  path = source / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  options = conversion.ImportOptions(
    tool, 'json' if tool == 'labelme' else name, rng.choice(('error', 'skip'))
  )
  folder = conversion.Folder(str(source), 'images', 'masks', 'classes.txt')
  return options, folder, f'{tool}: {text}'
