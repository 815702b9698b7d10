"""A whole step of CPS, with and without CutMix, against the transcription."""

import jax
import numpy as np
import pytest

from segcore.train import update as update_lib
from tests.transcriptions import semi as reference
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl.semi import tiny
from u2pl import box_masks
from u2pl.semi import two_network_options

SHAPE = (tiny.BATCH, tiny.SIZE, tiny.SIZE)


PARAMS = [
  pytest.param({}, id='cps', marks=pytest.mark.slow),
  pytest.param({'cutmix': True}, id='cutmix'),
  pytest.param(
    {'cutmix': True, 'pair': 'self'}, id='self', marks=pytest.mark.slow
  ),
]


@pytest.fixture(scope='module', params=PARAMS)
def start(request):
  """Returns the method, and a state before a step."""
  options = two_network_options.CpsOptions(**request.param, weight=1.5)
  trained = tiny.make_method(options)
  return trained, tiny.draw_state(trained, step=3)


@pytest.fixture(scope='module')
def stepped(start):
  """Returns method, state before and state after a step."""
  trained, state = start
  after, _ = jax.jit(trained.train_step)(state, draw_batch())
  return trained, state, after


def draw_batch():
  batch = tiny.draw_batch()
  batch['unlabeled']['second_image'] = batch['unlabeled']['image'][:, ::-1]
  return batch


def losses_and_statistics(trained, state, batch):
  """Returns scalars and batch statistics of a step of both networks."""

  @jax.jit
  def step(state, batch):
    # The gradient is not compiled.
    after, scalars = trained.train_step(state, batch)
    return scalars, (after.batch_stats, after.second.batch_stats)

  return step(state, batch)


def pasted(own, others, group, rng):
  keys = update_lib.row_prng_keys(rng, tiny.BATCH)
  masks = np.stack(
    [
      reference.xor_mask(each, tiny.SIZE, tiny.SIZE)
      for each in box_masks.sample_box_uniforms(keys, (3, 4))
    ]
  )
  assert 0.1 < masks.mean() < 0.6
  return [
    reference.pasted(x, y, masks, group)
    for x, y in zip(own, others, strict=True)
  ]


def labels_of(logits):
  return [x.argmax(-1) for x in logits]


def test_pixels_come_from_the_second_crop_of_the_same_image():
  options = two_network_options.CpsOptions(cutmix=True, pair='self')
  assert (options.mixing_group, options.needs_two_crops) == (1, True)
  trained, batch = tiny.make_method(options), draw_batch()
  batch['unlabeled']['second_valid'] = np.zeros(SHAPE, bool)
  crops = [x['unlabeled'] for x in trained.unlabeled_crops(batch)]
  arrays = [(x['image'], x.get('valid', np.ones(SHAPE, bool))) for x in crops]
  rng = jax.random.PRNGKey(0)
  mixed = jax.jit(trained.mix)(rng, *arrays)
  for actual, expected in zip(mixed, pasted(*arrays, 1, rng), strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_a_whole_step_equals_the_reference(start):
  trained, state = start
  batch = draw_batch()
  scalars, stats_after = losses_and_statistics(trained, state, batch)
  labeled, unlabeled = tiny.symmetric_images(batch)
  mixing_rng, label_rng, student_rng = jax.random.split(
    jax.random.fold_in(state.rng, state.step), 3
  )
  networks = state, state.second
  stats = [each.batch_stats for each in networks]

  def forward(images, rng, first):
    """Applies both networks; their statistics go on from pass to pass."""
    logits = []
    for j, network in enumerate(networks):
      key = jax.random.fold_in(rng, first + j)
      each, stats[j] = tiny.forward(
        trained, network.params, stats[j], images, key
      )
      logits.append(each)
    return logits

  if trained.options.cutmix:
    own = others = [unlabeled, *labels_of(forward(unlabeled, label_rng, 0))]
    group = 2
    if trained.options.pair == 'self':
      second = unlabeled[:, ::-1]
      others = [second, *labels_of(forward(second, label_rng, 2))]
      group = 1
    unlabeled, *labels = pasted(own, others, group, mixing_rng)
  outputs = forward(labeled, student_rng, 0)
  mixed = forward(unlabeled, student_rng, 2)
  truth = batch['labeled']['label'].astype(int)
  supervised = sum(u2pl_reference.cross_entropy(x, truth) for x in outputs)
  if trained.options.cutmix:
    cross = reference.cps_cutmix_loss(mixed, labels, 1.5)
  else:
    joined = [np.concatenate(pair) for pair in zip(outputs, mixed, strict=True)]
    cross = reference.cps_loss(joined, 1.5)
  for name, expected in (
    ('loss_supervised', supervised),
    ('loss_unsupervised', cross),
    ('loss', supervised + cross),
  ):
    np.testing.assert_allclose(scalars[name], expected, rtol=1e-4)
  for actual, expected in zip(stats_after, stats, strict=True):
    assert tiny.difference(actual, expected) < 1e-5


@pytest.mark.slow
def test_networks_differ_and_both_learn(stepped):
  trained, before, after = stepped
  assert tiny.difference(before.params, before.second.params) > 0.01
  for old, new in ((before, after), (before.second, after.second)):
    for part in ('encoder', 'decoder'):
      assert tiny.difference(old.params[part], new.params[part]) > 0
  # The first network is evaluated.
  assert trained.reported(after)['params'] is after.params


@pytest.mark.slow
def test_parts_that_are_loaded_are_those_of_both_networks(start):
  trained, before = start
  loaded = {'params': {'encoder': before.second.params['encoder']}}
  state = jax.jit(lambda rng: trained.init(rng, tiny.batch_spec(), loaded))(
    jax.random.PRNGKey(0)
  )
  for each in (state, state.second):
    assert (
      tiny.difference(each.params['encoder'], loaded['params']['encoder']) == 0
    )
  heads = (each.params['heads'] for each in (state, state.second))
  assert tiny.difference(*heads) > 0.01
