"""``python -m attnpass.tuner.cli``: the same as the command ``attnpass``."""

from attnpass.tuner.cli import main

if __name__ == "__main__":
    main()
