"""Entries of lists, as users write them, name images exactly or not at all."""

import unicodedata

import pytest

from input_pipeline.sources import image_ids

CITIES = ['aachen/000', 'aachen/001', 'bochum/001']


@pytest.mark.parametrize(
  ('entry', 'expected'),
  [
    ('aachen/000', [0]),
    ('aachen/000.JPG', [0]),
    ('images/aachen/000.jpg', [0]),
    ('/data/roads/images/aachen/000.jpg', [0]),
    ('.\\images\\aachen\\000.Png', [0]),
    ('"aachen/000.jpeg"', [0]),
    ('./aachen//000.tiff', [0]),
    ('000', [0]),
    ('001', [1, 2]),
    ('bochum/001.jpg', [2]),
    # Of other folders.
    ('bochum/000.jpg', []),
    ('images/bochum/000.jpg', []),
    ('aachen/x/000.jpg', []),
    ('Aachen/000.jpg', []),
    ('achen/000.jpg', []),
    ('002', []),
    ('', []),
    ('.', []),
    ('/', []),
  ],
)
def test_folders_of_an_entry_count(entry, expected):
  assert image_ids.IdIndex(CITIES).find(entry) == expected


@pytest.mark.parametrize(
  ('ids', 'folder', 'found', 'unknown'),
  [
    (
      ['000', '001'],
      '/data/roads/images',
      ['', 'images/', 'roads/images/', '/old/place/images/'],
      ['bochum/', '/old/photos/', 'images/x/'],
    ),
    (
      ['train/000', 'train/a/1'],
      'roads/{split}/images',
      ['', 'train/', 'train/images/', 'roads/train/images/', 'images/'],
      ['train/labels/', 'val/'],
    ),
  ],
)
def test_the_folder_above_the_ids_counts_where_it_is_known(
  ids, folder, found, unknown
):
  index = image_ids.IdIndex(ids, image_ids.IdRule(folder))
  for above in found:
    assert index.find(f'{above}000.jpg') == index.find(f'{above}000') == [0]
  for above in unknown:
    assert index.find(f'{above}000.jpg') == []


def test_the_exact_id_is_preferred():
  index = image_ids.IdIndex(['x', 'a/x', 'b/a/x', 'x.y', 'x.y.jpg'])
  assert index.find('x') == [0]
  assert index.find('a/x.png') == [1]
  assert index.find('images/b/a/x.png') == [2]
  assert index.find('x.y') == [3]
  assert index.find('x.y.jpg') == [4]


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize('listed', ['NFC', 'NFD'])
def test_unicode_forms_are_one_name(form, listed):
  name = 'Zürich/café'
  index = image_ids.IdIndex([unicodedata.normalize(form, name), 'b'])
  assert index.find(unicodedata.normalize(listed, f'{name}.JPG')) == [0]


def test_similar_names_are_offered():
  index = image_ids.IdIndex([*CITIES, 'S00'])
  assert index.similar('bochum/000.jpg') == ['aachen/000']
  assert index.similar('s00.jpg') == ['S00']
  assert index.similar('') == index.similar('none') == []
