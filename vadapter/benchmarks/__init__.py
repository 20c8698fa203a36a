"""The paper's benchmarks from their official files: `table` lists them, `builder` writes, `tasks` registers."""
