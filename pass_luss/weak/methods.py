"""Classifiers by the class of their options, as in a config's `learn`."""

from collections.abc import Mapping

from pass_luss.weak import classifier_options, image_classifier, sc_cam, seam

METHODS: Mapping[
  type[classifier_options.ClassifierOptions],
  type[image_classifier.ImageClassifier],
] = {
  classifier_options.ClassifierOptions: image_classifier.ImageClassifier,
  classifier_options.SeamOptions: seam.Seam,
  classifier_options.ScCamOptions: sc_cam.ScCam,
}
