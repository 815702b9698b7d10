import doctest
import itertools
import json

import numpy as np
import pytest

from pass_luss.benchmark import matching, metrics, png_format
from runtime import errors
from segcore.eval import metrics as metrics_lib


def slow_counts(images, num_generated, num_classes):
  """Counts each pair of ids in a loop."""
  counts = np.zeros((num_generated, num_classes), int)
  for prediction, label in images:
    for g, c in itertools.product(range(num_generated), range(num_classes)):
      counts[g, c] += (prediction == g + 1).any() and (label == c + 1).any()
  return counts


def drawn(seed, count, num_generated=4, num_classes=4):
  rng = np.random.default_rng(seed)
  return [
    (
      rng.integers(0, num_generated + 1, (2, 3)).astype(np.int32),
      rng.integers(-2, num_classes + 1, (2, 3)).astype(np.int16),
    )
    for _ in range(count)
  ]


def counted(images, num_generated=4, num_classes=4):
  counts = matching.Cooccurrence.empty(num_generated, num_classes)
  for prediction, label in images:
    counts = counts.update(prediction, label, b'image')
  return counts


def test_counts_by_hand():
  label = np.array([[1, 1, 0, -1]])
  prediction = np.array([[0, 2, 0, 3]])
  counts = counted([(prediction, label), (prediction, label)], 3, 2)
  # 3 is predicted where the label is ignored only; it occurs all the same.
  np.testing.assert_array_equal(counts.counts, [[0, 0], [2, 0], [2, 0]])


@pytest.mark.parametrize('sizes', [(4, 4), (6, 3), (2, 5)])
def test_counts_equal_a_loop(sizes):
  images = drawn(0, 20, *sizes)
  counts = counted(images, *sizes)
  assert counts.counts.dtype == np.int64
  np.testing.assert_array_equal(counts.counts, slow_counts(images, *sizes))


def test_merged_equals_all_at_once():
  images = drawn(1, 9)
  whole = counted(images)
  for cut in range(10):
    merged = counted(images[:cut]).merge(counted(images[cut:]))
    np.testing.assert_array_equal(merged.counts, whole.counts)
  pairs = [matching.present_category_ids(*image) for image in images]
  np.testing.assert_array_equal(
    counted([]).update_all(pairs).counts, whole.counts
  )
  assert isinstance(whole, metrics_lib.Metric)
  assert metrics_lib.merge_metrics_across_hosts(whole) is whole


@pytest.mark.parametrize('seed', range(5))
def test_match_is_the_best_of_all_bijections(seed):
  counts = counted(drawn(seed, 12))
  best = max(
    sum(counts.counts[g, c] for g, c in enumerate(bijection))
    for bijection in itertools.permutations(range(4))
  )
  match = counts.match()
  assert sorted(match.classes) == [0, 1, 2, 3, 4]
  reached = sum(
    counts.counts[g - 1, c - 1] for g, c in enumerate(match.classes) if g
  )
  assert reached == best == counts.compute()['matched_pairs']


def test_surplus_categories_become_other():
  """More categories than classes, as from a larger data set."""
  counts = matching.Cooccurrence(np.array([[1, 0], [5, 2], [0, 0], [4, 3]]))
  match = counts.match()
  assert match.classes == (0, 0, 1, 0, 2)
  assert counts.compute() == {'matched_pairs': 8.0}
  prediction = np.array([[0, 1, 2], [3, 4, 4]])
  assert match.apply(prediction).tolist() == [[0, 0, 1], [0, 2, 2]]


def test_fewer_categories_than_classes():
  counts = matching.Cooccurrence(np.array([[1, 0, 7]]))
  assert counts.match().classes == (0, 3)


def test_a_bijection_matched_to_itself_scores_100():
  rng = np.random.default_rng(3)
  # Each image is mostly of one class, as in the benchmark.
  labels = []
  for c in rng.permutation(np.repeat(np.arange(1, 51), 3)):
    label = np.full((30, 40), c, np.int16)
    label[:10] = 0
    label[:, :5] = -1
    labels.append(label)
  bijection = np.concatenate([[0], rng.permutation(50) + 1])
  images = [(bijection[np.maximum(label, 0)], label) for label in labels]
  match = counted(images, 50, 50).match()
  np.testing.assert_array_equal(np.array(match.classes)[bijection], range(51))
  scored = metrics.ImageNetS.empty(50)
  for prediction, label in images:
    scored = scored.update(match.apply(prediction), label, 'image')
  actual = scored.compute()
  for name in ('miou', 'miou_without_other', 'image_accuracy', 'f_beta'):
    np.testing.assert_allclose(actual[name], 1, err_msg=name)


def test_match_json(tmp_path):
  path = tmp_path / 'new' / 'match.json'
  match = matching.Match((0, 3, 1, 2))
  match.write(path)
  assert json.loads(path.read_text()) == {'0': 0, '1': 3, '2': 1, '3': 2}
  assert matching.Match.read(path, 3) == match
  assert [p.name for p in path.parent.iterdir()] == ['match.json']
  # In any order; several categories may be 'other'.
  path.write_text('{"2": 0, "1": 2, "3": 0}')
  assert matching.Match.read(path, 2) == matching.Match((0, 2, 0, 0))


