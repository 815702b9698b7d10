"""Continuation of a finished training with more steps: whether it can be."""

from collections.abc import Sequence

from runtime import files
from segcore.models import segmenter
from segcore.train import optimizers
from segcore.train import update as update_lib


def explain_refused_extension(
  recipe: update_lib.RecipeOptions, num_steps: int, follows_num_steps: bool
) -> str:
  """Explains why a longer training is no continuation; '' if it is one.

  Args:
    recipe: recipe of the longer training.
    num_steps: number of steps of the shorter one.
    follows_num_steps: whether the method itself depends on that number.
  """
  if not follows_num_steps and optimizers.has_same_learning_rates(
    recipe.optimizer, num_steps, recipe.num_steps
  ):
    return ''
  follows = f'a {recipe.optimizer.schedule} schedule'
  if follows_num_steps:
    follows = 'the method'
  return (
    f'{follows} over {recipe.num_steps:,} steps differs from the first step '
    'on, so the training cannot be continued'
  )


def describe_new_training_start(
  path: str,
  directory: files.Path,
  net: segmenter.Segmenter,
  stages: Sequence[str],
) -> str:
  """Describes the flags that start another training from these weights.

  Args:
    path: path of the stage's block of the config.
    directory: folder of the stage.
    net: network of the stage.
    stages: names of the stages from this one on.
  """
  take = ['encoder', *(['decoder'] if net.decoder else [])]
  take += [f'heads/{name}' for name in net.heads.modules]
  return (
    'to start another one from its weights, add --workdir=NEW '
    f'--config.stages="{tuple(stages)}" --{path}.start.path={directory} '
    f'--{path}.start.take="{tuple(take)}"'
  )
