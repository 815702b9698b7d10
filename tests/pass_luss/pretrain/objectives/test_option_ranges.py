"""Options of objectives that are out of range."""

import pytest

from pass_luss.pretrain.objectives import moco, pixpro, simclr, simsiam, swav


@pytest.mark.parametrize(
  ('options', 'fields', 'message'),
  [
    (pixpro.PixproOptions, {'decay': 1.5}, 'decay: expected 0 to 1, got 1.5'),
    (pixpro.PixproOptions, {'size': 0}, 'size: expected more than 0, got 0'),
    (
      swav.SwavOptions,
      {'epsilon': 0.0},
      'epsilon: expected more than 0, got 0.0',
    ),
    (swav.SwavOptions, {'queue': -1}, 'queue: expected 0 or more, got -1'),
    (
      moco.MocoOptions,
      {'temperature': 0.0},
      'temperature: expected more than 0',
    ),
    (moco.MocoOptions, {'decay': 1.5}, 'decay: expected 0 to 1, got 1.5'),
    (moco.MocoOptions, {'queue': 0}, 'queue: expected'),
    (
      simclr.SimclrOptions,
      {'temperature': 0.0},
      'temperature: expected more than 0',
    ),
    (
      simsiam.SimsiamOptions,
      {'hidden': 0},
      'hidden: expected more than 0, got 0',
    ),
  ],
)
def test_refusals(options, fields, message):
  with pytest.raises(ValueError, match=message):
    options(**fields)
