package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// toolEnv makes the test binary play another tool on the same store, as podman may be.
const toolEnv = "CRID_STORAGE_TEST_TOOL"

// playTool runs one verb: ROOT RUNROOT rmi|tag|run|rm ID [NAME], or, as another crid, pull NAME REGISTRIES.CONF.
func playTool(args []string) int {
	cfg := ImagesConfig{Root: args[0], RunRoot: args[1]}
	var err error
	if args[2] == "pull" {
		cfg.RegistriesConf = args[4]
		err = playPull(cfg, args[3])
	} else {
		err = playOther(cfg, args[2], args[3:])
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func playPull(cfg ImagesConfig, ref string) error {
	s, err := OpenImages(cfg)
	if err != nil {
		return err
	}
	_, err = s.Pull(context.Background(), PullRequest{Ref: ref})
	return errors.Join(err, s.Close())
}

func playOther(cfg ImagesConfig, verb string, args []string) error {
	store, err := openStore(cfg, cfg.Root+"/storage")
	if err != nil {
		return err
	}
	switch verb {
	case "rmi":
		_, err := store.DeleteImage(args[0], true)
		return err
	case "tag":
		return store.AddNames(args[0], args[1:])
	case "run":
		_, err := store.CreateContainer("", args[1:], args[0], "", "", nil)
		return err
	case "rm":
		return store.DeleteContainer(args[0])
	}
	return fmt.Errorf("verb %q", verb)
}

// tool runs the other tool in the world's store and returns what it said, and whether it succeeded.
func (w *world) tool(t *testing.T, args ...string) (string, bool) {
	t.Helper()
	out, err := w.command(t, args...).CombinedOutput()
	return string(out), err == nil
}

func (w *world) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{w.Root, w.RunRoot}, args...)...)
	cmd.Env = append(os.Environ(), toolEnv+"=1")
	cmd.WaitDelay = time.Second
	return cmd
}
