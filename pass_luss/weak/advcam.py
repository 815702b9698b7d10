"""AdvCAM: images are changed so that more regions score for their class.

  regions = climb(method, options, state, pairs, classes, num_steps)

At each step the regions that score for the class are added up, then the image
climbs the gradient of the score of its class.
Source: Lee et al. 2021 (Anti-adversarially manipulated attributions for weakly
and semi-supervised semantic segmentation); spec comparators §4.3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pass_luss.weak import classifier_options, image_classifier
from segcore import types
from segcore.models import cam
from segcore.models.layers import standardize
from segcore.ops import losses
from segcore.train import train_state

_EPSILON = 1e-12

Pairs = Float[Array, 'B_doubled h w 3']


def plan_steps(
  num_steps: int, scales: Sequence[float]
) -> tuple[tuple[int, float], ...]:
  """Returns the number of steps and the factor of the regions by scale.

  Below scale 1 half of the steps are done and regions count twice; of at most
  10 steps up to 5 are done. The factor stays for all later scales, as in the
  released code.

  >>> plan_steps(27, (0.5, 1.0))
  ((13, 2.0), (27, 2.0))
  """
  plan, factor = [], 1.0
  for scale in scales:
    count = num_steps
    if scale < 1 and num_steps > 10:
      count, factor = num_steps // 2, 2.0
    elif scale < 1:
      count, factor = min(num_steps, 5), 1.0
    plan.append((count, factor))
  return tuple(plan)


def climb(
  method: image_classifier.ImageClassifier,
  options: classifier_options.AdvCamOptions,
  state: train_state.TrainState,
  pairs: Pairs,
  classes: Int[Array, 'B'],
  num_steps: int,
) -> Float[Array, 'B _ _ K']:
  """Sums the regions of the class of each image over steps of climbing.

  J = 2·mean(z⁺ of the class) - Σ over classes mean(z⁺) - λ·Σ M·|r - r₀|, summed
  over image and mirrored image. r are the regions, which were r₀ at first; M is
  1 where r exceeds half of its maximum. An image x becomes
  x + step · ∇J / max|∇J|, clipped to its range.

  Args:
    method: trained classifier.
    options: step, weight and threshold.
    state: training state of the classifier.
    pairs: each image in [-1, 1], followed by its mirror image.
    classes: class of each image, from 0, without 'other'.
    num_steps: number T of steps.
  """
  params = state.params
  variables = train_state.train_state_variables(state)
  doubled = jnp.repeat(classes, 2)

  def objective(x, first, is_first):
    images = standardize.destandardize_by_imagenet(x)
    maps = method.feature_maps(variables, images)
    features = losses.at_least_float32(maps.deepest.array)
    regions = class_regions(method, params, features, doubled)
    first = jnp.where(is_first, jax.lax.stop_gradient(regions), first)
    scores = jax.nn.relu(method.class_scores(params, features))
    score = climbed_score(scores, doubled)
    penalty = discriminative_change(regions, first, options.threshold)
    seen = regions[..., None]
    if options.accumulate == 'evidence':
      seen = cam.sum_flipped_cams(
        method.class_evidence(params, images, maps, doubled)
      )
    return jnp.sum(score) - options.weight * jnp.sum(penalty), (first, seen)

  def step(carry, index):
    x, first, total = carry
    gradient, (first, seen) = jax.grad(objective, has_aux=True)(
      x, first, index == 0
    )
    x = climbed_images(x, gradient, options.step_size)
    return (x, first, total + seen), None

  x = standardize.standardize_by_imagenet(pairs)
  shapes = jax.eval_shape(lambda x: objective(x, 0.0, True)[1], x)
  zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
  (_, _, total), _ = jax.lax.scan(step, (x, *zeros), jnp.arange(num_steps))
  return total


def class_regions(
  method: image_classifier.ImageClassifier,
  params: types.Params,
  features: Float[Array, 'B_doubled h w D'],
  classes: Int[Array, 'B_doubled'],
) -> Float[Array, 'B h w']:
  """Computes the regions of Grad-CAM of the class, of image and mirror image.

  The weight of a channel is the sum over cells of the gradient of the score,
  divided by the number of positive gradients of the whole pair; it has no
  gradient itself.

  Args:
    method: trained classifier.
    params: its parameters.
    features: deepest map of the encoder.
    classes: class of each row, from 0.
  """

  def score(features):
    scores = jax.nn.relu(method.class_scores(params, features))
    return jnp.sum(image_classifier.maps_of_classes(scores, classes))

  gradient = jax.lax.stop_gradient(jax.grad(score)(features))
  pairs = (gradient > 0).reshape(-1, 2 * gradient[0].size)
  positive = jnp.repeat(jnp.sum(pairs, axis=1), 2)[:, None]
  # No gradient is positive where the class has no score: weights are 0 then.
  weights = jnp.sum(gradient, axis=(1, 2)) / jnp.maximum(positive, 1)
  weights = weights[:, None, None]
  return cam.sum_flipped_cams(
    jax.nn.relu(jnp.sum(weights * features, axis=-1, keepdims=True))
  )[..., 0]


def climbed_score(
  scores: Float[Array, 'B_doubled h w C'], classes: Int[Array, 'B_doubled']
) -> Float[Array, 'B_doubled']:
  """Computes twice the mean score of the class, less those of all classes.

  Args:
    scores: scores of all classes, 0 at least.
    classes: class of each row, from 0.
  """
  means = image_classifier.mean_over_cells(scores)
  of_class = jnp.take_along_axis(means, classes[:, None], axis=1)[:, 0]
  return 2.0 * of_class - jnp.sum(means, axis=1)


def discriminative_change(
  regions: Float[Array, 'B h w'], first: Float[Array, 'B h w'], threshold: float
) -> Float[Array, 'B']:
  """Sums |r - r₀| over cells whose share of the largest r is high.

  Args:
    regions: regions r of the image as it is.
    first: regions r₀ of the image as it was.
    threshold: share of the largest value above which a cell counts.
  """
  highest = jnp.max(regions, axis=(1, 2), keepdims=True)
  counted = jax.lax.stop_gradient(regions > threshold * highest)
  change = jnp.where(counted, losses.absolute_error(regions, first), 0.0)
  return jnp.sum(change, axis=(1, 2))


def climbed_images(x: Pairs, gradient: Pairs, step_size: float) -> Pairs:
  """Moves pairs of images along their gradient, within the pair's range.

  Args:
    x: standardized images.
    gradient: gradient of the objective with respect to them.
    step_size: largest change of a value.
  """
  pairs, slopes = (each.reshape(-1, 2, *x.shape[1:]) for each in (x, gradient))
  axes = (1, 2, 3, 4)
  steepest = jnp.max(jnp.abs(slopes), axis=axes, keepdims=True)
  moved = pairs + step_size * slopes / (steepest + _EPSILON)
  low = jnp.min(pairs, axis=axes, keepdims=True)
  high = jnp.max(pairs, axis=axes, keepdims=True)
  return jnp.clip(moved, low, high).reshape(x.shape)
