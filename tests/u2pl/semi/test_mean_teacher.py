"""The whole step of U2PL+: against its parts, on 8 devices, in its warm-up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import batch as batch_lib
from segcore.cost import communication
from segcore.distributed import sharding
from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.models.decoders import deeplabv3plus
from segcore.models.encoders import resnet
from segcore.ops import order_statistics
from segcore.train import method, optimizers
from segcore.train import update as update_lib
from tests.support import meshes
from tests.transcriptions import u2pl as reference
from u2pl import contrast, ema, mixing
from u2pl.semi import mean_teacher
from u2pl.semi import options as options_lib

CLASSES, SIZE, BATCH = 5, 33, 8


def heads(representation=8, auxiliary=False, dtype=jnp.float32):
  blocks = {'width': 8, 'dropout_rate': 0.0, 'dtype': dtype}
  found = {
    'logits': heads_lib.ConvBlocksHead(CLASSES, **blocks),
    'rep': heads_lib.ConvBlocksHead(representation, **blocks),
  }
  if auxiliary:
    found['aux'] = heads_lib.ConvBlocksHead(
      CLASSES, num_blocks=1, reads='encoder', map_name='x3', **blocks
    )
  return found


def network_of(dtype=jnp.float32, **kwargs):
  return segmenter.Segmenter(
    resnet.DilatedResNet(
      blocks=(1, 1, 1, 1), width=4, multi_grid=(1,), dtype=dtype
    ),
    deeplabv3plus.DeepLabV3Plus(
      width=8, dilations=(1, 2, 3), dropout_rate=0.0, dtype=dtype
    ),
    heads(dtype=dtype, **kwargs),
  )


PLUS = options_lib.LearnOptions(
  consistency=options_lib.ConsistencyOptions(
    reverse=0.1, denoise='raw', mixing=mixing.MixingOptions(group=2)
  ),
  contrast=contrast.ContrastOptions(
    num_anchors=6,
    num_negatives=4,
    low_rank=2,
    high_rank=5,
    anchor_threshold=0.1,
    capacity=40,
    first_capacity=60,
    max_push=16,
  ),
  prototype_momentum=0.9,
  warmup_epochs=1,
)


def method_of(options=PLUS, num_steps=40, **kwargs):
  return mean_teacher.MeanTeacher(
    segmenter=network_of(**kwargs),
    update=update_lib.Update(
      segmenter.SUBMODULES,
      optimizers.OptimizerOptions(
        name='sgd', learning_rate=0.05, schedule='poly', weight_decay=1e-4
      ),
      num_steps,
    ),
    options=options,
    num_classes=CLASSES,
    steps_per_epoch=4,
  )


def batch_of(seed=0):
  rng = np.random.default_rng(seed)

  def stream():
    # Of large parts, as real labels are; some pixels are ignored.
    coarse = rng.integers(-1, CLASSES, (BATCH, 4, 4))
    label = coarse.repeat(9, 1).repeat(9, 2)[:, :SIZE, :SIZE]
    shades = rng.integers(40, 200, CLASSES + 1)[label]
    image = shades[..., None] + rng.integers(-30, 30, (BATCH, SIZE, SIZE, 3))
    return {
      'image': image.astype(np.uint8),
      'label': label.astype(np.int16),
      'mask': np.ones(BATCH, bool),
    }

  return {'labeled': stream(), 'unlabeled': stream()}


def spec():
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of()
  )


def start(trained, step=0, seed=0):
  init = jax.jit(lambda rng: trained.init(rng, spec(), None))
  state = init(jax.random.PRNGKey(seed))
  return state.replace(step=jnp.int32(step))


def steps(trained, state, count, first=0, jitted=None):
  step = jitted or jax.jit(trained.train_step)
  scalars = {}
  for i in range(first, first + count):
    state, scalars = step(state, batch_of(i))
  return state, scalars


def difference(a, b):
  return max(
    float(jnp.max(jnp.abs(x - y))) if x.size else 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.fixture(scope='module')
def trained():
  return method_of()


@pytest.fixture(scope='module')
def jitted(trained):
  return jax.jit(trained.train_step)


@pytest.fixture(scope='module')
def warm(trained, jitted):
  """The state after the warm-up."""
  return steps(trained, start(trained), 4, jitted=jitted)


def test_warm_up_is_supervised_training(trained, warm):
  alone = method_of(dataclasses.replace(PLUS, consistency=None, contrast=None))
  alone = dataclasses.replace(alone, segmenter=trained.segmenter)
  state = start(alone)
  step = jax.jit(alone.train_step)
  for i in range(4):
    state, scalars = step(state, batch_of(i)['labeled'])
  found, logged = warm
  heads = found.params['heads']
  for part in ('encoder', 'decoder'):
    assert difference(found.params[part], state.params[part]) < 1e-4
  assert difference(heads['logits'], state.params['heads']['logits']) < 1e-4
  np.testing.assert_allclose(logged['loss'], scalars['loss'], rtol=1e-4)
  assert logged['loss_supervised'] == logged['loss']
  assert logged['loss_unsupervised'] == logged['loss_contrast'] == 0


def test_warm_up_leaves_the_bank_and_the_prototypes_empty(trained, warm):
  state, _ = warm
  assert not state.bank.count.any() and not state.bank.rows.any()
  assert not state.prototypes.updates.any()


def test_warm_up_moves_the_teachers_statistics_only(trained, warm):
  before, (after, _) = start(trained), warm
  assert difference(before.teacher_params, after.teacher_params) == 0
  moved = difference(before.teacher_batch_stats, after.teacher_batch_stats)
  assert moved > 0
  assert difference(before.params, after.params) > 0


def test_warm_up_does_not_look_at_unlabeled_images(trained, jitted):
  batch = batch_of()
  other = {**batch, 'unlabeled': batch_of(7)['unlabeled']}
  a, b = (jitted(start(trained), x) for x in (batch, other))
  assert difference(a, b) == 0


def test_the_student_is_evaluated_until_the_warm_up_is_over(trained, warm):
  state, _ = warm
  reported = trained.reported(state)
  assert difference(reported['params'], state.params) == 0
  later = state.replace(step=jnp.int32(5))
  reported = trained.reported(later)
  assert difference(reported['params'], state.teacher_params) == 0


def test_the_teacher_is_a_copy_for_an_epoch_and_then_follows(
  trained, warm, jitted
):
  state, _ = warm
  state, _ = steps(trained, state, 4, first=4, jitted=jitted)
  assert difference(state.teacher_params, state.params) == 0
  before = state
  state, _ = steps(trained, state, 1, first=8, jitted=jitted)
  # k = 4 steps after the warm-up: 1 - 1/5.
  expected = jax.tree.map(
    lambda t, s: 0.8 * t + 0.2 * s, before.teacher_params, state.params
  )
  assert difference(state.teacher_params, expected) < 1e-6
  assert difference(state.teacher_params, state.params) > 0


def test_the_teachers_statistics_by_each_rule(warm, trained, jitted):
  assert trained.options.teacher.statistics == 'own'
  for rule in ('own', 'ema', 'copy'):
    options = dataclasses.replace(PLUS, teacher=ema.EmaOptions(statistics=rule))
    other = jax.jit(method_of(options).train_step)
    step = jitted if rule == 'own' else other
    state, _ = warm
    after, _ = step(state.replace(step=jnp.int32(9)), batch_of(3))
    same = difference(after.teacher_batch_stats, after.batch_stats)
    if rule == 'copy':
      assert same == 0
    else:
      assert same > 0
    if rule == 'ema':
      k = 5
      expected = jax.tree.map(
        lambda t, s, k=k: (1 - 1 / (k + 1)) * t + s / (k + 1),
        state.teacher_batch_stats,
        after.batch_stats,
      )
      assert difference(after.teacher_batch_stats, expected) < 1e-5


@pytest.fixture(scope='module')
def late(trained, warm, jitted):
  """A state in which labels are denoised, with an empty bank."""
  state, _ = steps(trained, warm[0], 4, first=4, jitted=jitted)
  empty = jnp.zeros_like(state.bank.count)
  return state.replace(
    bank=state.bank.replace(
      rows=0 * state.bank.rows, pointer=empty, count=empty
    )
  )


def network_outputs(trained, params, stats, images, train, rng=None):
  images = jnp.asarray(images)
  look = jax.jit(
    lambda: (
      method.forward(
        trained.segmenter,
        params,
        stats,
        images,
        heads=('logits', 'rep'),
        train=segmenter.SUBMODULES,
        rng=rng,
      )[0]
      if train
      else trained.segmenter.apply(
        {'params': params, 'batch_stats': stats},
        images,
        heads=('logits', 'rep'),
      )
    )
  )
  return {k: np.asarray(v, np.float64) for k, v in look().items()}


def test_a_whole_step_is_that_of_the_reference(trained, late, jitted):
  """From the networks' outputs and the draws on, all in slow numpy."""
  batch = batch_of(11)
  after, scalars = jitted(late, batch)
  shape = (SIZE, SIZE)
  # The draws, from the same keys.
  lesson_rng, network_rng = jax.random.split(
    jax.random.fold_in(late.rng, late.step)
  )
  guess_rng, draw_rng = jax.random.split(lesson_rng)
  mixing_rng, row_rng, teacher_rng = jax.random.split(guess_rng, 3)
  draws = mixing.sample(
    mixing_rng,
    update_lib.row_keys(row_rng, BATCH),
    PLUS.consistency.mixing,
    (BATCH, *shape),
    CLASSES,
  )
  images_l, images_u = (
    np.asarray(batch_lib.to_symmetric(jnp.asarray(batch[name]['image'])))
    for name in ('labeled', 'unlabeled')
  )
  labels_l = batch['labeled']['label'].astype(int)

  # Clean images: denoised labels, by the prototypes of before.
  teacher_of = late.teacher_params, late.teacher_batch_stats
  clean = network_outputs(trained, *teacher_of, images_u, train=False)
  known = reference.Prototypes(
    np.asarray(late.prototypes.vectors, np.float64),
    np.asarray(late.prototypes.updates),
  )
  assert (known.updates > 0).all()
  probs = reference.softmax(reference.bilinear(clean['logits'], shape))
  labels_u, _ = reference.denoised_labels(probs, clean['rep'], known)

  # Mixing, in pairs.
  mixed, mixed_labels = images_u.copy(), labels_u.copy()
  for g in np.flatnonzero(draws.mixed):
    rows = slice(2 * g, 2 * g + 2)
    mixed[rows], mixed_labels[rows] = reference.cutmix(
      images_u[rows], labels_u[rows], np.asarray(draws.boxes[rows])
    )
  assert 0 < np.sum(draws.mixed) < BATCH // 2

  # Mixed images: what is reliable. 8 of 40 steps are done.
  joined = np.stack([images_l, mixed], 1).reshape(-1, *shape, 3)
  told = network_outputs(
    trained, *teacher_of, joined, train=True, rng=teacher_rng
  )
  entropies = reference.entropy(
    reference.softmax(reference.bilinear(told['logits'][1::2], shape))
  )
  alpha = reference.unreliable_share(2, 10)
  reliable, unreliable = reference.reliability_masks(
    entropies, mixed_labels, alpha
  )
  np.testing.assert_allclose(
    scalars['reliable_share'], reliable.mean(), atol=2e-4
  )

  # The student.
  seen = network_outputs(
    trained, late.params, late.batch_stats, joined, True, network_rng
  )
  logits = reference.bilinear(seen['logits'], shape)
  supervised = reference.cross_entropy(logits[0::2], labels_l)
  unsupervised = reference.unsupervised_loss(
    logits[1::2], mixed_labels, entropies, alpha, (1.0, 0.1)
  )
  np.testing.assert_allclose(scalars['loss_supervised'], supervised, rtol=1e-4)
  np.testing.assert_allclose(
    scalars['loss_unsupervised'], unsupervised, rtol=1e-3
  )

  # Contrast: masks, prototypes, bank, draws.
  cells = told['rep'].shape[1:3]
  told_probs = reference.softmax(told['logits'])
  masks = reference.contrast_masks(
    told_probs[0::2],
    reference.nearest(labels_l, cells),
    told_probs[1::2],
    reference.nearest(mixed_labels, cells),
    reference.nearest(reliable, cells),
    reference.nearest(unreliable, cells),
    threshold=0.1,
    r_l=2,
    r_h=5,
  )
  masks = reference.ContrastMasks(
    *(
      np.stack([mask[:BATCH], mask[BATCH:]], 1).reshape(-1, *cells, CLASSES)
      for mask in masks
    )
  )
  means, counts = reference.class_means(told['rep'], masks.positives)
  updated = reference.update_prototypes(known, means, counts, 0.9)
  np.testing.assert_allclose(
    after.prototypes.vectors, updated.values, rtol=1e-3, atol=1e-5
  )
  pixel_rng, anchor_rng, bank_rng = jax.random.split(draw_rng, 3)
  priorities = np.asarray(
    order_statistics.draw_pixel_priorities(
      update_lib.row_keys(pixel_rng, 2 * BATCH), cells[0] * cells[1]
    )
  ).ravel()
  bank = reference.Bank([60, 40, 40, 40, 40])
  pushed = {}
  for c in range(CLASSES):
    at = np.flatnonzero(masks.negatives[..., c])
    chosen = np.sort(np.argsort(-priorities[at], kind='stable')[:16])
    pushed[c] = chosen
  reference.push_negatives(bank, told['rep'], masks.negatives, pushed)
  for c in range(CLASSES):
    count = int(after.bank.count[c])
    assert count == bank.size(c) == 16
    np.testing.assert_allclose(
      after.bank.rows[c, :count], bank.rows(c), rtol=1e-4, atol=1e-5
    )
  uniforms = jax.random.uniform(anchor_rng, (CLASSES, 6))
  anchor_draws = [
    reference.uniform_to_index(
      np.asarray(uniforms[c]), max(int(masks.anchors[..., c].sum()), 1)
    )
    for c in range(CLASSES)
  ]
  uniforms = jax.random.uniform(bank_rng, (CLASSES, 6, 4))
  bank_draws = [
    reference.uniform_to_index(np.asarray(uniforms[c]), 16)
    for c in range(CLASSES)
  ]
  contrasted = reference.contrastive_loss(
    seen['rep'], masks, updated.values, bank, anchor_draws, bank_draws
  )
  assert contrasted > 0
  np.testing.assert_allclose(scalars['loss_contrast'], contrasted, rtol=1e-3)
  np.testing.assert_allclose(
    scalars['loss'],
    reference.total_loss(supervised, unsupervised, contrasted),
    rtol=1e-3,
  )


