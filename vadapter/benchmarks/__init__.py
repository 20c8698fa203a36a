"""Benchmarks, the paper's and others, from official files: `table` lists, `builder` writes, `tasks` registers."""
