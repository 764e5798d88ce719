package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// maxProfile bounds what is read of a profile, in bytes.
const maxProfile = 4 << 20

// readProfile reads a profile of the node and checks what a runtime would only complain about without saying where.
func readProfile(file string, caps []string) (*specs.LinuxSeccomp, error) {
	raw, err := readRegular(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no such file: %w", errdef.Invalid)
	}
	if err != nil {
		return nil, err
	}
	if err := checkRules(raw); err != nil {
		return nil, fmt.Errorf("%w: %w", errdef.Invalid, err)
	}
	profile, err := seccomp.LoadProfile(string(raw), bounded(caps))
	if err == nil {
		err = checkProfile(profile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdef.Invalid, err)
	}
	return profile, nil
}

// checkRules refuses rules that are null, at which the library panics. What else is wrong it tells itself.
func checkRules(raw []byte) error {
	var profile struct {
		Syscalls []*struct{} `json:"syscalls"`
	}
	_ = json.Unmarshal(raw, &profile)
	for i, rule := range profile.Syscalls {
		if rule == nil {
			return fmt.Errorf("syscalls[%d]: null", i)
		}
	}
	return nil
}

// readRegular does not wait for a pipe's writer, nor read a device.
func readRegular(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxProfile {
		return nil, fmt.Errorf("not a file of at most %d bytes: %w", maxProfile, errdef.Invalid)
	}
	return io.ReadAll(io.LimitReader(f, maxProfile))
}

// checkProfile names a rule by its first system call: rules for other machines and capabilities are left out already.
func checkProfile(p *specs.LinuxSeccomp) error {
	if p == nil {
		return errors.New("defaultAction: not set")
	}
	if err := checkAction("defaultAction", p.DefaultAction, p.ListenerPath); err != nil {
		return err
	}
	for i, arch := range p.Architectures {
		if !slices.Contains(seccompArches(), arch) {
			return fmt.Errorf("architectures[%d] %q: unknown", i, arch)
		}
	}
	for _, rule := range p.Syscalls {
		if len(rule.Names) == 0 {
			return errors.New("syscalls: a rule without names")
		}
		if err := checkAction("action", rule.Action, p.ListenerPath); err != nil {
			return fmt.Errorf("syscalls (%s): %w", rule.Names[0], err)
		}
		if err := checkArgs(rule.Args); err != nil {
			return fmt.Errorf("syscalls (%s): %w", rule.Names[0], err)
		}
	}
	return nil
}

func checkArgs(args []specs.LinuxSeccompArg) error {
	for i, arg := range args {
		if arg.Index > 5 {
			return fmt.Errorf("args[%d].index: %d is more than 5", i, arg.Index)
		}
		if !slices.Contains(seccompOperators(), arg.Op) {
			return fmt.Errorf("args[%d].op %q: unknown", i, arg.Op)
		}
	}
	return nil
}

func checkAction(field string, a specs.LinuxSeccompAction, listener string) error {
	if a == specs.ActNotify && listener == "" {
		return fmt.Errorf("%s %q: needs listenerPath", field, a)
	}
	if !slices.Contains(seccompActions(), a) {
		return fmt.Errorf("%s %q: unknown", field, a)
	}
	return nil
}

func seccompActions() []specs.LinuxSeccompAction {
	return []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
		specs.ActAllow, specs.ActLog, specs.ActNotify,
	}
}

func seccompOperators() []specs.LinuxSeccompOperator {
	return []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan,
		specs.OpMaskedEqual,
	}
}

func seccompArches() []specs.Arch {
	return []specs.Arch{
		specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
		specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64,
		specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64,
		specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
	}
}
