"""A trained world as a thing to load, save and give away."""
