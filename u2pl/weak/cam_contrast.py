"""Candidates of U2PL+'s contrastive loss from CAMs (Eqs. 29-31).

state, targets = update_branch_by_cams(
  branch, state, features, cams, images, keys
)
loss = branch.loss(features, targets, state)
"""

import jax
from jaxtyping import Array, Bool, Float

from input_pipeline import batch as batch_lib
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize
from segcore.ops import order_statistics
from segcore.train import update as update_lib
from u2pl import contrast, contrastive_branch, ema, ema_options
from u2pl.weak import cam_labels
from u2pl.weak import options as options_lib


def build_key_teacher(
  segmenter: segmenter_lib.Segmenter, options: options_lib.LearnOptions
) -> ema.EmaTeacher | None:
  """Builds the EMA teacher of keys and prototypes.

  Returns:
    The teacher, which is a copy of the student in the first step with a
    contrastive loss; None if keys are the student's.
  """
  if not options.has_teacher:
    return None
  decay = ema_options.EmaOptions(options.contrast.teacher_decay, copy_epochs=0)
  first = options.class_steps + 1
  return ema.EmaTeacher(segmenter, decay, first, steps_per_epoch=1)


def teacher_features(
  teacher: ema.EmaTeacher,
  state: ema.TeacherState,
  pixels: Float[Array, 'B H W 3'],
) -> tuple[Float[Array, 'B h w D'], ema.TeacherState]:
  """Computes the teacher's representations, without dropout.

  Args:
    teacher: the teacher of keys.
    state: training state before the step.
    pixels: images, 0 to 255.

  Returns:
    Representations, and the state with the batch statistics of this pass.
  """
  outputs, state = teacher.forward(
    teacher.copy_student(state),
    batch_lib.batch_images_to_symmetric(pixels),
    ('rep',),
    rng=None,
  )
  return outputs['rep'], state


def cam_candidates(
  cams: Float[Array, 'B h w C'],
  tags: Bool[Array, 'B C'],
  inside: Bool[Array, 'B h w'],
  options: options_lib.CamContrastOptions,
) -> contrast.Candidates:
  """Computes which cells may be anchors and negatives of each class.

  Anchors have a map above β (Eq. 29); their mean is the prototype (Eq. 30).
  Negatives are all cells of images that do not show the class, and others with
  a map below β (Eq. 31). Cells of padding are neither.

  Args:
    cams: M^c at the cells, 0 to 1 whether or not the image shows the class; so
      a class must be among the tags to have anchors.
    tags: classes of each image.
    inside: cells that are no padding.
    options: thresholds.
  """
  shown, inside = tags[:, None, None], inside[..., None]
  anchors = (cams > options.anchor_threshold) & inside
  if not options.absent_anchors:
    anchors &= shown
  negatives = (~shown | (cams < options.negative_threshold)) & inside
  return contrast.Candidates(anchors, anchors, negatives)


def sample_negatives_per_image(
  candidates: contrast.Candidates,
  rng: Array,
  options: options_lib.CamContrastOptions,
) -> contrast.Candidates:
  """Keeps a uniform sample of the negatives of each class and image.

  Nearly all cells are negatives of nearly all classes.

  Args:
    candidates: candidates of a step.
    rng: key of the draws.
    options: number of negatives that are kept.
  """
  negatives = candidates.negatives
  num_images, height, width, num_classes = negatives.shape
  priorities = order_statistics.sample_pixel_priorities(
    update_lib.row_prng_keys(rng, num_images), height * width
  )

  def keep(mask, priority):
    return order_statistics.keep_top_priorities(
      mask[None], priority[None], options.keys_per_image
    )[0]

  kept = jax.vmap(keep)(
    negatives.reshape(num_images, -1, num_classes), priorities
  )
  return candidates._replace(negatives=kept.reshape(negatives.shape))


def update_branch_by_cams(
  branch: contrastive_branch.ContrastiveBranch,
  state: contrastive_branch.BranchState,
  features: Float[Array, 'B h w D'],
  cams: Float[Array, 'B _ _ C'],
  images: cam_labels.TaggedImages,
  keys: tuple[Array, Array],
) -> tuple[
  contrastive_branch.BranchState, contrastive_branch.ContrastiveTargets
]:
  """Updates bank and prototypes, and draws the contrastive targets.

  Args:
    branch: the contrastive branch, of `CamContrastOptions`.
    state: its state before the step.
    features: representations of keys and prototypes; their gradient is stopped.
    cams: M^c, CAMs that are resized to the features' cells.
    images: images with their tags; nothing is updated if none is inside.
    keys: keys of the sample of negatives, and of the branch.
  """
  features = jax.lax.stop_gradient(features)
  cells = features.shape[1:3]
  candidates = cam_candidates(
    resize.resize_bilinear(cams, cells),
    images.tags,
    resize.resize_nearest_floor(images.inside, cells),
    branch.options,
  )
  candidates = sample_negatives_per_image(candidates, keys[0], branch.options)
  return branch.update_with(state, features, candidates, keys[1])
