"""Bridges to packages that are optional and on no registry: `t5x` and `big_vision`. See docs/bridges.md.

Nothing here is imported by the rest of vadapter, so whoever has neither package notices nothing.
"""
