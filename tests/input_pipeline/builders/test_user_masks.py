"""Masks as users' tools write them: what their pixels mean."""

import struct

import cv2
import numpy as np
import PIL.Image
import pytest

from tests.support import messages, png_chunks, scenes

BOTH = [scenes.COUNTS[0], scenes.COUNTS[1] + scenes.COUNTS[2]]
OBJECT = [(scenes.ids(i) > 0).astype(np.uint8) for i in range(6)]


def in_order(order, size=3, kind='PNG'):
  """Returns a mask whose palette has the colors of the list in an order."""
  colors = [scenes.LIST_COLORS[class_id] for class_id in order]
  colors += [(9, 9, 9)] * (size - 3)
  index_of = np.argsort(order).astype(np.uint8)

  def mask(i):
    image = scenes.palette_mask(index_of[scenes.ids(i)], colors)
    return f'.{kind.lower()}', scenes.encoded(image, kind)

  return mask


ORDERS = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]


@pytest.mark.parametrize(
  'mask',
  [
    in_order((2, 0, 1)),
    in_order((1, 2, 0), size=256),
    in_order((2, 1, 0), kind='BMP'),
    in_order((1, 0, 2), kind='GIF'),
    in_order((2, 0, 1), kind='TIFF'),
    lambda i: in_order(ORDERS[i % 3])(i),
  ],
  ids=['reordered', 'padded', 'bmp', 'gif', 'tiff', 'from_file_to_file'],
)
def test_colors_win_over_the_values_of_a_palette(tmp_path, mask):
  source = scenes.write(tmp_path / 's', mask=mask, classes=scenes.COLORED)
  assert scenes.counts(source) == scenes.COUNTS


def test_a_palette_color_outside_of_the_list_is_refused(tmp_path):
  def mask(i):
    colors = [(0, 0, 0), (255, 0, 0), (0, 0, 254 if i == 4 else 255)]
    image = scenes.palette_mask(scenes.ids(i), colors)
    return '.png', scenes.encoded(image)

  source = scenes.write(tmp_path / 's', mask=mask, classes=scenes.COLORED)
  assert messages.message_of(scenes.counts, source) == (
    f"{source}/masks/s04.png: expected colors 0,0,0 'background', 255,0,0 "
    f"'red', 0,0,255 'blue', got 0,0,254 ({scenes.count(2, ['s04'])} pixels); "
    'the colors of its palette count, as the class list has colors: '
    "mask_codes='values' reads the values instead; repair or remove them, or "
    "set on_bad_example='skip'"
  )
  assert scenes.counts(source, mask_codes='values') == scenes.COUNTS


def test_an_ignored_value_of_a_palette_counts_whatever_its_color(tmp_path):
  def mask(i):
    values = scenes.ids(i)
    values[:2] = 255
    colors = [*scenes.LIST_COLORS, *[(0, 0, 0)] * 253]
    return '.png', scenes.encoded(scenes.palette_mask(values, colors))

  source = scenes.write(tmp_path / 's', mask=mask, classes=scenes.COLORED)
  counts = scenes.check(source, ignore='255').counts['train']
  border = 6 * 2 * scenes.WIDTH
  assert counts.ignored == border
  assert list(counts.pixels) == [
    scenes.COUNTS[0] - border,
    *scenes.COUNTS[1:],
  ]


@pytest.mark.parametrize('ignore', ['0', '255,0,0', '#ff0000'])
def test_an_ignored_line_by_value_or_color(tmp_path, ignore):
  """The value of a line, and not of a palette in another order."""
  classes = 'red 255,0,0\nbackground 0,0,0\nblue 0,0,255\n'
  source = scenes.write(
    tmp_path / 's', mask=in_order((2, 0, 1)), classes=classes
  )
  result = scenes.check(source, ignore=ignore)
  assert result.classes == ('background', 'blue')
  counts = result.counts['train']
  assert list(counts.pixels) == [scenes.COUNTS[0], scenes.COUNTS[2]]
  assert counts.ignored == scenes.COUNTS[1]


