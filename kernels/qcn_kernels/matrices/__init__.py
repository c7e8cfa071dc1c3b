"""How kernels read weights in each of their formats. See README.md."""
