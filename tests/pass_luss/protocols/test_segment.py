"""From attention to segments: parts of PASS's steps 2 and 3 and protocols."""

import dataclasses
import io
import zipfile

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import loader as loader_lib
from pass_luss import finetune
from pass_luss.benchmark import label_folders, matching, png_format
from pass_luss.pretrain import heads, view_colors
from pass_luss.pretrain import prototypes as prototypes_lib
from pass_luss.pretrain.objectives import swav
from pass_luss.protocols import distance, knn, segment
from pass_luss.pseudo_labels import attention as attention_lib
from pass_luss.pseudo_labels import cluster, features, labeler
from runtime import errors
from segcore.distributed import sharding
from segcore.eval import short_side
from segcore.models import segmenter
from segcore.models.encoders import resnet
from segcore.ops import color_augment, losses
from segcore.train import optimizers, train_state, update
from segcore.train import workspace as workspace_lib
from tests.support import fake_methods
from tests.transcriptions import pass_luss as reference

CLASSES = 4
READING = loader_lib.ReadOptions(threads=1, buffered=1)


def network_of(heads_by_name):
  encoder = resnet.DilatedResNet(
    blocks=(1, 1, 1, 1),
    width=4,
    stem='small',
    unit='basic',
    output_stride=8,
    zero_init=False,
  )
  return segmenter.Segmenter(encoder, None, heads_by_name)


def looked_at():
  """A network with attention, and a state with values everywhere."""
  net = network_of(
    {'clusters': heads.Clusters(8, 6, 5), 'attention': heads.Attention()}
  )
  return net, state_of(net)


def state_of(net):
  shapes = jax.eval_shape(
    net.init, jax.random.PRNGKey(0), jnp.zeros((1, 32, 32, 3))
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    fan_in = np.prod(leaf.shape[:-1]) if name == 'kernel' else 25
    value = rng.normal(size=leaf.shape) / np.sqrt(max(fan_in, 1))
    return (np.abs(value) + 0.5 if name in ('var', 'scale') else value).astype(
      np.float32
    )

  found = jax.tree_util.tree_map_with_path(draw, shapes)
  return train_state.inference_state(found, sharding.make_mesh())


def images_of(count=2, size=(32, 40), seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, 4, 5, 3), np.uint8)
  return np.stack(
    [cv2.resize(x, size[::-1], interpolation=cv2.INTER_CUBIC) for x in coarse]
  )


def symmetric(images):
  return jnp.asarray((images.astype(np.float32) - 127.5) / 127.5)


def attention_weights(state):
  params = jax.tree.map(np.asarray, state.params['heads']['attention'])
  stats = jax.tree.map(np.asarray, state.batch_stats['heads']['attention'])
  found = {'theta': params['threshold']}
  for i in (1, 2):
    found |= {
      f'w{i}': params[f'conv{i}']['kernel'][0, 0],
      f'b{i}': params[f'conv{i}']['bias'],
      f'gamma{i}': params[f'bn{i}']['scale'],
      f'beta{i}': params[f'bn{i}']['bias'],
      f'mean{i}': stats[f'bn{i}']['mean'],
      f'variance{i}': stats[f'bn{i}']['var'],
    }
  return found


def deep_of(net, state, images):
  found = net.apply(
    train_state.variables(state),
    symmetric(images),
    decode=False,
    method='features',
  )
  return np.asarray(found['encoder'].deepest.array, np.float64)


# Clusters and labels.


def test_features_that_are_clustered():
  net, state = looked_at()
  images = images_of()
  found = features.feature_function(net, 'attended')(state, symmetric(images))
  deep = deep_of(net, state, images)
  expected = reference.cluster_features(deep, attention_weights(state))
  np.testing.assert_allclose(found, expected, atol=2e-5)

  whole = features.feature_function(net, 'image')(state, symmetric(images))
  np.testing.assert_allclose(
    whole, reference.normalize(reference.gap(deep)), atol=2e-5
  )
  cells = features.feature_function(net, 'pixel')(state, symmetric(images))
  np.testing.assert_allclose(cells, reference.normalize(deep), atol=2e-5)


