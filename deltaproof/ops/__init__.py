"""The mathematics: one folder an operator, with its contract, its oracle and its kernels."""
