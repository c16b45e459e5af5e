"""Examples, run as modules from the root of the repository: `python -m examples.resnet50.train --help`."""
