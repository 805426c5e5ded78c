"""Playing a trained world: in the browser, in the terminal, as an environment, beside the real game."""
