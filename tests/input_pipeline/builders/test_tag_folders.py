"""Images with tags: tables, text files, folders of classes, and a few masks."""

import cv2
import numpy as np
import pytest

from input_pipeline import datasets, split_tags, transforms
from runtime import errors

CLASSES = ('background', 'cat', 'dog', 'owl')


def write_images(folder, *names):
  rng = np.random.default_rng(len(names))
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Different pixels: equal images would be duplicates.
    cv2.imwrite(str(path), rng.integers(0, 256, (6, 8, 3), np.uint8))


def open_split(source, split='train', images='images', **fields):
  options = datasets.DataOptions(
    'image_tag_folder', str(source), images=images, **fields
  )
  return datasets.open_dataset_split(
    options, split, str(source.parent / 'records')
  )


def tags_of(split):
  decode = transforms.Decode(len(split.classes), ('tags',))
  examples = map(decode, split.records)
  return {
    example['id'].decode(): [
      split.classes[i] for i in np.flatnonzero(example['tags'])
    ]
    for example in examples
  }


TAGS = {
  'a': ['background', 'cat', 'dog'],
  'b/c': ['background', 'owl'],
  'd': ['background'],
}


@pytest.mark.parametrize(
  'text',
  [
    'file,labels\na.png,dog;cat\nb/c.png,owl\nd.png,\n',
    'a,cat,dog\r\nb/c,owl\r\n\r\nd,background\r\n',
    'a.png\tcat;dog;cat\nd\t\nc.png\towl\n',
    'file;labels\na.png;dog,cat\nd.png;\nb/c.png;owl\n',
    '\ufeff"a.png", "dog\ncat"\r\n"b/c.png","owl"\r\n"d.png",""\r\n',
  ],
  ids=['head', 'columns', 'tabs', 'semicolons', 'quotes'],
)
def test_a_table_names_the_classes_of_images(tmp_path, text):
  write_images(tmp_path / 'x/images', 'a.png', 'b/c.png', 'd.png')
  (tmp_path / 'x/tags.csv').write_bytes(text.encode())
  split = open_split(tmp_path / 'x', tags='tags.csv')
  assert split.classes == CLASSES
  assert split.label_kinds == ('tags',)
  assert tags_of(split) == TAGS


def test_a_text_file_for_each_image(tmp_path):
  write_images(tmp_path / 'x/images', 'a.png', 'b/c.png', 'd.png')
  for name, text in (('a', 'dog, cat\n'), ('b/c', 'owl'), ('d', '\n')):
    path = tmp_path / 'x/labels' / f'{name}.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  assert tags_of(open_split(tmp_path / 'x', tags='labels')) == TAGS


def test_a_folder_for_each_class(tmp_path):
  write_images(tmp_path / 'x/images', 'cat/1.png', 'owl/1.png', 'cat/b/2.png')
  split = open_split(tmp_path / 'x')
  assert split.classes == ('background', 'cat', 'owl')
  assert tags_of(split) == {
    'cat/1': ['background', 'cat'],
    'cat/b/2': ['background', 'cat'],
    'owl/1': ['background', 'owl'],
  }


def test_images_with_masks_are_evaluated(tmp_path):
  """Their tags are not needed; the class list names the values."""
  source = tmp_path / 'x'
  write_images(source / 'images', 'a.png', 'b.png', 'c.png')
  (source / 'masks').mkdir()
  mask = np.zeros((6, 8), np.uint8)
  mask[2:] = 3
  cv2.imwrite(str(source / 'masks/b.png'), mask)
  (source / 'tags.csv').write_text('a,dog\nc,owl;cat\nb,owl\n')
  (source / 'classes.txt').write_text('\n'.join(CLASSES))
  fields = {'tags': 'tags.csv', 'masks': 'masks', 'classes': 'classes.txt'}
  train, val = (open_split(source, name, **fields) for name in ('train', 'val'))
  assert train.classes == val.classes == CLASSES
  assert (train.ids(), val.ids()) == (['a', 'c'], ['b'])
  assert train.label_kinds == ('tags',)
  assert val.label_kinds == ('label', 'tags')
  assert tags_of(train)['c'] == ['background', 'cat', 'owl']
  label = transforms.Decode(4)(val.records[0])['label']
  np.testing.assert_array_equal(label, mask)
  # Other tags are another data set.
  (source / 'tags.csv').write_text('a,dog\nc,owl\n')
  assert open_split(source, **fields).version != train.version


