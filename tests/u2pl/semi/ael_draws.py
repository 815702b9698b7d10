"""Copy-Paste and CutMix of AEL in numpy, with the draws of a step's keys."""

import functools

import jax
import numpy as np

from segcore.train import update as update_lib
from tests.transcriptions import ael as reference
from tests.u2pl.semi import tiny
from u2pl.semi import equalization_options

B, S, C = tiny.BATCH, tiny.SIZE, tiny.CLASSES
CONFIDENCE = np.array([0.9, 0.2, 0.5, 0.05, 0.7], np.float32)
PASTE = equalization_options.PasteOptions(probability=0.8)


@functools.partial(jax.jit, static_argnums=(1, 2))
def row_uniforms(rng, num_rows, shape):
  keys = update_lib.row_prng_keys(rng, num_rows)
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def draw_of(rng, num_rows, *shape):
  return np.asarray(row_uniforms(rng, num_rows, shape))


def split_keys(rng, count):
  return list(jax.random.split(rng, count))


def prepared(trained):
  """Returns a state whose teacher and statistics differ from the student's."""
  state = tiny.draw_state(trained, step=3)
  scaled = functools.partial(jax.tree.map, lambda x: np.float32(0.8) * x)
  params, stats = state.params, state.batch_stats
  return state.replace(
    teacher_params=scaled(params),
    teacher_batch_stats=scaled(stats),
    confidence=CONFIDENCE,
  )


def numpy_pasted(state, batch, rng):
  """Runs Copy-Paste; returns images and labels."""
  class_rng, image_rng = split_keys(rng, 2)
  probabilities = reference.pasting_probabilities(state.confidence, {0})
  chosen = [
    {reference.class_of(probabilities, u) for u in row}
    for row in draw_of(class_rng, B // 2, 3)
  ]
  used = draw_of(image_rng, B) < 0.8
  assert used.any()
  second_labels = np.where(
    used[:, None, None], batch['pasted']['label'].astype(int), -1
  )
  seconds = (batch['pasted']['image'].astype(np.float32) - 127.5) / 127.5
  images, _ = tiny.symmetric_images(batch)
  labels = batch['labeled']['label'].astype(int)
  return reference.pasted(
    images, labels, seconds, second_labels, np.repeat(chosen, 2)
  )


def numpy_mixed(batch, predicted, rng, *arrays):
  """Runs CutMix; returns images and further arrays of each pair's pixels."""
  uniforms = draw_of(rng, B // 2, 4)
  results, of_component = [[] for _ in arrays], 0
  for i in range(B // 2):
    drawn = batch['unlabeled']['drawn_class'][2 * i + 1]
    box, is_component = reference.class_box(
      predicted[2 * i + 1] == drawn, uniforms[i], 0.005
    )
    of_component += is_component
    for result, array in zip(results, arrays, strict=True):
      result.append(reference.with_box(array[2 * i], array[2 * i + 1], box))
  assert of_component > 0
  return [np.stack(result) for result in results]


def weighted_targets(logits, targets, rng, group, confidence):
  """Runs equalization sampling; returns labels and weights of all pixels.

  Args:
    logits: of the student at full resolution.
    targets: labels and probabilities by the teacher.
    rng: key of the sampling.
    group: number of images that share its draws.
    confidence: of each class.
  """
  labels, v = targets
  uniforms = draw_of(rng, len(logits) // group, S, S, C)
  rates = reference.keep_rates(confidence)
  kept = reference.kept(logits.argmax(-1), uniforms, rates)
  assert 0.2 < kept.mean() < 1
  return labels, v**2 * kept
