"""COCO, LabelMe and CVAT annotations of one scene give the same masks."""

import base64
import json
import random

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from input_pipeline import prepare
from input_pipeline.importers import conversion
from runtime import errors
from tests.support import healthy_sources as sources

WIDTH, HEIGHT = 32, 24
ROAD = [(0, 12), (32, 12), (32, 24), (0, 24)]  # Below.
CAR = [(4, 10), (12, 10), (12, 16), (4, 16)]  # On the road.
HOLE = np.zeros((HEIGHT, WIDTH), bool)  # Not annotated.
HOLE[2:5, 20:30] = True


def expected_mask():
  mask = np.zeros((HEIGHT, WIDTH), np.uint8)
  mask[12:] = 2
  mask[HOLE] = 255
  mask[10:16, 4:12] = 1
  return mask


def flat(points):
  return [part for point in points for part in point]


def coco_content(**changes):
  rle = coco.encode(np.asfortranarray(HOLE.astype(np.uint8)))
  compressed = {'size': rle['size'], 'counts': rle['counts'].decode()}
  car = {'id': 1, 'image_id': 7, 'category_id': 3, 'segmentation': [flat(CAR)]}
  road = {**car, 'id': 2, 'category_id': 5, 'segmentation': [flat(ROAD)]}
  crowd = {**car, 'id': 3, 'iscrowd': 1, 'segmentation': compressed}
  return {
    'images': [
      {'id': 7, 'file_name': 'a.jpg', 'width': WIDTH, 'height': HEIGHT}
    ],
    'annotations': [car, road, crowd],
    'categories': [{'id': 5, 'name': 'road'}, {'id': 3, 'name': 'car'}],
    **changes,
  }


def write_coco(source, **changes):
  (source / 'instances.json').write_text(json.dumps(coco_content(**changes)))
  return ['--from=coco', '--annotations=instances.json']


def write_run_lengths(source, counts):
  [car, *_] = coco_content()['annotations']
  bitmap = {'size': [HEIGHT, WIDTH], 'counts': counts}
  return write_coco(source, annotations=[{**car, 'segmentation': bitmap}])


def labelme_content(*more, **changes):
  png = sources.encoded(PIL.Image.fromarray(HOLE[2:5, 20:30]))
  hole = {
    'label': '__ignore__',
    'shape_type': 'mask',
    'points': [[20, 2], [29, 4]],
    'mask': base64.b64encode(png).decode(),
  }
  return {
    'imagePath': 'a.jpg',
    'imageHeight': HEIGHT,
    'imageWidth': WIDTH,
    'shapes': [
      hole,
      {'label': 'road', 'shape_type': 'polygon', 'points': ROAD},
      {'label': 'car', 'shape_type': 'rectangle', 'points': [CAR[2], CAR[0]]},
      *more,
    ],
    **changes,
  }


def write_labelme(source, *more, **changes):
  content = labelme_content(*more, **changes)
  (source / 'images/a.json').write_text(json.dumps(content))
  return ['--from=labelme']


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels>
    <label><name>car</name><color>#ff0000</color></label>
    <label><name>road</name><color>#00ff00</color></label>
  </labels></task></meta>
  <image id="0" name="a.jpg" width="32" height="24">
    <polygon label="car" z_order="2" points="4,10;12,10;12.0,16.0;4,16"/>
    <mask label="__ignore__" left="20" top="2" width="10" height="3"
      rle="0, 30" z_order="0"/>
    <polygon label="road" z_order="1" points="0,12;32,12;32,24;0,24"/>
    {more}
  </image>
