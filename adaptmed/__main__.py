"""``python -m adaptmed`` is the ``adaptmed`` command; torchrun needs the module form."""

from adaptmed.cli import main

if __name__ == "__main__":
    main()
