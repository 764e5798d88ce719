package integration

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// Sets of capabilities as the kernel prints them.
const (
	none     = "0000000000000000"
	standard = "00000000a80425fb" // what Docker gives
	netAdmin = "0000000000001000"
	netBind  = "0000000000000400"
)

// caps asks for capabilities, separated by spaces.
func caps(uid int64, add, drop, ambient string) func(*runtime.ContainerConfig) {
	return security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtime.Int64Value{Value: uid}
		s.Capabilities = &runtime.Capability{
			AddCapabilities: strings.Fields(add), DropCapabilities: strings.Fields(drop), AddAmbientCapabilities: strings.Fields(ambient),
		}
	})
}

// TestCapabilities reads the five sets back, of the container's process and of an exec'd one.
func TestCapabilities(t *testing.T) {
	const show = `for s in Inh Prm Eff Bnd Amb; do grep Cap$s /proc/self/status | cut -f2; done`
	sets := func(inherited, permitted, bounding string) string {
		return strings.Join([]string{inherited, permitted, permitted, bounding, inherited}, "\n") + "\n"
	}
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, x := range []struct {
			name, want string
			ask        func(*runtime.ContainerConfig)
		}{
			{"the usual ones", sets(none, standard, standard), caps(0, "", "", "")},
			{"the usual ones of a user", sets(none, none, standard), caps(1000, "", "", "")},
			{"added to nothing", sets(none, netAdmin, netAdmin), caps(0, "cap_net_admin", "all", "")},
			{"added for a user", sets(none, none, netAdmin), caps(1000, "NET_ADMIN", "ALL", "")},
			{"ambient for a user", sets(netBind, netBind, netBind), caps(1000, "", "ALL", "NET_BIND_SERVICE")},
			{"ambient for root", sets(netBind, netBind, netBind), caps(0, "", "ALL", "NET_BIND_SERVICE")},
			{"dropped though added", sets(none, netAdmin, netAdmin), caps(0, "NET_ADMIN NET_RAW", "ALL NET_RAW", "")},
			{"dropped though ambient", sets(none, none, none), caps(1000, "", "ALL NET_BIND_SERVICE", "NET_BIND_SERVICE")},
			{"all of all", sets(none, none, none), caps(0, "ALL", "ALL", "ALL")},
		} {
			if got := pod.Output(show, x.ask); got != x.want {
				t.Errorf("%s:\n%s\nwant\n%s", x.name, got, x.want)
			}
		}
		ctr := pod.Run("sleep 1000", caps(1000, "NET_ADMIN", "ALL", "NET_BIND_SERVICE"))
		both := "0000000000001400"
		if got, want := ctr.Exec(show), sets(netBind, netBind, both); got != want {
			t.Errorf("an exec:\n%s\nwant\n%s", got, want)
		}
		for field, ask := range map[string]func(*runtime.ContainerConfig){
			"capabilities.add_capabilities":         caps(0, "NO_SUCH", "", ""),
			"capabilities.drop_capabilities":        caps(0, "", "NO_SUCH", ""),
			"capabilities.add_ambient_capabilities": caps(0, "", "", "NO_SUCH"),
		} {
			_, err := pod.TryCreate(pod.ContainerConfig("true", ask))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), `"NO_SUCH"`) {
				t.Errorf("%s: %v", field, err)
			}
		}
	})
}
