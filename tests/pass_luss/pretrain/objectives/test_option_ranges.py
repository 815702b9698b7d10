"""Options of objectives that are out of range."""

import pytest

from pass_luss.pretrain import comparator_options, objective_options


@pytest.mark.parametrize(
  ('options', 'fields', 'message'),
  [
    (
      objective_options.PixproOptions,
      {'decay': 1.5},
      'decay: expected 0 to 1, got 1.5',
    ),
    (
      objective_options.PixproOptions,
      {'size': 0},
      'size: expected more than 0, got 0',
    ),
    (
      objective_options.SwavOptions,
      {'epsilon': 0.0},
      'epsilon: expected more than 0, got 0.0',
    ),
    (
      objective_options.SwavOptions,
      {'queue': -1},
      'queue: expected 0 or more, got -1',
    ),
    (
      comparator_options.MocoOptions,
      {'temperature': 0.0},
      'temperature: expected more than 0',
    ),
    (
      comparator_options.MocoOptions,
      {'decay': 1.5},
      'decay: expected 0 to 1, got 1.5',
    ),
    (comparator_options.MocoOptions, {'queue': 0}, 'queue: expected'),
    (
      comparator_options.SimclrOptions,
      {'temperature': 0.0},
      'temperature: expected more than 0',
    ),
    (
      comparator_options.SimsiamOptions,
      {'hidden': 0},
      'hidden: expected more than 0, got 0',
    ),
  ],
)
def test_refusals(options, fields, message):
  with pytest.raises(ValueError, match=message):
    options(**fields)
