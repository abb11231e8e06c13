"""Each format is read back the way its reader reads it."""
