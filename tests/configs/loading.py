"""Loads the experiments in configs/ as the command line does."""

import importlib

from segcore.experiment import config_file


def load(name, argument=''):
  """Returns the complete, locked config of an experiment with its options."""
  module = importlib.import_module(f'configs.{name}')
  config = config_file.complete_config(module.get_config(argument))
  config.lock()
  return config
