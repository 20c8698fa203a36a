"""vadapter: progressively aligned vision-language adapters on JAX (arXiv 2402.10896)."""

__version__ = "0.1.0"
