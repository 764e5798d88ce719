// Package crash kills crid between any two side effects of every call that changes something, and the programs that
// crid runs at each of their verbs, and looks whether what clients were told is true afterwards, whether a repeated
// call succeeds, and whether anything is left behind. Of crid's inside it knows the names of the fail points.
package crash

import (
	"testing"

	"github.com/crid/crid/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
