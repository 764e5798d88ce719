// Package kubelet proves crid with the kubelet itself: a real one, without an API server, that runs static pods on a
// crid of its own, both in namespaces of their own. It brings no kubelet: `make test-kubelet` builds one.
package kubelet

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/crid/crid/test/harness"
)

// binary, in the environment, is the path of a kubelet 1.37.
const binary = "CRID_KUBELET"

var enabled = flag.Bool("kubelet", false, "run the kubelet: it takes minutes, and a kubelet")

func TestMain(m *testing.M) {
	flag.Parse()
	if !*enabled {
		fmt.Println("the kubelet is left out: run it with `make test-kubelet`")
		return
	}
	if os.Getenv(binary) == "" {
		fmt.Fprintf(os.Stderr, "no kubelet: `make test-kubelet` builds one and names it in $%s\n", binary)
		os.Exit(1)
	}
	harness.Main(m)
}
