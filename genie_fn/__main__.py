"""`python -m genie_fn`: the command `genie-fn`, where that is not on the path."""

from genie_fn.command import main

if __name__ == "__main__":
    main()
