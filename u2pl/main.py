"""U2PL, U2PL+, DAFormer and AFA, from the command line.

python -m u2pl.main --config=configs/u2pl_shapes.py:system=u2pl_plus,labels=50
python -m u2pl.main --config=configs/u2pl_adapt_shapes.py:system=daformer
python -m u2pl.main --config=configs/u2pl_weak_shapes.py:system=afa
"""

from etils import epy

from segcore.experiment import cli, program

with epy.lazy_imports():
  from u2pl import experiment
  from u2pl.stages import adapt, evaluate, train, weak

PROGRAM = program.Program(
  lambda: program.Parts(
    experiment.Experiment,
    stages=(
      train.TrainStage,
      adapt.AdaptStage,
      weak.WeakStage,
      evaluate.EvaluateStage,
    ),
    predicts_with=evaluate.EvaluateStage,
  )
)

if __name__ == '__main__':
  cli.run_program(PROGRAM)
