"""Merge kernels of the CPU: numba, on raw memory, without torch.

They release the interpreter's lock, so that threads run them side by side, and take addresses, so
that memory-mapped files are read where they lie. All arithmetic is float32, in the order given and
without fused multiply-add: the bits are those of the references in torch.
"""
