"""Decoder denoising pretraining, from the command line.

python -m ddep.main --config=configs/ddep_shapes.py:init=ddep,labels=100
"""

from etils import epy

from segcore.experiment import cli, program

with epy.lazy_imports():
  from ddep import experiment
  from ddep.stages import classify, denoise, evaluate, finetune

PROGRAM = program.Program(
  lambda: program.Parts(
    experiment.Experiment,
    stages=(
      classify.ClassifyStage,
      denoise.DenoiseStage,
      finetune.FinetuneStage,
      evaluate.EvaluateStage,
    ),
    predicts_with=evaluate.EvaluateStage,
  )
)

if __name__ == '__main__':
  cli.run_program(PROGRAM)
