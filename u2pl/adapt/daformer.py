"""DAFormer, and U2PL+ on it: from labeled source to unlabeled target images.

One method with switches: without contrast it is DAFormer; without
self-training it is training on the source alone.
Source: Hoyer et al. 2022 (DAFormer), Sec. 3, and the U2PL+ paper, Sec. 3.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.train import method, train_state
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult
from u2pl import panels, pseudo_labels
from u2pl.adapt import losses, target_teacher
from u2pl.adapt import options as options_lib


@dataclasses.dataclass(frozen=True)
class DAFormer:
  """Domain adaptation of a student by self-training with its EMA teacher.

  The segmenter has heads `logits`, `features` (`heads.EncoderMap`) with the
  feature distance, and `rep` with contrast or denoising. Batches have the
  streams 'source', with labels, and 'target'. Labels of target images, where
  there are any, only measure the teacher's accuracy.

  Attributes:
    segmenter: network of student and teacher.
    update: optimizer step of the student.
    options: losses, teacher and contrastive branch.
    num_classes: number C of classes.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: options_lib.LearnOptions
  num_classes: int

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> target_teacher.State:
    """Returns the state before step 0."""
    shape = batch_spec['source']['image'].shape
    fresh = self.update.init(self.segmenter, rng, shape, loaded)
    has_teacher = self.options.self_training is not None
    branch = self.teacher.branch and self.teacher.branch.init()
    frozen = None
    if self.options.feature_distance:
      variables = train_state.train_state_variables(fresh)
      frozen = {
        name: {'encoder': tree['encoder']} if 'encoder' in tree else {}
        for name, tree in variables.items()
      }
    return target_teacher.State(
      **vars(fresh),
      teacher_params=fresh.params if has_teacher else None,
      teacher_batch_stats=fresh.batch_stats if has_teacher else None,
      frozen=frozen,
      bank=branch and branch.bank,
      prototypes=branch and branch.prototypes,
    )

  def train_step(self, state: target_teacher.State, batch: Batch) -> StepResult:
    """Runs one step of DAFormer, or of U2PL+ on it."""
    rng = jax.random.fold_in(state.rng, state.step)
    keys = target_teacher.StepKeys(*jax.random.split(rng, 5))
    source = batch_lib.batch_images_to_symmetric(batch['source']['image'])
    labels = batch['source']['label'].astype(jnp.int32)
    targets = None
    if self.options.self_training:
      # EMA update, pseudo-labels, mixed images, weights, contrastive targets.
      state, targets = self.teacher.teach(
        state, source, labels, batch['target'], keys
      )
    # One step on the sum of all losses.
    (total, (terms, batch_stats)), gradient = jax.value_and_grad(
      self.loss, has_aux=True
    )(state.params, state, source, labels, targets, keys)
    after = self.update.apply_gradients(state, gradient, batch_stats)
    scalars = targets.scalars if targets else {}
    return after, {'loss': total, **terms, **scalars}

  def loss(
    self,
    params: types.Params,
    state: target_teacher.State,
    source: Float[Array, 'B H W 3'],
    labels: Int[Array, 'B H W'],
    targets: target_teacher.MixedTargets | None,
    keys: target_teacher.StepKeys,
  ) -> tuple[types.Scalar, tuple[types.Metrics, types.Params]]:
    """Computes L_s + L_FD + L_mix + λ_c·L_c of the student.

    Args:
      params: parameters of the student.
      state: training state after the teacher's part of the step.
      source: source images.
      labels: their ground truth.
      targets: mixed images, weights and contrastive targets; None for training
        on the source alone.
      keys: keys of the step.

    Returns:
      The loss; its terms by name, and the batch statistics.
    """
    options = self.options
    # L_s: mean cross entropy over all pixels; ignored ones count as 0.
    outputs, batch_stats = method.training_forward_pass(
      self.segmenter,
      params,
      state.batch_stats,
      source,
      heads=options.source_heads,
      rng=keys.source,
    )
    terms = {'loss_source': losses.mean_loss(outputs['logits'], labels)}
    total = terms['loss_source']
    # L_FD: distance to the frozen encoder on the cells of things.
    if options.feature_distance:
      terms['loss_feature_distance'] = losses.feature_distance_loss(
        outputs[options_lib.FEATURES],
        self.segmenter.apply(state.frozen, source, method='deepest_map'),
        labels,
        self.num_classes,
        options.feature_distance,
      )
      total += terms['loss_feature_distance']
    if targets:
      # L_mix: in a pass of its own, with batch statistics of its own.
      terms['loss_mixed'], mixed, batch_stats = self.mixed_loss(
        params, batch_stats, targets, keys.mixed
      )
      total += terms['loss_mixed']
    if options.contrast:
      # L_c: between pixels of source and mixed images.
      terms['loss_contrast'] = self.teacher.branch.loss(
        batch_lib.join_batch_rows([outputs['rep'], mixed['rep']]),
        targets.contrastive,
        state.branch,
      )
      total += options.contrast.weight * terms['loss_contrast']
    return total, (terms, batch_stats)

  def mixed_loss(
    self,
    params: types.Params,
    batch_stats: types.Params,
    targets: target_teacher.MixedTargets,
    rng: Array,
  ) -> tuple[types.Scalar, dict[str, Array], types.Params]:
    """Computes L_mix, the weighted cross entropy of mixed images.

    Args:
      params: parameters of the student.
      batch_stats: batch statistics before the pass.
      targets: mixed images, their labels and weights.
      rng: key of the dropout.

    Returns:
      The loss, the outputs by head, and the batch statistics after the pass.
    """
    outputs, batch_stats = method.training_forward_pass(
      self.segmenter,
      params,
      batch_stats,
      targets.mixed.images,
      heads=self.options.mixed_heads,
      rng=rng,
    )
    loss = losses.mean_loss(
      outputs['logits'],
      targets.mixed.labels,
      targets.weights,
      self.options.self_training,
    )
    return loss, outputs, batch_stats

  def predict(
    self, state: target_teacher.State, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w C']:
    """Computes logits of the student, which is evaluated."""
    return method.HeadScores(self.segmenter).predict(state, images)

  def panel_output(
    self, state: target_teacher.State, batch: Batch, rng: Array
  ) -> panels.PanelOutput:
    """Computes what panels show: gray pixels of mixed images have weight 0."""
    keys = target_teacher.StepKeys(*jax.random.split(rng, 5))
    source = batch_lib.batch_images_to_symmetric(batch['source']['image'])
    labels = batch['source']['label'].astype(jnp.int32)
    _, targets = self.teacher.teach(
      state, source, labels, batch['target'], keys
    )
    mixed = targets.mixed
    logits = self.segmenter.apply(
      self.teacher.ema.variables(state), mixed.images, heads=('logits',)
    )['logits']
    return panels.PanelOutput(
      targets.pseudo_labels,
      mixed.images,
      jnp.where(targets.weights > 0, mixed.labels, batch_lib.IGNORE),
      pseudo_labels.pixel_entropy(
        resize.resize_bilinear(logits, mixed.labels.shape[1:])
      ),
    )

  @property
  def teacher(self) -> target_teacher.TargetTeacher:
    """Returns the EMA teacher, which mixes images."""
    return target_teacher.TargetTeacher(
      self.segmenter, self.options, self.num_classes, self.update.num_steps
    )
