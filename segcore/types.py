"""Type aliases, and the one legend of dimension letters.

B batch · V views · H W pixels · h w feature cells · C classes · D feature size
K clusters or prototypes · N negatives · M anchors
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

# A tree of arrays, as flax returns them: nested dicts by module name.
Params = Mapping[str, Any]
Scalar = Float[Array, '']
Metrics = Mapping[str, Scalar]
# Shape and type of every array of a batch: a tree of jax.ShapeDtypeStruct.
BatchSpec = Mapping[str, Any]
