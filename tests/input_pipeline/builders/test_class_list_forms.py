"""Class lists of other tools: a head line never shifts the names."""

import unicodedata

import pytest

from input_pipeline.builders import class_list
from tests.support import messages, scenes

RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)
NAMES = ('background', 'red', 'blue')
COLORS = (BLACK, RED, BLUE)
PLAIN = dict(zip(NAMES, (0, 1, 2), strict=True))


def read(tmp_path, text, ignore=None):
  path = tmp_path / 'classes.txt'
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return class_list.read_class_list(path, ignore)


def note(tmp_path, text):
  [line] = read(tmp_path, text).notes
  return line.removeprefix(f'classes: {tmp_path}/classes.txt ')


def test_labels_of_labelme_begin_below_zero(tmp_path):
  text = '__ignore__\n_background_\nred\nblue\n'
  actual = read(tmp_path, text)
  assert dict(zip(actual.names, actual.values, strict=True)) == PLAIN
  assert actual.ignored_values == (255,)
  assert 'labels.txt: `__ignore__` is value 255' in note(tmp_path, text)
  # The same is asked for by `ignore`.
  assert read(tmp_path, text, 255) == actual


def test_labels_of_labelme_without_a_background(tmp_path):
  actual = read(tmp_path, '\ufeff__ignore__\r\nroad\r\ncar\r\n')
  assert (actual.names, actual.values) == (('road', 'car'), (0, 1))
  # Without the first line, labelme's names are plain ones.
  actual = read(tmp_path, '_background_\nroad\n')
  assert (actual.names, actual.notes) == (('_background_', 'road'), ())
  assert 'line 2: expected `__ignore__` as the first' in messages.message_of(
    read, tmp_path, 'road\n__ignore__\n'
  )


@pytest.mark.parametrize(
  'text',
  [
    '# label:color_rgb:parts:actions\n'
    'background:0,0,0::\nred:255,0,0::\nblue:0,0,255:hand,foot:run\n',
    '# label:color_rgb:parts:actions\r\n\r\n'
    'background:0,0,0::\r\n\r\nred: 255, 0, 0 ::\r\nblue:0,0,255::\r\n',
    'background:0,0,0::\nred:255,0,0::\nblue:0,0,255::\n',
  ],
)
def test_labelmap_of_cvat(tmp_path, text):
  actual = read(tmp_path, text)
  assert (actual.names, actual.values) == (NAMES, (0, 1, 2))
  assert actual.colors == COLORS
  assert note(tmp_path, text).startswith("is read as CVAT's labelmap")


def test_a_wrong_line_below_the_head_of_cvat_is_named(tmp_path):
  text = '# label:color_rgb:parts:actions\nred:255,0,0::\nblue\n'
  assert 'line 3: expected NAME:R,G,B:parts:actions' in messages.message_of(
    read, tmp_path, text
  )


@pytest.mark.parametrize(
  ('text', 'values', 'colors'),
  [
    ('Pixel Value, Class\n0, background\n1, red\n2, blue\n', (0, 1, 2), ()),
    ('class,id\nbackground,0\n"red",7\nblue,255\n', (0, 7, 255), ()),
    (
      'name,r,g,b\nbackground,0,0,0\nred,255,0,0\nblue,0,0,255\n',
      (0, 1, 2),
      COLORS,
    ),
    (
      'Label;Color\nbackground;#000000\nred;255,0,0\nblue;0,0,255',
      (0, 1, 2),
      COLORS,
    ),
    ('id\tname\n2\tbackground\n0\tred\n1\tblue\n', (2, 0, 1), ()),
    ('index name\n0 background\n1 red\n2 blue\n', (0, 1, 2), ()),
  ],
)
def test_tables_with_a_head_line(tmp_path, text, values, colors):
  actual = read(tmp_path, text)
  assert actual.names == NAMES
  assert (actual.values, actual.colors) == (values, colors)
  assert note(tmp_path, text).startswith('is read as a table of ')


@pytest.mark.parametrize(
  ('text', 'values', 'colors'),
  [
    ('0: background\n1: red\n2: blue\n', (0, 1, 2), ()),
    ('1 background\n2 red\n4 blue\n', (1, 2, 4), ()),
    ('0, background 0,0,0\n1, red #ff0000\n2, blue 0,0,255', (0, 1, 2), COLORS),
    ('0 0 0\tbackground\n255 0 0\tred\n0 0 255\tblue\n', (0, 1, 2), COLORS),
    ('background,0,0,0\nred,255,0,0\nblue,0,0,255\n', (0, 1, 2), COLORS),
    ('background 0 0 0\nred\t255 0 0\nblue 0 0 255\n', (0, 1, 2), COLORS),
    ('background: #000000\nred #ff0000\nblue #0000ff\n', (0, 1, 2), COLORS),
    ('background,2\nred,0\nblue,1\n', (2, 0, 1), ()),
    ('background\t2\nred\t0\nblue\t255\n', (2, 0, 255), ()),
    ('background 2\nred 0\nblue 1\n', (2, 0, 1), ()),
    ('names:\n  2: background\n  0: red\n  1: blue\n', (2, 0, 1), ()),
    ('# classes\n2 background\n0 red\n1 blue\n', (2, 0, 1), ()),
    ('# classes: 3\nbackground,2\nred,0\nblue,1\n', (2, 0, 1), ()),
    ('# r g b\n0 0 0 background\n255 0 0 red\n0 0 255 blue', (0, 1, 2), COLORS),
  ],
)
def test_lines_with_values_or_colors(tmp_path, text, values, colors):
  actual = read(tmp_path, text)
  assert actual.names == NAMES
  assert (actual.values, actual.colors) == (values, colors)