def test_palettes_that_differ_without_colors_in_the_list_are_reported(
  tmp_path, capsys
):
  source = scenes.write(
    tmp_path / 's', mask=lambda i: in_order(ORDERS[i > 3])(i)
  )
  assert scenes.run_check(source) == 0
  assert (
    'warning: the palettes of the masks differ: value 0 is 0,0,0 in 4 masks '
    '(s00, s01, s02, s03), 0,0,255 in 2 masks (s04, s05); value 1 is '
  ) in capsys.readouterr().out


def test_palettes_of_few_and_of_many_colors_do_not_differ(tmp_path):
  """A tool may drop the colors that an image does not use."""

  def mask(i):
    values = np.minimum(scenes.ids(i), 1 + (i % 2))
    colors = scenes.LIST_COLORS[: 2 + i % 2]
    return '.png', scenes.encoded(scenes.palette_mask(values, colors))

  source = scenes.write(tmp_path / 's', mask=mask)
  assert not [
    line for line in scenes.check(source).warnings if 'palette' in line
  ]


@pytest.mark.parametrize(
  'mask',
  [
    lambda i: scenes.encoded(OBJECT[i] * 255),
    lambda i: scenes.encoded(PIL.Image.fromarray(OBJECT[i] * 255).convert('1')),
    lambda i: scenes.encoded(OBJECT[i].astype(np.uint16) * 65535),
    lambda i: scenes.encoded(np.stack([OBJECT[i] * 255] * 3, -1)),
    lambda i: scenes.encoded(OBJECT[i]),
  ],
  ids=['gray', 'one_bit', '16_bits', 'rgb', 'values'],
)
def test_black_and_white_masks(tmp_path, mask):
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: ('.png', mask(i)),
    classes=scenes.BLACK_WHITE,
  )
  assert scenes.counts(source) == BOTH


def test_white_may_be_the_first_line(tmp_path):
  """Value 0 of a gray mask is black, not the first line."""
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: (
      '.png',
      scenes.encoded(PIL.Image.fromarray(OBJECT[i] * 255).convert('1')),
    ),
    classes='object 255,255,255\nbackground 0,0,0\n',
  )
  assert scenes.counts(source) == BOTH[::-1]


def problems_of_all_masks(tmp_path, mask):
  """Returns what is said of each mask, all of which must be refused."""
  source = scenes.write(tmp_path / 's', mask=mask, classes=scenes.BLACK_WHITE)
  *problems, last = messages.message_of(scenes.counts, source).splitlines()
  assert last == (
    '6 files cannot be used; repair or remove them, or set '
    "on_bad_example='skip'"
  )
  folder = f'{source}/masks/'
  assert all(problem.startswith(folder) for problem in problems)
  return [problem.removeprefix(folder) for problem in problems]


def test_a_gray_between_black_and_white_is_refused(tmp_path):
  def mask(i):
    gray = OBJECT[i] * 255
    gray[0, : i + 1] = 128
    return '.png', scenes.encoded(gray)

  assert problems_of_all_masks(tmp_path, mask) == [
    f"s{i:02}.png: expected colors 0,0,0 'background', 255,255,255 'object', "
    f'got 128,128,128 ({i + 1} {"pixels" if i else "pixel"})'
    for i in range(6)
  ]


def test_white_that_is_also_ignored_is_refused(tmp_path):
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: ('.png', scenes.encoded(OBJECT[i] * 255)),
    classes=scenes.BLACK_WHITE,
  )
  count = int(OBJECT[0].sum())
  assert (
    f"s00.png: gray 255 ({count} pixels) is ignored as a value and 'object' as "
    "a color: set mask_codes='values' or 'colors'\n"
  ) in messages.message_of(scenes.counts, source, ignore='255')
  assert scenes.counts(source, ignore='255', mask_codes='colors') == BOTH


