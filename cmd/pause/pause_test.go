package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// The files that crid embeds are what the tables say.
func TestEmbeddedFilesAreGenerated(t *testing.T) {
	dir := t.TempDir()
	if err := generate(dir); err != nil {
		t.Fatal(err)
	}
	for arch := range programs() {
		made, err := os.ReadFile(filepath.Join(dir, "pause."+arch))
		if err != nil {
			t.Fatal(err)
		}
		embedded, err := os.ReadFile(filepath.Join("../../internal/pause", "pause."+arch))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(made, embedded) {
			t.Errorf("pause.%s is not what the tables make: run go generate ./internal/pause", arch)
		}
	}
}

func TestFilesAreSoundELF(t *testing.T) {
	for arch, p := range programs() {
		binary, err := p.Link()
		if err != nil {
			t.Fatal(err)
		}
		if len(binary) > 512 {
			t.Errorf("%s: %d bytes are more than the program needs", arch, len(binary))
		}
		f, err := elf.NewFile(bytes.NewReader(binary))
		if err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		if f.Type != elf.ET_EXEC || f.Machine != p.Machine || len(f.Progs) != 2 {
			t.Errorf("%s: %+v", arch, f.FileHeader)
		}
		load := f.Progs[0]
		if f.Entry < load.Vaddr || f.Entry >= load.Vaddr+load.Filesz || load.Filesz != uint64(len(binary)) {
			t.Errorf("%s: entry %#x is outside of the segment %+v", arch, f.Entry, load.ProgHeader)
		}
		for _, prog := range f.Progs {
			if prog.Flags&elf.PF_W != 0 && prog.Flags&elf.PF_X != 0 {
				t.Errorf("%s: segment %v is writable and executable", arch, prog.Type)
			}
		}
	}
}

// The other architecture's program runs where an emulator is installed; internal/pause runs the native one.
func TestForeignProgramEndsOnSIGTERM(t *testing.T) {
	for arch, emulators := range map[string][]string{
		"amd64": {"qemu-x86_64-static", "qemu-x86_64"},
		"arm64": {"qemu-aarch64-static", "qemu-aarch64"},
	} {
		t.Run(arch, func(t *testing.T) {
			if arch == runtime.GOARCH {
				t.Skip("this is the native architecture")
			}
			emulator := ""
			for _, name := range emulators {
				if path, err := exec.LookPath(name); err == nil {
					emulator = path
				}
			}
			if emulator == "" {
				t.Skipf("none of %v is installed", emulators)
			}
			dir := t.TempDir()
			if err := generate(dir); err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(dir, "pause."+arch)
			if err := os.Chmod(program, 0o700); err != nil {
				t.Fatal(err)
			}
			endsOnSIGTERM(t, exec.CommandContext(t.Context(), emulator, "-strace", program))
		})
	}
}

// endsOnSIGTERM starts an emulator that tells every system call, signals it once it waits, and expects code 0.
func endsOnSIGTERM(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	trace, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	signalled := false
	for lines := bufio.NewScanner(trace); lines.Scan(); {
		told.WriteString(lines.Text() + "\n")
		if !signalled && strings.Contains(lines.Text(), "rt_sigprocmask") { // from here on the signal is held for it
			signalled = true
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil || !signalled {
		t.Errorf("pause ended with %v:\n%s", err, told.String())
	}
}
