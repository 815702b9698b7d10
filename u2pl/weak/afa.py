"""AFA, and U2PL+ on it: segmentation from the classes of whole images.

One method with switches: without contrast it is AFA; without segmentation a
classifier whose CAMs are evaluated; on masks, the upper bound of both.
Source: Ru et al. 2022 (AFA), Sec. 3, and the U2PL+ paper, Sec. 3.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore import types
from segcore.models import cam
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.ops import affinity as affinity_lib
from segcore.ops import losses as losses_lib
from segcore.train import method
from segcore.train import update as update_lib
from segcore.train.train_state import StepResult
from u2pl import contrastive_branch, ema
from u2pl.weak import cam_contrast, cam_labels, cam_scores, losses
from u2pl.weak import options as options_lib


@flax.struct.dataclass
class State(contrastive_branch.BranchFields, ema.TeacherState):
  """Training state of a network, its contrastive branch, and an EMA teacher.

  The teacher gives keys and prototypes; there is none unless they are its own.
  """


class StepKeys(NamedTuple):
  """PRNG keys of a step.

  Attributes:
    cams: dropout of the passes that compute CAMs.
    network: dropout of the pass that is differentiated.
    sample: draws of negatives of each image.
    branch: draws of the contrastive branch.
  """

  cams: Array
  network: Array
  sample: Array
  branch: Array


class Targets(NamedTuple):
  """Holds the pseudo-labels and maps that the losses of a step compare with.

  Attributes:
    segmentation: class of each pixel; negative where unknown.
    refined: labels of the affinity loss; None on masks.
    maps: M^c of Eqs. 29-31; None on masks.
    features: representations of keys and prototypes; None for those of the
      network itself.
    plain: labels of thresholded CAMs, to be shown; None on masks.
    batch_stats: batch statistics after the passes of CAMs; None on masks.
  """

  segmentation: Int[Array, 'B H W']
  refined: Int[Array, 'B H W'] | None = None
  maps: Float[Array, 'B _ _ C'] | None = None
  features: Float[Array, 'B h w D'] | None = None
  plain: Int[Array, 'B H W'] | None = None
  batch_stats: Any = None


@dataclasses.dataclass(frozen=True)
class AFA:
  """Training of a network on tags of images, with labels from its own CAMs.

  The segmenter has the heads that the options name: `tags`
  (`heads.TagHead`), `logits` of background and classes, `affinity`
  (`heads.AffinityHead`) and `rep`. Masks in a batch of tagged images only
  measure the labels.

  Attributes:
    segmenter: the network.
    update: optimizer step.
    options: labels, losses and contrastive branch.
    num_classes: number C of classes of tags, without the background.
  """

  segmenter: segmenter_lib.Segmenter
  update: update_lib.Update
  options: options_lib.LearnOptions
  num_classes: int

  def init(
    self, rng: Array, batch_spec: types.BatchSpec, loaded: types.Params | None
  ) -> State:
    """Returns the state before step 0."""
    shape = batch_spec['image'].shape
    fresh = self.update.init(self.segmenter, rng, shape, loaded)
    branch = self.branch and self.branch.init()
    return State(
      **vars(fresh),
      bank=branch and branch.bank,
      prototypes=branch and branch.prototypes,
      teacher_params=fresh.params if self.teacher else None,
      teacher_batch_stats=fresh.batch_stats if self.teacher else None,
    )

  def train_step(self, state: State, batch: Batch) -> StepResult:
    """Runs one step of AFA, or of U2PL+ on it."""
    rng = jax.random.fold_in(state.rng, state.step)
    keys = StepKeys(*jax.random.split(rng, 4))
    images = tagged_images(batch)
    targets, scalars = None, {}
    if self.options.needs_cams:
      # CAMs of several scales and flips → refined and propagated labels.
      targets = self.make_labels(state, images, keys.cams)
      state = state.replace(batch_stats=targets.batch_stats)
      if self.teacher:
        features, state = cam_contrast.teacher_features(
          self.teacher, state, images.pixels
        )
        targets = targets._replace(features=features)
      scalars = losses.label_scalars(
        targets.plain, targets.segmentation, images.inside, batch.get('label')
      )
    elif self.options.segmentation:
      targets = Targets(batch['label'].astype(jnp.int32))
    # One step on the sum of all losses.
    (total, (terms, batch_stats, branch)), gradient = jax.value_and_grad(
      self.loss, has_aux=True
    )(state.params, state, images, targets, keys)
    after = self.update.apply_gradients(state, gradient, batch_stats)
    if branch is not None:
      after = after.replace(**vars(branch))
    if self.teacher:
      after = self.teacher.update(state, after)
    return after, {'loss': total, **terms, **scalars}

  def make_labels(
    self, state: State, images: cam_labels.TaggedImages, rng: Array
  ) -> Targets:
    """Computes CAMs and affinities without gradient, and labels from them.

    The passes are in training mode: they update the batch statistics.
    """
    options = self.options.cam
    cams, affinities, batch_stats = self.multi_scale_cams(
      state, images.pixels, rng
    )
    refined = cam_labels.refine_cam_labels(cams, images, options)
    segmentation = refined
    if affinities is not None:
      segmentation = jax.lax.cond(
        state.step > self.options.refined_steps,
        lambda: cam_labels.propagate_cam_labels(
          cams, images, affinities, self.options.affinity.radius, options
        ),
        lambda: refined,
      )
    plain = cam_labels.threshold_cams(
      cams, images, options.plain, options.plain
    )
    maps = cams
    if self.options.propagates_maps:
      maps = cam_labels.propagate_cams(
        cams, affinities, self.options.affinity.radius
      )
    return Targets(
      segmentation, refined, maps, plain=plain, batch_stats=batch_stats
    )

  def multi_scale_cams(
    self, state: State, pixels: Float[Array, 'B H W 3'], rng: Array
  ) -> tuple[
    Float[Array, 'B H W C'], cam_labels.Affinities | None, types.Params
  ]:
    """Computes normalized CAMs, and affinities at the largest scale.

    Returns:
      CAMs, affinities if there are any, and the batch statistics after.
    """
    images = batch_lib.batch_images_to_symmetric(pixels)
    scales = self.options.cam.scales
    maps, affinities, batch_stats = [], None, state.batch_stats
    for i, scale in enumerate(scales):
      # `logits` only for the statistics of the decoder's batch norms.
      heads = ('tags', 'logits')
      is_largest = i == scales.index(max(scales))
      if is_largest and self.options.affinity:
        heads += ('affinity',)
      outputs, batch_stats = method.training_forward_pass(
        self.segmenter,
        state.params,
        batch_stats,
        cam.resize_and_flip(images, scale),
        heads=heads,
        rng=jax.random.fold_in(rng, i),
      )
      maps.append(outputs['tags'].maps)
      if 'affinity' in heads:
        plain, _ = batch_lib.split_batch_rows(outputs['affinity'], 2)
        affinities = cam_labels.Affinities(plain, maps[-1].shape[1:3])
    cams = cam.fuse_scaled_cams(maps, pixels.shape[1:3])
    return cams, affinities, batch_stats

  def loss(
    self,
    params: types.Params,
    state: State,
    images: cam_labels.TaggedImages,
    targets: Targets | None,
    keys: StepKeys,
  ) -> tuple[types.Scalar, Any]:
    """Computes L_cls + [0.1·L_seg + 0.1·L_aff + energy + λ_c·L_c].

    What is in brackets counts after `class_steps`.

    Returns:
      The loss; its terms by name, the batch statistics, and the state of the
      contrastive branch.
    """
    options, branch, scalars = self.options, None, {}
    outputs, batch_stats = method.training_forward_pass(
      self.segmenter,
      params,
      state.batch_stats,
      batch_lib.batch_images_to_symmetric(images.pixels),
      heads=options.heads,
      rng=keys.network,
    )
    if options.supervision == 'masks':
      loss = losses.mean_cross_entropy(outputs['logits'], targets.segmentation)
      return loss, ({'loss_segmentation': loss}, batch_stats, None)
    # L_cls: mean over images and classes of binary cross entropies.
    total = jnp.mean(
      losses_lib.tag_cross_entropy(
        outputs['tags'].logits, images.tags, 'sigmoid'
      )
    )
    terms = {'loss_class': total}
    later = self.pixel_losses(outputs, images, targets)
    started = state.step > options.class_steps
    if options.contrast:
      # L_c: anchors are cells of this pass (Eqs. 29-31).
      branch, contrastive = cam_contrast.update_branch_by_cams(
        self.branch,
        state.branch,
        outputs['rep'] if targets.features is None else targets.features,
        targets.maps,
        images._replace(
          inside=(images.inside | options.contrast.padding) & started
        ),
        (keys.sample, keys.branch),
      )
      loss = self.branch.loss(outputs['rep'], contrastive, branch)
      later['contrast'] = options.contrast.weight, loss
      scalars = self.branch.scalars(branch, contrastive)
    for name, (weight, loss) in later.items():
      terms[f'loss_{name}'] = loss
      total += jnp.where(started, weight, 0.0) * loss
    return total, (terms | scalars, batch_stats, branch)

  def pixel_losses(
    self,
    outputs: dict[str, Any],
    images: cam_labels.TaggedImages,
    targets: Targets | None,
  ) -> dict[str, tuple[float, types.Scalar]]:
    """Computes weight and value of L_seg, L_aff and the energy, by name."""
    options, terms = self.options, {}
    if options.segmentation:
      # L_seg: half of it over the background, half over the classes.
      terms['segmentation'] = (
        options.segmentation_weight,
        losses.balanced_cross_entropy(outputs['logits'], targets.segmentation),
      )
    if options.affinity:
      # L_aff: always on refined labels, at the cells of the attention.
      cells = outputs['tags'].maps.shape[1:3]
      terms['affinity'] = (
        options.affinity.weight,
        affinity_lib.affinity_loss(
          outputs['affinity'],
          resize.resize_nearest_floor(targets.refined, cells),
          options.affinity.radius,
        ),
      )
    if options.energy:
      terms['energy'] = (
        options.energy.weight,
        losses.half_size_energy(
          outputs['logits'], targets.segmentation, images, options.energy
        ),
      )
    return terms

  def predict(
    self, state: State, images: Float[Array, 'B H W 3']
  ) -> Float[Array, 'B h w K']:
    """Computes scores of background and classes."""
    return self.scores.predict(state, images)

  @property
  def scores(self) -> method.ScoreModel:
    """Returns the model that is evaluated: the head `logits`, or CAMs."""
    return build_scores(self.segmenter, self.options)

  @property
  def teacher(self) -> ema.EmaTeacher | None:
    """Returns the EMA teacher of keys and prototypes, if there is one."""
    return cam_contrast.build_key_teacher(self.segmenter, self.options)

  @property
  def branch(self) -> contrastive_branch.ContrastiveBranch | None:
    """Returns the contrastive branch, if there is contrast."""
    return contrastive_branch.build_contrastive_branch(
      self.options, self.segmenter, self.num_classes, align_corners=False
    )


def build_scores(
  segmenter: segmenter_lib.Segmenter,
  options: options_lib.LearnOptions,
  cam_refinement: Literal['par'] | None = None,
) -> method.ScoreModel:
  """Builds the model that is evaluated: the head `logits`, or CAMs.

  Args:
    segmenter: the network.
    options: options of the training.
    cam_refinement: 'par' to refine CAMs as the labels made from them.
  """
  if options.segmentation:
    return method.HeadScores(segmenter)
  refinement = options.cam.refinement if cam_refinement else None
  return cam_scores.CamScores(segmenter, options.cam.plain, refinement)


def tagged_images(batch: Batch) -> cam_labels.TaggedImages:
  """Returns the images of a batch with their tags, without the background."""
  pixels = batch['image'].astype(jnp.float32)
  inside = batch.get('valid')
  if inside is None:
    inside = jnp.ones(pixels.shape[:3], bool)
  return cam_labels.TaggedImages(pixels, batch['tags'][:, 1:], inside)
