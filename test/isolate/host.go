package isolate

import (
	"errors"
	"fmt"
	"os"
)

// OnHost calls program in no namespaces but the host's, with a scratch directory that is removed at its end, and ends with its
// exit code: for a machine that is there for nothing but the tests, and what cannot be had in other namespaces, as
// systemd's units.
func OnHost(program func() int) {
	exit(inScratch(func() (int, error) { return program(), nil }))
}

// inScratch calls do with a scratch directory, which is removed afterwards.
func inScratch(do func() (int, error)) (code int, err error) {
	scratch, err := os.MkdirTemp("", "crid-")
	if err != nil {
		return 1, fmt.Errorf("make scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := os.Setenv(scratchVar, scratch); err != nil {
		return 1, err
	}
	return do()
}

// exit ends this program with the code, or as failed.
func exit(code int, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "isolate:", err)
		code = 1
	}
	os.Exit(code)
}
