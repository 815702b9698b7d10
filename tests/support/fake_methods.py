"""Two small methods that use everything the real methods need of the loop.

`TwoStream` has a teacher and a memory bank; `MultiView` clusters several views
with a queue. As a program this module trains one of them, and hangs at a batch
until it is killed:

  python -m tests.support.fake_methods two_stream FOLDER --hangs_at=7
"""

import argparse
import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import cv2
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from input_pipeline import datasets, loader, resampling, transforms, views
from input_pipeline.sources import fingerprints, records
from segcore.distributed import sharding
from segcore.models import features, segmenter
from segcore.models import heads as heads_lib
from segcore.models.layers import norm
from segcore.ops import losses
from segcore.train import loop, method, optimizers, train_state
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

NUM_CLASSES = 4
STRIDE = 4
BATCH_SIZE = 8
NUM_STEPS = 8


class TinyEncoder(nn.Module):
  """Two convolutions with batch statistics."""

  width: int = 8
  multiple: int = STRIDE

  @nn.compact
  def __call__(self, images, train):
    x, maps = images, []
    for i in range(2):
      x = nn.Conv(self.width, (3, 3), 2, use_bias=False, name=f'conv{i}')(x)
      x = norm.make_norm(
        'batch',
        train=train,
        num_groups=1,
        epsilon=1e-5,
        dtype=jnp.float32,
        name=f'norm{i}',
      )(x)
      x = nn.relu(x)
      maps.append(features.FeatureMap(f'block{i}', 2 ** (i + 1), x))
    return features.Features(tuple(maps))


@flax.struct.dataclass
class Bank:
  """Memory bank: ring buffers of the newest rows of each class.

  Attributes:
    rows: [C, capacity, D].
    pointer: [C], index of the next row.
    count: [C], number of valid rows.
  """

  rows: Float[Array, 'C N D']
  pointer: Int[Array, 'C']
  count: Int[Array, 'C']


def push(bank: Bank, rows: Array, labels: Array, limit: int) -> Bank:
  """Appends the first `limit` rows of each class, in order."""
  capacity = bank.rows.shape[1]

  def push_class(class_id, ring, pointer, count):
    selected = labels == class_id
    rank = jnp.cumsum(selected) - 1
    slot = (pointer + rank) % capacity
    slot = jnp.where(selected & (rank < limit), slot, capacity)  # Dropped.
    num = jnp.minimum(jnp.sum(selected), limit)
    return Bank(
      ring.at[slot].set(rows, mode='drop'),
      (pointer + num) % capacity,
      jnp.minimum(count + num, capacity),
    )

  classes = jnp.arange(len(bank.count))
  return jax.vmap(push_class)(classes, bank.rows, bank.pointer, bank.count)


@flax.struct.dataclass
class TwoStreamState(train_state.TrainState):
  """Training state with a teacher, its batch statistics and a memory bank."""

  teacher_params: Any
  teacher_batch_stats: Any
  bank: Bank


