import dataclasses
import itertools

import numpy as np
import pytest

from input_pipeline import splits
from runtime import errors


def names(count):
  return [f'train/{i:05}' for i in range(count)]


@pytest.mark.parametrize(
  ('num_images', 'fraction', 'expected'),
  [
    (2975, 1 / 4, 744),  # 743.75
    (2975, 1 / 8, 372),  # 371.875
    (4998, 0.01, 50),  # 49.98
    (4998, 0.2, 1000),  # 999.6
    (20210, 0.1, 2021),
    (4998, 1.0, 4998),
    (5, 0.5, 3),  # Halves go up,
    (50, 0.29, 15),  # also 14.5, which is a bit less in floating point.
    (3, 1 / 6, 1),
    (7, 0.01, 1),  # Never none.
  ],
)
def test_number_of_images_of_a_fraction(num_images, fraction, expected):
  chosen = splits.Subset(fraction=fraction).labeled_indices(names(num_images))
  assert len(chosen) == len(set(chosen.tolist())) == expected
  assert chosen.min() >= 0 and chosen.max() < num_images


def test_number_of_labeled_images():
  for labels in (1, 100, 2974, 2975):
    assert (
      len(splits.Subset(labels=labels).labeled_indices(names(2975))) == labels
    )


def test_all_images_stay_in_order():
  everything = splits.Subset().labeled_indices(names(9))
  assert everything.tolist() == list(range(9))


def test_indices_ascend():
  chosen = splits.Subset(labels=60, seed=4).labeled_indices(names(2975))
  assert np.all(np.diff(chosen) > 0)


@pytest.mark.parametrize('seed', [0, 1, 17])
def test_subsets_of_a_seed_are_nested(seed):
  sizes = (1, 30, 60, 100, 149, 372, 744, 2975)
  subsets = [
    set(
      splits.Subset(labels=size, seed=seed)
      .labeled_indices(names(2975))
      .tolist()
    )
    for size in sizes
  ]
  for smaller, larger in itertools.pairwise(subsets):
    assert smaller < larger


def test_labels_and_fraction_choose_the_same_images():
  by_number = splits.Subset(labels=372, seed=3).labeled_indices(names(2975))
  by_share = splits.Subset(fraction=1 / 8, seed=3).labeled_indices(names(2975))
  np.testing.assert_array_equal(by_number, by_share)


def test_subsets_are_repeatable_and_differ_across_seeds():
  subsets = [
    tuple(splits.Subset(labels=100, seed=seed).labeled_indices(names(2975)))
    for seed in (0, 1, 2, 0)
  ]
  assert subsets[3] == subsets[0]
  assert len(set(subsets)) == 3
  # Two random subsets of 100 share 100 · 100 / 2975 = 3.4 images.
  assert len(set(subsets[0]) & set(subsets[1])) < 12


