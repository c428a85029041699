"""What every part of the package is built on: records, checks of arguments, programs, loops, files."""
