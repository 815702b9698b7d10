"""Settings that distinguish U2PL's experiments."""

import pytest

from segcore.train import optimizers


def facts(config):
  """Returns the settings in which the rows of the tables differ."""
  learn = config.train.learn
  consistency, contrast = learn.consistency, learn.contrast
  return {
    'steps': config.train.recipe.num_steps,
    'mixing': consistency and consistency.mixing.kind,
    'filtered': bool(consistency and consistency.filtered),
    'reverse': consistency and consistency.reverse,
    'denoise': consistency and consistency.denoise,
    'contrast': contrast is not None,
    'bank': contrast and contrast.bank,
    'ranks': contrast
    and contrast.by_rank
    and (contrast.low_rank, contrast.high_rank),
    'negatives': contrast and contrast.negatives,
    'anchors': contrast and contrast.anchor_entropy,
    'weight': contrast and contrast.weight,
    'dynamic': learn.partition.dynamic,
    'momentum': learn.prototype_momentum,
  }


def rates(config):
  """Learning rate of the network's parts."""
  block = optimizers.OptimizerOptions(**config.train.recipe.optimizer)
  return {
    part: pytest.approx(block.learning_rate * block.factors(f'{part}/x')[0])
    for part in ('encoder', 'decoder', 'heads')
  }
