"""Segments photographs with an exported network; needs jax, numpy and Pillow.

  python segment_exported.py runs/roads/export photographs found

reads `model.stablehlo` and `classes.json` of the first folder, and writes a
palette PNG of class ids for each image of the second into the third. A program
is compiled for each size of image: a folder of equal sizes is fast.
"""

import argparse
import json
import pathlib

import numpy as np
import PIL.Image
from jax import export

_KINDS = ('.jpg', '.jpeg', '.png')


def main() -> None:
  """Segments a folder."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('model', type=pathlib.Path, help='folder of the files')
  parser.add_argument('images', type=pathlib.Path, help='folder of images')
  parser.add_argument('out', type=pathlib.Path, help='folder of the results')
  arguments = parser.parse_args()

  content = (arguments.model / 'model.stablehlo').read_bytes()
  network = export.deserialize(bytearray(content))
  known = json.loads((arguments.model / 'classes.json').read_text())
  paths = sorted(
    path for path in arguments.images.iterdir() if path.suffix.lower() in _KINDS
  )
  if not paths:
    parser.error(f'no {", ".join(_KINDS)} in {arguments.images}')
  arguments.out.mkdir(parents=True, exist_ok=True)
  for path in paths:
    image = np.asarray(PIL.Image.open(path).convert('RGB'))
    labels = np.asarray(network.call(image[None]))[0]
    shares = np.bincount(labels.ravel(), minlength=len(known['classes']))
    found = np.argsort(-shares)[:3]
    print(
      path.name,
      ', '.join(
        f'{known["classes"][i]} {shares[i] / labels.size:.0%}'
        for i in found
        if shares[i]
      ),
    )
    if len(known['classes']) > 256:  # A palette has no room for more.
      picture = PIL.Image.fromarray(labels.astype(np.uint16))
    else:
      picture = PIL.Image.fromarray(labels.astype(np.uint8))
      picture.putpalette(np.array(known['palette'], np.uint8).tobytes())
    picture.save(arguments.out / f'{path.stem}.png')


if __name__ == '__main__':
  main()
