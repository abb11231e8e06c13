"""What a trainer reads besides targets: pictures with their captions."""
