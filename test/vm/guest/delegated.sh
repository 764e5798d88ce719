# Runs a program as one that has been handed a part of the cgroups and sees no other, as a node in a container does: in a
# cgroup namespace whose root is the cgroup that this unit was delegated.
exec unshare --cgroup --mount sh -euc '
mount -t cgroup2 none /sys/fs/cgroup
# Who hands down controllers must not have processes of its own.
mkdir -p /sys/fs/cgroup/init
echo $$ >/sys/fs/cgroup/init/cgroup.procs
for pid in $(cat /sys/fs/cgroup/cgroup.procs); do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs; done
exec "$@"' sh "$@"
