// Package launch makes launchers: tiny static programs that give a command environment variables which no OCI
// runtime can carry, and execute it. Each is made for one container. It does not know containers, nor where a
// launcher is kept.
//
// A launcher, in C for those who read that more easily:
//
//	for (each slot of the environment)
//	        if (variables has one of the same name) slot = that
//	if (command holds '/') execve(command, argv + 1, environment)
//	else for (each directory of the PATH)
//	        execve(directory "/" command, argv + 1, environment), until it fails otherwise than by
//	        ENOENT, ENOTDIR or EACCES
//	say "crid: exec COMMAND: REASON" on stderr
//	_exit(not found ? 127 : 126)
//
// docs/adr/0005-env-of-any-bytes.md says why it is made this way.
package launch

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/crid/crid/internal/asm"
	"github.com/crid/crid/internal/errdef"
)

// Plan is what a launcher knows.
type Plan struct {
	Env  []string // NAME=value of any bytes but NUL; each replaces the variable NAME that the launcher is given
	Path string   // where a command without a slash is looked up, in the form of PATH
}

// Exit codes of a launcher that could not execute its command, as shells have them.
const (
	NotExecutable = 126
	NotFound      = 127
)

// Make makes a launcher for an architecture by its GOARCH. The program takes the command and its arguments as
// arguments. Unsupported: there is none for that architecture. Invalid: a variable has no name.
func Make(arch string, p Plan) ([]byte, error) {
	program, known := map[string]func() asm.Program{"amd64": amd64, "arm64": arm64}[arch]
	if !known {
		return nil, fmt.Errorf("make launcher: there is none for %s: %w", arch, errdef.Unsupported)
	}
	whole := program()
	var err error
	if whole.Data, err = p.data(); err != nil {
		return nil, fmt.Errorf("make launcher: %w", err)
	}
	raw, err := whole.Link()
	if err != nil {
		return nil, fmt.Errorf("make launcher for %s: %w", arch, err)
	}
	return raw, nil
}

// The data behind the code, in the layout that amd64 and arm64 share. Tables of addresses end with 0, texts that
// they name with a NUL.
const (
	labelFailures    = "failures"    // rows of errno, exit code, address and length of a text; errno 0 is any other
	labelLongest     = "longest"     // bytes that the longest directory takes, its NUL included
	labelDirectories = "directories" // where commands are looked up, each with a slash at its end
	labelVariables   = "variables"   // those of Plan.Env
	labelSpeaker     = "speaker"     // how a message begins
)

const speaker = "crid: exec "

// data puts the tables first: instructions reach 1 MiB far, addresses in tables any distance.
func (p Plan) data() ([]asm.Datum, error) {
	for i, v := range p.Env {
		if strings.Index(v, "=") < 1 || strings.IndexByte(v, 0) >= 0 {
			return nil, fmt.Errorf("variable %d has no name, or a NUL byte: %w", i, errdef.Invalid)
		}
	}
	directories := directories(p.Path)
	longest := 1
	for _, d := range directories {
		longest = max(longest, len(d)+1)
	}
	tables, texts := failures()
	number := asm.Word(uint64(longest))
	number.Label = labelLongest
	tables = append(tables, number)
	for _, list := range []struct {
		label string
		texts []string
	}{{labelDirectories, directories}, {labelVariables, p.Env}} {
		addresses, strings := table(list.label, list.texts)
		tables, texts = append(tables, addresses...), append(texts, strings...)
	}
	return append(tables, texts...), nil
}

// directories are the places of a PATH, with what stands before a command's name there; an empty one is the
// working directory.
func directories(path string) []string {
	if path == "" {
		return nil
	}
	list := strings.Split(path, ":")
	for i, dir := range list {
		if dir != "" {
			list[i] = strings.TrimSuffix(dir, "/") + "/"
		}
	}
	return list
}

// table is a table of addresses, and the texts that these are of.
func table(label string, list []string) (addresses, texts []asm.Datum) {
	for i, text := range list {
		name := fmt.Sprint(label, " ", i)
		addresses = append(addresses, asm.Datum{Address: name})
		texts = append(texts, asm.Datum{Label: name, Bytes: append([]byte(text), 0)})
	}
	addresses = append(addresses, asm.Word(0))
	addresses[0].Label = label
	return addresses, texts
}

// failures is how launchers explain why a command could not be executed.
func failures() (rows, texts []asm.Datum) {
	for i, f := range []struct {
		errno syscall.Errno
		code  uint64
		text  string
	}{
		{syscall.ENOENT, NotFound, ": not found\n"},
		{syscall.ENOTDIR, NotFound, ": not found\n"},
		{syscall.EACCES, NotExecutable, ": permission denied\n"},
		{syscall.ENOEXEC, NotExecutable, ": exec format error\n"},
		{syscall.E2BIG, NotExecutable, ": argument list too long\n"},
		{0, NotExecutable, ": cannot be executed\n"},
	} {
		name := fmt.Sprint(labelFailures, " ", i)
		rows = append(rows, asm.Word(uint64(f.errno)), asm.Word(f.code), asm.Datum{Address: name}, asm.Word(uint64(len(f.text))))
		texts = append(texts, asm.Datum{Label: name, Bytes: []byte(f.text)})
	}
	rows[0].Label = labelFailures
	return rows, append(texts, asm.Datum{Label: labelSpeaker, Bytes: []byte(speaker)})
}