@dataclasses.dataclass(frozen=True)
class TwoStream:
  """Mean teacher on a labeled and an unlabeled stream, with contrast.

  Attributes:
    segmenter: network with heads `logits` and `rep`.
    optimizer: optimizer of all parameters.
    num_steps: length of the schedule.
    warmup: steps that use labeled images only.
    capacity: rows of the memory bank per class.
    limit: rows that a step appends per class.
    contrast: use the contrastive loss and the memory bank.
    decay: EMA decay of the teacher.
  """

  segmenter: segmenter.Segmenter
  optimizer: optimizers.OptimizerOptions
  num_steps: int
  warmup: int = 2
  capacity: int = 12
  limit: int = 5
  contrast: bool = True
  decay: float = 0.9

  def init(self, rng, batch_spec, loaded) -> TwoStreamState:
    shape = batch_spec['labeled']['image'].shape
    update = update_lib.Update(
      segmenter.SUBMODULES[::2], self.optimizer, self.num_steps
    )
    state = update.init(self.segmenter, rng, shape, loaded)
    size = self.segmenter.heads.modules['rep'].out_features
    return TwoStreamState(
      **vars(state),
      teacher_params=state.params,
      teacher_batch_stats=state.batch_stats,
      bank=Bank(
        jnp.zeros((NUM_CLASSES, self.capacity, size)),
        jnp.zeros(NUM_CLASSES, jnp.int32),
        jnp.zeros(NUM_CLASSES, jnp.int32),
      ),
    )

  def train_step(self, state, batch):
    warmed_up = state.step >= self.warmup
    return jax.lax.cond(warmed_up, self._both, self._labeled, state, batch)

  def predict(self, state, images):
    warmed_up = state.step > self.warmup
    variables = jax.tree.map(
      lambda teacher, student: jnp.where(warmed_up, teacher, student),
      {
        'params': state.teacher_params,
        'batch_stats': state.teacher_batch_stats,
      },
      train_state.train_state_variables(state),
    )
    return self.segmenter.apply(variables, images, heads=('logits',))['logits']

  def forward(self, params, batch_stats, images):
    """Applies the network in training mode; returns outputs and statistics."""
    return method.training_forward_pass(
      self.segmenter,
      params,
      batch_stats,
      images,
      heads=('logits', 'rep'),
      train=segmenter.SUBMODULES,
      rng=jax.random.PRNGKey(0),
    )

  def teacher_forward(self, state, batch):
    """Applies the teacher to both streams.

    Returns:
      Images and labels [2B, …] of the joined streams, the teacher's
      representations of all cells, and its batch statistics afterward.
    """
    labeled, unlabeled = batch['labeled'], batch['unlabeled']
    images = batch_lib.batch_images_to_symmetric(unlabeled['image'])
    logits = self.segmenter.apply(
      {
        'params': state.teacher_params,
        'batch_stats': state.teacher_batch_stats,
      },
      images,
      heads=('logits',),
    )['logits']
    pseudo = jnp.argmax(logits, axis=-1)
    rng = jax.random.fold_in(state.rng, state.step)
    keys = update_lib.row_prng_keys(rng, len(images))
    brightness = jax.vmap(jax.random.uniform)(keys)[:, None, None, None]
    images = batch_lib.join_batch_rows(
      [
        batch_lib.batch_images_to_symmetric(labeled['image']),
        images * brightness,
      ]
    )
    labels = batch_lib.join_batch_rows([_cells(labeled['label']), pseudo])
    outputs, stats = self.forward(
      state.teacher_params, state.teacher_batch_stats, images
    )
    return images, labels, outputs['rep'], stats

  def _labeled(self, state, batch):
    images = batch_lib.batch_images_to_symmetric(batch['labeled']['image'])
    labels = _cells(batch['labeled']['label'])

    def loss(params):
      outputs, stats = self.forward(params, state.batch_stats, images)
      return _mean_loss(outputs['logits'], labels), stats

    (total, stats), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    _, teacher_stats = self.forward(
      state.teacher_params, state.teacher_batch_stats, images
    )
    state = self._update(state, gradient, stats)
    state = state.replace(
      teacher_params=state.params, teacher_batch_stats=teacher_stats
    )
    zero = jnp.zeros(())
    return state, {'loss': total, 'unlabeled': zero, 'contrast': zero}

  def _both(self, state, batch):
    images, labels, rows, teacher_stats = self.teacher_forward(state, batch)
    bank = state.bank
    if self.contrast:
      size = rows.shape[-1]
      bank = push(bank, rows.reshape(-1, size), labels.ravel(), self.limit)

    def loss(params):
      outputs, stats = self.forward(params, state.batch_stats, images)
      terms = [
        _mean_loss(logits, stream_labels)
        for logits, stream_labels in zip(
          batch_lib.split_batch_rows(outputs['logits'], 2),
          batch_lib.split_batch_rows(labels, 2),
          strict=True,
        )
      ]
      terms.append(
        self._contrast(outputs['rep'], labels, bank)
        if self.contrast
        else jnp.zeros(())
      )
      return sum(terms), (terms, stats)

    (total, (terms, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    state = self._update(state, gradient, stats)
    state = state.replace(
      teacher_params=optax.incremental_update(
        state.params, state.teacher_params, 1 - self.decay
      ),
      teacher_batch_stats=teacher_stats,
      bank=bank,
    )
    return state, {
      'loss': total,
      'unlabeled': terms[1],
      'contrast': terms[2],
    }

  def _contrast(self, reps, labels, bank):
    """Computes the contrastive loss of class means and the memory bank."""
    counted = jax.nn.one_hot(labels, NUM_CLASSES)
    total = jnp.einsum('bhwc,bhwd->cd', counted, reps)
    count = jnp.sum(counted, axis=(0, 1, 2))
    anchors = total / jnp.maximum(count, 1)[:, None]
    used = jnp.arange(self.capacity) < bank.count[:, None]
    logits = jnp.einsum('cd,knd->ckn', anchors, bank.rows)
    logits = jnp.where(used, logits, -jnp.inf)
    logits = jax.nn.logsumexp(logits, axis=-1, where=used)
    present = jnp.any(used, axis=-1)
    logits = jnp.where(present, logits, -1e9)
    return losses.masked_mean(
      losses.cross_entropy(logits, jnp.arange(NUM_CLASSES)),
      present & (count > 0),
    )

  def _update(self, state, gradient, batch_stats):
    tx = optimizers.build_optimizer(
      self.optimizer, self.num_steps, state.params
    )
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    return state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )


def _cells(labels: Int[Array, 'B H W']) -> Int[Array, 'B h w']:
  """Returns the label at the center of each cell of the network's grid."""
  return labels[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].astype(int)


def _mean_loss(logits, labels):
  return losses.masked_mean(losses.cross_entropy(logits, labels), labels >= 0)


class Embedding(nn.Module):
  """Head with an L2-normalized embedding per image, and prototypes."""

  size: int = 6
  num_prototypes: int = 5
  reads: str = 'encoder'
  stride: int | None = None
  map_name: str | None = None

  @nn.compact
  def __call__(self, x, train=False):
    self.param(
      'prototypes',
      nn.initializers.normal(1.0),
      (self.size, self.num_prototypes),
    )
    x = nn.Dense(self.size, name='dense')(jnp.mean(x, axis=(1, 2)))
    x = nn.BatchNorm(not train, momentum=0.9, use_bias=False, name='norm')(x)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@flax.struct.dataclass
class MultiViewState(train_state.TrainState):
  """Training state with a queue [2, L, D] of embeddings, newest first."""

  queue: Float[Array, '2 L D']
  count: Int[Array, '']


@dataclasses.dataclass(frozen=True)
class MultiView:
  """Prediction of prototype assignments between views, as in SwAV.

  Attributes:
    segmenter: network with a head `embedding`.
    update: update of all parameters.
    length: rows L of the queue.
  """

  segmenter: segmenter.Segmenter
  update: update_lib.Update
  length: int = 20

  def init(self, rng, batch_spec, loaded) -> MultiViewState:
    rows, _, *shape = batch_spec['views_large'].shape
    state = self.update.init(self.segmenter, rng, (rows, *shape), loaded)
    size = self.segmenter.heads.modules['embedding'].size
    return MultiViewState(
      **vars(state),
      queue=jnp.zeros((2, self.length, size)),
      count=jnp.zeros((), jnp.int32),
    )

  def train_step(self, state, batch):
    params = normalized(state.params)

    def loss(params):
      embeddings, stats = self.embed(params, state.batch_stats, batch)
      prototypes = params['heads']['embedding']['prototypes']
      scores = embeddings @ prototypes
      targets = [
        self._targets(state, jax.lax.stop_gradient((s, prototypes)), view)
        for view, s in enumerate(jnp.moveaxis(scores, 1, 0)[:2])
      ]
      log_probs = jax.nn.log_softmax(scores / 0.1)
      terms = [
        -jnp.mean(jnp.sum(target * log_probs[:, v], axis=-1))
        for view, target in enumerate(targets)
        for v in range(scores.shape[1])
        if v != view
      ]
      return jnp.mean(jnp.stack(terms)), (embeddings, stats)

    (total, (embeddings, stats)), gradient = jax.value_and_grad(
      loss, has_aux=True
    )(params)
    state = self.update.apply_gradients(
      state.replace(params=params), gradient, stats
    )
    new = jnp.moveaxis(embeddings[:, :2], 1, 0)
    queue = jnp.concatenate([new, state.queue], axis=1)[:, : self.length]
    count = jnp.minimum(state.count + new.shape[1], self.length)
    return state.replace(queue=queue, count=count), {'loss': total}

  def predict(self, state, images):
    return self.segmenter.apply(
      train_state.train_state_variables(state), images
    )['embedding']

  def embed(self, params, batch_stats, batch):
    """Embeds all views, the large ones first.

    Returns:
      Embeddings [B, V, D], and the batch statistics afterward.
    """

    def apply(network, groups):
      pooled = []
      for group in groups:
        rows, count = group.shape[:2]
        images = batch_lib.batch_images_to_symmetric(
          group.reshape(-1, *group.shape[2:])
        )
        maps = network.features(images, train=True)['encoder']
        x = jnp.mean(maps.deepest.array, axis=(1, 2), keepdims=True)
        pooled.append(x.reshape(rows, count, *x.shape[1:]))
      pooled = jnp.concatenate(pooled, axis=1)
      outputs = network.heads(
        {'embedding': pooled.reshape(-1, *pooled.shape[2:])}, train=True
      )
      return outputs['embedding'].reshape(*pooled.shape[:2], -1)

    embeddings, updated = self.segmenter.apply(
      {'params': params, 'batch_stats': batch_stats},
      [batch['views_large'], batch['views_small']],
      method=apply,
      mutable=['batch_stats'],
    )
    return embeddings, updated['batch_stats']

  def _targets(self, state, scores_and_prototypes, view):
    scores, prototypes = scores_and_prototypes
    return jax.lax.cond(
      state.count == self.length,
      lambda: sinkhorn(
        jnp.concatenate([state.queue[view] @ prototypes, scores])
      )[-len(scores) :],
      lambda: sinkhorn(scores),
    )


def normalized(params):
  """Returns the parameters with L2-normalized prototypes."""
  head = params['heads']['embedding']
  prototypes = head['prototypes']
  prototypes = prototypes / jnp.linalg.norm(prototypes, axis=0)
  head = {**head, 'prototypes': prototypes}
  return {**params, 'heads': {**params['heads'], 'embedding': head}}


def sinkhorn(scores: Float[Array, 'N K']) -> Float[Array, 'N K']:
  """Computes assignments with rows that sum to 1 and balanced columns."""
  q = jnp.exp((scores - jnp.max(scores)) / 0.05)
  for _ in range(3):
    q = q / jnp.sum(q, axis=0)
    q = q / jnp.sum(q, axis=1, keepdims=True)
  return q


def two_stream(num_steps: int = NUM_STEPS, **fields) -> TwoStream:
  heads = {
    'logits': heads_lib.ConvHead(NUM_CLASSES, 1, 'encoder', STRIDE),
    'rep': heads_lib.ConvHead(6, 1, 'encoder', STRIDE),
  }
  network = segmenter.Segmenter(TinyEncoder(), None, heads)
  return TwoStream(network, _optimizer(), num_steps, **fields)


def multi_view(num_steps: int = NUM_STEPS, **fields) -> MultiView:
  network = segmenter.Segmenter(TinyEncoder(), None, {'embedding': Embedding()})
  update = update_lib.Update(segmenter.SUBMODULES[::2], _optimizer(), num_steps)
  return MultiView(network, update, **fields)


def _optimizer() -> optimizers.OptimizerOptions:
  # Not Adam, which turns the rounding error of a zero gradient into a step.
  return optimizers.OptimizerOptions(name='sgd', learning_rate=0.1)


def labeled_split(
  sizes: list[tuple[int, int]], num_classes: int = NUM_CLASSES, seed: int = 0
) -> datasets.Split:
  """Draws images of rectangles with a color per class and ignored pixels."""
  rng = np.random.default_rng(seed)
  palette = rng.integers(0, 256, (num_classes, 3))
  examples = []
  for i, size in enumerate(sizes):
    coarse = rng.integers(0, num_classes, (4, 4))
    label = resampling.resize_label_nearest(coarse, size)
    image = palette[label] + rng.normal(0, 20, (*size, 3))
    label[:2, :3] = batch_lib.IGNORE
    examples.append(make_record(i, image.clip(0, 255), label, num_classes))
  return make_split(examples, num_classes)


def coordinate_split(
  count: int, size: tuple[int, int] = (40, 48)
) -> datasets.Split:
  """Draws images with the position in the color: red 5x, green 6y, blue 10i."""
  y, x = np.mgrid[: size[0], : size[1]]
  return make_split(
    [
      make_record(i, np.stack([5 * x, 6 * y, np.full(size, 10 * i)], -1))
      for i in range(count)
    ]
  )


def make_record(
  i, image, label=None, num_classes=NUM_CLASSES
) -> records.Record:
  _, png = cv2.imencode('.png', image.astype(np.uint8)[..., ::-1])
  record = {'image': png.tobytes(), 'id': f'image{i:02}'.encode()}
  if label is not None:
    record['label'] = records.encode_record_label(label, num_classes)
  return record


def make_split(examples, num_classes=NUM_CLASSES) -> datasets.Split:
  return datasets.Split(
    name='fake train',
    version='fake/1.0.0',
    classes=tuple(f'class{i}' for i in range(num_classes)),
    palette=((0, 0, 0),) * num_classes,
    label_kinds=('label',) if 'label' in examples[0] else (),
    records=examples,
    index=fingerprints.ImageIndex.from_samples(
      [
        records.Sample(
          example['id'].decode(),
          example['image'],
          records.decode_record_image(example['image']),
        )
        for example in examples
      ]
    ),
  )


@dataclasses.dataclass(frozen=True)
class TestLoader(loader.Loader):
  """A loader that fails, or hangs, at the batch of an index."""

  __test__ = False

  fails_at: int = -1
  hangs_at: int = -1

  @contextlib.contextmanager
  def start(self, step):
    with super().start(step) as batches:
      yield self._disturbed(batches, step)

  def _disturbed(self, batches, step):
    for index, batch in enumerate(batches, start=step):
      if index == self.fails_at:
        raise ConnectionError(f'batch {index} is lost')
      if index == self.hangs_at:
        time.sleep(60)
      yield batch


def two_stream_loader(**fields) -> TestLoader:
  """Loads batches of labeled and unlabeled images of 16 x 16 pixels."""
  labeled = labeled_split([(20, 24)] * 11)
  unlabeled = labeled_split([(24, 18)] * 13, seed=1)
  decode = transforms.Decode(NUM_CLASSES)
  return make_two_stream_loader(labeled, decode, unlabeled, **fields)


def make_two_stream_loader(labeled, labels, unlabeled, **fields) -> TestLoader:
  """Loads two streams of given splits.

  Args:
    labeled: split of the labeled stream.
    labels: transform that decodes its images and labels.
    unlabeled: split of the unlabeled stream.
    **fields: of the loader.
  """
  augmentations = (transforms.RandomCrop((16, 16)), transforms.RandomFlip())
  decode = transforms.Decode(NUM_CLASSES, keep=())
  streams = {
    'labeled': _stream(labeled, labels, *augmentations),
    'unlabeled': _stream(unlabeled, decode, *augmentations),
  }
  return TestLoader(streams, BATCH_SIZE, seed=3, **fields)


def multi_view_loader(**fields) -> TestLoader:
  """Loads batches of two views of 24 pixels and three of 16 pixels."""
  crop = views.MultiCrop(
    (
      views.ViewGroup('large', 2, (24, 24), area=(0.4, 1.0)),
      views.ViewGroup('small', 3, (16, 16), area=(0.1, 0.4)),
    )
  )
  decode = transforms.Decode(NUM_CLASSES, keep=())
  streams = {'': _stream(coordinate_split(10), decode, crop)}
  return TestLoader(streams, BATCH_SIZE, seed=4, **fields)


def _stream(split, *steps) -> loader.Stream:
  return loader.Stream(split.records, transforms.Compose(steps))


# Method and loader by name.
METHODS = {
  'two_stream': (two_stream, two_stream_loader),
  'multi_view': (multi_view, multi_view_loader),
}


def train(
  name: str,
  directory: pathlib.Path,
  mesh,
  batches: TestLoader | None = None,
  loaded=None,
  **loader_fields,
):
  """Trains a fake method in the real loop; returns its last state.

  It logs every step and saves at steps 3, 6 and 8.
  """
  make_method, make_loader = METHODS[name]
  training = loop.TrainingSpec(
    method=make_method(),
    loader=batches or make_loader(**loader_fields),
    num_steps=NUM_STEPS,
    seed=5,
    loaded=loaded,
  )
  workspace = workspace_lib.Workspace(directory, {}, 'digest')
  operation = loop.OperationOptions(log_every=1, save_every=3)
  return loop.run_training_loop(training, workspace, operation, mesh)


if __name__ == '__main__':
  parser = argparse.ArgumentParser()
  parser.add_argument('name', choices=METHODS)
  parser.add_argument('directory', type=pathlib.Path)
  parser.add_argument('--hangs_at', type=int, default=-1)
  arguments = parser.parse_args()
  train(
    arguments.name,
    arguments.directory,
    sharding.make_mesh(),
    hangs_at=arguments.hangs_at,
  )
