"""The package and what it needs; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = (here / "stacking/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

setup(
    name="stacking",
    version=version,
    description="Pre-training BERT by progressive stacking, with DeepSpeed",
    long_description=(here / "README.md").read_text() if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # What users browse and copy at the top of the checkout lies inside the installed package.
    packages=[*find_packages(include=["stacking", "stacking.*"]), "stacking.ds_configs", "stacking.slurm_templates"],
    package_dir={"stacking": "stacking", "stacking.ds_configs": "ds_configs", "stacking.slurm_templates": "slurm"},
    package_data={
        "stacking": ["py.typed", "config/recipes/*.yaml", "report/*.html", "deepspeed_config/facts.json"],
        "stacking.ds_configs": ["README.md", "*/*.json"],
        "stacking.slurm_templates": ["*"],
    },
    install_requires=[
        "torch>=2.4,<2.14",
        "deepspeed>=0.18,<0.20",
        "hjson>=3.1",
        "transformers>=4.40,<5.25",
        "tokenizers>=0.19",
        "datasets>=2.18",
        "safetensors>=0.4",
        "pydantic>=2.7",
        "pyyaml>=6",
        "numpy>=1.24",
        "xxhash>=3.4",
        "click>=8.1",
        "rich>=13",
        "matplotlib>=3.7",
        "jinja2>=3.1",
        "tensorboard>=2.14",
    ],
    extras_require={
        "mpi": ["mpi4py>=3.1"],
        "test": ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.90", "ruff>=0.5", "mypy>=1.8", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["stacking=stacking.__main__:main"]},
)
