# What confines a container that names no profile: it reads and runs what it likes and has the capabilities that it was
# given, but cannot mount, and cannot write to what in /proc and /sys is the whole machine's.
{{if .Tunables}}#include <tunables/global>
{{else}}@{PROC}=/proc/
{{end}}
profile {{.Name}} flags=(attach_disconnected,mediate_deleted) {
{{if .Base}}  #include <abstractions/base>
{{end}}
  network,
  capability,
  file,
  umount,
  deny mount,

  # crid and the runtimes end and stop containers. Distributions give runtimes a profile that is nothing but a name.
{{range .Masters}}  signal (receive) peer={{.}},
{{end}}
  # A container's processes signal and look at each other. Where a runtime has a profile, crun stacks the container's on it
  # when there are to be no new privileges.
{{range .Selves}}  signal (send,receive) peer={{.}},
  ptrace (trace,read,tracedby,readby) peer={{.}},
{{end}}
  # Of /proc: files of the whole machine, and all of /proc/sys but shared memory's limits (which are the IPC namespace's).
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/{sysrq-trigger,kcore} rwklx,

  # Of /sys: all but /sys/fs/cgroup, which is the container's own cgroup.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/{firmware,devices/virtual/powercap,kernel/security}/** rwklx,
}
