package spec

import (
	"fmt"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// CheckPlaces refuses CPUs and memory nodes that are not among those of the host's cpuset. field is where r stands in
// the CRI's message. r must have passed ValidateResources.
func CheckPlaces(field string, r *runtime.LinuxContainerResources, cpus, mems string) error {
	for _, list := range []struct{ name, asked, host string }{
		{"cpuset_cpus", r.GetCpusetCpus(), cpus}, {"cpuset_mems", r.GetCpusetMems(), mems},
	} {
		asked, err := parsePlaces(list.asked)
		if err != nil {
			return fmt.Errorf("%s.%s %q: %w", field, list.name, list.asked, err)
		}
		host, err := parsePlaces(list.host)
		if err != nil {
			return fmt.Errorf("the host's cpuset %q: %w", list.host, err)
		}
		for place := range asked {
			if !host[place] {
				return fmt.Errorf("%s.%s %q: this host has %q, not %d: %w", field, list.name, list.asked, list.host, place, errdef.Invalid)
			}
		}
	}
	return nil
}

// parsePlaces reads a list as the kernel's cpusets have it ("0-3,8"); "" is empty.
func parsePlaces(list string) (map[uint64]bool, error) {
	places := map[uint64]bool{}
	if list == "" {
		return places, nil
	}
	for part := range strings.SplitSeq(list, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		first, err := strconv.ParseUint(low, 10, 16) // more than any kernel has
		if err != nil {
			return nil, fmt.Errorf("%q is no number of a CPU or memory node: %w", low, errdef.Invalid)
		}
		last, err := strconv.ParseUint(high, 10, 16)
		if err != nil || last < first {
			return nil, fmt.Errorf("%q ends no range that begins with %d: %w", high, first, errdef.Invalid)
		}
		for ; first <= last; first++ {
			places[first] = true
		}
	}
	return places, nil
}
