package spec

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

const (
	usernsField = "linux.security_context.namespace_options.userns_options"
	maxRanges   = 340  // lines of a map: the kernel's limit
	maxMapText  = 4095 // bytes of all lines as they are written: the kernel takes less than a page
)

// UserMap returns the ids of the pod's user namespace; none where it lives in the host's. The config must have passed
// ValidatePod.
func UserMap(c *runtime.PodSandboxConfig) fact.IDMap {
	u := podOptions(c).GetUsernsOptions()
	if u == nil || u.GetMode() != runtime.NamespaceMode_POD {
		return fact.IDMap{}
	}
	return fact.IDMap{UIDs: ranges(u.GetUids()), GIDs: ranges(u.GetGids())}
}

func ranges(mappings []*runtime.IDMapping) []fact.IDRange {
	var all []fact.IDRange
	for _, m := range mappings {
		all = append(all, fact.IDRange{Container: m.GetContainerId(), Host: m.GetHostId(), Length: m.GetLength()})
	}
	return all
}

// validateUserns accepts what the kernel would. Without options, or with mode NODE, the pod is in the host's user
// namespace.
func validateUserns(o *runtime.NamespaceOption) error {
	u := o.GetUsernsOptions()
	if u == nil {
		return nil // what a kubelet without user namespaces sends
	}
	switch u.GetMode() {
	case runtime.NamespaceMode_POD:
	case runtime.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return fmt.Errorf("%s: mappings make no sense with mode NODE: %w", usernsField, errdef.Invalid)
		}
		return nil
	default:
		return fmt.Errorf("%s.mode: a pod cannot have mode %v: %w", usernsField, u.GetMode(), errdef.Invalid)
	}
	if err := cmp.Or(validateRanges("uids", u.GetUids()), validateRanges("gids", u.GetGids())); err != nil {
		return err
	}
	// The host's namespaces belong to the host's user namespace: nothing could be mounted or set up in them.
	for _, other := range []struct {
		field string
		mode  runtime.NamespaceMode
	}{{"network", o.GetNetwork()}, {"pid", o.GetPid()}, {"ipc", o.GetIpc()}} {
		if other.mode == runtime.NamespaceMode_NODE {
			return fmt.Errorf("%s: a pod with a user namespace cannot be in the host's %s namespace: %w", usernsField, other.field,
				errdef.Invalid)
		}
	}
	return nil
}

func validateRanges(field string, mappings []*runtime.IDMapping) error {
	fail := func(why string, args ...any) error {
		return fmt.Errorf("%s.%s: %s: %w", usernsField, field, fmt.Sprintf(why, args...), errdef.Invalid)
	}
	if len(mappings) > maxRanges {
		return fail("%d mappings, the kernel takes %d", len(mappings), maxRanges)
	}
	if n := mapText(mappings); n > maxMapText {
		return fail("the %d mappings take %d bytes as text, the kernel takes %d", len(mappings), n, maxMapText)
	}
	root := false
	for i, m := range mappings {
		switch c, h, n := uint64(m.GetContainerId()), uint64(m.GetHostId()), uint64(m.GetLength()); {
		case n == 0:
			return fail("mapping %d has length 0", i)
		case max(c, h)+n > 1<<32-1:
			return fail("mapping %d goes beyond the greatest id", i)
		case c == 0:
			root = true
		}
		for j, other := range mappings[:i] {
			if overlap(m.GetContainerId(), other.GetContainerId(), m, other) || overlap(m.GetHostId(), other.GetHostId(), m, other) {
				return fail("mappings %d and %d overlap", j, i)
			}
		}
	}
	if !root {
		return fail("no mapping of container id 0")
	}
	return nil
}

// mapText is how many bytes the mappings take in /proc/PID/uid_map.
func mapText(mappings []*runtime.IDMapping) int {
	n := 0
	for _, m := range mappings {
		n += len(fmt.Sprintf("%d %d %d\n", m.GetContainerId(), m.GetHostId(), m.GetLength()))
	}
	return n
}

// overlap tells whether two ranges, which begin at a and b and are as long as their mappings, have an id in common.
func overlap(a, b uint32, of, and *runtime.IDMapping) bool {
	return uint64(a) < uint64(b)+uint64(and.GetLength()) && uint64(b) < uint64(a)+uint64(of.GetLength())
}

