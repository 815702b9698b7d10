"""Methods of clusters of pixels by the class of their options."""

from collections.abc import Mapping

from pass_luss.dense import dense_options, mdc, picie, pixel_clustering

METHODS: Mapping[
  type[dense_options.ClusterOptions],
  type[pixel_clustering.PixelClustering],
] = {
  dense_options.MdcOptions: mdc.Mdc,
  dense_options.PicieOptions: picie.Picie,
}
