# shellcheck shell=sh
# The environment of every go command of this project. Sourced.

# A Go that was unpacked by hand is often not in a bare PATH.
command -v go >/dev/null 2>&1 || PATH=$PATH:/usr/local/go/bin
export PATH
# Debian's Go and some images are set to refuse a newer toolchain. go.mod names the
# version that is needed; one that is new enough is used as it is.
export GOTOOLCHAIN=auto
