// Package fact holds the plain values that several rooms speak of: what the host can do, what a runtime
// handler can do, whether the network is ready. It imports nothing and does nothing.
package fact

// CgroupMode is how the host mounts its control groups.
type CgroupMode int

const (
	CgroupV1     CgroupMode = iota // one hierarchy for each controller
	CgroupHybrid                   // v1 controllers with an empty v2 hierarchy beside them
	CgroupV2                       // the unified hierarchy alone
)

func (m CgroupMode) String() string {
	return [...]string{"v1", "hybrid", "v2"}[m]
}

// Host is what this machine allows, read once at start.
type Host struct {
	BootID       string // /proc/sys/kernel/random/boot_id
	Kernel       string // uname -r
	Cgroup       CgroupMode
	Controllers  []string // cgroup controllers that are mounted (v1) or enabled at the root (v2)
	PageSizes    []string // of huge pages, as hugetlb cgroups name them ("2MB")
	NoSwapLimit  bool     // the memory controller cannot limit swap space (swapaccount=0, kernels without)
	OOMScoreAdj  int      // crid's own: without RaiseLimits nothing may be started below it
	RaiseLimits  bool     // CAP_SYS_RESOURCE: rlimits may be raised, oom_score_adj lowered
	Capabilities uint64   // those that crid has and can hand on; bit n is the kernel's capability n
	Seccomp      bool     // the kernel has seccomp filters
	AppArmor     bool     // the kernel enforces AppArmor
	SELinux      bool     // the kernel enforces or permits by an SELinux policy
}

// HasController tells whether the cgroup controller name (memory, hugetlb, ...) can be used.
func (h Host) HasController(name string) bool {
	for _, c := range h.Controllers {
		if c == name {
			return true
		}
	}
	return false
}

// Handler is a runtime handler as it was found at start: a name of the configuration and what the binary
// behind it can do on this kernel.
type Handler struct {
	Name              string // as in [runtimes.NAME]; what a pod asks for
	Path              string // the runtime's binary
	Version           string // of the binary, as it reports it
	SpecVersion       string // the newest OCI runtime-spec version that the binary accepts
	RecursiveReadOnly bool   // mounts can be made read-only with all their submounts
	UserNamespaces    bool   // containers can join a pod's user namespace, and the host maps ids of mounts
	FlatBinds         bool   // in a user namespace, bind mounts lack what is mounted below their source, or their options
	Doubt             string // why this is a guess, or less than the binary can, for the operator; empty when it is neither
}

// Condition is one line of a readiness report.
type Condition struct {
	Ready   bool
	Reason  string // one word in CamelCase; empty when ready
	Message string // what an operator should know and do; may say something when ready, too
}

// WindowSize is how large a terminal is, in characters.
type WindowSize struct {
	Rows, Columns uint16
}

// IDRange maps Length ids, one after the other: Container is the first as a container sees it, Host the same one
// outside.
type IDRange struct{ Container, Host, Length uint32 }

// IDMap is the mapping of a user namespace. Both lists are empty for pods that have none of their own.
type IDMap struct{ UIDs, GIDs []IDRange }

// None tells whether the map stands for the host's own user namespace.
func (m IDMap) None() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// Root returns what the container's user and group 0 are on the host.
func (m IDMap) Root() (uid, gid int) { return m.Host(0, 0) }

// Host returns what a user and a group of the container are on the host.
func (m IDMap) Host(u, g uint32) (uid, gid int) { return hostID(m.UIDs, u), hostID(m.GIDs, g) }

// hostID answers 65534, which the kernel shows of what is not mapped, where ranges lack the id. Without ranges an id
// is the host's.
func hostID(ranges []IDRange, id uint32) int {
	for _, r := range ranges {
		if id >= r.Container && id-r.Container < r.Length {
			return int(r.Host + (id - r.Container))
		}
	}
	if len(ranges) == 0 {
		return int(id)
	}
	return 65534
}
