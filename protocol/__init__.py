"""What loader and compute share: messages, the door, the bus and the arena. Never imports torch."""
