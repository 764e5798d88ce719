package main

import (
	"fmt"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/crid/crid/conf"
)

func configCommand(f *flags) *cobra.Command {
	parent := &cobra.Command{Use: "config", Short: "Print or check the configuration", Args: cobra.NoArgs}
	parent.AddCommand(
		&cobra.Command{
			Use:   "default",
			Short: "Print every option with its default and what it is for",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprint(cmd.OutOrStdout(), conf.TOML)
				return err
			},
		},
		&cobra.Command{
			Use:   "dump",
			Short: "Print the configuration in force: files, drop-ins and flags together",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				cfg, err := f.load()
				if err != nil {
					return err
				}
				return toml.NewEncoder(cmd.OutOrStdout()).Encode(cfg)
			},
		},
		&cobra.Command{
			Use:   "check",
			Short: "Tell what is wrong with the configuration, without starting",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if _, err := f.load(); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
				return err
			},
		},
	)
	return parent
}
