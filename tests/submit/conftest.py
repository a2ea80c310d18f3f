from tests.submit.fake_slurm import slurm

__all__ = ["slurm"]
