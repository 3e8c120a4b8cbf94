"""Every formula, once, under its tag; ``docs/derivation.md`` proves each of them."""
