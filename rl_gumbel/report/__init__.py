"""One run as one page: what ran, how it went, and what the policy became."""
