package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"sigs.k8s.io/yaml"

	"github.com/crid/crid/internal/admin"
)

func imageCommand(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Work with images by hand: list, pull, load, save, tag, remove, verify",
		Long: `Work with the images of the crid that runs, which does all of it itself: it and these commands never disagree. They need
nothing but its socket; root, or the socket's group, may open that.

Where an image is to be named, any of its tags, its digest, its id or the beginning of its id will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(listImages(f), inspectImages(f), pullImage(f), loadImages(f), saveImages(f), tagImage(f), removeImages(f), pruneImages(f), verifyImages(f))
	return c
}

// reach is the socket of the crid that runs. Who names it needs no configuration.
func (f *flags) reach() (string, error) {
	if f.socket != "" {
		return f.socket, nil
	}
	cfg, err := f.load()
	return cfg.Socket, err
}

// ask runs a command that talks to crid, until it is interrupted.
func (f *flags) ask(cmd *cobra.Command, do func(ctx context.Context, c *client) error) (err error) {
	socket, err := f.reach()
	if err != nil {
		return err
	}
	ctx, unhook := untilSignalled(cmd.Context())
	defer unhook()
	c, err := dial(socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err = do(ctx, c); err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil { // which is why all that was left has failed
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return ended(ctx, fmt.Errorf("image %s: %w", cmd.Name(), err))
}

// ended is how a command ends that failed: after a signal with the exit code that a shell gives that signal.
func ended(ctx context.Context, err error) error {
	var by signalled
	if errors.As(context.Cause(ctx), &by) {
		return exitCode{128 + int(by.Signal), err}
	}
	return err
}

// signalled is why a command has ended that somebody told to end.
type signalled struct{ syscall.Signal }

func (s signalled) Error() string { return "interrupted" }

// untilSignalled is a context that the first signal ends; the next one ends the program.
func untilSignalled(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() { // ends with ctx
		defer signal.Stop(signals)
		select {
		case s := <-signals:
			if s, ok := s.(syscall.Signal); ok {
				cancel(signalled{s})
			}
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// drain hands on each message of a stream.
func drain[M any](c *client, stream grpc.ServerStreamingClient[M], err error, each func(*M) error) error {
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err == nil {
			if err := each(m); err != nil {
				return err
			}
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return c.told(err)
}

// The forms of what a command answers.
const (
	asTable = "table"
	asJSONs = "json"
	asYAML  = "yaml"
)

// form is how a command answers.
type form struct {
	output string
	quiet  bool // ids alone
	forms  []string
}

func (o *form) add(c *cobra.Command, forms ...string) {
	o.forms = forms
	c.Flags().StringVarP(&o.output, "output", "o", forms[0], strings.Join(forms, ", "))
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(forms, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

func (o *form) addQuiet(c *cobra.Command) {
	c.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "only the ids")
}

// check refuses a form that there is not, before anything is done.
func (o *form) check() error {
	if !slices.Contains(o.forms, o.output) {
		return fmt.Errorf("--output %s: choose %s", o.output, strings.Join(o.forms, " or "))
	}
	return nil
}

// write answers with value, or with what table makes of it.
func (o *form) write(w io.Writer, value any, table func(*tabwriter.Writer)) error {
	switch o.output {
	case asJSONs:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(value)
	case asYAML:
		raw, err := yaml.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		_, err = w.Write(raw)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	table(t)
	return t.Flush()
}

// imageView is an image as the commands show it. The names of the fields are promised.
type imageView struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	Size    uint64   `json:"size"` // bytes
	Pinned  bool     `json:"pinned"`
	Users   []string `json:"users"` // ids of containers

	Exclusive    uint64 `json:"exclusive"`    // bytes on the disk that are its alone
	Shared       uint64 `json:"shared"`       // bytes on the disk of layers that others have as well
	ArtifactType string `json:"artifactType"` // empty: an image
	Store        string `json:"store"`        // empty: crid's own
}

func viewOf(i *admin.Image) imageView {
	return imageView{
		ID: i.GetId(), Tags: listed(i.GetTags()), Digests: listed(i.GetDigests()), Size: i.GetSize(), Pinned: i.GetPinned(), Users: listed(i.GetUsers()),
		Exclusive: i.GetExclusive(), Shared: i.GetShared(), ArtifactType: i.GetArtifactType(), Store: i.GetStore(),
	}
}

// title is what people call the image.
func (i imageView) title() string {
	if len(i.Tags) > 0 {
		return plain(strings.Join(i.Tags, ", "))
	}
	return "<none>"
}

// short is as much of an id as people read.
func short(id string) string { return plain(id[:min(13, len(id))]) }

func bytesOf(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	amount, unit := float64(n), 0
	for ; amount >= 1024 && unit < len(units)-1; unit++ {
		amount /= 1024
	}
	return fmt.Sprintf("%.4g %s", amount, units[unit])
}

// byTitle orders images by their first tag; those without come last.
func byTitle(a, b imageView) int {
	if (len(a.Tags) == 0) != (len(b.Tags) == 0) {
		return len(b.Tags) - len(a.Tags)
	}
	return cmp.Or(slices.Compare(a.Tags, b.Tags), strings.Compare(a.ID, b.ID))
}
