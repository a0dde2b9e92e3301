#!/bin/sh
# Run mkdocs with the clone as the package `radfm`, whatever its folder is called: `sh scripts/mkdocs.sh mkdocs build --strict`.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
ln -s "$PWD" "$folder/radfm"
NO_MKDOCS_2_WARNING=1 RADFM_PARENT=$folder "$@"
