package storage

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/vbatts/tar-split/archive/tar"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// What an archive of images may ask for, besides the disk.
const (
	maxMembers     = 1 << 16  // files: a layer is one
	maxMemberNames = 16 << 20 // bytes of their names, which are held in memory
	maxArchiveJSON = 4 << 20  // bytes of a manifest, a list or a configuration
	maxImages      = 4096
	maxLinks       = 8         // from one member to the next
	spoolBuffer    = 256 << 10 // bytes
)

// archiveFile is an archive of images in a file that has no name: the archive may say at its end what it holds, so that it
// is read more than once. Nothing is unpacked: a name of the archive is looked up among its members, and is no path of the
// host. Whatever becomes of crid, the kernel takes the file back.
type archiveFile struct {
	file    *os.File
	members map[string]member
	sizes   map[string]int64 // of layers that had to be read for that; one goroutine asks
}

// member is where the content of a file of the archive lies.
type member struct {
	offset, size int64
	link         string // the name of the member that has the content instead
}

// spool takes an archive in. It ends with the archive, with ctx, or with what crid takes from nobody.
func (s *Images) spool(ctx context.Context, from io.Reader) (_ *archiveFile, err error) {
	file, err := os.CreateTemp(s.scratchDir(), "load-")
	failpoint.Hit("storage/load/made")
	if err != nil {
		return nil, fmt.Errorf("make room for the archive: %w", errdef.Disk(err))
	}
	err = os.Remove(file.Name())
	failpoint.Hit("storage/load/unlinked")
	if err == nil {
		a := newArchiveFile(file)
		if a.members, err = a.fill(within(ctx, from)); err == nil {
			return a, nil
		}
	}
	return nil, errors.Join(err, file.Close())
}

func newArchiveFile(file *os.File) *archiveFile {
	return &archiveFile{file: file, sizes: map[string]int64{}}
}

func (a *archiveFile) close() error { return a.file.Close() }

// fill copies the archive into the file and lists its members.
func (a *archiveFile) fill(from io.Reader) (map[string]member, error) {
	kept := bufio.NewWriterSize(diskWriter{a.file}, spoolBuffer)
	members, err := listMembers(io.TeeReader(from, kept))
	if err == nil {
		err = kept.Flush()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, from) // what pads the archive, until its sender has sent all
	}
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	return members, nil
}

// diskWriter says which disk is full.
type diskWriter struct{ *os.File }

func (w diskWriter) Write(p []byte) (int, error) {
	n, err := w.File.Write(p)
	failpoint.Hit("storage/load/kept")
	if err != nil {
		err = fmt.Errorf("the archive is kept on the disk of the image store while it is loaded: %w", errdef.Disk(err))
	}
	return n, err
}

// position knows how far a reader is.
type position struct {
	from io.Reader
	at   int64
}

func (p *position) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	p.at += int64(n)
	return n, err
}

// listMembers reads a tar to its end.
func listMembers(from io.Reader) (map[string]member, error) {
	at := &position{from: from}
	r, members, names := tar.NewReader(at), map[string]member{}, 0
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return members, nil
		}
		if err != nil {
			return nil, noTar(err, len(members))
		}
		name := memberName(h.Name)
		names += len(name) + len(h.Linkname)
		switch {
		case len(members) >= maxMembers || names > maxMemberNames:
			return nil, fmt.Errorf("more than %d files, or names of more than %d bytes: %w", maxMembers, maxMemberNames, errBounds)
		case isSparse(h):
			return nil, fmt.Errorf("%s is written with holes, as no archive of images is: %w", name, errdef.Invalid)
		}
		if _, twice := members[name]; twice {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeRegA:
			members[name] = member{offset: at.at, size: h.Size}
		case tar.TypeSymlink:
			members[name] = member{link: memberName(path.Join(path.Dir(name), h.Linkname))}
		case tar.TypeLink:
			members[name] = member{link: memberName(h.Linkname)}
		}
	}
}

// memberName is a name without the ways of writing it.
func memberName(name string) string { return path.Clean("/" + name)[1:] }

func noTar(err error, members int) error {
	if errors.Is(err, tar.ErrHeader) && members == 0 {
		return fmt.Errorf("it is no tar: %w: %w", err, errdef.Invalid)
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it is damaged, or not whole: %w: %w", err, errdef.Invalid)
	}
	return err
}

// open gives the content of a member.
func (a *archiveFile) open(name string) (*io.SectionReader, error) {
	at := memberName(name)
	for range maxLinks {
		m, ok := a.members[at]
		if !ok {
			return nil, fmt.Errorf("the archive has no %s: %w", name, errdef.Invalid)
		}
		if m.link == "" {
			return io.NewSectionReader(a.file, m.offset, m.size), nil
		}
		at = m.link
	}
	return nil, fmt.Errorf("%s of the archive is a link without end: %w", name, errdef.Invalid)
}

func (a *archiveFile) has(name string) bool {
	_, ok := a.members[name]
	return ok
}

// read gives a member that is small.
func (a *archiveFile) read(name string) ([]byte, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > maxArchiveJSON {
		return nil, fmt.Errorf("%s of the archive has %d bytes, %d are allowed: %w", name, r.Size(), maxArchiveJSON, errBounds)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read %s of the archive: %w", name, err)
	}
	return raw, nil
}

// decode reads a member that is JSON.
func (a *archiveFile) decode(name string, into any) error {
	raw, err := a.read(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s of the archive: %w: %w", name, err, errdef.Invalid)
	}
	return nil
}
