"""Films of an agent: what it sees, how probable each action is to it, and what it expects."""
