package ns

import (
	"testing"

	"github.com/crid/crid/test/isolate"
)

func TestMain(m *testing.M) { isolate.Tests(m.Run) }

func needRoot(t testing.TB) {
	t.Helper()
	isolate.NeedRoot(t, "it makes namespaces and mounts")
}
