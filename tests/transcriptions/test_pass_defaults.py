"""Defaults of PASS's transcription against the specification's."""

import inspect

import pytest

from tests.transcriptions import (
  pass_benchmark,
  pass_labels,
  pass_pixpro,
  pass_pretraining,
  pass_updates,
)

MODULES = (
  pass_benchmark,
  pass_labels,
  pass_pixpro,
  pass_pretraining,
  pass_updates,
)


@pytest.mark.parametrize(
  ('names', 'defaults'),
  [
    ('swav_learning_rate', {'base': 0.6, 'final': 6e-4}),
    ('sinkhorn swav_targets', {'epsilon': 0.05, 'num_iterations': 3}),
    (
      'swav_loss clustering_p2p_loss',
      {'temperature': 0.1, 'epsilon': 0.05, 'num_iterations': 3},
    ),
    ('d2s_loss', {'temperature': 0.1, 'same_view': False}),
    ('overlap_grids sample_pairs p2p_loss', {'size': 7}),
    ('p2p_loss', {'statistics': 'joint'}),
    ('larc larc_sgd_steps', {'weight_decay': 1e-6, 'trust': 1e-3}),
    ('sgd_momentum larc_sgd_steps', {'momentum': 0.9}),
    ('lars', {'weight_decay': 1e-5, 'trust': 1e-3}),
    ('pixpro_learning_rate', {'base': 1.0, 'final': 1e-6}),
    ('momentum', {'base': 0.99}),
    ('ppm', {'power': 2, 'clamp': 0}),
    ('pixpro_masks', {'threshold': 0.7}),
    ('pixel_attention_embeddings cluster_features', {'factor': 4}),
    ('attention_map category_map pseudo_labels', {'factor': 4}),
    ('finetune_loss', {'size': (112, 112), 'ignore': None}),
    ('inference_size', {'short': 256}),
    ('label_map', {'limit': 1000, 'longer': False}),
    ('boundary_map boundary_miou boundary_miou_by_size', {'ratio': 0.03}),
  ],
)
def test_defaults_are_those_of_the_specification(names, defaults):
  for name in names.split():
    (function,) = (getattr(m, name) for m in MODULES if hasattr(m, name))
    parameters = inspect.signature(function).parameters
    actual = {key: parameters[key].default for key in defaults}
    assert actual == defaults, name
