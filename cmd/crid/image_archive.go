package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.podman.io/image/v5/pkg/compression"
	"golang.org/x/term"

	"github.com/crid/crid/internal/admin"
)

// loadedView is an image that has come from an archive.
type loadedView struct {
	imageView
	Existed bool `json:"existed"` // before
}

func loadImages(f *flags) *cobra.Command {
	var o form
	var inputs []string
	var name string
	c := &cobra.Command{
		Use:   "load [ARCHIVE...]",
		Short: "Store the images of archives: no registry is asked",
		Long: `Store the images of archives, as docker save, podman save, skopeo, crane, buildkit and crid image save write them: docker-archive,
oci-archive, the directory of an OCI layout, or one of skopeo's (dir); artifacts in the last three. Archives may be compressed (gzip,
zstd, bzip2, xz). Without a name, or with -, the archive is read from stdin.

This command reads the archive and sends it to crid, which opens no path of yours. crid keeps it on the disk of the image
store until its images are stored, since an archive may say at its end what it holds. The images get the names that the archive
gives them, or --name. Those for other platforms are left out. The signature policy rules it by the transports docker-archive,
oci-archive and dir.

How much is sent, and how far each layer is, goes to stderr: as bars, or without a terminal a line for each layer that is done.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if inputs = append(inputs, args...); len(inputs) == 0 {
				inputs = []string{"-"}
			}
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				all, failed := []loadedView{}, error(nil)
				for _, input := range inputs {
					show := newBars(cmd.ErrOrStderr(), o.quiet)
					show.words = map[string]string{"pulling": "loading", "pulled": "loaded"}
					found, err := c.load(ctx, cmd.InOrStdin(), input, name, show)
					if all = append(all, found...); err != nil {
						failed = errors.Join(failed, fmt.Errorf("%s: %w", input, err))
					}
					if ctx.Err() != nil {
						break
					}
				}
				return errors.Join(failed, o.write(cmd.OutOrStdout(), all, func(t *tabwriter.Writer) { tabulateLoaded(t, all, o.quiet) }))
			})
		},
	}
	c.Flags().StringArrayVarP(&inputs, "input", "i", nil, "an archive, as docker load has it")
	c.Flags().StringVar(&name, "name", "", "name of the archive's one image, instead of those that the archive gives")
	o.add(c, asTable, asJSONs, asYAML)
	c.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "no progress, and only the ids")
	return c
}

func tabulateLoaded(t *tabwriter.Writer, all []loadedView, quiet bool) {
	for _, l := range all {
		word := "loaded"
		if l.Existed {
			word = "was here"
		}
		if quiet {
			fmt.Fprintln(t, l.ID)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", word, short(l.ID), l.title())
	}
}

// load sends one archive.
func (c *client) load(ctx context.Context, stdin io.Reader, input, name string, show *bars) (all []loadedView, err error) {
	archive, err := openArchive(stdin, input, show.sending)
	if err != nil {
		return nil, err
	}
	defer archive.Close() // of what was only read
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream, whatever is left of it
	stream, err := c.LoadImages(ctx)
	if err != nil {
		return nil, c.told(err)
	}
	header := &admin.LoadImagesRequest{Part: &admin.LoadImagesRequest_Header{Header: &admin.LoadHeader{Name: name, Progress: !show.quiet}}}
	unread := stream.Send(header)
	if unread == nil {
		unread = sendAll(archive, func(p []byte) error {
			return stream.Send(&admin.LoadImagesRequest{Part: &admin.LoadImagesRequest_Data{Data: p}})
		})
	}
	if unread != nil && !errors.Is(unread, io.EOF) { // else crid has ended it, and says why
		return nil, unread
	}
	if unread == nil {
		if err := stream.CloseSend(); err != nil {
			return nil, c.told(err)
		}
	}
	err = drain(c, stream, nil, func(l *admin.LoadImagesResponse) error {
		if p := l.GetProgress(); p != nil {
			show.draw(p)
			return nil
		}
		all = append(all, loadedView{viewOf(l.GetImage()), l.GetExisted()})
		return nil
	})
	return all, err
}

// pieceSize is how much of an archive is sent at a time, in bytes.
const pieceSize = 512 << 10

func sendAll(from io.Reader, send func([]byte) error) error {
	piece := make([]byte, pieceSize)
	for {
		n, err := from.Read(piece)
		if n > 0 {
			if err := send(piece[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
	}
}

// counted tells how much of an archive has been read.
type counted struct {
	io.ReadCloser
	tell        func(done, total int64)
	done, total int64 // bytes; total is -1 while it is unknown
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.done += int64(n)
	if errors.Is(err, io.EOF) {
		c.total = c.done
	}
	c.tell(c.done, c.total)
	return n, err
}

// openArchive opens an archive as a plain tar, whatever it is. tell is told how much of it has been read, but of a pipe: who
// writes into that may have more to say.
func openArchive(stdin io.Reader, input string, tell func(done, total int64)) (io.ReadCloser, error) {
	if input == "-" {
		if file, ok := stdin.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
			return nil, errors.New("no archive is named, and stdin is a terminal")
		}
		return decompressed(io.NopCloser(stdin))
	}
	file, err := os.Open(input)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if !info.IsDir() {
		return decompressed(&counted{ReadCloser: file, tell: tell, total: info.Size()})
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	packed, err := openLayout(input)
	if err != nil {
		return nil, err
	}
	return &counted{ReadCloser: packed, tell: tell, total: -1}, nil
}

// decompressed is what an archive holds. What it is compressed with costs this program memory, not crid.
func decompressed(from io.ReadCloser) (io.ReadCloser, error) {
	plain, _, err := compression.AutoDecompress(from)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("decompress archive: %w", err), from.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{plain, closers{plain, from}}, nil
}

type closers []io.Closer

func (c closers) Close() error {
	var all error
	for _, one := range c {
		all = errors.Join(all, one.Close())
	}
	return all
}

// openLayout packs a directory with an image while it is read.
func openLayout(dir string) (io.ReadCloser, error) {
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
		if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err != nil {
			return nil, errors.New("the directory is no image: it has neither index.json (OCI layout) nor manifest.json (skopeo's dir); of a directory with archives, name these: crid image load DIRECTORY/*")
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	out, in := io.Pipe()
	go func() { // ends with the directory, or when nobody reads any more
		in.CloseWithError(errors.Join(packLayout(root, in), root.Close()))
	}()
	return out, nil
}

// packLayout packs the regular files below root: an image has no others.
func packLayout(root *os.Root, out io.Writer) error {
	w := tar.NewWriter(out)
	err := fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		return packFile(root, path, w)
	})
	return errors.Join(err, w.Close())
}

func packFile(root *os.Root, path string, w *tar.Writer) error {
	file, err := root.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, file)
	return err
}

func saveImages(f *flags) *cobra.Command {
	var output, format string
	var quiet bool
	c := &cobra.Command{
		Use:   "save IMAGE...",
		Short: "Write images to an archive that docker, podman, skopeo and crid can load",
		Long: `Write images to one archive, each with the name by which it is named here, or with all of its tags where it is named by id or
digest. The layers are compared with their digests on the way. Loaded again, by whomever, the images have the same ids.

docker-archive is what docker save writes since version 25, and docker load of any version takes; oci-archive leaves out what only
docker needs, and can hold artifacts, too. Neither is compressed: crid image save IMAGE | zstd > FILE

How far each layer is goes to stderr: as bars, or without a terminal a line for each layer that is done.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.ask(cmd, func(ctx context.Context, c *client) error {
				s := saving{&admin.SaveImagesRequest{Refs: args, Format: format, Progress: !quiet}, newBars(cmd.ErrOrStderr(), quiet)}
				if output != "" && output != "-" {
					return c.saveFile(ctx, s, output)
				}
				if file, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(file.Fd())) {
					return errors.New("an archive is nothing for a terminal: name a file with --output, or redirect it")
				}
				return c.save(ctx, s, cmd.OutOrStdout())
			})
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "file to write; one that exists is replaced when all is written (default stdout)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	c.Flags().StringVar(&format, "format", "docker-archive", "docker-archive or oci-archive")
	_ = c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"docker-archive", "oci-archive"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return c
}

// saving is what is saved, and where it is shown.
type saving struct {
	ask  *admin.SaveImagesRequest
	show *bars
}

func (c *client) save(ctx context.Context, s saving, out io.Writer) error {
	stream, err := c.SaveImages(ctx, s.ask)
	return drain(c, stream, err, func(p *admin.SaveImagesResponse) error {
		if p := p.GetProgress(); p != nil {
			s.show.draw(p)
			return nil
		}
		_, err := out.Write(p.GetData())
		return err
	})
}

// saveFile writes an archive that is whole, and on the disk, or none: a stick may be pulled out right after it.
func (c *client) saveFile(ctx context.Context, s saving, path string) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // a device, a pipe
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(c.save(ctx, s, file), file.Close())
	}
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	err = c.save(ctx, s, temp)
	if err == nil {
		err = temp.Sync()
	}
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}
