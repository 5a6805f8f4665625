"""The project model that rules share: modules, names, functions, kernels, launches."""
