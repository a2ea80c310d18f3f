"""Where the packages lie; everything else is in pyproject.toml, which has no way to say this beside a search."""

from setuptools import find_packages, setup

setup(
    # What users browse and copy at the top of the checkout lies inside the installed package.
    packages=[*find_packages(include=["stacking", "stacking.*"]), "stacking.ds_configs", "stacking.slurm_templates"],
    package_dir={"stacking": "stacking", "stacking.ds_configs": "ds_configs", "stacking.slurm_templates": "slurm"},
)