</annotations>
"""


def write_cvat(source, more=''):
  (source / 'annotations.xml').write_text(CVAT.format(more=more))
  return ['--from=cvat', '--annotations=annotations.xml']


@pytest.fixture
def source(tmp_path):
  sources.write(tmp_path / 'roads/images/a.jpg', sources.jpeg(WIDTH, HEIGHT))
  return tmp_path / 'roads'


def run(source, arguments):
  return prepare.main(
    [
      *arguments,
      f'--source={source}',
      f'--data_dir={source.parent / "records"}',
      '--check',
    ]
  )


def refused(source, capsys, arguments):
  assert run(source, arguments) == 2
  out, err = capsys.readouterr()
  assert err.startswith('error: ') and 'Traceback' not in out + err
  assert not list(source.glob('masks/*.png'))
  return err.removeprefix('error: ').rstrip('\n')


@pytest.mark.parametrize('write', [write_coco, write_labelme, write_cvat])
def test_the_same_scene_of_every_tool(write, source, capsys):
  arguments = write(source)
  assert run(source, arguments) == 0
  out, err = capsys.readouterr()
  assert err == ''
  assert (source / 'classes.txt').read_text() == 'background\ncar\nroad\n'
  with PIL.Image.open(source / 'masks/a.png') as mask:
    assert mask.mode == 'P'
    np.testing.assert_array_equal(np.asarray(mask), expected_mask())
  # The audit follows.
  counts = {
    line.split()[0]: line.split()[1:4] for line in out.splitlines() if line
  }
  assert counts['car'] == ['48', '6.25%', '1']
  assert counts['(ignored)'][0] == '30'
  # A second time, masks of the first are written again.
  assert run(source, arguments) == 0


def test_labels_of_an_existing_class_list_keep_their_values(source):
  (source / 'classes.txt').write_text('road\nsky\ncar\n')
  assert run(source, write_coco(source)) == 0
  mask = np.asarray(PIL.Image.open(source / 'masks/a.png'))
  # Nothing is background: pixels outside of all regions are ignored.
  table = np.full(256, 255, np.uint8)
  table[[1, 2]] = 2, 0
  np.testing.assert_array_equal(mask, table[expected_mask()])


def test_a_label_that_the_list_lacks_is_named(source, capsys):
  (source / 'classes.txt').write_text('background\nroad\n')
  assert refused(source, capsys, write_coco(source)) == (
    "classes: expected a line for each label, got none for 'car' in "
    f'{source}/classes.txt: add them, or remove the file, so that a new one is '
    'written'
  )


def test_run_lengths_of_columns_and_uncompressed(source):
  column = [HEIGHT * 4 + 10, 6, HEIGHT - 6, 6]  # Two columns of the car.
  column.append(HEIGHT * WIDTH - sum(column))
  content = coco_content()
  content['annotations'] = [
    {
      'id': 1,
      'image_id': 7,
      'category_id': 3,
      'segmentation': {'size': [HEIGHT, WIDTH], 'counts': column},
    }
  ]
  assert run(source, write_coco(source, **content)) == 0
  expected = np.zeros((HEIGHT, WIDTH))
  expected[10:16, 4:6] = 1
  actual = np.asarray(PIL.Image.open(source / 'masks/a.png'))
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
  ('write', 'kind'),
  [
    (
      lambda source: write_cvat(
        source, '<box label="car" xtl="1" ytl="1" xbr="5" ybr="4"/>'
      ),
      "a box of 'car' in a.jpg",
    ),
    (
      lambda source: write_labelme(
        source,
        {'label': 'car', 'shape_type': 'line', 'points': [[1, 2], [3, 4]]},
      ),
      "a line of 'car' in a.json",
    ),
    (
      lambda source: write_coco(
        source,
        annotations=[
          *coco_content()['annotations'],
          {'id': 9, 'image_id': 7, 'category_id': 3, 'bbox': [1, 1, 4, 3]},
        ],
      ),
      "a box of 'car' in a.jpg",
    ),
  ],
)
def test_boxes_and_lines_are_refused_or_left_out(write, kind, source, capsys):
  arguments = write(source)
  lines = refused(source, capsys, arguments).splitlines()
  assert lines[0].startswith('annotations: expected regions, got 1 boxes, ')
  assert lines[0].endswith('or leave these out with --other_shapes=skip')
  assert lines[1:] == [kind]
  assert run(source, [*arguments, '--other_shapes=skip']) == 0
  assert f'1 shape that is no region is left out, the first {kind}' in (
    capsys.readouterr().out
  )
  mask = np.asarray(PIL.Image.open(source / 'masks/a.png'))
  np.testing.assert_array_equal(mask, expected_mask())


def test_images_in_which_nothing_is_annotated(source, capsys):
  sources.write(source / 'images/b.jpg', sources.jpeg(WIDTH, HEIGHT))
  content = coco_content()
  content['images'].append({**content['images'][0], 'id': 8})
  content['images'][1]['file_name'] = 'photos/b.JPG'
  arguments = write_coco(source, **content)
  assert "got 'photos/b.JPG', which names no image; similar is 'b'" in refused(
    source, capsys, arguments
  )
  content['images'][1]['file_name'] = 'images/b.JPG'
  write_coco(source, **content)
  assert run(source, arguments) == 0
  assert '1 image has no region and is all background, the first b' in (
    capsys.readouterr().out
  )
  assert not np.asarray(PIL.Image.open(source / 'masks/b.png')).any()
  arguments += ['--without_shapes=unlabeled', '--without_mask=unlabeled']
  assert run(source, arguments) == 0
  assert not (source / 'masks/b.png').exists()
  assert '\nunlabeled: 1 image\n' in capsys.readouterr().out


def test_masks_may_lie_beside_the_images(source):
  (source / 'images/a.jpg').rename(source / 'images/a_rgb.jpg')
  content = coco_content()
  content['images'][0]['file_name'] = 'a_rgb.jpg'
  suffixes = ['--image_suffix=_rgb.jpg', '--mask_suffix=_mask.png']
  arguments = [*write_coco(source, **content), '--masks=images', *suffixes]
  assert run(source, arguments) == 0
  mask = np.asarray(PIL.Image.open(source / 'images/a_mask.png'))
  np.testing.assert_array_equal(mask, expected_mask())
  assert run(source, arguments) == 0
  assert run(source, [*arguments[:-1], '--mask_suffix=_mask.tif']) == 2


def test_masks_of_other_origin_are_kept(source, capsys):
  sources.write(source / 'masks/a.png', b'by hand')
  assert run(source, write_coco(source)) == 2
  assert 'masks: expected a folder without masks' in capsys.readouterr().err
  assert (source / 'masks/a.png').read_bytes() == b'by hand'


def test_more_classes_than_8_bits(source):
  categories = [{'id': i, 'name': f'class {i}'} for i in range(300)]
  assert run(source, write_coco(source, categories=categories)) == 0
  mask = np.asarray(PIL.Image.open(source / 'masks/a.png'))
  values = {0: 0, 1: 4, 2: 6, 255: 65535}
  expected = np.vectorize(values.get)(expected_mask())
  np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
  ('write', 'message'),
  [
    (lambda s: write_coco(s, images=None), 'expected lists `images`, `annota'),
    (lambda s: write_coco(s, images=[]), '1 image has annotations, but is'),
    (lambda s: write_coco(s, categories=[]), 'category 3 is not among `catego'),
    (
      lambda s: write_coco(
        s, annotations=[{'id': 1, 'image_id': 7, 'segments_info': []}]
      ),
      'got panoptic annotations',
    ),
    (lambda s: write_coco(s, images=[{'id': 7}]), "an entry without 'height'"),
    (
      lambda s: write_coco(
        s,
        images=[
          {'id': 7, 'width': WIDTH, 'height': HEIGHT, 'file_name': name}
          for name in ('a.jpg', 'b.jpg')
        ],
      ),
      'instances.json: expected images of different ids, got one twice',
    ),
    (
      lambda s: write_coco(
        s, categories=[{'id': 5, 'name': ' '}, {'id': 3, 'name': 'car'}]
      ),
      'instances.json: expected a name of each category, got an empty one',
    ),
    (lambda s: write_run_lengths(s, '44'), 'expected run lengths of 768 pix'),
    (lambda s: write_run_lengths(s, '~'), 'expected a mask as compressed run'),
    (lambda s: write_run_lengths(s, 'o'), 'got a part of one'),
    (lambda s: write_run_lengths(s, ''), 'expected run lengths of 768 pixels'),
    (
      lambda s: write_labelme(
        s, {'label': None, 'shape_type': 'polygon', 'points': CAR}
      ),
      "a.json: shape 4, '': expected a label, got none",
    ),
    (
      lambda s: write_labelme(s, shapes=7),
      'expected the fields of LabelMe, got a field of another type',
    ),
    (
      lambda s: write_cvat(s, '<circle label="car" points="1,1;2,2"/>'),
      "a circle of 'car' in a.jpg",
    ),
    (
      lambda s: write_labelme(
        s, {'label': 'x', 'shape_type': 'polygon', 'points': [[1, 1]]}
      ),
      "a.json: shape 4, 'x': expected an outline of at least 3 points",
    ),
    (
      lambda s: write_labelme(s, imageWidth=None),
      'a.json: expected height and width of the image in pixels, got 24 and No',
    ),
    (lambda s: write_labelme(s, shapes=None), 'expected the fields of'),
    (
      lambda s: write_labelme(
        s, {'label': 'x', 'shape_type': None, 'points': [[10**400, 1]] * 3}
      ),
      "a.json: shape 4, 'x': expected an outline of points x, y, got no numbe",
    ),
    (
      lambda s: write_coco(s, categories=[3]),
      'expected lists of objects, got another entry in one of them',
    ),
    (
      lambda s: write_coco(
        s, images=[{'id': 7, 'width': 'x', 'height': 10**9, 'file_name': 'a'}]
      ),
      "height and width of the image in pixels, got 1000000000 and 'x'",
    ),
    (
      lambda s: write_coco(
        s, images=[{'id': 7, 'width': 1e9, 'height': 10**9, 'file_name': 'a'}]
      ),
      'height and width of the image in pixels, got 1000000000 and 100',
    ),
    (
      lambda s: write_cvat(s, '<polygon label="car" points="1,1;2,x;3,3"/>'),
      'a.jpg: expected an outline of points x, y, got no numbers',
    ),
    (
      lambda s: write_cvat(s, '<polygon points="1,1;2,2;3,3"/>'),
      'a.jpg: expected a label of the polygon, got none',
    ),
    (
      lambda s: write_cvat(
        s,
        '<mask label="car" rle="5" left="0" top="0" width="2" height="2"/>',
      ),
      'a.jpg: expected run lengths of 4 pixels together, got 5',
    ),
    (lambda s: write_cvat(s, '<polygon'), 'annotations.xml: is no XML file'),
    (
      lambda s: write_cvat(s, '</image><track/><image>'),
      'holds tracks of a video: export it as "CVAT for images"',
    ),
    (lambda s: ['--from=coco'], 'annotations is empty: give the file'),
    (lambda s: ['--from=labelme'], 'annotations: expected JSON files of Label'),
    (
      lambda s: ['--from=cvat', '--annotations=no.xml'],
      'no.xml: cannot be read: No such file or directory',
    ),
    (
      lambda s: [*write_coco(s), '--ignore=#ffffff'],
      'ignore: expected a value with --from',
    ),
    (
      lambda s: ['camvid', *write_coco(s)],
      '--from: expected no name, or image_mask_folder, got camvid',
    ),
  ],
)
def test_wrong_annotations_are_refused(write, message, source, capsys):
  assert message in refused(source, capsys, write(source))


def places(content, place=()):
  """Yields the keys that lead to each part of a JSON value."""
  if place:
    yield place
  items = content.items() if isinstance(content, dict) else enumerate(content)
  for key, value in items:
    if isinstance(value, dict | list):
      yield from places(value, (*place, key))
    else:
      yield (*place, key)


def damage(content, rng):
  """Removes or replaces one part of a JSON value."""
  content = json.loads(json.dumps(content))
  *above, last = rng.choice([*places(content)])
  parent = content
  for key in above:
    parent = parent[key]
  if rng.random() < 0.3:
    del parent[last]
  else:
    parent[last] = rng.choice(
      [None, -1, 1e308, float('nan'), 'x', '', [], {}, [[1, 2]], 10**30]
    )
  return content


@pytest.mark.parametrize('tool', ['coco', 'labelme'])
def test_damaged_annotations_are_read_or_refused(tool, source):
  """No other exception than a UserError, whatever is damaged."""
  rng = random.Random(0)
  content = {'coco': coco_content, 'labelme': labelme_content}[tool]()
  path = source / 'annotations/a.json'
  path.parent.mkdir()
  name = {'coco': 'annotations/a.json', 'labelme': 'annotations'}[tool]
  options = conversion.ImportOptions(tool, name, 'skip')
  refused = 0
  for i in range(80):
    path.write_text(json.dumps(damage(content, rng)))
    folder = conversion.Folder(str(source), 'images', f'm{i}', f'{i}.txt')
    try:
      conversion.convert_annotations(options, folder)
    except errors.UserError:
      refused += 1
  assert 20 < refused < 80
