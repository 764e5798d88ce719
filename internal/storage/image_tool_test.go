package storage

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	cstorage "go.podman.io/storage"
)

// toolEnv makes the test binary play another tool on the same store, as podman may be.
const toolEnv = "CRID_STORAGE_TEST_TOOL"

// playTool runs one verb: ROOT RUNROOT rmi|tag|run|rm ID [NAME].
func playTool(args []string) int {
	cfg := ImagesConfig{Root: args[0], RunRoot: args[1]}
	store, err := openStore(cfg, args[0]+"/storage")
	if err == nil {
		err = useTool(store, args[2], args[3:])
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func useTool(store cstorage.Store, verb string, args []string) error {
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
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{w.Root, w.RunRoot}, args...)...)
	cmd.Env = append(os.Environ(), toolEnv+"=1")
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}