def test_a_gray_mask_that_is_one_class_by_value_and_another_by_color(tmp_path):
  """Black is the second line: 0 is red as a value, background as a color."""
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: ('.png', scenes.encoded(np.zeros_like(scenes.ids(i)))),
    classes='red 255,0,0\nbackground 0,0,0\n',
  )
  assert (
    "gray 0 (1,728 pixels) is 'red' as a value and 'background' as a color"
  ) in messages.message_of(scenes.counts, source)
  assert scenes.counts(source, mask_codes='values') == [6 * 1728, 0]
  assert scenes.counts(source, mask_codes='colors') == [0, 6 * 1728]


@pytest.mark.parametrize('kind', ['gray', 'gray_of_16_bits', 'rgb'])
def test_opaque_alpha_is_dropped(tmp_path, kind):
  """Gray with alpha as RGB with alpha."""

  def mask(i):
    values = scenes.ids(i)
    if kind == 'rgb':
      color = np.array(scenes.LIST_COLORS, np.uint8)[values]
      opaque = np.full((*values.shape, 1), 255, np.uint8)
      return '.png', scenes.encoded(np.concatenate([color, opaque], -1))
    if kind == 'gray_of_16_bits':
      deep = np.stack([values] * 3 + [np.full_like(values, 255)], -1)
      return '.png', _png_of_gray_and_alpha(deep[..., [0, 3]])
    alpha = PIL.Image.new('L', values.shape[::-1], 255)
    gray = PIL.Image.fromarray(values)
    return '.png', scenes.encoded(PIL.Image.merge('LA', (gray, alpha)))

  classes = scenes.COLORED if kind == 'rgb' else scenes.NAMED
  source = scenes.write(tmp_path / 's', mask=mask, classes=classes)
  assert scenes.counts(source) == scenes.COUNTS


def _png_of_gray_and_alpha(pixels):
  """Returns a PNG of 16 bits, which Pillow cannot write."""
  height, width = pixels.shape[:2]
  samples = pixels.astype('>u2') * np.array([1, 257], '>u2')
  rows = b''.join(
    b'\0' + samples[y].astype('>u2').tobytes() for y in range(height)
  )
  head = struct.pack('>IIBBBBB', width, height, 16, 4, 0, 0, 0)
  return png_chunks.assemble(head, rows)


def test_transparent_gray_is_refused(tmp_path):
  def mask(i):
    gray = PIL.Image.fromarray(scenes.ids(i))
    alpha = PIL.Image.fromarray(255 - gray_alpha(i))
    return '.png', scenes.encoded(PIL.Image.merge('LA', (gray, alpha)))

  def gray_alpha(i):
    return (scenes.ids(i) == 2).astype(np.uint8)

  source = scenes.write(tmp_path / 's', mask=mask)
  assert "without transparency, got pixels of PIL mode 'LA'" in (
    messages.message_of(scenes.counts, source)
  )


@pytest.mark.parametrize('factor', [1, 256, 257])
def test_rgb_masks_of_16_bits(tmp_path, factor):
  def mask(i):
    colors = np.array(scenes.LIST_COLORS, np.uint16)[scenes.ids(i)] * factor
    return '.png', cv2.imencode('.png', colors[..., ::-1])[1].tobytes()

  source = scenes.write(tmp_path / 's', mask=mask, classes=scenes.COLORED)
  assert scenes.counts(source) == scenes.COUNTS


def test_rgb_masks_of_16_bits_that_are_no_colors_of_8_are_refused(tmp_path):
  def mask(i):
    colors = np.array(scenes.LIST_COLORS, np.uint16)[scenes.ids(i)] * 255
    return '.png', cv2.imencode('.png', colors[..., ::-1])[1].tobytes()

  source = scenes.write(tmp_path / 's', mask=mask, classes=scenes.COLORED)
  assert 's00.png: expected colors of 8 bits, also if stored in 16, got ' in (
    messages.message_of(scenes.counts, source)
  )


