"""Segments images with an exported network; needs jax, numpy and Pillow.

  python segment_exported.py runs/roads/export photographs segmented

Reads `model.stablehlo` and `classes.json` from the first folder and writes, for
each image of the second, a palette PNG of class ids to the third. The network
is compiled once for each image size: images of equal size are fast.
"""

import argparse
import json
import pathlib

import numpy as np
import PIL.Image
from jax import export

_SUFFIXES = ('.jpg', '.jpeg', '.png')


def main() -> None:
  """Segments all images of a folder."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    'model', type=pathlib.Path, help='folder of the exported network'
  )
  parser.add_argument('images', type=pathlib.Path, help='folder of images')
  parser.add_argument('out', type=pathlib.Path, help='folder of the results')
  arguments = parser.parse_args()

  content = (arguments.model / 'model.stablehlo').read_bytes()
  network = export.deserialize(bytearray(content))
  classes = json.loads((arguments.model / 'classes.json').read_text())
  paths = sorted(
    path
    for path in arguments.images.iterdir()
    if path.suffix.lower() in _SUFFIXES
  )
  if not paths:
    parser.error(
      f'{arguments.images}: expected images ({", ".join(_SUFFIXES)}), got none'
    )
  arguments.out.mkdir(parents=True, exist_ok=True)
  for path in paths:
    image = np.asarray(PIL.Image.open(path).convert('RGB'))
    labels = np.asarray(network.call(image[None]))[0]
    counts = np.bincount(labels.ravel(), minlength=len(classes['classes']))
    largest = np.argsort(-counts)[:3]
    print(
      path.name,
      ', '.join(
        f'{classes["classes"][i]} {counts[i] / labels.size:.0%}'
        for i in largest
        if counts[i]
      ),
    )
    if len(classes['classes']) > 256:  # More than a palette can hold.
      picture = PIL.Image.fromarray(labels.astype(np.uint16))
    else:
      picture = PIL.Image.fromarray(labels.astype(np.uint8))
      picture.putpalette(np.array(classes['palette'], np.uint8).tobytes())
    picture.save(arguments.out / f'{path.stem}.png')


if __name__ == '__main__':
  main()
