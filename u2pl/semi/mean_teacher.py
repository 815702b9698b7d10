"""U2PL and U2PL+: a student, its teacher, and what both make of a batch.

One method with switches: without contrast it is a mean teacher with or without
mixing, without consistency it is supervised training.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from input_pipeline import batch as batch_lib
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.ops import losses, order_statistics
from segcore.train import method, train_state
from segcore.train import update as update_lib
from u2pl import contrast as contrast_lib
from u2pl import ema as ema_lib
from u2pl import memory_bank, prototypes, pseudo_labels
from u2pl import mixing as mixing_lib
from u2pl.semi import options as options_lib


@flax.struct.dataclass
class State(train_state.TrainState):
  """With the teacher and what is remembered.

  Attributes:
    teacher_params: as `params`.
    teacher_batch_stats: as `batch_stats`.
    bank: negatives; () without contrast.
    prototypes: of the classes; () without representations.
  """

  teacher_params: Any
  teacher_batch_stats: Any
  bank: Any
  prototypes: Any


class Guess(NamedTuple):
  """What the teacher makes of the unlabeled images.

  Attributes:
    images: [B, H, W, 3], mixed.
    labels: int [B, H, W] of the mixed images.
    clean_labels: int [B, H, W] of the images as they came.
    entropy: [B, H, W] of the teacher on the mixed images, in nats.
    reliable: pixels whose label is believed in the consistency loss.
    unreliable: pixels that may only be negatives.
    anchorable: pixels whose label is believed in the contrastive loss.
    joined: the teacher's outputs on labeled and mixed images, joined.
  """

  images: Float[Array, 'B H W 3']
  labels: Int[Array, 'B H W']
  clean_labels: Int[Array, 'B H W']
  entropy: Float[Array, 'B H W']
  reliable: Bool[Array, 'B H W']
  unreliable: Bool[Array, 'B H W']
  anchorable: Bool[Array, 'B H W']
  joined: dict[str, Array]


@flax.struct.dataclass
class Comparison:
  """What the contrastive loss of a step compares the student with.

  Attributes:
    anchors: int [C, M], cells of the joined batch, b·h·w + cell.
    draws: int [C, M, N], rows of the bank.
    positives: [C, D].
    usable: [C], classes with an anchor and a row.
    present: [C], classes with a label that is believed.
  """

  anchors: Any
  draws: Any
  positives: Any
  usable: Any
  present: Any


@flax.struct.dataclass
class Lesson:
  """What the student learns from beside labels.

  Attributes:
    images: [B, H, W, 3], mixed.
    labels: int [B, H, W], the teacher's.
    reliable: [B, H, W], which of them count.
    compared: for the contrastive loss, if there is one.
    scalars: to log.
  """

  images: Any
  labels: Any
  reliable: Any
  compared: Any
  scalars: Any


@dataclasses.dataclass(frozen=True)
class MeanTeacher:
  """Semi-supervised training; see `method.Method`.

  The segmenter has heads `logits`, with contrast or denoising `rep`, and `aux`
  where the supervised loss has an auxiliary part. Batches are two streams,
  'labeled' and 'unlabeled', or plain labeled ones without consistency.

  Attributes:
    segmenter: of student and teacher.
    update: of the student.
    options: what is learned from.
    num_classes: C.
    steps_per_epoch: of the unlabeled images.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: options_lib.LearnOptions
  num_classes: int
  steps_per_epoch: int

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """The teacher starts as the student."""
    labeled = batch_spec.get('labeled', batch_spec)
    shape = labeled['image'].shape
    state = self.update.init(self.segmenter, rng, shape, loaded)
    bank: Any = ()
    remembered: Any = ()
    if self.options.needs_representations:
      size = self.segmenter.heads.modules['rep'].out_features
      remembered = prototypes.empty(self.num_classes, size)
      if self.options.contrast:
        bank = memory_bank.empty(
          self.options.contrast.capacities(self.num_classes),
          size,
          jnp.dtype(self.options.contrast.dtype),
        )
    taught = self.options.consistency is not None
    return State(
      **vars(state),
      teacher_params=state.params if taught else (),
      teacher_batch_stats=state.batch_stats if taught else (),
      bank=bank,
      prototypes=remembered,
    )

  def train_step(
    self, state: State, batch: batch_lib.Batch
  ) -> tuple[State, types.Metrics]:
    """One update of the student, and what follows from it for the teacher.

    The student looks at labeled and at unlabeled images together. In the
    warm-up the labeled ones stand in for the others, without a label: the
    statistics of such a batch are theirs, and its loss is the supervised one.
    """
    labeled = batch.get('labeled', batch)
    images = batch_lib.to_symmetric(labeled['image'])
    rng = jax.random.fold_in(state.rng, state.step)
    lesson_rng, network_rng = jax.random.split(rng)
    if self.options.consistency is None:
      return self._learn(state, labeled, images, None, network_rng)
    # Gradients stay outside of it: XLA computes those of convolutions inside
    # of branches 70 times slower on a CPU.
    state, lesson = jax.lax.cond(
      state.step < self.warmup_steps,
      self._wait,
      self._teach,
      *(state, batch, lesson_rng),
    )
    images = batch_lib.join([images, lesson.images])
    return self._learn(state, labeled, images, lesson, network_rng)

  def predict(
    self, state: State, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Class scores of the teacher; of the student until the warm-up is over."""
    return self.apply(self.reported(state), images, ('logits',))['logits']

  def reported(self, state: State) -> dict[str, types.Params]:
    """The variables that are evaluated."""
    student = train_state.variables(state)
    if self.options.consistency is None:
      return student
    teacher = {
      'params': state.teacher_params,
      'batch_stats': state.teacher_batch_stats,
    }
    warm = state.step <= self.warmup_steps
    return jax.tree.map(lambda s, t: jnp.where(warm, s, t), student, teacher)

  def apply(
    self,
    variables: dict[str, types.Params],
    images: Float[Array, 'B H W 3'],
    heads: tuple[str, ...],
  ) -> dict[str, Array]:
    """A look in evaluation mode."""
    return self.segmenter.apply(variables, images, heads=heads)

  @property
  def warmup_steps(self) -> int:
    """Steps of labeled images alone."""
    return self.options.warmup_epochs * self.steps_per_epoch

  def _learn(
    self,
    state: State,
    labeled: batch_lib.Batch,
    images: Float[Array, 'R H W 3'],
    lesson: Lesson | None,
    rng: Array,
  ) -> tuple[State, types.Metrics]:
    """An update from labels and, if there is one, from the teacher's lesson."""

    def loss(params):
      found, stats = method.forward(
        self.segmenter,
        params,
        state.batch_stats,
        images,
        heads=self._student_heads(),
        train=segmenter_lib.SUBMODULES,
        rng=rng,
      )
      if lesson is None:
        total = self._supervised(found, labeled['label'])
        return total, ({}, stats)
      own, others = _streams(found)
      terms = {
        'loss_supervised': self._supervised(own, labeled['label']),
        'loss_unsupervised': self._unsupervised(others['logits'], lesson),
      }
      total = sum(terms.values())
      if lesson.compared is not None:
        terms['loss_contrast'] = self.contrast(
          found['rep'], lesson.compared, state.bank
        )
        total += self.options.contrast.weight * terms['loss_contrast']
      return total, (terms, stats)

    (total, (terms, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    new = self.update.apply_gradients(state, gradient, stats)
    if lesson is None:
      return new, {'loss': total}
    decay = self._decay(state)
    follow = {
      'own': lambda: state.teacher_batch_stats,
      'ema': lambda: ema_lib.average(state.teacher_batch_stats, stats, decay),
      'copy': lambda: stats,
    }
    new = new.replace(
      teacher_params=ema_lib.average(state.teacher_params, new.params, decay),
      teacher_batch_stats=follow[self.options.teacher.statistics](),
    )
    return new, {'loss': total, **terms, **lesson.scalars}

  def _wait(
    self, state: State, batch: batch_lib.Batch, rng: Array
  ) -> tuple[State, Lesson]:
    """The warm-up: the teacher collects statistics of labeled images."""
    images = batch_lib.to_symmetric(batch['labeled']['image'])
    _, state = self._teachers_look(state, images, rng)
    shape = images.shape[:3]
    # All that `_teach` would find, of the same kind, and nothing in it.
    _, expected = jax.eval_shape(self._teach, state, batch, rng)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), expected)
    return state, nothing.replace(
      images=images, labels=jnp.full(shape, batch_lib.IGNORE, jnp.int32)
    )

  def _teach(
    self, state: State, batch: batch_lib.Batch, rng: Array
  ) -> tuple[State, Lesson]:
    """What the teacher makes of the unlabeled images, and remembers."""
    guess_rng, draw_rng = jax.random.split(rng)
    # While the teacher is a copy it is one from the first step on.
    copied = self._decay(state) == 0

    def copy(teacher: types.Params, student: types.Params) -> types.Params:
      return jax.tree.map(
        lambda t, s: jnp.where(copied, s, t), teacher, student
      )

    state = state.replace(
      teacher_params=copy(state.teacher_params, state.params)
    )
    if self.options.teacher.statistics != 'own':
      state = state.replace(
        teacher_batch_stats=copy(state.teacher_batch_stats, state.batch_stats)
      )
    state, guess = self.guess(state, batch, guess_rng)
    labels = batch_lib.join(
      [batch['labeled']['label'].astype(jnp.int32), guess.labels]
    )
    state, compared = self.compare(state, guess, labels, draw_rng)
    scalars = {
      'reliable_share': jnp.mean(guess.reliable.astype(jnp.float32)),
      'entropy': jnp.mean(guess.entropy),
    }
    if 'label' in batch['unlabeled']:
      truth = batch['unlabeled']['label']
      right = (guess.clean_labels == truth).astype(jnp.float32)
      scalars['pseudo_label_accuracy'] = losses.masked_mean(right, truth >= 0)
    if compared is not None:
      fill = memory_bank.fill(state.bank)
      scalars |= {f'bank_fill/{i}': fill[i] for i in range(self.num_classes)}
      count = jnp.sum(compared.present, dtype=jnp.float32)
      used = jnp.sum(compared.present & compared.usable, dtype=jnp.float32)
      scalars['contrasted_share'] = used / jnp.maximum(count, 1.0)
    return state, Lesson(
      guess.images, guess.labels, guess.reliable, compared, scalars
    )

  def guess(
    self, state: State, batch: batch_lib.Batch, rng: Array
  ) -> tuple[State, Guess]:
    """The teacher's two looks: at clean images, then at mixed ones (§3.2).

    The second moves its statistics, if they are its own.
    """
    consistency = self.options.consistency
    mixing_rng, row_rng, teacher_rng = jax.random.split(rng, 3)
    images = batch_lib.to_symmetric(batch['unlabeled']['image'])
    size = images.shape[1:3]
    clean_labels = self.pseudo_labels(state, images)
    draws = mixing_lib.sample(
      mixing_rng,
      update_lib.row_keys(row_rng, len(images)),
      consistency.mixing,
      clean_labels.shape,
      self.num_classes,
    )
    mixed, labels = mixing_lib.mix(
      images, clean_labels, draws, consistency.mixing
    )
    labeled = batch_lib.to_symmetric(batch['labeled']['image'])
    joined, state = self._teachers_look(
      state, batch_lib.join([labeled, mixed]), teacher_rng
    )
    _, logits = batch_lib.split(joined['logits'], 2)
    entropy = pseudo_labels.entropy(pseudo_labels.upsample(logits, size))
    valid = labels >= 0
    percent = self.options.partition.at(self._progress(state))
    gamma = order_statistics.percentile(entropy, valid, 100 - percent)
    below = valid & (entropy < gamma)
    anchorable = below
    contrasted = self.options.contrast
    if contrasted and contrasted.anchor_entropy == 'released':
      lowest = order_statistics.percentile(entropy, valid, percent)
      anchorable = valid & (entropy <= lowest)
    return state, Guess(
      images=mixed,
      labels=labels,
      clean_labels=clean_labels,
      entropy=entropy,
      reliable=below if consistency.filtered else valid,
      unreliable=valid & (entropy >= gamma),
      anchorable=anchorable,
      joined=joined,
    )

  def pseudo_labels(
    self, state: State, images: Float[Array, 'B H W 3']
  ) -> Int[Array, 'B H W']:
    """What the teacher takes clean images for; mended if that is asked for."""
    variables = {
      'params': state.teacher_params,
      'batch_stats': state.teacher_batch_stats,
    }
    kind = self.options.consistency.denoise
    heads = ('logits',) if kind == 'off' else ('logits', 'rep')
    found = self.apply(variables, images, heads)
    size = images.shape[1:3]
    scores = pseudo_labels.upsample(found['logits'], size)
    if kind != 'off':
      weights = prototypes.weights(found['rep'], state.prototypes, kind)
      # Their product, as a sum of logarithms: it may be 0 for every class.
      mended = jax.nn.log_softmax(scores) + jnp.log(
        pseudo_labels.upsample(weights, size)
      )
      scores = jnp.where(self._mends(state), mended, scores)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)

  def _mends(self, state: State) -> Bool[Array, '']:
    """Once every class was met, or an epoch after the warm-up."""
    late = state.step >= self.warmup_steps + self.steps_per_epoch
    return late | jnp.all(state.prototypes.updates > 0)

  def compare(
    self,
    state: State,
    guess: Guess,
    labels: Int[Array, 'B H W'],
    rng: Array,
  ) -> tuple[State, Comparison | None]:
    """Remembers this step's cells, then draws what to compare anchors with."""
    if not self.options.needs_representations:
      return state, None
    options = self.options.contrast or contrast_lib.ContrastOptions()
    features = guess.joined['rep']
    cells = features.shape[1:3]
    num_images, size = len(features), features.shape[-1]
    none = jnp.zeros_like(guess.anchorable)
    masks = contrast_lib.candidates(
      jax.nn.softmax(pseudo_labels.upsample(guess.joined['logits'], cells)),
      resize.nearest_floor(labels, cells),
      jnp.arange(num_images) % 2 == 0,  # As `join` has put them.
      resize.nearest_floor(batch_lib.join([none, guess.anchorable]), cells),
      resize.nearest_floor(batch_lib.join([none, guess.unreliable]), cells),
      options,
    )
    means, counts = prototypes.class_means(features, masks.positives)
    remembered = prototypes.update(
      state.prototypes, means, counts, self.options.prototype_momentum
    )
    state = state.replace(prototypes=remembered)
    if not self.options.contrast:
      return state, None

    pixel_rng, anchor_rng, bank_rng = jax.random.split(rng, 3)
    flat = features.reshape(-1, size)
    bank = state.bank
    if not options.bank:
      empty = jnp.zeros_like(bank.count)
      bank = bank.replace(count=empty, pointer=empty)
    bank = self.push(bank, flat, _by_pixel(masks.negatives), pixel_rng)
    anchors = _by_pixel(masks.anchors)
    num_anchors = jnp.sum(anchors, axis=(0, 1), dtype=jnp.int32)
    shape = (self.num_classes, options.num_anchors)
    picked = order_statistics.ranks_from_uniforms(
      jax.random.uniform(anchor_rng, shape), num_anchors[:, None]
    )
    drawn = order_statistics.ranks_from_uniforms(
      jax.random.uniform(bank_rng, (*shape, options.num_negatives)),
      bank.count[:, None, None],
    )
    return state.replace(bank=bank), Comparison(
      anchors=order_statistics.nth_true(anchors, picked),
      draws=drawn,
      positives=remembered.vectors,
      usable=(num_anchors > 0) & (bank.count > 0),
      present=counts > 0,
    )

  def push(
    self,
    bank: memory_bank.Bank,
    flat: Float[Array, 'BP D'],
    negatives: Bool[Array, 'B P C'],
    rng: Array,
  ) -> memory_bank.Bank:
    """Adds this step's negatives, at most so many of each class."""
    num_images, num_pixels, _ = negatives.shape
    # No more than there can be.
    most = min(self.options.contrast.max_push, num_images * num_pixels)
    priorities = order_statistics.draw_pixel_priorities(
      update_lib.row_keys(rng, num_images), num_pixels
    )
    chosen = order_statistics.keep_top_priorities(negatives, priorities, most)
    order = jnp.broadcast_to(jnp.arange(most), (self.num_classes, most))
    rows = flat[order_statistics.nth_true(chosen, order)]
    counts = jnp.sum(chosen, axis=(0, 1), dtype=jnp.int32)
    return memory_bank.push(bank, rows, jnp.minimum(counts, most))

  def _supervised(
    self, found: dict[str, Array], labels: Int[Array, 'B H W']
  ) -> types.Scalar:
    options = self.options.supervised
    size = labels.shape[1:]

    def mean(logits: Array) -> types.Scalar:
      logits = pseudo_labels.upsample(logits, size)
      counted = labels >= 0
      if options.kind == 'ohem':
        least = options.kept_per_image * len(labels)
        counted = losses.hard_example_mask(
          logits, labels, options.threshold, least
        )
      return losses.masked_mean(losses.cross_entropy(logits, labels), counted)

    total = mean(found['logits'])
    if options.auxiliary:
      total += options.auxiliary * mean(found['aux'])
    return total

  def _unsupervised(
    self, logits: Float[Array, 'B h w C'], lesson: Lesson
  ) -> types.Scalar:
    options = self.options.consistency
    loss = pseudo_labels.symmetric_cross_entropy(
      pseudo_labels.upsample(logits, lesson.labels.shape[1:]),
      lesson.labels,
      options.forward,
      options.reverse,
    )
    weight = pseudo_labels.weight(lesson.reliable) if options.filtered else 1.0
    return options.weight * weight * losses.masked_mean(loss, lesson.reliable)

  def contrast(
    self,
    features: Float[Array, 'B h w D'],
    compared: Comparison,
    bank: memory_bank.Bank,
  ) -> types.Scalar:
    """The contrastive loss of the student's representation."""
    flat = features.reshape(-1, features.shape[-1])
    found = contrast_lib.losses_of_classes(
      flat[compared.anchors],
      compared.positives,
      bank.rows,
      compared.draws,
      self.options.contrast.temperature,
    )
    return contrast_lib.mean_of_classes(
      found, compared.usable, compared.present
    )

  def _student_heads(self) -> tuple[str, ...]:
    auxiliary = ('aux',) if self.options.supervised.auxiliary else ()
    contrasted = ('rep',) if self.options.contrast else ()
    return ('logits', *contrasted, *auxiliary)

  def _teachers_look(
    self, state: State, images: Float[Array, 'R H W 3'], rng: Array
  ) -> tuple[dict[str, Array], State]:
    """Its outputs in training mode, and the statistics that follow."""
    represented = ('rep',) if self.options.needs_representations else ()
    found, stats = method.forward(
      self.segmenter,
      state.teacher_params,
      state.teacher_batch_stats,
      images,
      heads=('logits', *represented),
      train=segmenter_lib.SUBMODULES,
      rng=rng,
    )
    if self.options.teacher.statistics == 'own':
      state = state.replace(teacher_batch_stats=stats)
    return jax.lax.stop_gradient(found), state

  def _decay(self, state: State) -> types.Scalar:
    return ema_lib.decay_at(
      state.step - self.warmup_steps,
      self.options.teacher,
      self.steps_per_epoch,
    )

  def _progress(self, state: State) -> types.Scalar:
    """Finished epochs of all."""
    epoch = (state.step // self.steps_per_epoch).astype(jnp.float32)
    return epoch * self.steps_per_epoch / self.update.num_steps


def _streams(found: dict[str, Array]) -> list[dict[str, Array]]:
  """Outputs for the labeled and for the other images."""
  pairs = {name: batch_lib.split(output, 2) for name, output in found.items()}
  return [{name: pair[i] for name, pair in pairs.items()} for i in (0, 1)]


def _by_pixel(mask: Bool[Array, 'B h w C']) -> Bool[Array, 'B P C']:
  return mask.reshape(len(mask), -1, mask.shape[-1])
