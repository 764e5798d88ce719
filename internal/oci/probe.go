package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// Probe asks the binary what it is and can do on this kernel: by its verb `features`, else (crun before 1.8.6) by a table
// of versions. An error names the binary and the package that brings it.
func (r *Runtime) Probe(ctx context.Context) (fact.Handler, error) {
	out, err := r.ask(ctx, "--version")
	if err != nil {
		return fact.Handler{}, fmt.Errorf("handler %s: %w", r.cfg.Name, err)
	}
	found, err := parseVersion(string(out))
	if err != nil {
		return fact.Handler{}, fmt.Errorf("handler %s: runtime %s: %w", r.cfg.Name, r.cfg.Path, err)
	}
	can, doubt := found.known(), ""
	out, err = r.ask(ctx, "features")
	switch {
	case ctx.Err() != nil:
		return fact.Handler{}, fmt.Errorf("handler %s: %w", r.cfg.Name, ctx.Err())
	case err == nil:
		if can, err = parseFeatures(out); err != nil {
			return fact.Handler{}, fmt.Errorf("handler %s: features of %s: %w", r.cfg.Name, r.cfg.Path, err)
		}
	case found.tells() || errors.Is(err, context.DeadlineExceeded):
		doubt = fmt.Sprintf("handler %s: what it can do is guessed by its version, since it does not tell: %v", r.cfg.Name, err)
	}
	lacks := tryReadOnly()
	if can.rro && lacks != nil {
		doubt = strings.TrimPrefix(fmt.Sprintf("%s; handler %s: recursive read-only mounts are not offered: %v", doubt, r.cfg.Name, lacks), "; ")
	}
	return fact.Handler{
		Name:              r.cfg.Name,
		Path:              r.cfg.Path,
		Version:           found.String(),
		SpecVersion:       can.spec,
		RecursiveReadOnly: can.rro && lacks == nil,
		UserNamespaces:    can.userns && !errors.Is(lacks, unix.ENOSYS),
		FlatBinds:         found.flatBinds(),
		Doubt:             doubt,
	}, nil
}

// ask runs the binary with one argument that concerns no container.
func (r *Runtime) ask(ctx context.Context, arg string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, quickVerb)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.cfg.Path, arg)
	cmd.Env = r.cfg.Environment()
	cmd.WaitDelay = afterKill
	var stdout, stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w", filepath.Base(r.cfg.Path), arg, r.reason(ctx, err, stderr.bytes()))
	}
	return stdout.bytes(), nil
}

// version is what --version prints.
type version struct {
	program string // crun, runc, runsc
	number  string // as printed
	parts   [3]int // of number
	spec    string // the runtime-spec version it follows
}

func (v version) String() string { return v.program + " " + v.number }

func (v version) atLeast(major, minor int) bool {
	return slices.Compare(v.parts[:2], []int{major, minor}) >= 0
}

// tells whether the runtime is known to have the verb `features`.
func (v version) tells() bool {
	return v.program == "crun" && slices.Compare(v.parts[:], []int{1, 8, 6}) >= 0 || v.program == "runc" && v.atLeast(1, 1)
}

// flatBinds: in a user namespace, crun clones bind sources itself. Before 1.9 it leaves out what is mounted below them,
// and no version up to 1.29 sets the options of a writable one.
func (v version) flatBinds() bool { return v.program == "crun" }

// abilities is what differs between the versions of a runtime and matters to crid.
type abilities struct {
	spec   string // newest runtime-spec version accepted
	rro    bool   // mount option rro
	userns bool   // containers join a user namespace that is there; crid maps the ids of their mounts itself
}

// known returns what a runtime without the verb `features` can do, by its version. An unknown runtime can
// nothing special.
func (v version) known() abilities {
	crun := v.program == "crun"
	return abilities{spec: v.spec, rro: crun && v.atLeast(1, 4), userns: crun && v.atLeast(1, 0)}
}

// parseVersion reads what crun, runc and runsc print: "crun version 1.8.1", further lines, "spec: 1.0.0".
func parseVersion(out string) (version, error) {
	v := version{spec: "1.0.0"}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if program, number, found := strings.Cut(line, " version "); found && v.program == "" {
			v.program, v.number = program, strings.TrimPrefix(number, "release-")
		}
		if spec, found := strings.CutPrefix(line, "spec: "); found {
			v.spec = spec
		}
	}
	if v.program == "" {
		return version{}, fmt.Errorf("not an OCI runtime: --version says %.80q: %w", out, errdef.Invalid)
	}
	for i, part := range strings.SplitN(v.number, ".", len(v.parts)) {
		digits := strings.IndexFunc(part, func(c rune) bool { return c < '0' || c > '9' })
		if digits >= 0 {
			part = part[:digits]
		}
		n, err := strconv.Atoi(part)
		if err != nil {
			break // "1.8-dev": what follows does not count
		}
		v.parts[i] = n
	}
	return v, nil
}

// parseFeatures reads the answer of the verb `features`.
func parseFeatures(out []byte) (abilities, error) {
	var f features.Features
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&f); err != nil {
		return abilities{}, err
	}
	if f.OCIVersionMax == "" {
		return abilities{}, fmt.Errorf("no ociVersionMax: %w", errdef.Invalid)
	}
	can := abilities{spec: f.OCIVersionMax, rro: slices.Contains(f.MountOptions, "rro")}
	can.userns = f.Linux != nil && slices.Contains(f.Linux.Namespaces, string(specs.UserNamespace))
	return can, nil
}

// tryReadOnly makes a copy of a mount that nobody sees read-only with all below it, by mount_setattr(2) as runtimes do.
// ENOSYS: the kernel (before 5.12) does not have that call, which mapped ids need as well.
func tryReadOnly() error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("copy the mount of /: %w", err)
	}
	defer unix.Close(tree) // the copy goes with it
	return makeReadOnly(tree)
}

func makeReadOnly(tree int) error {
	err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("make a mount read-only with all below it (Linux 5.12): %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(tree, &st); err != nil {
		return fmt.Errorf("look at a read-only mount: %w", err)
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return fmt.Errorf("a mount made read-only is still writable: %w", errdef.Unsupported)
	}
	return nil
}
