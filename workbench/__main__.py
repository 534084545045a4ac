"""`python -m workbench VERB`: the command line, for where a module is wanted, as by torchrun."""

from workbench.cli.app import main

if __name__ == "__main__":
    main()