@pytest.mark.parametrize(('weight', 'learns'), [(0.1, True), (0.0, False)])
def test_representations_learn_from_contrast_alone(late, weight, learns):
  options = dataclasses.replace(
    PLUS, contrast=dataclasses.replace(PLUS.contrast, weight=weight)
  )
  trained = method_of(options)
  update = dataclasses.replace(
    trained.update,
    optimizer=dataclasses.replace(trained.update.optimizer, weight_decay=0.0),
  )
  trained = dataclasses.replace(trained, update=update)
  state = jax.jit(
    lambda s: s.replace(
      opt_state=trained.init(jax.random.PRNGKey(0), spec(), None).opt_state
    )
  )(late)
  after, _ = jax.jit(trained.train_step)(state, batch_of(11))
  moved = difference(after.params['heads']['rep'], late.params['heads']['rep'])
  assert (moved > 1e-7) == learns


@pytest.mark.parametrize(
  ('options', 'names'),
  [
    (options_lib.LearnOptions(consistency=None, contrast=None), {'loss'}),
    (
      dataclasses.replace(
        PLUS,
        contrast=None,
        consistency=options_lib.ConsistencyOptions(
          filtered=False, mixing=mixing.MixingOptions('none', group=1)
        ),
      ),
      {'loss', 'loss_supervised', 'loss_unsupervised'},
    ),
    (
      dataclasses.replace(
        PLUS,
        contrast=None,
        consistency=dataclasses.replace(PLUS.consistency, denoise='l2'),
      ),
      {'loss', 'loss_supervised', 'loss_unsupervised'},
    ),
    (
      dataclasses.replace(
        PLUS, contrast=dataclasses.replace(PLUS.contrast, bank=False)
      ),
      {'loss', 'loss_supervised', 'loss_unsupervised', 'loss_contrast'},
    ),
  ],
  ids=['sup_only', 'mean_teacher', 'denoised', 'no_bank'],
)
def test_baselines_are_options_of_the_method(options, names):
  trained = method_of(options)
  batch = batch_of() if options.consistency else batch_of()['labeled']
  state = jax.eval_shape(
    lambda rng: trained.init(
      rng,
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch),
      None,
    ),
    jax.random.PRNGKey(0),
  )
  after, scalars = jax.eval_shape(trained.train_step, state, batch)
  assert {name for name in scalars if name.startswith('loss')} == names
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize('fsdp', meshes.SPLIT)
def test_eight_devices_are_one_in_float64(warm, fsdp, monkeypatch):
  """Bank, prototypes, percentile and draws included; on each, or split."""
  with jax.enable_x64():
    trained = method_of(dtype=jnp.float64)
    whole = jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, warm[0]
    )
    batches = [batch_of(4), batch_of(5)]
    one, eight = meshes.one_and_eight(
      *(trained, whole, batches, fsdp, monkeypatch)
    )
  assert one[0].bank.count.sum() > 20
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
    one,
    eight,
  )


