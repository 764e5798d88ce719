package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fsck"
)

// The exit codes of `crid fsck`.
const (
	exitFound      = 1
	exitNotChecked = 2
)

// answerWait is how long a crid that has the locks may take to serve its socket, or to let go of them.
const answerWait = 15 * time.Second

func fsckCommand(f *flags) *cobra.Command {
	var ask fsckRequest
	var output string
	c := &cobra.Command{
		Use:   "fsck",
		Short: "Compare what crid knows with what is on the machine, and tell what is orphaned, missing or damaged",
		Long: `Compare records, root filesystems, mounts, namespaces, cgroups, monitors, the CNI cache, IP leases and the image
store. Nothing is changed without --repair. A crid that runs is asked to look, and to repair: what it is making or
removing is never reported. Otherwise fsck looks itself, and no crid can start meanwhile.

Exit code 0: nothing is wrong. 1: something was found, repaired or not. 2: it could not be checked, or not all of it: what
was found of the rest is told, and repaired, nevertheless.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := runFsck(cmd.Context(), f, output, ask)
			if err == nil {
				err = report.write(cmd.OutOrStdout(), output)
			}
			switch {
			case err != nil:
				return exitCode{exitNotChecked, fmt.Errorf("fsck: %w", err)}
			case report.Unchecked != "":
				return exitCode{exitNotChecked, fmt.Errorf("fsck: not all could be checked: %s", report.Unchecked)}
			case len(report.Findings) > 0:
				return exitCode{code: exitFound}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&ask.Repair, "repair", false, "remove what is orphaned, and what has a record that cannot be read; write again what can be")
	c.Flags().BoolVar(&ask.Contents, "contents", false, "also read all image layers and compare them with their digests: takes minutes, and pulls wait for it")
	c.Flags().StringVar(&output, "output", "table", "table or json")
	return c
}

// runFsck lets the crid that runs do it, or does it under that one's locks when none runs.
func runFsck(ctx context.Context, f *flags, output string, ask fsckRequest) (fsckReport, error) {
	if output != "table" && output != "json" {
		return fsckReport{}, fmt.Errorf("--output %s: choose table or json", output)
	}
	if os.Geteuid() != 0 {
		return fsckReport{}, errNotRoot
	}
	cfg, err := f.load()
	if err != nil {
		return fsckReport{}, err
	}
	p := places{cfg}
	if err := needRoot(p); err != nil {
		return fsckReport{}, err
	}
	cfg.LogLevel = "warn"
	log, err := newLog(cfg, os.Stderr)
	if err != nil {
		return fsckReport{}, err
	}
	adopt(log)
	syscall.Umask(0o022)
	ctx, unhook := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer unhook()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for giveUp := time.After(answerWait); ; {
		held, err := lockRoots(p, checking)
		var taken *lockedError
		if err == nil {
			report, err := checkOffline(ctx, p, log, ask)
			return report, errors.Join(err, held.Close())
		}
		if !errors.As(err, &taken) {
			return fsckReport{}, err
		}
		report, askErr := askFsck(ctx, p.Socket, ask)
		if !errors.Is(askErr, errdef.Unavailable) {
			return report, askErr
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fsckReport{}, context.Cause(ctx)
		case <-giveUp:
			return fsckReport{}, fmt.Errorf("%w, and %w", err, askErr)
		}
	}
}

// write prints the report.
func (r fsckReport) write(w io.Writer, output string) error {
	if output == "json" {
		if r.Findings == nil {
			r.Findings = []fsck.Finding{}
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	if len(r.Findings) == 0 && r.Unchecked != "" {
		return nil
	}
	if len(r.Findings) == 0 {
		_, err := fmt.Fprintf(w, "nothing is wrong (looked: %s)\n", r.By)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PROBLEM\tKIND\tSIZE\tOF\tWHAT\tMORE")
	for _, f := range r.Findings {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", f.Problem, f.Kind, size(f.Size), owner(f), plain(f.Name), plain(more(f)))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d found (looked: %s); %s\n", len(r.Findings), r.By, r.hint())
	return err
}

// hint says what can be done about the findings.
func (r fsckReport) hint() string {
	byHand := 0
	for _, f := range r.Findings {
		if f.Remedy != "" {
			byHand++
		}
	}
	const repair = "repair with: crid fsck --repair"
	switch {
	case r.Repaired:
		return "repaired as far as said"
	case byHand == len(r.Findings):
		return "to be done by hand, as said"
	case byHand > 0:
		return fmt.Sprintf("%s, and %d by hand, as said", repair, byHand)
	}
	return repair
}

func size(s *fsck.Size) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%s in %d files", bytesOf(s.Bytes), s.Inodes)
}

// owner names the object as an operator knows it.
func owner(f fsck.Finding) string {
	if f.Of.Kind == fsck.Nobody {
		return "-"
	}
	text := string(f.Of.Kind) + " " + f.Of.ID[:min(13, len(f.Of.ID))]
	if f.Owner.Name != "" {
		text += " " + strings.TrimPrefix(f.Owner.Namespace+"/"+f.Owner.Name, "/")
	}
	return plain(text)
}

func more(f fsck.Finding) string {
	var parts []string
	for _, part := range []string{f.Outcome, f.Why, f.Remedy} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "; ")
}

// plain keeps names that somebody chose to hurt from breaking the table, or the terminal.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
