"""Loads the experiments in configs/ as the command line does."""

import collections
import importlib

import jax
import numpy as np

from segcore.experiment import config_file


def load(name, argument=''):
  """Returns the complete, locked config of an experiment with its options."""
  module = importlib.import_module(f'configs.{name}')
  config = config_file.complete_config(module.get_config(argument))
  config.lock()
  return config


def count_parameters(stage, num_classes, part_of):
  """Counts the parameters of a stage's network.

  Args:
    stage: stage with a recipe.
    num_classes: number of classes.
    part_of: function from the path of a parameter to the name of its part.

  Returns:
    By part, factor of the learning rate and factor of the decay: how many.
  """
  net = stage.build_network(stage.context, num_classes)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  params = jax.eval_shape(net.init, jax.random.PRNGKey(0), images)['params']
  counts = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    factors = stage.options.recipe.optimizer.factors(name)
    counts[part_of(name), *factors] += leaf.size
  return counts
