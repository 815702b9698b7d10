"""Trains with few labels from random and from pretrained weights, side by side.

  python examples/demo.py [--source=FOLDER] [--workdir=runs/demo]
      [--labels=40] [--steps=300]

The folder holds images, masks and classes.txt, as in docs/own_data.md. Without
it, the photographs in $SEG_DATA_DIR/ccp are taken if they are there; otherwise
images are drawn, which takes half a minute. Ends with a table of both scores
and the folders of pictures.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import cv2

from input_pipeline.builders import natural, natural_classes
from runtime import exit_status
from segcore.study import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Drawn images of each split.
NUM_IMAGES = {'train': 200, 'val': 100}


def draw_folder(folder: pathlib.Path) -> None:
  """Draws images and masks as a user would have them, unless they are there."""
  (config,) = (
    c for c in natural.natural_configs(128, '_128') if c.max_objects > 1
  )
  for split, count in NUM_IMAGES.items():
    for name in ('images', 'masks'):
      (folder / name / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      image_path = folder / 'images' / split / f'{i:03}.png'
      if image_path.exists():
        continue
      sample = config.draw_sample(split, i)
      mask_path = folder / 'masks' / split / image_path.name
      cv2.imwrite(str(mask_path), sample.label.astype('uint8'))
      image_path.write_bytes(sample.image)
  classes = ''.join(f'{name}\n' for name in natural_classes.CLASSES)
  (folder / 'classes.txt').write_text(classes)


def find_source(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the photographs at hand, or a folder of drawn images."""
  photographs = pathlib.Path(os.environ.get('SEG_DATA_DIR', '')) / 'ccp'
  if os.environ.get('SEG_DATA_DIR') and photographs.is_dir():
    return photographs
  drawn = workdir / 'drawn'
  print(f'no photographs in $SEG_DATA_DIR/ccp: drawing images into {drawn}')
  draw_folder(drawn)
  return drawn


def main(argv: Sequence[str]) -> int:
  """Runs the comparison; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--source', type=pathlib.Path)
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/demo')
  parser.add_argument('--labels', type=int, default=40)
  parser.add_argument('--steps', type=int, default=300)
  arguments = parser.parse_args(argv)
  source = arguments.source or find_source(arguments.workdir)
  return cli.run_study_command(
    [
      f'--config={ROOT}/configs/u2pl_folder.py:source={source},'
      'system=sup_only,network=efficientnet+unet,unlabeled=same,cover=1',
      '--vary=encoder=random,auto',
      f'--vary=labels={arguments.labels}',
      f'--config.train.recipe.num_steps={arguments.steps}',
      f'--config.train.recipe.evaluate_every={arguments.steps // 2}',
      '--also=val/pixel_accuracy',
      f'--workdir={arguments.workdir}/study',
    ]
  )


if __name__ == '__main__':
  exit_status.exit_with_status(lambda: main(sys.argv[1:]))
