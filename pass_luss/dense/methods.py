"""Methods of clusters of pixels by the class of their options."""

from collections.abc import Mapping

from pass_luss.dense import mdc, picie, pixel_clustering

METHODS: Mapping[
  type[pixel_clustering.ClusterOptions],
  type[pixel_clustering.PixelClustering],
] = {
  mdc.MdcOptions: mdc.Mdc,
  picie.PicieOptions: picie.Picie,
}

# Blocks that a config may have, by their names.
Options = mdc.MdcOptions | picie.PicieOptions
