# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Packaging of diffusers-craft. Every version bound stands once, in `_deps`."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup


ROOT = Path(__file__).parent

_deps = [
    "accelerate>=1.0.0",
    "bitsandbytes>=0.45.0",
    "datasets>=4.0",
    "diffusers>=0.34.0",
    "huggingface_hub>=0.30.0",
    "matplotlib>=3.7",
    "numpy>=1.26",
    "openai>=1.55.3",
    "open_clip_torch>=2.26.1",
    "Pillow>=10.1",
    "peft>=0.15.0",
    "pyarrow>=15.0",
    "pytest>=8.0",
    "ruff>=0.9.0",
    "safetensors>=0.4.3",
    "scipy>=1.11.1",
    "tensorboard>=2.14",
    "torch>=2.4",
    "torchvision>=0.19",
    "tqdm>=4.66.3",
    "transformers>=4.51.0",
    "uvicorn>=0.29",
]
deps = {re.match(r"[\w.-]+", dep)[0]: dep for dep in _deps}


def deps_list(*names: str) -> list[str]:
    """The requirement strings of the named packages."""
    return [deps[name] for name in names]


extras = {
    "8bit": deps_list("bitsandbytes"),
    "llm": deps_list("openai"),
    "lora": deps_list("peft"),
    "rewards": deps_list("open_clip_torch", "torchvision"),
    "tensorboard": deps_list("tensorboard"),
}
extras["test"] = [*deps_list("pytest", "uvicorn"), *extras["llm"], *extras["lora"], *extras["rewards"]]
extras["test"] += extras["tensorboard"]
extras["dev"] = [*extras["test"], *deps_list("ruff")]

setup(
    name="diffusers-craft",
    version=re.search(r'__version__ = "(.+?)"', (ROOT / "src/diffusers_craft/__init__.py").read_text())[1],
    description="CRAFT: align Stable Diffusion with human preference from about 100 self-made images",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The diffusers-craft authors",
    package_dir={"": "src"},
    packages=find_namespace_packages("src"),  # the folders of weights count as such, or pip warns at length
    package_data={"diffusers_craft": ["py.typed", "tiny/*.txt", "tiny/weights/**/*"]},
    include_package_data=True,
    python_requires=">=3.10",
    install_requires=deps_list(
        "accelerate",
        "datasets",
        "diffusers",
        "huggingface_hub",
        "matplotlib",
        "numpy",
        "Pillow",
        "pyarrow",
        "safetensors",
        "scipy",
        "torch",
        "tqdm",
        "transformers",
    ),
    extras_require=extras,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
