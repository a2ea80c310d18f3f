from tests.slurm.fake_slurm import slurm

__all__ = ["slurm"]
