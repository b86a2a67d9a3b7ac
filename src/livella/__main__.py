"""`python -m livella` is the command `livella`."""

from livella.cli import main

if __name__ == "__main__":
    main()
