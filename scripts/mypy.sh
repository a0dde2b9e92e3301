#!/bin/sh
# Type-check the clone as the package `radfm`, whatever its folder is called: mypy wants the folder to have that name.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
ln -s "$PWD" "$folder/radfm"
MYPYPATH=$folder "$1" --cache-dir "$PWD/.mypy_cache" -p radfm
MYPYPATH=space "$1" --cache-dir .mypy_cache --explicit-package-bases $(ls space/*.py | grep -v __init__)
