package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/crid/crid/conf"
	"github.com/crid/crid/test/isolate"
)

// unit is the name of the systemd unit that crid runs as.
func (n *Node) unit() string { return n.options.Name + ".service" }

// startUnit installs crid.service by another name, for another binary and configuration, and starts it.
func (n *Node) startUnit(ctx context.Context) error {
	dropIn := fmt.Sprintf("[Service]\nExecStart=\nExecStart=%s --config %s\nRuntimeDirectory=\nStandardOutput=append:%[3]s\nStandardError=append:%[3]s\n",
		n.options.Binary, n.ConfigFile(), n.options.Output.Name())
	path := filepath.Join("/run/systemd/system", n.unit())
	if err := os.MkdirAll(path+".d", 0o755); err != nil {
		return err
	}
	for file, content := range map[string]string{path: conf.Unit, path + ".d/test.conf": dropIn} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	n.exited = make(chan struct{})
	if _, err := Systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	if _, err := Systemctl(ctx, "start", n.unit()); err != nil {
		return err
	}
	return n.Connect(ctx)
}

// endUnit stops crid, by the signal if it is not to be asked, and takes the unit away.
func (n *Node) endUnit(ctx context.Context, ask bool) error {
	defer close(n.exited)
	if !ask {
		if _, err := Systemctl(ctx, "kill", "--kill-whom=main", "--signal=KILL", n.unit()); err != nil {
			return err
		}
	}
	if _, err := Systemctl(ctx, "stop", n.unit()); err != nil {
		return err
	}
	path := filepath.Join("/run/systemd/system", n.unit())
	if err := os.RemoveAll(path + ".d"); err != nil {
		return err
	}
	return os.Remove(path)
}

// unitPID is the process of crid, 0 when it does not run.
func (n *Node) unitPID() int {
	out, err := Systemctl(context.Background(), "show", "--property=MainPID", "--value", n.unit())
	pid, convErr := strconv.Atoi(out)
	if err != nil || convErr != nil {
		return 0
	}
	return pid
}

// Systemctl runs it and returns what it says.
func Systemctl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, isolate.Patient(2*startLimit))
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
