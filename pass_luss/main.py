"""PASS for unsupervised segmentation, from the command line.

python -m pass_luss.main --config=configs/pass_shapes.py:branch=swav
"""

from etils import epy

from segcore.experiment import cli, program

with epy.lazy_imports():
  from pass_luss import experiment
  from pass_luss.stages import (
    attend,
    classify,
    cluster,
    cluster_images,
    cluster_masks,
    distance,
    finetune,
    frozen_distance,
    frozen_kmeans,
    frozen_knn,
    label,
    represent,
    represent_masks,
    represent_pixels,
    retrain,
    salient_masks,
    segment,
    segment_cam,
    segment_pixels,
    subdivide,
  )

PROGRAM = program.Program(
  lambda: program.Parts(
    experiment.Experiment,
    stages=(
      represent.RepresentStage,
      distance.DistanceStage,
      attend.AttendStage,
      cluster.ClusterStage,
      label.LabelStage,
      finetune.FinetuneStage,
      segment.SegmentStage,
      finetune.SemiStage,
      segment.SegmentSemiStage,
      segment.SegmentOnStage,
      cluster_images.ClusterImagesStage,
      classify.ClassifyStage,
      subdivide.Subdivide1Stage,
      classify.ClassifyRound1Stage,
      subdivide.Subdivide2Stage,
      classify.ClassifyRound2Stage,
      subdivide.Subdivide3Stage,
      classify.ClassifyRound3Stage,
      segment_cam.SegmentCamStage,
      segment_cam.LabelCamStage,
      retrain.RetrainStage,
      retrain.SegmentRetrainedStage,
      represent_pixels.RepresentPixelsStage,
      segment_pixels.SegmentPixelsStage,
      salient_masks.SalientMasksStage,
      represent_masks.RepresentMasksStage,
      cluster_masks.ClusterMasksStage,
      cluster_masks.SegmentMasksStage,
      frozen_knn.FrozenKnnStage,
      frozen_distance.FrozenDistanceStage,
      frozen_kmeans.FrozenKmeansStage,
    ),
    predicts_with=segment.SegmentStage,
  )
)

if __name__ == '__main__':
  cli.run_program(PROGRAM)
