package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/crid/crid/internal/admin"
)

func listImages(f *flags) *cobra.Command {
	var o form
	c := &cobra.Command{
		Use:     "list [IMAGE]",
		Aliases: []string{"ls"},
		Short:   "List the stored images, or one",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				all := []imageView{}
				stream, err := c.ListImages(ctx, &admin.ListImagesRequest{Ref: strings.Join(args, "")})
				if err := drain(c, stream, err, func(i *admin.Image) error {
					all = append(all, viewOf(i))
					return nil
				}); err != nil {
					return err
				}
				slices.SortFunc(all, byTitle)
				if o.quiet {
					return printIDs(cmd, all)
				}
				return o.write(cmd.OutOrStdout(), all, func(t *tabwriter.Writer) { tabulate(t, all) })
			})
		},
	}
	o.add(c, asTable, asJSONs, asYAML)
	o.addQuiet(c)
	return c
}

func printIDs(cmd *cobra.Command, all []imageView) error {
	for _, i := range all {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), i.ID); err != nil {
			return err
		}
	}
	return nil
}

// tabulate gives each tag a line.
func tabulate(t *tabwriter.Writer, all []imageView) {
	fmt.Fprintln(t, "NAME\tID\tSIZE\tALONE\tCONTAINERS\tPINNED")
	for _, i := range all {
		names := i.Tags
		if len(names) == 0 {
			names = append(slices.Clone(i.Digests), "<none>")[:1]
		}
		for _, name := range names {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%v\n", plain(name), short(i.ID), bytesOf(i.Size), bytesOf(i.Exclusive), len(i.Users), i.Pinned)
		}
	}
}

// details is an image as inspect shows it.
type details struct {
	imageView
	Digest   string          `json:"digest"`   // of the manifest for this platform
	Layers   []layerView     `json:"layers"`   // the lowest first
	Manifest json.RawMessage `json:"manifest"` // as it was pulled
	Config   json.RawMessage `json:"config"`   // as its builder wrote it; null for an artifact
}

type layerView struct {
	DiffID string `json:"diffId"`
	Size   uint64 `json:"size"` // bytes, uncompressed
}

func inspectImages(f *flags) *cobra.Command {
	var o form
	c := &cobra.Command{
		Use:   "inspect IMAGE...",
		Short: "Tell all of images: names, users, layers, configuration",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				var all []details
				for _, ref := range args {
					answer, err := c.InspectImage(ctx, &admin.InspectImageRequest{Ref: ref})
					if err != nil {
						return c.told(err)
					}
					all = append(all, detailsOf(answer))
				}
				return o.write(cmd.OutOrStdout(), all, nil)
			})
		},
	}
	o.add(c, asJSONs, asYAML)
	return c
}

func detailsOf(answer *admin.InspectImageResponse) details {
	d := details{
		imageView: viewOf(answer.GetImage()), Digest: answer.GetDigest(),
		Layers: []layerView{}, Manifest: orNull(answer.GetManifest()), Config: orNull(answer.GetConfig()),
	}
	for _, l := range answer.GetLayers() {
		d.Layers = append(d.Layers, layerView{l.GetDiffId(), l.GetSize()})
	}
	return d
}

func orNull(raw []byte) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}

// verdict is what verify says of an image.
type verdict struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Layers  uint32   `json:"layers"` // that match
	Faults  []string `json:"faults"`
	Unknown []string `json:"unknown"` // what cannot be compared
}

func verifyImages(f *flags) *cobra.Command {
	var o form
	c := &cobra.Command{
		Use:   "verify [IMAGE...]",
		Short: "Compare stored images with their digests: all of them, or those named",
		Long: `Compare manifests, configurations and all layers of stored images with their digests. It reads everything and changes
nothing. What is damaged is mended by pulling or loading it again, or with: crid fsck --contents --repair

Exit code 0: all match. 1: something does not. 2: it could not be checked.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return exitCode{exitNotChecked, err}
			}
			faults := 0
			err := f.ask(cmd, func(ctx context.Context, c *client) error {
				all := []verdict{}
				stream, err := c.VerifyImages(ctx, &admin.VerifyImagesRequest{Refs: args})
				if err := drain(c, stream, err, func(v *admin.Verification) error {
					all = append(all, verdict{v.GetId(), listed(v.GetTags()), v.GetLayers(), listed(v.GetFaults()), listed(v.GetUnknown())})
					faults += len(v.GetFaults())
					return nil
				}); err != nil {
					return err
				}
				return o.write(cmd.OutOrStdout(), all, func(t *tabwriter.Writer) { tabulateVerdicts(t, all) })
			})
			var coded exitCode
			switch {
			case errors.As(err, &coded):
				return err
			case err != nil:
				return exitCode{exitNotChecked, err}
			case faults > 0:
				return exitCode{exitFound, errors.New("image verify: stored images are damaged: pull or load them again, or run crid fsck --contents --repair")}
			}
			return nil
		},
	}
	o.add(c, asTable, asJSONs, asYAML)
	return c
}

func tabulateVerdicts(t *tabwriter.Writer, all []verdict) {
	fmt.Fprintln(t, "VERDICT\tID\tLAYERS\tNAME\tWHY")
	for _, v := range all {
		word := "matches"
		switch {
		case len(v.Faults) > 0:
			word = "damaged"
		case len(v.Unknown) > 0:
			word = "unknown"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", word, short(v.ID), v.Layers, imageView{Tags: v.Tags}.title(), plain(strings.Join(slices.Concat(v.Faults, v.Unknown), "; ")))
	}
}
