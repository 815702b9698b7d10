"""The objectives of a pretraining run, built from their options."""

from collections.abc import Sequence

import flax.linen as nn
from jax.typing import DTypeLike

from pass_luss.pretrain import objective, objective_choice, objective_options
from pass_luss.pretrain.objectives import adco as adco_lib
from pass_luss.pretrain.objectives import byol as byol_lib
from pass_luss.pretrain.objectives import d2s, p2p, swav
from pass_luss.pretrain.objectives import densecl as densecl_lib
from pass_luss.pretrain.objectives import moco as moco_lib
from pass_luss.pretrain.objectives import pcl as pcl_lib
from pass_luss.pretrain.objectives import pixpro as pixpro_lib
from pass_luss.pretrain.objectives import simclr as simclr_lib
from pass_luss.pretrain.objectives import simsiam as simsiam_lib
from pass_luss.pretrain.objectives import supervised as supervised_lib

# Objectives that are a method by themselves, by the field of their options.
METHODS = {
  'pixpro': pixpro_lib.Pixpro,
  'supervised': supervised_lib.Supervised,
  'simclr': simclr_lib.Simclr,
  'moco': moco_lib.Moco,
  'byol': byol_lib.Byol,
  'simsiam': simsiam_lib.Simsiam,
  'densecl': densecl_lib.Densecl,
  'pcl': pcl_lib.Pcl,
  'adco': adco_lib.Adco,
}


def build_objectives(
  options: objective_choice.ObjectiveOptions,
  sizes: objective_options.HeadSizes,
) -> tuple[objective.Objective, ...]:
  """Builds the objectives; D2S after SwAV, whose targets it reads."""
  # The order is also that of the terms in the sum of the loss.
  objectives = []
  if options.clusters:
    objectives.append(swav.Swav(options.clusters, sizes))
  if options.shallow.stages:
    objectives.append(d2s.D2S(options.shallow, sizes, options.clusters))
  if options.alignment:
    objectives.append(p2p.P2P(options.alignment, sizes, options.clusters))
  for name in options.methods:
    objectives.append(METHODS[name](vars(options)[name]))
  return tuple(objectives)


def build_objective_heads(
  objectives: Sequence[objective.Objective], dtype: DTypeLike
) -> dict[str, nn.Module]:
  """Builds the heads of all objectives, by name."""
  return {
    name: head
    for each in objectives
    for name, head in each.heads(dtype).items()
  }
