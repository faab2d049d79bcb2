"""CUDA C++ kernels compiled for a CPU, with coroutines for threads: tests execute them where there is no GPU."""
