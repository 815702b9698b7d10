"""CCT: its perturbations, and a whole step with its gradient, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.models import heads
from segcore.models.decoders import psp
from segcore.ops import connected_components
from tests.transcriptions import semi_cct as reference
from tests.u2pl.semi import pointwise
from u2pl.semi import cct_options, cct_perturbations
from u2pl.semi import options as options_lib

SIDE = 24
ONE_EACH = cct_options.DecoderCounts(*[1] * 7)
OPTIONS = cct_options.CctOptions(
  decoders=ONE_EACH, ramp_epochs=3, annealing=0.99, vat_epsilon=0.5
)


def sample_draws(rng):
  """Draws all perturbations by the key of a step."""
  perturb_rng, *_ = jax.random.split(rng, 3)
  return {
    kind: cct_perturbations.sample_draws(
      jax.random.fold_in(perturb_rng, i),
      *(kind, (pointwise.BATCH, 6, 6, 6), (SIDE, SIDE)),
    )
    for i, kind in enumerate(cct_options.KINDS)
  }


@pytest.fixture(scope='module')
def stepped():
  """Returns method, state, batch, state after, scalars, and all draws."""
  return pointwise.run_first_step(OPTIONS, SIDE, sample_draws)


def perturbed(kind, z, draws, foreground, decode):
  return {
    'dropout': lambda: reference.dropped_channels(z, draws),
    'feature_drop': lambda: reference.dropped_cells(z, draws),
    'noise': lambda: reference.noisy(z, draws),
    'cutout': lambda: reference.cut_out(z, foreground, draws),
    'context': lambda: reference.masked(z, foreground),
    'object': lambda: reference.masked(z, ~foreground),
    'vat': lambda: z + reference.adversarial(decode, z, draws, 0.1, 0.5),
  }[kind]()


def consistency(params, fixed, batch, draws):
  """Computes L_u; targets, masks and noise are those of `fixed`."""
  _, unlabeled = pointwise.images_of(batch)
  z = pointwise.decode(params, pointwise.encode(params, unlabeled))
  plain = pointwise.decode(fixed, pointwise.encode(fixed, unlabeled))
  size = unlabeled.shape[1:3]
  main = pointwise.upsample(pointwise.classify(fixed, plain), size)
  foreground = main.argmax(-1) > 0
  assert 0.1 < foreground.mean() < 0.9
  total = 0
  for kind in cct_options.KINDS:

    def decode(x, params=fixed, kind=kind):
      logits = pointwise.classify(params, x, f'{kind}1')
      return pointwise.upsample(logits, size)

    if kind == 'vat':
      moved = perturbed(kind, plain, draws[kind], foreground, decode)
      x = z + (moved - plain)
    else:
      x = perturbed(kind, z, draws[kind], foreground, None)
    assert np.abs(x - z).max() > 0
    total += reference.mse(decode(x, params), main, batch['unlabeled']['valid'])
  return total / 7


def supervised(params, batch):
  labeled, _ = pointwise.images_of(batch)
  logits = pointwise.classify(
    params, pointwise.decode(params, pointwise.encode(params, labeled))
  )
  return reference.bootstrapped_loss(
    pointwise.upsample(logits, labeled.shape[1:3]),
    batch['labeled']['label'].astype(int),
    reference.threshold(8, 100, 3, 0.99),
  )


def test_a_whole_step_and_its_gradient_equal_the_reference(stepped):
  _, state, batch, after, scalars, draws = stepped
  params = jax.device_get(state.params)
  weight = 30 * reference.ramp(7, 15)
  # VAT's noise by central differences is that of one forward pass: once.
  fixed_noise = {}

  def loss(moved):
    with pytest.MonkeyPatch.context() as patch:
      compute = reference.adversarial

      def once(*arguments):
        if 'noise' not in fixed_noise:
          fixed_noise['noise'] = compute(*arguments)
        return fixed_noise['noise']

      patch.setattr(reference, 'adversarial', once)
      return supervised(moved, batch) + weight * consistency(
        moved, params, batch, draws
      )

  np.testing.assert_allclose(
    scalars['loss_supervised'], supervised(params, batch), rtol=1e-5
  )
  np.testing.assert_allclose(
    scalars['loss_unsupervised'],
    loss(params) - supervised(params, batch),
    rtol=1e-4,
  )
  np.testing.assert_allclose(scalars['consistency_weight'], weight, rtol=1e-5)
  gradient = pointwise.gradient_of(params, after.params)
  pointwise.check_gradient(loss, params, gradient)


def test_the_main_decoder_learns_of_labels_alone(stepped):
  """Its gradient is that of the supervised loss: L_u gives it none."""
  _, state, batch, after, _, _ = stepped
  params = jax.device_get(state.params)
  gradient = pointwise.gradient_of(params, after.params)['heads']['logits']

  def loss(own):
    heads = {**params['heads'], 'logits': own['heads']}
    return supervised({**params, 'heads': heads}, batch)

  pointwise.check_gradient(
    loss, {'heads': params['heads']['logits']}, {'heads': gradient}, ['heads']
  )


def draw_foreground():
  """Returns speckles, a ring, a spiral, and shapes that meet at corners."""
  rng = np.random.default_rng(0)
  masks = np.zeros((4, 40, 33), bool)
  masks[0] = rng.random((40, 33)) < 0.35
  masks[1, 3:30, 4:28] = True
  masks[1, 6:27, 7:25] = False
  masks[1, 10:20, 10:20] = True
  masks[1, 20:22, 20:22] = True
  for i in range(0, 16, 2):  # A snake through the image.
    masks[2, 2 * i] = True
    masks[2, 2 * i : 2 * i + 5, -1 if i % 4 == 0 else 0] = True
  masks[3, 39, 32] = True
  return masks, rng.random((4, 40, 33, 2))


def test_objects_are_cut_out_as_in_the_reference():
  masks, uniforms = draw_foreground()

  @jax.jit
  def compute(masks, uniforms):
    roots = jax.vmap(connected_components.label_components)(masks)
    foreground = cct_perturbations.find_foreground(masks.astype(np.int32))
    cut = jax.vmap(cct_perturbations.object_box_mask)(
      foreground.objects, uniforms
    )
    return roots, foreground.objects, cut

  roots, boxes, cut = jax.device_get(compute(masks, np.float32(uniforms)))
  counts = []
  for i, mask in enumerate(masks):
    expected = reference.objects(mask)
    counts.append(len(expected))
    for (y, x), rows, columns in expected:
      root = y * 33 + x
      assert (boxes.top[i, root], boxes.bottom[i, root]) == rows
      assert (boxes.left[i, root], boxes.right[i, root]) == columns
    labels, count = reference.ndimage.label(mask, np.ones((3, 3)))
    assert len(np.unique(roots[i][mask])) == count
    for label in range(1, count + 1):
      pixels = np.flatnonzero(labels == label)
      assert (roots[i].ravel()[pixels] == pixels[0]).all()
    assert (roots[i][~mask] == 40 * 33).all()
    np.testing.assert_array_equal(
      cut[i], reference.object_boxes(mask, np.float32(uniforms[i]))
    )
  assert counts[1:] == [1, 1, 0] and cut.any()


def test_adversarial_noise_needs_a_step_above_rounding():
  """With the ξ of the released config nothing is left of it."""
  rng = np.random.default_rng(0)
  z = np.float32(np.abs(rng.normal(size=(2, 6, 6, 8))))
  kernel = np.float32(rng.normal(size=(8, 3)) / 3)
  start = np.float32(rng.random(z.shape) - 0.5)

  @jax.jit
  def norms(z, start):
    return [
      jnp.sqrt(
        jnp.sum(
          jnp.square(
            cct_perturbations.adversarial_noise(
              lambda x: x @ kernel, z, start, xi, 2.0
            )
          ),
          axis=(1, 2, 3),
        )
      )
      for xi in (0.1, 1e-6)
    ]

  kept, lost = norms(z, start)
  np.testing.assert_allclose(kept, 2.0, rtol=1e-3)
  assert lost.max() < 1.0


def test_pyramid_and_decoder_equal_the_reference():
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(2, 7, 8, 5)))
  head = heads.ShuffleHead(3, num_doublings=2)
  params = jax.jit(
    lambda: head.init(jax.random.PRNGKey(0), jnp.zeros_like(x))
  )()

  @jax.jit
  def compute(x, params):
    means = [psp.average_bins(x, bins) for bins in (1, 2, 3, 6)]
    return means, head.apply(params, x)

  means, scores = compute(x, params)
  for bins, each in zip((1, 2, 3, 6), means, strict=True):
    np.testing.assert_allclose(
      each, reference.adaptive_mean(x, bins), atol=1e-5
    )
  own = jax.tree.map(lambda a: np.asarray(a, np.float64), params['params'])
  doublings = [
    (own[f'double{i}']['kernel'][0, 0], own[f'double{i}']['bias'])
    for i in (1, 2)
  ]
  np.testing.assert_allclose(
    scores,
    reference.shuffle_decoder(x, own['conv']['kernel'][0, 0], doublings),
    atol=1e-5,
  )
  # The four cells start as equal (ICNR).
  kernel = doublings[0][0].reshape(3, 4, 3)
  assert (kernel == kernel[:, :1]).all() and np.ptp(kernel) > 0.1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'decoders': cct_options.DecoderCounts}, 'expected one perturbed decoder'),
    ({'vat_xi': 0.0}, 'vat_xi: expected more than 0'),
    ({'annealing': 1.5}, 'annealing: expected'),
    (
      {
        'annealing': 0.9,
        'supervised': options_lib.SupervisedOptions(kind='ohem'),
      },
      "expected 0 with supervised.kind='ohem'",
    ),
  ],
)
def test_options_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    if 'decoders' in fields:
      fields = {'decoders': cct_options.DecoderCounts(*[0] * 7)}
    cct_options.CctOptions(**fields)


def test_a_head_with_norms_is_refused():
  with pytest.raises(ValueError, match='perturbed decoders are light ones'):
    OPTIONS.check_head('blocks')


def test_the_published_decoders_are_30_heads():
  names = [*cct_options.DecoderCounts().heads]
  assert len(names) == 30
  assert names[:2] == ['dropout1', 'dropout2'] and names[-1] == 'vat2'
