"""Bad input, by the thousand: what a stranger may send, and what must come back for it."""
