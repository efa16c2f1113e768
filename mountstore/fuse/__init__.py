"""pyfuse3 on one side, the namespace on the other."""
