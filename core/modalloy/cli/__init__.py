"""The ``modalloy`` command line: thin; it parses, calls and prints."""
