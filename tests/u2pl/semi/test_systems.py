"""Laws that hold for each system: 8 devices equal 1, the warm-up, options."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segcore.ops import color_augment
from tests.support import meshes
from tests.transcriptions import u2pl as u2pl_reference
from tests.u2pl import inputs
from tests.u2pl.semi import pointwise, tiny
from u2pl.semi import (
  cct_options,
  equalization_options,
  pseudoseg_options,
  system_options,
  systems,
  two_network_options,
  unimatch_options,
)
from u2pl.semi import (
  options as options_lib,
)

# Gray alone: it is exact, so that no threshold is passed by rounding.
VIEWS = unimatch_options.ViewOptions(
  color_augment.ColorOptions(gray=0.5), group=2
)
OPTIONS = {
  'mt_mse': options_lib.MseTeacherOptions(),
  'cps': two_network_options.CpsOptions(),
  'cps_cutmix': two_network_options.CpsOptions(cutmix=True),
  'cct': cct_options.CctOptions(
    decoders=cct_options.DecoderCounts(*[1] * 7), annealing=0.99
  ),
  'gct': two_network_options.GctOptions(
    detector=two_network_options.DetectorOptions(4, 2)
  ),
  'pseudoseg': pseudoseg_options.PseudoSegOptions(),
  'pc2seg': pseudoseg_options.Pc2SegOptions(num_cells=6, num_negatives=10),
  'unimatch': unimatch_options.UniMatchOptions(confidence=0.22, views=VIEWS),
  'unimatch_v2': unimatch_options.UniMatchV2Options(
    confidence=0.22, views=VIEWS
  ),
  'ael': equalization_options.AelOptions(confidence=0.22),
  'u2pl_ael': equalization_options.U2plAelOptions(
    contrast=inputs.CONTRAST, contrast_start=0, reverse=0.1, denoise='raw'
  ),
}
# Systems that are tested on the smallest network, which compiles fast, and the
# side of their images.
ON_POINTWISE = {
  **dict.fromkeys(('mt_mse', 'cct', 'gct'), 24),
  **dict.fromkeys(('pseudoseg', 'pc2seg'), 24),
}
# Systems whose unlabeled images come in pairs, which a device has whole.
PAIRED = ('ael', 'u2pl_ael')
# Collectives beside sums: of images and labels of partners on another device,
# of the features of all cells, and, in AEL, of positions of images and counts.
MOVED = {
  'ael': {'all-gather'},
  'cps_cutmix': {'collective-permute'},
  'pc2seg': {'all-gather'},
  'u2pl_ael': {'all-gather'},
  'unimatch': {'collective-permute'},
  'unimatch_v2': {'collective-permute'},
}


def test_each_class_of_options_has_a_method():
  assert set(typing.get_args(system_options.Options)) == set(systems.METHODS)
  assert {type(options) for options in OPTIONS.values()} < set(systems.METHODS)


def make(name, dtype=jnp.float64):
  """Returns the method, a state and two batches; those of 1x1 in float64."""
  if name in ON_POINTWISE:
    side = ON_POINTWISE[name]
    trained = pointwise.make_method(OPTIONS[name])
    batches = [pointwise.draw_batch(side, seed, batch=8) for seed in (4, 5)]
    return trained, pointwise.init_state(trained, side), batches
  trained = tiny.make_method(OPTIONS[name], dtype=dtype)
  state = jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x,
    tiny.init_state(trained, step=3),
  )
  return trained, state, [tiny.draw_batch(4), tiny.draw_batch(5)]


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIONS)
def test_eight_devices_are_one_in_float64(name, monkeypatch):
  with jax.enable_x64():
    one, eight = meshes.one_and_eight(*make(name), 1, monkeypatch)
  meshes.assert_close(one, eight)


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIONS)
def test_collectives_of_a_step(name):
  """Sums, and what else a system moves between devices."""
  with jax.enable_x64(name in ON_POINTWISE):
    trained, state, [batch, other] = make(name, jnp.float32)
    if name in PAIRED:
      batch = jax.tree.map(lambda *x: np.concatenate(x), batch, other)
    kinds = meshes.collectives_of_step(trained, state, batch)
  assert {*kinds} == {'all-reduce'} | MOVED.get(name, set())


@pytest.mark.parametrize('name', OPTIONS)
def test_a_warm_up_has_the_weight_0(name):
  options = dataclasses.replace(OPTIONS[name], warmup_epochs=2)
  trained = tiny.make_method(options)
  state = jax.eval_shape(
    lambda: trained.init(jax.random.PRNGKey(0), tiny.batch_spec(), None)
  )
  weights = [
    float(trained.unlabeled_weight(state.replace(step=jnp.int32(step)), 1.5))
    for step in (0, 7, 8)
  ]
  assert weights == [0.0, 0.0, 1.5]


@pytest.mark.parametrize(
  'name',
  [
    'cps_cutmix',
    'unimatch',
    *(
      pytest.param(x, marks=pytest.mark.slow)
      for x in ('cps', 'cct', 'unimatch_v2')
    ),
  ],
)
def test_panels_show_the_images_that_are_learned(name):
  trained, batch = tiny.make_method(OPTIONS[name]), tiny.draw_batch()
  batch['unlabeled']['valid'] = np.arange(tiny.SIZE)[None, :, None] >= np.full(
    (tiny.BATCH, 1, tiny.SIZE), 9
  )
  state = tiny.init_state(trained)
  rng = jax.random.PRNGKey(0)
  output = jax.jit(trained.panel_output)(state, batch, rng)
  _, weak = tiny.symmetric_images(batch)
  scores = u2pl_reference.bilinear(
    np.asarray(jax.jit(trained.predict)(state, weak)), weak.shape[1:3]
  )
  assert (output.weak_labels == scores.argmax(-1)).mean() > 0.999
  labels = np.asarray(output.labels)
  # Padding is not learned, nor are labels without confidence; the rest has the
  # label of its pixel or that of the partner's.
  assert (labels[:, :9] < 0).all() and (labels >= 0).any()
  own = scores.argmax(-1)
  partners = own.reshape(-1, 2, *own.shape[1:])[:, ::-1].reshape(own.shape)
  shown = labels >= 0
  assert ((labels == own) | (labels == partners))[shown].mean() > 0.999
  changed = np.abs(np.asarray(output.images) - weak).max() > 0.1
  assert changed == (name not in ('cps', 'cct'))
  assert np.asarray(output.entropy).max() <= np.log(tiny.CLASSES) + 1e-5
