"""Type aliases, and the legend of the dimension letters in shape annotations.

B batch · V views · H W pixels · h w feature cells · P pixels or cells of an
image · C classes · D features · K clusters or prototypes · N negatives ·
M anchors · T tokens

A suffix tells apart two sizes of one kind: 'B h_out w_out D_out'.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Int, Key, UInt32

# A tree of arrays, as flax returns them: nested dicts by module name.
Params = Mapping[str, Any]
Scalar = Float[Array, '']
# Features of the tokens, or of the cells of a map, of each image.
Tokens = Float[Array, 'B T D']
Cells = Float[Array, 'B h w D']
# Those of another grid, and of another width.
ResizedCells = Float[Array, 'B h_out w_out D']
NewCells = Float[Array, 'B h_out w_out D_out']
# In [-1, 1] unless stated otherwise.
Images = Float[Array, 'B H W 3']
# Class ids, negative where ignored; and which pixels or cells count.
PixelLabels = Int[Array, 'B H W']
PixelMask = Bool[Array, 'B H W']
CellLabels = Int[Array, 'B h w']
CellMask = Bool[Array, 'B h w']
Metrics = Mapping[str, Scalar]
# A key for each example: typed, or jax's older kind, two integers.
ExampleKeys = Key[Array, 'B'] | UInt32[Array, 'B 2']
# Shape and type of every array of a batch: a tree of jax.ShapeDtypeStruct.
BatchSpec = Mapping[str, Any]
