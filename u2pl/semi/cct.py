"""CCT: decoders of perturbed features learn from the decoder of plain ones.

Source: Ouali et al. 2020, "Semi-Supervised Semantic Segmentation with
Cross-Consistency Training". The main decoder is the head `logits`; each
perturbed one is a head of the same architecture, which reads the same map.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from input_pipeline import batch as batch_lib
from input_pipeline.batch import Batch
from segcore import types
from segcore.models import segmenter as segmenter_lib
from segcore.ops import losses as pixel_losses
from segcore.ops import order_statistics
from segcore.train.train_state import StepResult, TrainState
from u2pl import pseudo_labels
from u2pl.semi import cct_options, cct_perturbations, losses, method, student


class Cct(method.SemiSupervised):
  """Cross-consistency training of one network."""

  options: cct_options.CctOptions

  def train_step(self, state: TrainState, batch: Batch) -> StepResult:
    """Runs one step of CCT."""
    rng = jax.random.fold_in(state.rng, state.step)
    perturb_rng, labeled_rng, unlabeled_rng = jax.random.split(rng, 3)
    labeled, unlabeled = method.stream_images(batch)
    known, labels = losses.known_pixels(batch), batch['labeled']['label']
    weight = self.consistency_weight(state)

    def loss(params):
      # Main decoder on both streams, each with statistics of its own.
      (outputs, _), stats = self.apply_in_training(
        _outputs_and_map,
        params,
        state.batch_stats,
        labeled_rng,
        labeled,
        self.options.student_heads,
      )
      (main, z), stats = self.apply_in_training(
        _outputs_and_map,
        params,
        stats,
        unlabeled_rng,
        unlabeled,
        ('logits',),
      )
      # Its prediction is the target: it learns nothing of L_u, the encoder
      # does.
      main = jax.lax.stop_gradient(
        pseudo_labels.upsample_teacher_scores(main['logits'], known.shape[1:])
      )
      target = jax.nn.softmax(main)
      foreground = cct_perturbations.find_foreground(jnp.argmax(main, axis=-1))
      errors = [
        losses.mean_squared_error(jax.nn.softmax(logits), target, known)
        for logits in self.perturbed_logits(params, z, foreground, perturb_rng)
      ]
      terms = {
        'loss_supervised': self.annealed_loss(state, outputs, labels),
        'loss_unsupervised': weight * sum(errors) / len(errors),
      }
      return sum(terms.values()), (terms, stats)

    after, metrics = student.gradient_step(self.update, state, loss)
    return after, {**metrics, 'consistency_weight': weight}

  def perturbed_logits(
    self,
    params: types.Params,
    z: Float[Array, 'B h w D'],
    foreground: cct_perturbations.Foreground,
    rng: Array,
  ) -> list[Float[Array, 'B H W C']]:
    """Computes the logits of every perturbed decoder, in the order of KINDS.

    Args:
      params: parameters of the network.
      z: map that the decoders read.
      foreground: foreground of the main decoder's prediction.
      rng: key of the perturbations.
    """
    options, size, results = self.options, foreground.mask.shape[1:], []
    for i, (name, kind) in enumerate(options.decoders.heads.items()):
      draws = cct_perturbations.sample_draws(
        jax.random.fold_in(rng, i), kind, z.shape, size
      )

      def decode(x, own, name=name):
        logits = self.segmenter.heads.modules[name].apply({'params': own}, x)
        return pseudo_labels.upsample_teacher_scores(logits, size)

      own = params['heads'][name]
      if kind == 'vat':
        # In float32: bfloat16 features would swallow noise this small.
        fixed = jax.lax.stop_gradient(own)
        perturbed = z + cct_perturbations.adversarial_noise(
          lambda x, fixed=fixed, decode=decode: decode(x, fixed),
          *(z, draws, options.vat_xi, options.vat_epsilon),
        )
      else:
        perturbation = cct_perturbations.PERTURBATIONS[kind]
        perturbed = perturbation(z, draws, foreground)
      results.append(decode(perturbed, own))
    return results

  def consistency_weight(self, state: TrainState) -> types.Scalar:
    """Computes the weight of the consistency, which rises after the warm-up."""
    ramp_steps = self.options.ramp_epochs * self.steps_per_epoch
    share = losses.ramp_up(state.step - self.warmup_steps, ramp_steps)
    weight = self.options.weight * self.options.consistency
    return self.unlabeled_weight(state, weight * share)

  def annealed_loss(
    self,
    state: TrainState,
    outputs: dict[str, Array],
    labels: Int[Array, 'B H W'],
  ) -> types.Scalar:
    """Computes the loss of labeled images, of the pixels that count by now."""
    if self.options.annealing:
      limit = annealed_threshold(
        *(state.step + 1, self.update.num_steps),
        *(self.num_classes, self.options.annealing),
      )
      logits = pseudo_labels.upsample_teacher_scores(
        outputs['logits'], labels.shape[1:]
      )
      counted = bootstrapped_pixels(logits, labels, limit)
      labels = jnp.where(counted, labels, batch_lib.IGNORE)
    return self.supervised_loss(outputs, labels)


def annealed_threshold(
  step: Int[Array, ''], num_steps: int, num_classes: int, end: float
) -> types.Scalar:
  """Computes 1/C + (end - 1/C)(1 - exp(-5 min(t/T, 1))), T = 0.4 of all steps.

  Args:
    step: number t of the step, from 1.
    num_steps: number of all steps.
    num_classes: number C of classes.
    end: value near which it ends.
  """
  progress = jnp.minimum(step.astype(jnp.float32) / (0.4 * num_steps), 1)
  start = 1 / num_classes
  return start + (end - start) * (1 - jnp.exp(-5 * progress))


def bootstrapped_pixels(
  logits: Float[Array, 'B H W C'],
  labels: Int[Array, 'B H W'],
  threshold: types.Scalar,
) -> Array:
  """Selects the labeled pixels whose class has less than a probability.

  Of B images the B pixels of the smallest probability are selected at least.

  Args:
    logits: logits of the pixels.
    labels: class of each pixel; negative where ignored.
    threshold: probability below which a pixel counts.
  """
  labeled = labels >= 0
  probability = pixel_losses.label_probability(
    jax.lax.stop_gradient(logits), labels
  )
  following = order_statistics.order_statistic(
    probability, labeled, len(labels)
  )
  return labeled & (probability < jnp.maximum(following, threshold))


def _outputs_and_map(
  network: segmenter_lib.Segmenter,
  images: Float[Array, 'B H W 3'],
  heads: tuple[str, ...],
) -> tuple[dict[str, Array], Float[Array, 'B h w D']]:
  """Computes outputs of heads, and the map that all decoders read."""
  features = network.features(images, train=True)
  outputs = network.apply_heads(heads, features, images.shape[1:3], True)
  return outputs, network.head_map('logits', features)