def test_an_image_has_one_category_where_images_were_clustered():
  net, state = looked_at()
  images = images_of(count=6)
  pooled = reference.normalize(reference.gap(deep_of(net, state, images)))
  centroids = pooled[[3, 0, 5, 1]].astype(np.float32)
  look = labeler.category_function(net, centroids, 'image')
  found = np.asarray(look(state, symmetric(images)))
  nearest = np.argmax(pooled @ reference.normalize(centroids).T, axis=-1)
  np.testing.assert_array_equal(
    found[..., 0], np.broadcast_to(1 + nearest[:, None, None], (6, 16, 20))
  )
  assert len(set(nearest)) > 1 and np.all(found[..., 1] == 1)

  look = labeler.category_function(net, centroids, 'pixel')
  found = np.asarray(look(state, symmetric(images[:1])))
  deep = deep_of(net, state, images[:1])[0]
  expected = reference.category_map(deep, centroids, (16, 20))
  assert np.mean(found[0, ..., 0] != expected) < 0.01


@pytest.mark.parametrize('threshold', [0.0, 0.5, 0.6])
def test_generated_labels(threshold):
  net, state = looked_at()
  images = images_of()
  centroids = np.random.default_rng(1).normal(size=(CLASSES, 32))
  centroids = centroids.astype(np.float32)
  look = labeler.category_function(net, centroids, 'attended')
  found = np.asarray(look(state, symmetric(images)))
  weights, size = attention_weights(state), (37, 45)
  for i, deep in enumerate(deep_of(net, state, images)):
    attention = labeler.resize_attention(found[i, ..., 1], size)
    np.testing.assert_allclose(
      attention, reference.attention_map(deep, weights, size), atol=1e-4
    )
    labels = labeler.label_map(
      found[i, ..., 0].astype(int), attention, threshold
    )
    expected = reference.pseudo_labels(
      deep, weights, centroids, threshold, size
    )
    # Rounding decides where two centroids, or the threshold, are as near.
    assert np.mean(labels != expected) < 0.01
  assert len(np.unique(found[..., 0])) > 1


def test_the_sweep_finds_what_labeling_at_each_threshold_would():
  rng = np.random.default_rng(0)
  thresholds = labeler.THRESHOLDS
  sweep = labeler.ThresholdSweep.empty(CLASSES, CLASSES)
  drawn = []
  for _ in range(6):
    label = rng.integers(-1, CLASSES + 1, (5, 6))
    agrees = rng.random(label.shape) < 0.7
    categories = np.where(
      agrees & (label > 0), label % CLASSES + 1, rng.integers(1, 5, (5, 6))
    )
    attention = np.where(label > 0, 0.35, 0.0) + 0.6 * rng.random((5, 6))
    sweep.update(categories, attention, label)
    drawn.append((categories, attention, label))
  expected = []
  for threshold in thresholds:
    found = [
      np.where(attention < threshold, 0, categories)
      for categories, attention, _ in drawn
    ]
    truths = [np.where(d[2] < 0, 1000, d[2]) for d in drawn]
    matrix = reference.matching_matrix(found, truths, CLASSES)
    match = reference.hungarian(matrix)
    matched = [reference.apply_matching(x, match) for x in found]
    expected.append(reference.miou(matched, truths, CLASSES) / 100)
  threshold, miou = sweep.best()
  assert threshold == thresholds[int(np.argmax(expected))]
  np.testing.assert_allclose(miou, max(expected), rtol=1e-9)
  assert max(expected) - min(expected) > 0.02


def test_labels_of_a_folder_stand_beside_their_images(tmp_path):
  split = fake_methods.coordinate_split(3)
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES + 1, (3, 40, 48))
  for name, label in zip(split.ids()[:2], labels, strict=False):
    png_format.write(label_folders.label_path(tmp_path, name), label)
  with pytest.raises(errors.UserError, match='lacks the labels of 1 of 3'):
    label_folders.with_pseudo_labels(split, tmp_path, CLASSES)
  png_format.write(
    label_folders.label_path(tmp_path, split.ids()[2]), labels[2]
  )
  found = label_folders.with_pseudo_labels(split, tmp_path, CLASSES)
  assert len(found.classes) == CLASSES + 1
  for i, label in enumerate(labels):
    record = found.records[i]
    np.testing.assert_array_equal(record['label'], label)
    assert record['image'] == split.records[i]['image']


# Attention.