def test_all_images_are_equally_likely():
  counts = np.zeros(20)
  for seed in range(800):
    counts[splits.Subset(labels=5, seed=seed).labeled_indices(names(20))] += 1
  # 200 each; a standard deviation is 12.2.
  np.testing.assert_allclose(counts, 200, atol=55)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'labels': -1}, 'labels: expected 0 or more, got -1'),
    ({'fraction': 0.0}, r'fraction: expected \(0, 1\], got 0\.0'),
    ({'fraction': 1.5}, r'fraction: expected \(0, 1\], got 1\.5'),
    ({'fraction': float('nan')}, r'fraction: expected \(0, 1\], got nan'),
    (
      {'labels': 100, 'fraction': 0.5},
      r'labels=100 and fraction=0\.5 contradict each other: set one',
    ),
  ],
)
def test_invalid_subsets_are_refused(arguments, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    splits.Subset(**arguments)


def test_more_labels_than_images_are_refused():
  with pytest.raises(errors.UserError) as caught:
    splits.Subset(labels=81).labeled_indices(names(80))
  assert str(caught.value) == (
    'labels: expected at most the 80 images of the split, got 81'
  )


def test_runs_of_a_seed_differ():
  subsets = [
    splits.Subset(labels=100, seed=0, run=run).labeled_indices(names(2975))
    for run in range(4)
  ]
  assert len({tuple(subset) for subset in subsets}) == 4
  # Two random subsets of 100 share 100 · 100 / 2975 = 3.4 images.
  shared = set(subsets[1].tolist()) & set(subsets[2].tolist())
  assert len(shared) < 12
  first = splits.Subset(labels=100, seed=0).labeled_indices(names(2975))
  np.testing.assert_array_equal(subsets[0], first)
  larger = splits.Subset(labels=200, seed=0, run=3).labeled_indices(names(2975))
  assert set(subsets[3].tolist()) < set(larger.tolist())


def test_subsets_that_are_not_nested():
  small, large = (
    set(
      splits.Subset(labels=n, nested=False)
      .labeled_indices(names(2975))
      .tolist()
    )
    for n in (100, 200)
  )
  assert (len(small), len(large)) == (100, 200)
  # Of 100 random images 6.7 are among 200 random ones.
  assert len(small & large) < 20


@pytest.mark.parametrize(
  ('ids', 'lines', 'expected'),
  [
    (
      ['2007_000027', '2007_000032', '2007_000033'],
      '2007_000033\n2007_000027\n',
      [0, 2],
    ),
    (
      ['aachen_000000_000019', 'bochum_000000_000313'],
      'leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png\n\n',
      [1],
    ),
    (['train/a', 'train/b'], 'b.jpg', [1]),
    (['a/x', 'b/x', 'c'], 'b/x\nc', [1, 2]),
  ],
)
def test_a_list_names_its_images(tmp_path, ids, lines, expected):
  path = tmp_path / 'labeled.txt'
  path.write_text(lines)
  assert splits.Subset(list=str(path)).labeled_indices(ids).tolist() == expected


@pytest.mark.parametrize(
  ('lines', 'message'),
  [
    ('', 'list: expected an image per line, got the empty file {0}'),
    (
      'x\n',
      "list: expected one image per line, as 'a/x', got 'x' in {0}, which "
      "names 2 images of the split: give the folders, as in 'a/x'",
    ),
    (
      'd\n',
      "list: expected one image per line, as 'a/x', got 'd' in {0}, which "
      'names no image of the split',
    ),
    (
      'c\nc.png\n',
      "list: expected every image once, got 'c' and 'c.png' in {0}, which are "
      'the same image',
    ),
    (None, 'list: cannot read {0}: '),
  ],
)
def test_invalid_lists_are_refused(tmp_path, lines, message):
  path = tmp_path / 'labeled.txt'
  if lines is not None:
    path.write_text(lines)
  with pytest.raises(errors.UserError) as caught:
    splits.Subset(list=str(path)).labeled_indices(['a/x', 'b/x', 'c'])
  assert str(caught.value).startswith(message.format(path))


def test_a_list_with_a_fraction_is_refused():
  with pytest.raises(ValueError, match=r'list=x and fraction=0\.5 contradict'):
    splits.Subset(fraction=0.5, list='x')


def test_a_list_of_another_length_than_expected_is_refused(tmp_path):
  path = tmp_path / 'labeled.txt'
  path.write_text('a\nb\n')
  ids = ['a', 'b', 'c']
  chosen = splits.Subset(labels=2, list=str(path)).labeled_indices(ids)
  np.testing.assert_array_equal(chosen, [0, 1])
  with pytest.raises(
    errors.UserError, match='expected 3 images as labels=3, got 2'
  ):
    splits.Subset(labels=3, list=str(path)).labeled_indices(ids)


def test_held_out_images_are_never_labeled():
  ids = [f'{i}' for i in range(40)]
  for labels in (5, 30):
    subset = splits.Subset(labels=labels, held_out=10, seed=3)
    chosen, held_out = subset.labeled_indices(ids), subset.held_out_indices(ids)
    assert (len(chosen), len(held_out)) == (labels, 10)
    assert not {*chosen} & {*held_out}
    # To hold images out changes nothing of what is labeled.
    alone = splits.Subset(labels=labels, seed=3).labeled_indices(ids)
    np.testing.assert_array_equal(chosen, alone)
  assert len(splits.Subset(held_out=10).labeled_indices(ids)) == 30
  with pytest.raises(
    errors.UserError, match='40 images of the split without 10 held out'
  ):
    splits.Subset(labels=31, held_out=10).labeled_indices(ids)
  with pytest.raises(
    errors.UserError, match=r'subset\.held_out: expected above 0'
  ):
    splits.Subset(labels=3).held_out_indices(ids)


def test_held_out_images_are_not_listed(tmp_path):
  ids = [f'{i}' for i in range(9)]
  names = tmp_path / 'labeled.txt'
  names.write_text('1\n4\n7\n')
  subset = splits.Subset(list=str(names), held_out=6)
  assert subset.held_out_indices(ids).tolist() == [0, 2, 3, 5, 6, 8]
  with pytest.raises(errors.UserError, match='held_out: expected at most 6, '):
    splits.Subset(list=str(names), held_out=7).held_out_indices(ids)


def draw_shown(num_images, num_classes, seed=0):
  """Draws the classes of images, of which later ones are rarer."""
  rng = np.random.default_rng(seed)
  shares = 0.3 * 0.85 ** np.arange(num_classes)
  return rng.random((num_images, num_classes)) < shares


def slow_cover(order, shown):
  """Covers the classes as the definition says, by loops."""
  front, missing = [], [c for c in range(shown.shape[1]) if shown[:, c].any()]
  while missing:
    first = {c: next(i for i in order if shown[i, c]) for c in missing}
    counts = {c: sum(shown[i, c] for i in order) for c in missing}
    place = {c: [*order].index(first[c]) for c in missing}
    rarest = min(missing, key=lambda c: (counts[c], place[c]))
    front.append(first[rarest])
    missing = [c for c in missing if not shown[front[-1], c]]
  return [*front, *(i for i in order if i not in front)]


@pytest.mark.parametrize('seed', range(4))
def test_the_order_that_covers_the_classes_equals_its_definition(seed):
  shown = draw_shown(30, 20, seed)
  order = np.random.default_rng(seed).permutation(30)
  covering = splits.cover_classes(order, shown)
  assert covering.tolist() == slow_cover(order, shown)


@pytest.mark.parametrize('fields', [{}, {'run': 2}, {'held_out': 40}])
def test_labels_cover_the_classes_and_are_nested(fields):
  shown = draw_shown(200, 24)
  shown[:, 5] = False  # No image shows this class.
  ids = names(200)
  possible = np.ones(200, bool)
  held_out = []
  if 'held_out' in fields:
    held_out = splits.Subset(seed=3, **fields).held_out_indices(ids)
    possible[held_out] = False
  subsets = {}
  for labels in (4, 24, 60, 160):
    subset = splits.Subset(labels=labels, seed=3, cover=True, **fields)
    subsets[labels] = subset.labeled_indices(ids, shown=shown)
    assert len({*subsets[labels]}) == labels
    assert not {*subsets[labels]} & {*held_out}
    if labels >= 24:
      covered = shown[subsets[labels]].any(axis=0)
      np.testing.assert_array_equal(covered, shown[possible].any(axis=0))
  for smaller, larger in itertools.pairwise(subsets.values()):
    assert {*smaller} < {*larger}
  alone = splits.Subset(labels=24, seed=3, **fields).labeled_indices(ids)
  # Without it fewer classes are shown by as many images.
  assert shown[alone].any(axis=0).sum() < shown[subsets[24]].any(axis=0).sum()
  other = splits.Subset(labels=60, seed=4, cover=True, **fields)
  assert {*other.labeled_indices(ids, shown=shown)} != {*subsets[60]}


def test_images_that_cover_already_stay():
  """Where the first image shows all classes, the seeded choice is kept."""
  shown = np.ones((50, 3), bool)
  subset = splits.Subset(labels=9, seed=1)
  covering = dataclasses.replace(subset, cover=True)
  np.testing.assert_array_equal(
    covering.labeled_indices(names(50), shown=shown),
    subset.labeled_indices(names(50)),
  )


def test_a_list_that_shall_cover_the_classes_is_refused():
  with pytest.raises(ValueError, match='list=x and cover contradict'):
    splits.Subset(list='x', cover=True)


S_NAMES = [f's{i:02}' for i in range(12)]


@pytest.mark.parametrize(
  ('ids', 'data', 'expected'),
  [
    # Saved by Notepad: byte order mark, CRLF, an empty line.
    (S_NAMES, b'\xef\xbb\xbfs00\r\ns02\r\ns04\r\ns05\r\n\r\n', [0, 2, 4, 5]),
    (S_NAMES, 's00\r\ns02\r\n'.encode('utf-16'), [0, 2]),
    # Of `ls`.
    (S_NAMES, b's00.JPG\ns01.JPG\ns02.JPG\n', [0, 1, 2]),
    (S_NAMES, b'"s00.jpeg"\n.\\images\\s03.PNG\n', [0, 3]),
    # With folders.
    (['aachen/000', 'bochum/001'], b'images/aachen/000.jpg\n', [0]),
    (['aachen/000', 'bochum/000'], b'bochum/000.jpg\n', [1]),
    # With a second column, the mask.
    (['2007_01', '2007_02'], b'JPEGImages/2007_02.jpg Masks/2007_02.png', [1]),
    (
      ['aachen_000_001', 'x'],
      b'a/aachen_000_001_leftImg8bit.png\tb/aachen_000_001_gtFine_labelIds.png',
      [0],
    ),
    # Cityscapes in the lists of UniMatch, and of CPS.
    (
      ['a_0', 'jena_000078_000019'],
      b'leftImg8bit/train/jena/jena_000078_000019_leftImg8bit.png '
      b'gtFine/train/jena/jena_000078_000019_gtFine_labelTrainIds.png',
      [1],
    ),
    (
      ['a_0', 'jena_000078_000019'],
      b'/images/train/jena_000078_000019.png\t'
      b'/segmentation/train/jena_000078_000019_gtFine.png',
      [1],
    ),
    (['my photo', 'b'], b'my photo.jpg\n', [0]),
    (['caf\u00e9', 'b'], 'cafe\u0301.jpg\n'.encode(), [0]),
  ],
)
def test_lists_as_users_write_them(tmp_path, ids, data, expected):
  path = tmp_path / 'labeled.txt'
  path.write_bytes(data)
  assert splits.read_image_list(str(path), ids).tolist() == expected


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (
      b'bochum/000.jpg\n',
      "list: expected one image per line, as 'aachen/000', got "
      "'bochum/000.jpg' in {0}, which names no image of the split; similar is "
      "'aachen/000': folders and upper case count",
    ),
    (
      b'AACHEN/000\naachen/002\naachen/000\n000.png',
      "list: expected one image per line, as 'aachen/000', got 'AACHEN/000' in "
      "{0}, which names no image of the split; similar is 'aachen/000': "
      'folders and upper case count\n'
      "list: expected one image per line, as 'aachen/000', got 'aachen/002' in "
      '{0}, which names no image of the split\n'
      "list: expected every image once, got 'aachen/000' and '000.png' in {0}, "
      'which are the same image',
    ),
    (  # Two images on a line.
      b'aachen/000 bochum/001\n',
      "list: expected one image per line, as 'aachen/000', got 'aachen/000 "
      "bochum/001' in {0}, which names no image of the split; similar is "
      "'bochum/001': folders and upper case count",
    ),
  ],
)
def test_entries_that_name_no_image_are_refused_together(
  tmp_path, data, message
):
  path = tmp_path / 'labeled.txt'
  path.write_bytes(data)
  with pytest.raises(errors.UserError) as caught:
    splits.read_image_list(str(path), ['aachen/000', 'bochum/001'])
  assert str(caught.value) == message.format(path)


def test_a_long_list_of_another_data_set_is_a_short_message(tmp_path):
  path = tmp_path / 'labeled.txt'
  path.write_text('\n'.join(f'x{i}' for i in range(500)))
  with pytest.raises(errors.UserError) as caught:
    splits.read_image_list(str(path), S_NAMES)
  lines = str(caught.value).splitlines()
  assert len(lines) == errors.MAX_LINES
  assert lines[-1] == '… and 489 more'
