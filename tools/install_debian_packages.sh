#!/usr/bin/env bash
# Makes sure that the programs exist which the tests start and pip cannot bring.
# As root on Debian or Ubuntu it installs the packages that lack; otherwise it names them and stops.
set -euo pipefail

declare -A package_of=(
  [g++]=g++      # builds Horovod
  [make]=make    # likewise
  [tar]=tar      # likewise
  # A Slurm cluster of virtual nodes (tools/slurm_cluster.py)
  [slurmctld]=slurmctld
  [slurmd]=slurmd
  [srun]=slurm-client
  [munged]=munge
  [slurmdbd]=slurmdbd
  [mariadbd]=mariadb-server-core
  [ip]=iproute2
  [unshare]=util-linux
  # The leaderboard: its other database, and the browser that looks at its pages
  [initdb]=postgresql
  [chromium]=chromium
)
export PATH="$PATH:/usr/sbin:/sbin"
for folder in /usr/lib/postgresql/*/bin; do PATH="$PATH:$folder"; done

missing=()
for program in "${!package_of[@]}"; do
  command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
# srun --mpi=pmix opens libpmix.so, which only the development package has.
compgen -G '/usr/lib/*/pmix2/lib/libpmix.so' >/dev/null || compgen -G '/usr/lib/*/libpmix.so' >/dev/null || missing+=(libpmix-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "the tests need these packages, which only the administrator can install: ${missing[*]}" >&2
  echo "on Debian and Ubuntu: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
