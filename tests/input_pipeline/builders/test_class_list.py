import pytest

from input_pipeline.builders import class_list
from tests.support import messages

CLASS_LIST = 'sky 70,130,180\nmain road #804080\ncar 0,0,142\n'
SKY, ROAD, CAR = (70, 130, 180), (128, 64, 128), (0, 0, 142)


@pytest.mark.parametrize('ignore', [1, ROAD])
def test_an_ignored_line_is_ignored_by_value_and_by_color(tmp_path, ignore):
  (tmp_path / 'classes.txt').write_text(CLASS_LIST)
  code = class_list.read_class_list(tmp_path / 'classes.txt', ignore)
  assert code == class_list.ClassList(
    names=('sky', 'car'),
    values=(0, 2),
    colors=(SKY, CAR),
    ignored_values=(1,),
    ignored_colors=(ROAD,),
    notes=(
      f"classes: {tmp_path}/classes.txt: 'main road', value 1, is no class, as "
      'it is that of ignore: its pixels are ignored',
    ),
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('a\n\nb', 'line 2: expected a class, as line i names value i of'),
    ('a\nb\na', "line 3: 'a' is listed twice"),
    (
      'a 1,2,3\nb #010203',
      'line 2: expected another color for each class, got 1,2,3',
    ),
    ('a 1,2,3\nb', 'line 2: expected a color for every class or for none'),
    ('a\nb 1,2,3', 'line 2: expected a color for every class or for none'),
    ('a 1,2,256', "each or #rrggbb, got '1,2,256'"),
    ('', ', got 0'),
  ],
)
def test_invalid_class_lists_are_refused(tmp_path, text, message):
  path = tmp_path / 'classes.txt'
  path.write_text(text)
  actual = messages.message_of(class_list.read_class_list, path)
  assert actual.startswith('classes: ') and str(path) in actual
  assert message in actual


def test_a_class_list_that_is_not_text_is_refused(tmp_path):
  path = tmp_path / 'classes.txt'
  path.write_bytes('ähre'.encode('latin-1'))
  assert messages.message_of(class_list.read_class_list, path) == (
    f'classes: {path} is not UTF-8 text: save it as UTF-8'
  )


def test_ignored_color_needs_colors(tmp_path):
  path = tmp_path / 'classes.txt'
  path.write_text('a\nb')
  assert messages.message_of(class_list.read_class_list, path, (1, 2, 3)) == (
    f'ignore: expected a value, as {path} has no colors, got the color 1,2,3'
  )


def test_class_list_of_names_only(tmp_path):
  path = tmp_path / 'classes.txt'
  # With a byte order mark, Windows ends of line and spaces in a name.
  path.write_bytes('\ufeffähre\r\ntraffic light 2\r\n\r\n'.encode())
  assert class_list.read_class_list(path, 255) == class_list.ClassList(
    names=('ähre', 'traffic light 2'), values=(0, 1), ignored_values=(255,)
  )


@pytest.mark.parametrize(
  ('text', 'ignore'),
  [
    ('', None),
    ('255', 255),
    ('1, 2,3', (1, 2, 3)),
    ('#ff8001', (255, 128, 1)),
  ],
)
def test_ignore_on_a_command_line(text, ignore):
  assert class_list.parse_ignored_mask_value(text) == ignore


@pytest.mark.parametrize('text', ['-1', 'white', '1,2', '#fff', '1,2,256'])
def test_invalid_ignore_is_refused(text):
  assert messages.message_of(class_list.parse_ignored_mask_value, text) == (
    'ignore: expected a value as 255, or a color as 255,255,255 or #ffffff, '
    f'got {text!r}'
  )
