"""An experiment without training, for tests of studies.

Its results are a formula of its options. Each run of a stage appends a line to
the file `config.log`.
"""

import json
import os
import sys
import time
import types

import ml_collections

from configs import options as options_lib
from runtime import errors, json_files
from segcore.experiment import cli, stage
from segcore.train import workspace as workspace_lib

INITS = {'none': 0.1, 'ddep': 0.2}


def get_config(argument=None):
  options = options_lib.parse(
    argument,
    init=list(INITS),
    labels=50,
    seed=0,
    lr=1.0,
    breaks='',  # init whose evaluation fails
    wait='',  # file that evaluations of 100 labels wait for
    silent=False,  # write no results
    splits='val+test+train',  # that are reported
    log='',
  )
  return ml_collections.ConfigDict(
    {
      'program': 'tests.support.fake_program',
      'operation': {'fsdp': 1},
      'nested': {'bonus': 0.0},
      **vars(options),
    }
  )


def score(init, labels, seed, lr):
  """Computes the score; the best learning rate is 2 for none, 3 for ddep."""
  best = {'none': 2.0, 'ddep': 3.0}[init]
  return INITS[init] + labels / 1000 + seed / 100 - abs(lr - best) / 50


def build_stages(config, devices=None, workdir=None):
  def logged(name, workspace):
    with open(config.log, 'a') as file:
      card = os.environ.get('CARD', '')
      file.write(f'{name} {config.init} {card}'.strip() + '\n')
    workspace.directory.mkdir(parents=True, exist_ok=True)

  def pretrain(workspace):
    logged('pretrain', workspace)
    (workspace.directory / 'weights.txt').write_text(config.init)
    path = workspace.directory / 'results.json'
    splits = {'val': {'metrics': {'accuracy': INITS[config.init]}}}
    json_files.write_json(path, {'splits': splits})
    return [workspace.directory / 'weights.txt', path]

  def evaluate(workspace):
    logged('evaluate', workspace)
    while config.labels == 100 and not os.path.exists(config.wait or '/'):
      time.sleep(0.02)
      if workspace.preemption.reached():
        raise workspace_lib.Preempted('saved')
    if config.breaks == config.init:
      raise errors.UserError(f'{config.init} cannot be evaluated')
    weights = (workspace.needed['pretrain'] / 'weights.txt').read_text()
    value = score(weights, config.labels, config.seed, config.lr)
    value += config.nested.bonus
    lines = [
      {'step': step, 'train/loss': 0.5, 'test/miou': value * step / 2}
      for step in (1, 2)
    ]
    (workspace.directory / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
    )
    better = {'val': 0.0, 'test': 0.01, 'train': 0.3}
    splits = {
      split: {'metrics': {'miou': value + better[split]}}
      for split in config.splits.split('+')
    }
    if config.silent:
      return [workspace.directory / 'metrics.jsonl']
    path = workspace.directory / 'results.json'
    json_files.write_json(path, {'splits': splits})
    return [path]

  return [
    stage.Stage('pretrain', {'init': config.init}, pretrain),
    stage.Stage(
      'evaluate',
      {n: config[n] for n in ('labels', 'seed', 'lr', 'nested')},
      evaluate,
      ('pretrain',),
      reported=tuple(f'{split}/miou' for split in config.splits.split('+')),
    ),
  ]


PROGRAM = types.SimpleNamespace(
  complete=lambda config: config,
  is_chosen_by_name=lambda path: False,
  build_stages=build_stages,
  load_model=lambda: None,
)

if __name__ == '__main__':
  sys.exit(cli.run_command_line(PROGRAM, sys.argv))
