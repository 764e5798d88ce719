// Command crid is a container runtime for Kubernetes: it serves the CRI on a unix socket. This package reads
// flags and configuration, builds the rooms, joins them and serves until it is signalled; it decides nothing
// about pods or containers.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.podman.io/storage/pkg/reexec"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/oci/spec"
)

func main() {
	if reexec.Init() {
		return
	}
	if err := command().Execute(); err != nil {
		var coded exitCode
		if !errors.As(err, &coded) {
			coded = exitCode{1, err}
		}
		if coded.err != nil {
			fmt.Fprintln(os.Stderr, "crid:", coded.err)
		}
		os.Exit(coded.code)
	}
}

// exitCode is how a command ends that has more to say than that it failed. err may be nil.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d: %v", e.code, e.err) }

// flags are the options of the command line; an empty one leaves what the configuration says.
type flags struct {
	config, root, runroot, socket string
}

func command() *cobra.Command {
	f := &flags{}
	root := &cobra.Command{
		Use:   "crid",
		Short: "A container runtime for Kubernetes: serves the CRI on a unix socket",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg)
		},
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	pf := root.PersistentFlags()
	pf.StringVar(&f.config, "config", "", "configuration file; its drop-ins lie in FILE.d (default "+config.DefaultPath+")")
	pf.StringVar(&f.root, "root", "", "directory of what survives a reboot, instead of the configured one")
	pf.StringVar(&f.runroot, "runroot", "", "directory of what a reboot may wipe, instead of the configured one")
	pf.StringVar(&f.socket, "socket", "", "path of the CRI's socket, instead of the configured one")
	root.AddCommand(configCommand(f), fsckCommand(f), imageCommand(f), versionCommand())
	return root
}

// load reads the configuration; what the flags say counts more.
func (f *flags) load() (config.Config, error) {
	path := f.config
	if path == "" {
		path = config.DefaultPath
	}
	cfg, err := config.Load(path, f.config != "")
	if err != nil {
		return config.Config{}, fmt.Errorf("configuration:\n%w", err)
	}
	for _, o := range []struct {
		value string
		dst   *string
	}{{f.root, &cfg.Root}, {f.runroot, &cfg.Runroot}, {f.socket, &cfg.Socket}} {
		if o.value != "" {
			*o.dst = o.value
		}
	}
	if err := cfg.Validate(); err != nil {
		return config.Config{}, fmt.Errorf("flags:\n%w", err)
	}
	// Those of pods pass the same check; one that no pod can have would fail every pod.
	if err := spec.CheckSysctls(pairs(cfg.DefaultSysctls), nil); err != nil {
		return config.Config{}, fmt.Errorf("configuration:\ndefault_sysctls: %w", err)
	}
	return cfg, nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "crid", versionString())
			return err
		},
	}
}

// errNotRoot refuses to serve without the rights that everything else needs.
var errNotRoot = errors.New("must run as root: it makes namespaces, mounts and cgroups")
