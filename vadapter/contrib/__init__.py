"""Bridges to packages that are optional: `t5x` and `big_vision` (docs/bridges.md), lmms-eval and VLMEvalKit
(docs/howto.md).

Nothing here is imported by the rest of vadapter, so whoever has none of these packages notices nothing.
"""