def attend_of(num_steps=10):
  net = network_of(
    {'clusters': heads.Clusters(8, 6, 5), 'attention': heads.Attention()}
  )
  tx = optimizers.OptimizerOptions(
    name='sgd',
    learning_rate=0.6,
    adaptation='larc',
    weight_decay_mode='l2',
    groups=(attention_lib.FROZEN_PROJECTION,),
  )
  return attention_lib.AttentionMethod(
    net,
    update.Update(('heads',), tx, num_steps),
    swav.SwavOptions(queue=8),
    view_colors.ViewColors(large=(color_augment.ColorOptions(),) * 2),
  )


def test_only_attention_and_prototypes_learn_but_statistics_move():
  trained = attend_of()
  rng = np.random.default_rng(0)
  batch = {
    'views_large': jnp.asarray(
      rng.integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
    )
  }
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  init = jax.jit(lambda key: trained.init(key, spec, None))
  before = init(jax.random.PRNGKey(0))
  step = jax.jit(trained.train_step)
  state = before
  for i in range(3):
    state, scalars = step(state, batch)
    assert int(state.queue.count) == min(8, 4 * (i + 1))
  assert np.isfinite(scalars['loss'])

  def moved(old, new):
    return jax.tree.map(lambda a, b: bool(np.any(a != b)), old, new)

  assert not any(
    jax.tree.leaves(moved(before.params['encoder'], state.params['encoder']))
  )
  learned = moved(before.params['heads'], state.params['heads'])
  assert not any(jax.tree.leaves(learned['clusters']['projection']))
  assert learned['clusters']['prototypes']
  # A bias before a norm has no gradient but for rounding.
  assert learned['attention']['threshold']
  assert learned['attention']['conv1']['kernel']
  statistics = moved(before.batch_stats, state.batch_stats)
  assert all(jax.tree.leaves(statistics['encoder']))
  np.testing.assert_allclose(
    np.linalg.norm(state.queue.rows, axis=-1), 1.0, rtol=1e-5
  )


def test_the_loss_of_attention_is_that_of_what_is_attended_to():
  trained = attend_of()
  rng = np.random.default_rng(0)
  views = rng.integers(0, 256, (3, 2, 32, 32, 3), np.uint8)
  _, state = looked_at()
  params = prototypes_lib.normalize(state.params)
  (embeddings, _), _ = trained._look(
    params, state.batch_stats, symmetric(views)
  )
  variables = {'params': params, 'batch_stats': state.batch_stats}

  def deep(net, images):
    maps = net.features(images, decode=False, train=True)['encoder']
    return maps.deepest.array

  maps, _ = trained.segmenter.apply(
    variables,
    symmetric(views.reshape(6, 32, 32, 3)),
    method=deep,
    mutable=['batch_stats'],
  )
  projection = jax.tree.map(
    np.asarray, params['heads']['clusters']['projection']
  )
  weights = {
    'w1': projection['dense1']['kernel'],
    'b1': projection['dense1']['bias'],
    'gamma': projection['bn1']['scale'],
    'beta': projection['bn1']['bias'],
    'w2': projection['dense2']['kernel'],
    'b2': projection['dense2']['bias'],
  }
  expected = reference.pixel_attention_embeddings(
    np.asarray(maps, np.float64), attention_weights(state), weights
  )
  np.testing.assert_allclose(
    np.asarray(embeddings).reshape(6, -1), expected, atol=5e-4
  )


# Fine-tuning.


def finetune_of(of='pixels'):
  net = network_of({'logits': heads.Classifier(CLASSES + 1)})
  tx = optimizers.OptimizerOptions(name='sgd', learning_rate=0.1)
  return finetune.Finetune(net, update.Update(('encoder', 'heads'), tx, 4), of)


def test_scores_are_doubled_again_and_again():
  """7 to 14 to 28, which is not quite 7 to 28."""
  trained = dataclasses.replace(
    finetune_of(), reduction=2, repeated_upsampling=True
  )
  state = state_of(trained.segmenter)
  label = np.random.default_rng(0).integers(0, CLASSES + 1, (2, 32, 32))
  batch = {
    'image': jnp.asarray(images_of(size=(32, 32))),
    'label': jnp.asarray(label.astype(np.int16)),
    'mask': jnp.ones(2, bool),
  }
  keys = update.ForwardKeys(
    update.row_keys(jax.random.PRNGKey(0), 2), jax.random.PRNGKey(1)
  )
  outcome = trained.loss(state.params, state.batch_stats, batch, keys)
  logits, _ = trained.forward(
    state.params,
    state.batch_stats,
    symmetric(np.asarray(batch['image'])),
    'logits',
    keys,
  )
  doubled = reference.bilinear(np.asarray(logits, np.float64), (8, 8))
  expected = reference.finetune_loss(doubled, label, (16, 16))
  np.testing.assert_allclose(outcome.total / outcome.count, expected, rtol=1e-5)


