"""From noise to latents: schedules, guidance, the loop; and tiles for the autoencoder."""