@pytest.mark.parametrize('ending', ['.jpg', '.webp'])
def test_lossy_masks_are_refused_with_the_reason(tmp_path, ending):
  kind = {'.jpg': 'JPEG', '.webp': 'WEBP'}[ending]

  def mask(i):
    return ending, scenes.encoded(OBJECT[i] * 255, kind)

  assert problems_of_all_masks(tmp_path, mask) == [
    f's{i:02}{ending}: lossy compression changes the values of a mask: save it '
    'as PNG from its source'
    for i in range(6)
  ]


def test_a_tiff_compressed_as_jpeg_is_refused(tmp_path):
  def mask(i):
    return '.tif', scenes.encoded(OBJECT[i] * 255, 'TIFF', compression='jpeg')

  source = scenes.write(tmp_path / 's', mask=mask, classes=scenes.BLACK_WHITE)
  assert 's00.tif: is compressed as TIFF, which may change the values' in (
    messages.message_of(scenes.counts, source)
  )


# What the counts of a set say.


@pytest.mark.parametrize('classes', [scenes.NAMED, scenes.COLORED])
@pytest.mark.parametrize('ignore', ['0', '1', '2'])
def test_an_ignored_line_with_and_without_colors(tmp_path, classes, ignore):
  source = scenes.write(tmp_path / 's', classes=classes)
  result = scenes.check(source, ignore=ignore)
  kept = [i for i in range(3) if i != int(ignore)]
  names = ('background', 'red', 'blue')
  assert result.classes == tuple(names[i] for i in kept)
  assert list(result.counts['train'].pixels) == [scenes.COUNTS[i] for i in kept]


def test_ignored_pixels_beside_a_class_that_never_occurs(tmp_path, capsys):
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: ('.png', scenes.encoded(OBJECT[i] * 255)),
    classes='background\nobject\n',
  )
  assert scenes.run_check(source, '--ignore=255') == 0
  share = BOTH[1] / sum(BOTH)
  assert (
    f"warning: {share:.2%} of the pixels are ignored and 'object' occurs "
    'nowhere: check that the ignored value does not stand for a class\n'
  ) in capsys.readouterr().out


@pytest.mark.parametrize('value', [0, 2])
def test_masks_of_a_single_value(tmp_path, value):
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: ('.png', scenes.encoded(np.full_like(scenes.ids(i), value))),
  )
  name = ('background', 'red', 'blue')[value]
  assert (
    f'every pixel that is not ignored is {name!r}: the masks hold a single '
    'value'
  ) in scenes.check(source).warnings


def test_a_val_without_labeled_pixels_is_reported(tmp_path, capsys):
  val = ('s01', 's04')

  def mask(i):
    values = scenes.ids(i)
    values[:] = np.where(scenes.NAMES[i] in val, 255, values)
    return '.png', scenes.encoded(values)

  source = scenes.write(tmp_path / 's', mask=mask)
  for folder in ('images', 'masks'):
    for name in scenes.NAMES:
      split = 'val' if name in val else 'train'
      (source / folder / split).mkdir(exist_ok=True)
      file = source / folder / f'{name}.png'
      file.rename(source / folder / split / file.name)
  arguments = (
    *('--images=images/{split}', '--masks=masks/{split}', '--ignore=255'),
  )
  assert scenes.run_check(source, *arguments) == 0
  out = capsys.readouterr().out
  assert 'warning: no pixel of val has a class, all are ignored: ' in out
  assert 'NaN' not in out and 'nan' not in out


def test_masks_that_are_wholly_ignored_are_counted(tmp_path):
  source = scenes.write(
    tmp_path / 's',
    mask=lambda i: (
      '.png',
      scenes.encoded(
        np.full_like(scenes.ids(i), 255) if i < 2 else scenes.ids(i)
      ),
    ),
  )
  assert '2 of 6 masks of train are ignored as a whole' in (
    scenes.check(source, ignore='255').warnings
  )