def test_predicted_scores_are_doubled_once():
  """Inside the model, that is; what training adds is for its labels."""
  trained = finetune_of()
  state = state_of(trained.segmenter)
  images = symmetric(images_of(size=(32, 32)))
  plain = np.asarray(trained.predict(state, images), np.float64)
  doubled = dataclasses.replace(trained, repeated_upsampling=True).predict(
    state, images
  )
  assert plain.shape[1:3] == (4, 4)
  np.testing.assert_allclose(
    doubled, reference.bilinear(plain, (8, 8)), atol=1e-5
  )


@pytest.mark.parametrize('ignored', [False, True])
def test_loss_of_fine_tuning(ignored):
  trained = finetune_of()
  state = state_of(trained.segmenter)
  rng = np.random.default_rng(0)
  label = rng.integers(-1 if ignored else 0, CLASSES + 1, (2, 32, 32))
  batch = {
    'image': jnp.asarray(images_of(size=(32, 32))),
    'label': jnp.asarray(label.astype(np.int16)),
    'mask': jnp.ones(2, bool),
  }
  keys = update.ForwardKeys(
    update.row_keys(jax.random.PRNGKey(0), 2), jax.random.PRNGKey(1)
  )
  outcome = trained.loss(state.params, state.batch_stats, batch, keys)
  logits, _ = trained.forward(
    state.params,
    state.batch_stats,
    symmetric(np.asarray(batch['image'])),
    'logits',
    keys,
  )
  assert logits.shape == (2, 4, 4, CLASSES + 1)
  expected = reference.finetune_loss(
    np.asarray(logits, np.float64), label, (16, 16), -1 if ignored else None
  )
  np.testing.assert_allclose(outcome.total / outcome.count, expected, rtol=1e-5)


def test_whole_images_learn_their_category():
  trained = finetune_of('images')
  state = state_of(trained.segmenter)
  label = np.broadcast_to(np.array([3, 1])[:, None, None], (2, 32, 32))
  batch = {
    'image': jnp.asarray(images_of(size=(32, 32))),
    'label': jnp.asarray(label.astype(np.int16)),
    'mask': jnp.ones(2, bool),
  }
  keys = update.ForwardKeys(
    update.row_keys(jax.random.PRNGKey(0), 2), jax.random.PRNGKey(1)
  )
  outcome = trained.loss(state.params, state.batch_stats, batch, keys)
  logits, _ = trained.forward(
    state.params,
    state.batch_stats,
    symmetric(np.asarray(batch['image'])),
    'logits',
    keys,
  )
  loss = losses.cross_entropy(jnp.mean(logits, (1, 2)), jnp.array([3, 1]))
  np.testing.assert_allclose(outcome.total, jnp.sum(loss), rtol=1e-5)
  assert outcome.count == 2


def test_activation_maps():
  trained = finetune_of()
  state = state_of(trained.segmenter)
  images = symmetric(images_of(count=4))
  found = np.asarray(trained.activation(state, images))
  logits = np.asarray(trained.predict(state, images), np.float64)
  for i in range(4):
    for threshold in (0.2, 0.5):
      shown = labeler.resize_attention(found[i, ..., 1], (32, 40))
      labels = labeler.label_map(found[i, ..., 0].astype(int), shown, threshold)
      expected = reference.cam_labels(logits[i, ..., 1:], (32, 40), threshold)
      assert np.mean(labels != expected) < 0.01


# How images are looked at.


@pytest.mark.parametrize(
  'size', [(375, 500), (500, 333), (256, 256), (300, 301), (1, 7)]
)
def test_size_at_a_short_side(size):
  assert short_side.resized_size(size, 256) == reference.inference_size(*size)