@pytest.mark.parametrize(
  'head',
  ['Class Name', 'classes:', 'label', '# names', '// names', '% names'],
)
def test_a_head_line_of_plain_names_is_left_out(tmp_path, head):
  text = f'{head}\nbackground\nred\nblue\n'
  actual = read(tmp_path, text)
  assert dict(zip(actual.names, actual.values, strict=True)) == PLAIN
  assert note(tmp_path, text) == (
    f'is read without its head, `{head}`: the line below is value 0'
  )


@pytest.mark.parametrize(
  ('text', 'names'),
  [
    ('sky\ntraffic light 2\n', ('sky', 'traffic light 2')),
    ('person: adult\nbus, train\n', ('person: adult', 'bus, train')),
    ('lane 1\nlane 2\n', ('lane 1', 'lane 2')),
    ('3 wheeler\n', ('3 wheeler',)),
    ('7\n8\n9\n', ('7', '8', '9')),
    ('traffic light 2 1,2,3\nsky 4,5,6', ('traffic light 2', 'sky')),
  ],
)
def test_plain_names_are_read_as_they_are(tmp_path, text, names):
  actual = read(tmp_path, text)
  assert (actual.names, actual.notes) == (names, ())
  assert actual.values == tuple(range(len(names)))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('red\n# car\nblue', 'line 2: expected comments above the classes only'),
    ('["red", "blue"]', 'line 1: expected a text file with a class per line'),
    ('names:\n- red\n- blue', 'line 1: expected a text file with a class per'),
    ('item {\n id: 1\n}', 'line 1: expected a text file with a class per line'),
    ('Idx Ratio Name\n1 .2 red', 'line 1: expected columns of a name, a value'),
    ('red,1\nblue,1', 'line 2: expected another value for each class, got 1'),
    ('car 0,0,142,255', "got 'car 0,0,142,255' with more numbers"),
    ('0: red\n0: blue', 'line 2: expected another value for each class, got 0'),
    (
      'id,name\n0,red\nx,blue',
      'line 3: expected a value of the masks, got',
    ),
    ('id,name\n0,red\n1,', 'line 3: expected a name, got none'),
    ('id,name\n0,red,1', 'line 2: expected 2 fields, as the head line has'),
    ('name,id,trainId\nred,0,1', 'line 1: expected columns of a name, a value'),
    ('0: red\n70000: blue', 'line 2: expected a value of 0 to 65535'),
  ],
)
def test_lines_that_fit_no_form_are_refused(tmp_path, text, message):
  assert message in messages.message_of(read, tmp_path, text)


def test_names_that_differ_only_in_unicode_form_are_one_name(tmp_path):
  forms = [unicodedata.normalize(form, 'ähre') for form in ('NFC', 'NFD')]
  assert read(tmp_path, forms[1]).names == (forms[0],)
  message = messages.message_of(read, tmp_path, '\n'.join(forms))
  assert "line 2: 'ähre' is listed twice" in message


def test_a_list_in_utf_16_is_read(tmp_path):
  assert read(tmp_path, 'sky\r\nroad\r\n'.encode('utf-16')).names == (
    'sky',
    'road',
  )


@pytest.mark.parametrize(
  'text',
  [
    '__ignore__\n_background_\nred\nblue\n',
    '\ufeff__ignore__\r\n_background_\r\nred\r\nblue\r\n',
    'Pixel Value, Class\n0, background\n1, red\n2, blue\n',
    '# label:color_rgb:parts:actions\n'
    'background:0,0,0::\nred:255,0,0::\nblue:0,0,255::\n',
  ],
  ids=['labelme', 'labelme_from_notepad', 'roboflow', 'cvat'],
)
def test_a_head_line_shifts_no_name(tmp_path, text):
  def mask(i):
    image = scenes.palette_mask(scenes.ids(i), scenes.LIST_COLORS)
    return '.png', scenes.encoded(image)

  source = scenes.write(tmp_path / 's', mask=mask, classes=text)
  audit = scenes.check(source)
  assert audit.classes == NAMES
  assert list(audit.counts['train'].pixels) == scenes.COUNTS
  # The form is said in the report.
  assert any('classes.txt is read as' in line for line in audit.warnings)
