"""Mean teacher of squared errors, the row "MT" of the tables of CPS.

Source: Tarvainen & Valpola 2017 (Mean Teacher), as the authors of CPS (Chen et
al. 2021) implement it. The student is evaluated.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore.train.train_state import StepResult
from u2pl import ema, pseudo_labels
from u2pl.semi import losses, method, student
from u2pl.semi import options as options_lib


class MseTeacher(method.TeacherStudent):
  """Student that learns the probabilities of its EMA teacher."""

  options: options_lib.MseTeacherOptions

  def train_step(self, state: ema.TeacherState, batch: Batch) -> StepResult:
    """Runs one step, with the same images for student and teacher."""
    rng = jax.random.fold_in(state.rng, state.step)
    rngs = jax.random.split(rng, 4)
    streams, known = method.stream_images(batch), losses.known_pixels(batch)
    counted = batch_lib.join_batch_rows([jnp.ones_like(known), known])
    # Teacher in training mode, one pass a stream.
    state, targets = self.teacher.copy_student(state), []
    for images, key in zip(streams, rngs[:2], strict=True):
      outputs, state = self.teacher.forward(state, images, ('logits',), key)
      targets.append(_probabilities(outputs['logits'], known.shape))
    target = batch_lib.join_batch_rows(targets)
    weight = self.unlabeled_weight(
      state, self.options.weight * self.options.consistency
    )

    def loss(params):
      outputs, stats = [], state.batch_stats
      for images, key in zip(streams, rngs[2:], strict=True):
        each, stats = self.forward(params, stats, images, key)
        outputs.append(each)
      # Mean squared error of the probabilities of all classes and pixels.
      predicted = batch_lib.join_batch_rows(
        [_probabilities(x['logits'], known.shape) for x in outputs]
      )
      terms = {
        'loss_supervised': self.supervised_loss(
          outputs[0], batch['labeled']['label']
        ),
        'loss_unsupervised': weight
        * losses.mean_squared_error(predicted, target, counted),
      }
      return sum(terms.values()), (terms, stats)

    after, metrics = student.gradient_step(self.update, state, loss)
    return self.teacher.update(state, after), metrics


def _probabilities(
  logits: Float[Array, 'B h w C'], shape: tuple[int, ...]
) -> Float[Array, 'B H W C']:
  """Computes probabilities at the resolution of the images."""
  return jax.nn.softmax(
    pseudo_labels.upsample_teacher_scores(logits, shape[1:3])
  )
