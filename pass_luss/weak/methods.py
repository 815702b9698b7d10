"""Classifiers by the class of their options, as in a config's `learn`."""

from collections.abc import Mapping

from pass_luss.weak import image_classifier, sc_cam, seam

METHODS: Mapping[
  type[image_classifier.ClassifierOptions],
  type[image_classifier.ImageClassifier],
] = {
  image_classifier.ClassifierOptions: image_classifier.ImageClassifier,
  seam.SeamOptions: seam.Seam,
  sc_cam.ScCamOptions: sc_cam.ScCam,
}

# Blocks that a config may have; the first one is that without a name.
Options = (
  image_classifier.ClassifierOptions | seam.SeamOptions | sc_cam.ScCamOptions
)
