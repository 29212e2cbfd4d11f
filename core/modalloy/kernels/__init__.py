"""The arithmetic of merging, once as plain PyTorch and once as Triton kernels.

One folder per operation: ``reference`` says what is computed and runs anywhere, ``triton`` computes
the same on a GPU, and the folder's own function checks the arguments and picks one of the two, see
:mod:`modalloy.kernels.dispatch`. Triton is imported only where its backend is picked.

Numbers are float32 throughout, every product and every sum rounded by itself (no fused
multiply-add), sums run over the parents in the order given, divisions are IEEE, and the result is
rounded to nearest, ties to even, in the type asked for. So all backends give the same bits, up to
the payload of a NaN; only :mod:`modalloy.kernels.lowrank`, a matrix product, is exempt.
"""
