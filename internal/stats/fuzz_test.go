package stats

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzLimits reads any bytes as the limits of a process: there is a number, none, or an error that names the file.
func FuzzLimits(f *testing.F) {
	for _, s := range []string{
		"Max open files            1024                 524288               files\n", "Max open files unlimited unlimited files\n",
		"Max open files", "Max open files -1 x\n", "Max open files 18446744073709551616\n", "", "\x00\n",
	} {
		f.Add([]byte(s))
	}
	file := filepath.Join(f.TempDir(), "limits")
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := openFiles(file); err != nil && (n != nil || !strings.Contains(err.Error(), file)) {
			t.Errorf("%v, %v", n, err)
		}
	})
}
