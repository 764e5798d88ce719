// Command pause writes the program that holds a shared PID namespace, one file for each architecture, from the
// tables of instructions beside it: `go run ./cmd/pause internal/pause`. It knows neither who embeds those files nor
// who runs them.
//
// The program, in C for those who read that more easily:
//
//	sigaction(SIGCHLD, SIG_IGN with SA_NOCLDWAIT)  // the kernel reaps the orphans that process 1 inherits
//	sigprocmask(SIG_BLOCK, {SIGINT, SIGTERM})      // process 1 has no default actions, so they are waited for
//	do r = sigtimedwait({SIGINT, SIGTERM}, forever)
//	while (r == -EINTR)                            // stopped and continued
//	_exit(r < 0 ? 1 : 0)
//
// docs/adr/0002-pause-without-a-compiler.md says why it is made this way.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/crid/crid/internal/asm"
)

// programs are the programs by GOARCH.
func programs() map[string]asm.Program {
	return map[string]asm.Program{"amd64": amd64(), "arm64": arm64()}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pause DIRECTORY")
		os.Exit(2)
	}
	if err := generate(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "pause:", err)
		os.Exit(1)
	}
}

// generate writes pause.GOARCH into dir for every architecture.
func generate(dir string) error {
	all := programs()
	for _, arch := range slices.Sorted(maps.Keys(all)) {
		binary, err := all[arch].Link()
		if err != nil {
			return fmt.Errorf("assemble for %s: %w", arch, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "pause."+arch), binary, 0o644); err != nil {
			return err
		}
	}
	return nil
}
