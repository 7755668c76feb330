"""The page for people: templates, and what stands beside them."""
