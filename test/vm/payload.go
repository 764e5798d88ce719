package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Step is one program that the guest runs, told apart by its name.
type Step struct {
	Name    string
	Command []string // the program's name is relative to the payload
	Env     []string
}

// Payload makes a disk in dir with everything in the directory files and a run.sh that takes the steps, each of which
// ends with a line that exitOf understands.
func Payload(ctx context.Context, dir, files string, steps []Step) (disk string, err error) {
	var script strings.Builder
	script.WriteString("export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/var/tmp\ncd /crid-test\n")
	for _, s := range steps {
		words := append([]string{"env"}, s.Env...)
		for _, word := range append(words, s.Command...) {
			fmt.Fprintf(&script, "'%s' ", strings.ReplaceAll(word, "'", `'\''`))
		}
		fmt.Fprintf(&script, "\necho \"%s$? %s\"\n", exitPrefix, s.Name)
	}
	if err := os.WriteFile(filepath.Join(files, "run.sh"), []byte(script.String()), 0o644); err != nil {
		return "", err
	}
	disk = filepath.Join(dir, "payload")
	if err := makeDisk(ctx, disk, files, "400M"); err != nil {
		return "", fmt.Errorf("make the payload: %w", err)
	}
	return disk, nil
}

// exitPrefix starts the line that ends a step: the exit code and the step's name follow.
const exitPrefix = "crid-vm: exit "
