"""A null GPU: runs the host side of CUDA programs on a machine without a card.

A library that is preloaded in place of the CUDA runtime, the driver, cuBLAS and NCCL. Allocations, copies, events and
properties work; kernels are counted and do nothing. So PyTorch, Triton, DeepSpeed and this project run their own code
as on the card that `Card` describes: which kernels they choose and how many they launch, where they wait for the
device, how much memory they allocate. Values are arbitrary: the null GPU says nothing about numbers, seconds on the
device or communication.
"""