@pytest.mark.parametrize(
  ('text', 'fields', 'message'),
  [
    ('a,dog\nx,cat\n', {}, r"row 2: expected an image of .*'x', no such image"),
    ('a,dog\na,cat\n', {}, "row 2: 'a' is listed twice"),
    ('a,dog\n', {}, 'b.* is not in the table'),
    ('a,dog\nb,cow\n', {'classes': 'classes.txt'}, "expected classes .* 'cow'"),
    ('a,dog\n', {'tags': 'tags.xls'}, 'tags: expected a folder of text files'),
    ('a,dog\n', {'tags': ''}, 'a: is in no folder of a class'),
    ('a,dog\n', {'tags': 'missing.csv'}, 'tags: cannot read .*missing.csv'),
    ('a,dog\n', {'tags': 'Tags'}, 'got .*Tags, which does not exist'),
    ('a,dog\n', {'masks': 'masks'}, 'classes: expected a class list with mask'),
    ('a,dog\n', {'val_fraction': 0.5}, 'val_fraction: expected no value'),
    ('a,dog\n', {'images': '{split}'}, r'expected neither \{split\} nor a fr'),
    ('a,dog\n', {'mask_codes': 'x'}, "mask_codes: expected one of .* got 'x'"),
  ],
)
def test_wrong_tags_are_named(tmp_path, text, fields, message):
  source = tmp_path / 'x'
  write_images(source / 'images', 'a.png', 'b.png')
  (source / 'tags.csv').write_text(text)
  (source / 'classes.txt').write_text('\n'.join(CLASSES))
  with pytest.raises(errors.UserError, match=message):
    open_split(source, **{'tags': 'tags.csv', **fields})


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('file,dog,cat\na,1,0\nb,0,1\n', "expected names of classes, got '0'"),
    ('a,0 0.5 0.5 0.1 0.1\nb,dog\n', "names of classes, got '0 0.5 0.5 0.1"),
    ('a,Dog\nb,dog\n', "b: expected one spelling .* got 'dog' beside 'Dog'"),
    ('a,\nb,background\n', 'expected the name of a class for some of the 2'),
    ('a,"dog\nb,cat\n', 'row 2: .* another use of quotes: unexpected end'),
    (
      'image_id,tag\na,dog\n',
      "'image_id', .* a head line that begins with one",
    ),
  ],
  ids=['one-hot', 'boxes', 'case', 'none', 'quotes', 'head'],
)
def test_a_table_that_would_be_misread_is_refused(tmp_path, text, message):
  source = tmp_path / 'x'
  write_images(source / 'images', 'a.png', 'b.png')
  (source / 'tags.csv').write_text(text)
  with pytest.raises(errors.UserError, match=message):
    open_split(source, tags='tags.csv')


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (('train/dog/a.png', 'val/cat/b.png'), 'got those of splits, train, val'),
    (('photos/a.png', 'photos/b.png'), "got 'photos' alone"),
  ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, images, message):
  write_images(tmp_path / 'x/images', *images)
  with pytest.raises(errors.UserError, match=message):
    open_split(tmp_path / 'x')


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    ('dog cat background', "got 'dog' there, and 'background' below"),
    ('dog cat', "got 'dog', which .*a.png has as a tag: add a line background"),
  ],
)
def test_the_background_has_the_first_line(tmp_path, classes, message):
  source = tmp_path / 'x'
  write_images(source / 'images', 'a.png', 'b.png')
  (source / 'tags.csv').write_text('a,dog\nb,cat\n')
  (source / 'classes.txt').write_text('\n'.join(classes.split()))
  with pytest.raises(errors.UserError, match=message):
    open_split(source, tags='tags.csv', classes='classes.txt')


def test_a_list_replaces_the_tags_of_any_data_set(tmp_path):
  write_images(tmp_path / 'x/images', 'cat/1.png', 'dog/1.png')
  split = open_split(tmp_path / 'x')
  path = tmp_path / 'other.csv'
  path.write_text('cat/1,dog\ndog/1,cat;dog\n')
  replaced = split_tags.replace_tags(split, path)
  assert tags_of(replaced) == {
    'cat/1': ['background', 'dog'],
    'dog/1': ['background', 'cat', 'dog'],
  }
  for text, message in (
    ('cat/1,dog\n', 'to list all images of .*, got none of 1, as dog/1'),
    ('cat/1,dog\ndog/1,cow\n', "dog/1: expected classes .* got 'cow'"),
  ):
    path.write_text(text)
    with pytest.raises(errors.UserError, match=message):
      split_tags.replace_tags(split, path)
