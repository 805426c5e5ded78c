"""Playing a trained world: in the browser, in the terminal, or as an environment."""