def test_what_devices_of_a_step_exchange(trained, warm):
  mesh = sharding.make_mesh()
  state = jax.device_put(warm[0], sharding.replicated(mesh))
  rows = sharding.batch_sharding(mesh)
  shapes = jax.tree.map(lambda x: x.update(sharding=rows), spec())
  compiled = jax.jit(trained.train_step).lower(state, shapes).compile()
  found = communication.list_collectives(compiled)
  kinds = {kind: [c for c in found if c.kind == kind] for kind, *_ in found}
  # Each image's count of each class, to find the n-th pixel of a class: for the
  # rows that are pushed, and for the anchors.
  counts = 4 * 2 * BATCH * CLASSES
  assert [c.size for c in kinds.pop('all-gather')] == [counts, counts]
  # Images are mixed in pairs, and here each device holds but one.
  permuted = sorted(c.size for c in kinds.pop('collective-permute'))
  assert permuted == [4 * SIZE**2, 4 * 3 * SIZE**2]
  # All else is summed up: gradients and batch statistics, then of the method …
  assert set(kinds) == {'all-reduce'}
  method_own = [c for c in kinds['all-reduce'] if 'cond' in c.source]
  method_own = [c for c in method_own if 'Segmenter' not in c.source]
  # … the rows that go into the bank, class means, the cells of the draws …
  rows_pushed = 4 * CLASSES * 16 * 8
  means, cells = 4 * CLASSES * 8, 4 * CLASSES * (16 + 6)
  # … and counts and scalars, of a few bytes each.
  total = sum(c.size for c in method_own)
  assert (
    rows_pushed + means + cells <= total < rows_pushed + means + cells + 400
  )
  # The anchors themselves, to every device.
  anchors = 4 * CLASSES * 6 * 8
  assert [
    c.size for c in kinds['all-reduce'] if c.source == 'jvp()/gather'
  ] == [anchors]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'low_rank': 20}, 'expected low_rank < high_rank'),
    ({'capacity': 40}, 'expected at least num_negatives = 50'),
    ({'capacity': 400}, 'expected at most the smallest capacity of 400'),
    ({'temperature': 0.0}, 'temperature'),
  ],
)
def test_what_would_silently_be_0_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    contrast.ContrastOptions(**fields)


