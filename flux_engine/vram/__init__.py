"""Who is on the card: models know no device, this room does."""