def test_what_is_shown():
  image = images_of(1, (60, 90))[0]
  assert short_side.resize_and_crop(image, 40).shape == (40, 60, 3)
  middle = short_side.resize_and_crop(image, 40, 32)
  np.testing.assert_array_equal(
    middle, short_side.resize_and_crop(image, 40)[4:36, 14:46]
  )
  # A bright pixel is spread over what it stands for, as by Pillow.
  dot = np.zeros((64, 64, 3), np.uint8)
  dot[32, 32] = 255
  assert 0 < short_side.resize_and_crop(dot, 16).max() < 255


@pytest.mark.parametrize('largest', [1000, 20])
def test_label_maps_of_scores(largest):
  """Images of two sizes on one canvas; with 20, both are decided smaller."""
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(2, 4, 5, CLASSES)).astype(np.float32)

  class Fixed:
    def predict(self, state, images):
      return jnp.asarray(scores)

  maps = short_side.LabelMaps(Fixed(), 24, size_multiple=32, max_side=largest)
  images = [images_of(1, (48, 60))[0], images_of(1, (40, 50))[0]]
  groups = [maps.group(x.shape[:2]) for x in images]
  assert groups[0] == groups[1] == ((64, 64), ((24, 30),))
  state = train_state.inference_state({'params': {}}, sharding.make_mesh())
  found = np.asarray(maps(state, maps.prepare(images, groups[0])))
  for row, image, score in zip(found, images, scores, strict=True):
    height, width = image.shape[:2]
    expected = reference.label_map(
      score.astype(np.float64), (height, width), largest
    )
    assert np.mean(row[:height, :width] != expected) < 0.002
  probs = dataclasses.replace(maps, output='probs')
  found_probs = probs(state, probs.prepare(images, groups[0]))
  np.testing.assert_allclose(found_probs.sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(np.argmax(found_probs, -1), found)


# Files, matching, score.


def test_a_permuted_truth_scores_everything(folder):
  rng = np.random.default_rng(0)
  split = fake_methods.make_split(
    [
      fake_methods.make_record(
        i, np.zeros((6, 8, 3)), rng.choice([-1, 0, 1 + i % 3], (6, 8)), 4
      )
      for i in range(5)
    ]
  )
  count = len(split.classes) - 1
  permutation = np.array([0, 3, 1, 2])
  place = workspace_lib.Workspace(folder, {}, 'digest')
  folder = folder / 'val'

  def maps(part):
    for record in (part.records[i] for i in range(len(part))):
      label = segment.records.decode_label(record['label'])
      yield permutation[np.maximum(label, 0)], {'id': np.bytes_(record['id'])}

  label_folders.write(split, maps, folder, place, 40)
  match = segment.match_categories(split, folder, count)
  assert match.classes == (0, 2, 3, 1)
  values = segment.score(split, folder, count, match)
  assert values['miou'] == pytest.approx(1.0)
  assert segment.score(split, folder, count, None)['miou'] < 0.5

  # What is written is kept, and only what is missing is made again.
  made = []

  def watched(part):
    made.extend(part.ids())
    return maps(part)

  label_folders.write(split, watched, folder, place, 40)
  assert made == []
  label_folders.label_path(folder, split.ids()[2]).unlink()
  label_folders.write(split, watched, folder, place, 40)
  assert made == [split.ids()[2]]


def test_label_maps_are_made_by_blocks_of_one_shown_size(folder, monkeypatch):
  monkeypatch.setattr(label_folders, '_BLOCK', 2)
  place = workspace_lib.Workspace(folder, {}, 'digest')
  sizes = [(6, 8), (9, 9), (12, 16), (5, 5), (3, 4)]
  split = fake_methods.make_split(
    [
      fake_methods.make_record(i, np.zeros((*size, 3)), np.zeros(size), 4)
      for i, size in enumerate(sizes)
    ]
  )
  asked, stops = [], [False, True]
  monkeypatch.setattr(
    type(place.preemption), 'reached', lambda self: stops and stops.pop(0)
  )

  def maps(part):
    asked.append([*part.ids()])
    for name, size in zip(part.ids(), part.sizes(), strict=True):
      yield np.ones(size, int), {'id': np.bytes_(name)}

  with pytest.raises(workspace_lib.Preempted, match='keeps the labels it has'):
    label_folders.write(split, maps, folder / 'val', place, 12)
  label_folders.write(split, maps, folder / 'val', place, 12)
  # (12, 12) twice, then (12, 16) three times, of which one was left.
  ids = split.ids()
  assert asked == [[ids[1], ids[3]], [ids[0], ids[2]], [ids[4]]]
  assert len(label_folders.missing_indices(split, folder / 'val')) == 0


def test_a_submission_has_what_the_servers_ask_for(folder):
  folder = folder / 'test'
  split = fake_methods.coordinate_split(2)
  for name in split.ids():
    png_format.write(folder / f'{name}.png', np.array([[0, 2]]))
  match = folder.parent / 'match.json'
  matching.Match((0, 2, 1)).write(match)
  about = segment.SubmissionInfo(name='ours', networks='ResNet-18')
  path = segment.write_submission(split, folder, match, about)
  with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
    assert sorted(archive.namelist()) == [
      *(f'{name}.png' for name in split.ids()),
      *('match.json', 'method.txt'),
    ]
    text = archive.read('method.txt').decode()
  assert text.splitlines()[0] == 'Method name: ours'
  assert [line.split(':')[0] for line in text.splitlines()] == [
    *('Method name', 'Training data', 'Training scheme', 'Networks'),
    *('Paper/Project link', 'Method description'),
  ]


def test_distance_matching_is_the_vote_of_regions():
  split = fake_methods.labeled_split([(32, 32)] * 4)
  net = network_of({'logits': heads.Classifier(2)})
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  options = distance.DistanceOptions(
    neighbors=3, short_side=32, batch_size=2, temperature=0.07
  )
  state = jax.device_put(
    jax.device_get(state_of(net)), sharding.replicated(mesh)
  )
  matcher = distance.DistanceMatcher(net, state, options, mesh, READING)
  bank = matcher.build_bank(split)
  enlarged_by_id, entries, ids = {}, [], []
  for i in range(4):
    record = split.records[i]
    image = segment.records.decode_image(record['image'])
    deep = deep_of(net, jax.device_get(state), image[None])[0]
    enlarged = reference._enlarge(deep, 4)
    enlarged_by_id[record['id']] = enlarged
    label = segment.records.decode_label(record['label']).astype(int)
    rows, of = reference.bank_entries(
      enlarged, np.where(label < 0, reference.IGNORE, label)
    )
    entries.append(rows)
    ids.append(of)
  expected = reference.normalize(np.concatenate(entries))
  np.testing.assert_array_equal(bank.labels, np.concatenate(ids))
  np.testing.assert_allclose(bank.features, expected, atol=1e-4)
  for labels, example in matcher.grid_label_function(bank)(split):
    truth = reference.knn_label_map(
      enlarged_by_id[example['id'].item()],
      expected,
      np.concatenate(ids),
      *(3, 0.07, len(split.classes)),
    )
    assert np.mean(labels != truth) < 0.02


def test_images_are_told_by_their_neighbors():
  bank = knn.Bank(np.eye(3, dtype=np.float32), np.array([2, 0, 1], np.int32))
  found = knn.vote(jnp.eye(3) + 0.1, bank, 1)
  np.testing.assert_array_equal(found, [2, 0, 1])


def test_features_resume_block_by_block(folder, monkeypatch):
  monkeypatch.setattr(features, 'BLOCK', 2)
  split = fake_methods.coordinate_split(5)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  seen = []

  def look(state, images):
    jax.debug.callback(lambda x: seen.append(1), images[0, 0, 0, 0])
    return jnp.mean(images, axis=(1, 2))

  state = train_state.inference_state({'params': {}}, mesh)
  place = workspace_lib.Workspace(folder, {}, 'digest')

  def extracted():
    at_grid = short_side.FeatureMaps(look, 40)
    found = features.extract(split, at_grid, state, 2, mesh, READING, place)
    jax.effects_barrier()
    return found

  whole = extracted()
  assert whole.shape == (5, 3) and len(seen) == 3
  # Blue says which image it is: the rows are in the order of the split.
  assert np.all(np.diff(whole[:, 2]) > 0)
  (folder / 'features' / '000000002.npy').unlink()
  np.testing.assert_array_equal(extracted(), whole)
  assert len(seen) == 4
  features.delete(place)
  assert not (folder / 'features').exists()


def test_options_are_refused():
  with pytest.raises(ValueError, match='at most the short side'):
    cluster.ClusterOptions(short_side=32, crop=64)
  with pytest.raises(ValueError, match='threshold'):
    labeler.LabelOptions(threshold=2.0)