// validateContainerUserns holds a container to its pod's user namespace, which it joins whether or not it says so.
func validateContainerUserns(o *runtime.NamespaceOption, pod *runtime.PodSandboxConfig) error {
	users := UserMap(pod)
	if o.GetPid() == runtime.NamespaceMode_NODE && !users.None() {
		return fmt.Errorf("linux.security_context.namespace_options.pid: a container of a pod with a user namespace cannot be in the host's PID namespace: %w",
			errdef.Invalid)
	}
	u := o.GetUsernsOptions()
	if u == nil {
		return nil
	}
	switch mode := u.GetMode(); {
	case mode != runtime.NamespaceMode_POD && mode != runtime.NamespaceMode_NODE:
		return fmt.Errorf("%s.mode: a container cannot have mode %v: %w", usernsField, mode, errdef.Invalid)
	case (mode == runtime.NamespaceMode_NODE) != users.None():
		return fmt.Errorf("%s.mode: %v is not the pod's: %w", usernsField, mode, errdef.Invalid)
	case mode == runtime.NamespaceMode_POD && !sameMap(u.GetUids(), u.GetGids(), users):
		return fmt.Errorf("%s: the mappings are not the pod's: %w", usernsField, errdef.Invalid)
	}
	return nil
}

// validateMountUserns accepts on a mount what its pod has: the ids of files cannot be another pod's.
func validateMountUserns(m *runtime.Mount, pod *runtime.PodSandboxConfig) error {
	uids, gids := m.GetUidMappings(), m.GetGidMappings()
	if len(uids)+len(gids) > 0 && !sameMap(uids, gids, UserMap(pod)) {
		return fmt.Errorf("uidMappings, gidMappings: they are not those of the pod's user namespace: %w", errdef.Invalid)
	}
	if m.GetPropagation() == runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL && !UserMap(pod).None() {
		return fmt.Errorf("propagation: PROPAGATION_BIDIRECTIONAL: nothing that is mounted in a pod with a user namespace reaches the host: %w",
			errdef.Invalid)
	}
	return nil
}

func sameMap(uids, gids []*runtime.IDMapping, m fact.IDMap) bool {
	return slices.Equal(ranges(uids), m.UIDs) && slices.Equal(ranges(gids), m.GIDs)
}

// setUserns makes the container join the pod's user namespace. Runtimes want the mappings besides: runc before 1.2
// works out from them who owns devices and terminals.
func setUserns(s *specs.Spec, in Input) error {
	users := UserMap(in.Pod.Config)
	if users.None() {
		return nil
	}
	if !in.Handler.UserNamespaces {
		return fmt.Errorf("%s: handler %q runs no containers in user namespaces: %w", usernsField, in.Handler.Name, errdef.Unsupported)
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: in.Pod.UserNS})
	s.Linux.UIDMappings, s.Linux.GIDMappings = ociMap(users.UIDs), ociMap(users.GIDs)
	return nil
}

func ociMap(ranges []fact.IDRange) []specs.LinuxIDMapping {
	var all []specs.LinuxIDMapping
	for _, r := range ranges {
		all = append(all, specs.LinuxIDMapping{ContainerID: r.Container, HostID: r.Host, Size: r.Length})
	}
	return all
}

// mapped tells whether a container can have the id; without ranges it can have any.
func mapped(ranges []fact.IDRange, id uint32) bool {
	return len(ranges) == 0 || slices.ContainsFunc(ranges, func(r fact.IDRange) bool {
		return id >= r.Container && id-r.Container < r.Length
	})
}

// checkMapped refuses a user that the pod's user namespace lacks, which runtimes report as a bare "invalid argument".
func checkMapped(u User, users fact.IDMap) error {
	if !mapped(users.UIDs, u.UID) {
		return fmt.Errorf("%s: the container's user %d (run_as_user, run_as_username or the image's) is not in the pod's uid mappings: %w", usernsField, u.UID, errdef.Invalid)
	}
	for _, gid := range append([]uint32{u.GID}, u.Additional...) {
		if !mapped(users.GIDs, gid) {
			return fmt.Errorf("%s: the container's group %d (run_as_group, supplemental_groups or the image's) is not in the pod's gid mappings: %w", usernsField, gid, errdef.Invalid)
		}
	}
	return nil
}