def test_ranks_beyond_the_classes_are_refused():
  with pytest.raises(ValueError, match='less than the 3 classes'):
    contrast.ContrastOptions().check_classes(3)


def test_a_bank_in_bfloat16_rounds_its_rows_and_nothing_else(
  trained, jitted, warm
):
  """The same draws; the loss differs by the rounding of negatives."""
  half = dataclasses.replace(
    trained,
    options=dataclasses.replace(
      PLUS, contrast=dataclasses.replace(PLUS.contrast, dtype='bfloat16')
    ),
  )
  state, _ = warm
  found = []
  for each, step in ((trained, jitted), (half, jax.jit(half.train_step))):
    rows = state.bank.rows.astype(jnp.dtype(each.options.contrast.dtype))
    begun = state.replace(bank=state.bank.replace(rows=rows))
    after, scalars = step(begun, batch_of(4))
    found.append((after.bank, float(scalars['loss_contrast'])))
  (bank, loss), (rounded, of_rounded) = found
  assert rounded.rows.dtype == jnp.bfloat16
  np.testing.assert_array_equal(bank.count, rounded.count)
  np.testing.assert_array_equal(bank.rows.astype(jnp.bfloat16), rounded.rows)
  assert loss > 0
  np.testing.assert_allclose(of_rounded, loss, rtol=2e-2)
