"""Plain modules of the FLUX.1 family: they know no device, no adapter and no file."""
