package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/crid/crid/internal/admin"
)

func tagImage(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME...",
		Short: "Give an image more names; an image that had one of them loses it",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				_, err := c.TagImage(ctx, &admin.TagImageRequest{Ref: args[0], Names: args[1:]})
				return c.told(err)
			})
		},
	}
}

// removalView is what an image has lost.
type removalView struct {
	ID       string   `json:"id"`
	Untagged []string `json:"untagged"`
	Removed  bool     `json:"removed"`
	Size     uint64   `json:"size"` // bytes of the image; what it shares with others stays
}

func viewOfRemoval(r *admin.Removal) removalView {
	return removalView{r.GetId(), listed(r.GetUntagged()), r.GetRemoved(), r.GetSize()}
}

// tell says in a line what happened, or would.
func (r removalView) tell(w io.Writer, removed, untagged string) {
	if !r.Removed {
		for _, name := range r.Untagged {
			fmt.Fprintf(w, "%s %s\n", untagged, plain(name))
		}
		return
	}
	fmt.Fprintf(w, "%s %s\t%s\t%s\n", removed, short(r.ID), bytesOf(r.Size), imageView{Tags: r.Untagged}.title())
}

func removeImages(f *flags) *cobra.Command {
	var o form
	var force bool
	c := &cobra.Command{
		Use:     "rm IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Take names away, and images with their last one",
		Long: `A tag is taken away, and its image with it when it has no other. An id or a digest stands for the image: one that has
several tags, and one that is pinned in crid.toml, goes only with --force, and then with all names. An image that containers are
made of, or have as a volume, is never removed, with --force or without: the error names them.

What can be removed is, whatever becomes of the others. Exit code 1: something was not.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				all, failed := []removalView{}, error(nil)
				for _, ref := range args {
					r, err := c.RemoveImage(ctx, &admin.RemoveImageRequest{Ref: ref, Force: force})
					if err != nil {
						failed = errors.Join(failed, c.told(err))
						continue
					}
					all = append(all, viewOfRemoval(r))
				}
				return errors.Join(failed, o.write(cmd.OutOrStdout(), all, func(t *tabwriter.Writer) {
					for _, r := range all {
						r.tell(t, "removed", "untagged")
					}
				}))
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "all names of an image, and pinned ones; never images in use")
	o.add(c, asTable, asJSONs, asYAML)
	return c
}

func pruneImages(f *flags) *cobra.Command {
	var o form
	var ask admin.PruneImagesRequest
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove images without a tag that nobody uses, or with --all every one that nobody uses",
		Long: `Remove the images that have no tag, and that no container is made of or has as a volume. With --all, those with tags, too. Images
that are pinned in crid.toml stay. An image that was pulled by its digest has no tag.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				all := []removalView{}
				stream, err := c.PruneImages(ctx, &ask)
				failed := drain(c, stream, err, func(r *admin.Removal) error {
					all = append(all, viewOfRemoval(r))
					return nil
				})
				word := "removed"
				if ask.DryRun {
					word = "would remove"
				}
				return errors.Join(failed, o.write(cmd.OutOrStdout(), all, func(t *tabwriter.Writer) {
					for _, r := range all {
						r.tell(t, word, "")
					}
				}))
			})
		},
	}
	c.Flags().BoolVarP(&ask.All, "all", "a", false, "also images with a tag")
	c.Flags().BoolVar(&ask.DryRun, "dry-run", false, "only tell what would be removed")
	o.add(c, asTable, asJSONs, asYAML)
	return c
}