@pytest.mark.parametrize(
  'text, reason',
  [
    ('{"1": 1', "Expecting ',' delimiter: line 1 column 8 (char 7)"),
    ('[0, 1]', 'expected an object, got a list'),
    (
      '{"1": 1, "x": 2}',
      "expected keys 0…32767, got 'x'",
    ),
    (
      '{"1": 1, "01": 2}',
      "expected keys 0…32767, got '01'",
    ),
    ('{"40000": 1}', "expected keys 0…32767, got '40000'"),
    ('{"-1": 1}', "expected keys 0…32767, got '-1'"),
    ('{"1": 1, "1": 2}', "expected key '1' once, got it twice"),
    ('{"1": 1.0}', "expected an integer for key '1', got 1.0"),
    ('{"1": true}', "expected an integer for key '1', got True"),
    ('{"1": null}', "expected an integer for key '1', got None"),
    ('{"0": 1, "1": 2}', "expected class 0, 'other', for category 0, got 1"),
    ('{"1": -1}', "expected a class from 0 for key '1', got -1"),
    ('{"1": 1e5}', "expected an integer for key '1', got 100000.0"),
    ('{"1": 100000}', 'expected classes 0…32767, got 0…100000'),
    ('{"1": 4}', 'expected classes 0…3, got 4'),
  ],
)
def test_refused_match_json(tmp_path, text, reason):
  path = tmp_path / 'match.json'
  path.write_text(text)
  with pytest.raises(errors.BadFile) as error:
    matching.Match.read(path, 3)
  assert str(error.value) == (
    f'{path}: expected a matching {{"0": 0, "1": class, …}}: {reason}; write '
    'it with --write_match'
  )


def test_unreadable_match_json(tmp_path):
  with pytest.raises(errors.BadFile, match='cannot be read: No such file'):
    matching.Match.read(tmp_path / 'match.json', 3)
  with pytest.raises(errors.BadFile, match='cannot be read: Is a directory'):
    matching.Match.read(tmp_path, 3)
  for content in (b'\xff\xfe\x00', b'[' * 200_000):
    (tmp_path / 'x').write_bytes(content)
    with pytest.raises(errors.BadFile, match='expected a matching') as error:
      matching.Match.read(tmp_path / 'x', 3)
    assert '\n' not in str(error.value)


def test_match_json_in_a_folder_that_cannot_be_created(tmp_path):
  (tmp_path / 'file').write_text('')
  path = tmp_path / 'file' / 'deep' / 'match.json'
  with pytest.raises(errors.UserError) as error:
    matching.Match((0, 1)).write(path)
  assert str(error.value).startswith(f'cannot write {path} (Not a directory: ')
  assert 'space' not in str(error.value)


def test_messages():
  def refused(prediction, label):
    with pytest.raises(ValueError) as error:
      counted([(np.array(prediction), np.array(label))], 3, 2)
    return str(error.value)

  assert refused([[4]], [[1]]) == (
    'image image: expected predictions 0…3, got 4'
  )
  assert refused([[1]], [[3]]) == ('image image: expected labels 0…2, got 3')
  assert refused([[-1]], [[1]]) == (
    'image image: expected predictions from 0, got -1'
  )
  with pytest.raises(ValueError, match='1 or more, got 0 categories and 2'):
    matching.Cooccurrence.empty(0, 2)
  with pytest.raises(ValueError, match=r'cannot merge counts of shapes \(1, 2'):
    matching.Cooccurrence.empty(1, 2).merge(matching.Cooccurrence.empty(2, 2))
  match = matching.Match((0, 1))
  with pytest.raises(
    ValueError, match='expected ids 0…1 of the matching, got 2'
  ):
    match.apply(np.array([[0, 2]]))
  with pytest.raises(
    ValueError, match='expected ids 0…1 of the matching, got -1'
  ):
    match.apply(np.array([[0, -1]]))
  with pytest.raises(ValueError, match='got -2…1'):
    matching.Match((0, 1, -2))


def test_match_json_of_finer_clusters_with_gaps(tmp_path):
  """A hand-written file: many-to-one, and without ids that never occur."""
  path = tmp_path / 'match.json'
  path.write_text('{"1": 2, "2": 2, "5": 1}')
  match = matching.Match.read(path, 2)
  assert match.num_generated == 5
  prediction = np.array([[0, 1, 2, 5]])
  assert match.apply(prediction).tolist() == [[0, 2, 2, 1]]
  with pytest.raises(ValueError, match='got 3, which has no class in it'):
    match.apply(np.array([[1, 3, 4]]))
  match.write(path)
  assert json.loads(path.read_text()) == {'0': 0, '1': 2, '2': 2, '5': 1}


def test_match_by_name_of_classes_with_different_ids():
  """Spec §1.2: the wnid n03 has id 3 in one data set and 1 in the other."""
  known = ('other', 'n01', 'n02', 'n03', 'n04')
  match = matching.match_classes_by_name(known, ('background', 'n03', 'n01'))
  assert match.classes == (0, 2, 0, 1, 0)
  assert matching.match_classes_by_name(known, known).classes == (0, 1, 2, 3, 4)
  # What is called 'other' elsewhere is no class.
  assert matching.match_classes_by_name(
    ('other', 'a'), ('x', 'other', 'a')
  ).classes == (0, 2)
  with pytest.raises(errors.UserError) as error:
    matching.match_classes_by_name(known, ('other', 'cat', 'dog'))
  assert str(error.value) == (
    'expected classes with names among the 2 of the data (cat, dog, …), got 4 '
    'others (n01, n02, n03, …): choose data that shares classes'
  )


def test_matched_predictions_can_be_written(tmp_path):
  match = matching.Match((0, 300, 1))
  label = match.apply(np.array([[0, 1, 2]], np.int32))
  png_format.write_imagenet_s_png(tmp_path / 'a.png', label)
  assert png_format.read_imagenet_s_png(tmp_path / 'a.png', 300).tolist() == [
    [0, 300, 1]
  ]


def test_doctests():
  assert doctest.testmod(matching).failed == 0
