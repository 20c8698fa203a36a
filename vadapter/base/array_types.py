"""Array annotations. One letter a dimension, everywhere in the package:

B batch (BM: its media as rows), M media of a row, F frames, P patches, E width of the vision encoder, R visual tokens
a medium, Q learned queries, T query length, S key length, N heads, K key/value heads, H head dimension, D width,
V vocabulary, C colour channels, L targets of a row, G label groups.
"""

from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8

__all__ = ["Array", "Bool", "Float", "Int", "PyTree", "Shaped", "UInt8"]
