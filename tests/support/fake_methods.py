"""Two small methods that use everything the real methods need of the loop.

`TwoStream` has a teacher and a memory bank; `MultiView` clusters several views
with a queue. As a program this module trains one of them, and hangs at a batch
until it is killed:

  python -m tests.support.fake_methods two_stream FOLDER --hangs_at=7
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from segcore.distributed import sharding
from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.ops import losses
from segcore.train import (
  loop,
  method,
  operation_options,
  optimizers,
  train_state,
)
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib
from tests.support import fake_data, fake_network

NUM_STEPS = 8


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
        jnp.zeros((fake_data.NUM_CLASSES, self.capacity, size)),
        jnp.zeros(fake_data.NUM_CLASSES, jnp.int32),
        jnp.zeros(fake_data.NUM_CLASSES, jnp.int32),
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
    counted = jax.nn.one_hot(labels, fake_data.NUM_CLASSES)
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
      losses.cross_entropy(logits, jnp.arange(fake_data.NUM_CLASSES)),
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
  return labels[
    :,
    fake_network.STRIDE // 2 :: fake_network.STRIDE,
    fake_network.STRIDE // 2 :: fake_network.STRIDE,
  ].astype(int)


def _mean_loss(logits, labels):
  return losses.masked_mean(losses.cross_entropy(logits, labels), labels >= 0)


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
    'logits': heads_lib.ConvHead(
      fake_data.NUM_CLASSES, 1, reads='encoder', stride=fake_network.STRIDE
    ),
    'rep': heads_lib.ConvHead(
      6, 1, reads='encoder', stride=fake_network.STRIDE
    ),
  }
  network = segmenter.Segmenter(fake_network.TinyEncoder(), None, heads)
  return TwoStream(network, _optimizer(), num_steps, **fields)


def multi_view(num_steps: int = NUM_STEPS, **fields) -> MultiView:
  network = segmenter.Segmenter(
    fake_network.TinyEncoder(), None, {'embedding': fake_network.Embedding()}
  )
  update = update_lib.Update(segmenter.SUBMODULES[::2], _optimizer(), num_steps)
  return MultiView(network, update, **fields)


def _optimizer() -> optimizers.OptimizerOptions:
  # Not Adam, which turns the rounding error of a zero gradient into a step.
  return optimizers.OptimizerOptions(name='sgd', learning_rate=0.1)


# Method and loader by name.
METHODS = {
  'two_stream': (two_stream, fake_data.two_stream_loader),
  'multi_view': (multi_view, fake_data.multi_view_loader),
}


def train(
  name: str,
  directory: pathlib.Path,
  mesh,
  batches: fake_data.TestLoader | None = None,
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
  operation = operation_options.OperationOptions(log_every=1, save_every=3)
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
