"""What steers the denoiser, one file each."""
