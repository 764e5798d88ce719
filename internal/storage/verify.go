package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/asm"
	tarsplit "github.com/vbatts/tar-split/tar/storage"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// openMark is the content of a file that lies in the store while crid has it open: whoever finds it knows that the last
// life did not end well. It is not synced: with the first layer that is stored it is on the disk too.
type openMark struct {
	Boot string `json:"boot"` // of the life that wrote it
	Due  bool   `json:"due"`  // the layers are still to be compared with their digests
}

func (s *Images) markPath() string { return filepath.Join(s.root, "crid-open") }

// markOpen notes that the store is open, and tells whether its layers are to be verified: the machine went down while
// crid had it open.
func (s *Images) markOpen() (due bool, err error) {
	raw, err := os.ReadFile(s.markPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read %s: %w", s.markPath(), err)
	}
	if err == nil {
		var mark openMark
		broken := json.Unmarshal(raw, &mark) != nil // a power cut can leave it empty
		due = broken || mark.Due || mark.Boot != s.cfg.bootName()
	}
	s.noteDue(due)
	return due, nil
}

// noteDue notes whether layers are to be verified. On a full disk it cannot, which ends no start.
func (s *Images) noteDue(due bool) {
	s.repair.due.Store(due)
	s.problems.set("mark", s.writeMark(due))
}

func (s *Images) writeMark(due bool) error {
	raw, err := json.Marshal(openMark{Boot: s.cfg.bootName(), Due: due})
	if err != nil {
		return fmt.Errorf("encode mark: %w", err)
	}
	temp := s.markPath() + ".tmp"
	err = os.WriteFile(temp, raw, 0o600)
	failpoint.Hit("storage/mark/written")
	if err == nil {
		err = os.Rename(temp, s.markPath())
		failpoint.Hit("storage/mark/placed")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mark the image store as open: %w", err), ignoreAbsent(os.Remove(temp)))
	}
	return nil
}

// markClosed takes the mark away, unless layers are still to be verified.
func (s *Images) markClosed() error {
	if s.repair.due.Load() {
		return nil
	}
	if err := ignoreAbsent(os.Remove(s.markPath())); err != nil {
		return fmt.Errorf("mark the image store as closed: %w", err)
	}
	return nil
}

// verifyAll compares every layer with its digest, the newest first since a power cut harms what was just written, and
// sets aside those that differ. Images are used meanwhile. It runs when nothing else wants the disk or a processor.
func (s *Images) verifyAll(ctx context.Context) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its low priority with it
	s.problems.set("verify", errors.New("the machine went down while crid was running: stored layers are being compared with their digests"))
	err := errors.Join(lowerPriority(), s.verifyLayers(ctx))
	if ctx.Err() != nil {
		return // the next start goes on
	}
	s.problems.set("verify", err)
	if err == nil {
		s.noteDue(false)
	}
}

func (s *Images) verifyLayers(ctx context.Context) error {
	layers, err := s.layerMap()
	if err != nil {
		return err
	}
	began, damaged := time.Now(), 0
	for _, l := range slices.SortedFunc(maps.Values(layers), func(a, b *cstorage.Layer) int { return b.Created.Compare(a.Created) }) {
		found := s.verifyLayer(ctx, l)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(found, errDamaged) {
			damaged++
			found = s.condemn(l.ID, found)
		}
		err = errors.Join(err, found)
	}
	slog.Info("stored layers were compared with their digests", "layers", len(layers), "damaged", damaged, "took", time.Since(began))
	return err
}

// condemn sets aside what a layer consists of, so that all images with it are pulled again.
func (s *Images) condemn(id string, why error) error {
	slog.Warn("a layer is damaged; it is set aside, and pulled again when it is wanted", "layer", id, "err", why)
	s.gates.countRemoval() // a pull that stands on it is tried again
	defer s.gates.countRemoval()
	if err := s.setAside(s.layerDir(id)); err != nil {
		return err
	}
	return s.reexamine()
}

// lowerPriority lets the calling thread go last, at the processors as at the disk.
func lowerPriority() error {
	const whoProcess, classIdle = 1, 3 << 13 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
		return fmt.Errorf("verify layers at low priority: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle); errno != 0 {
		return fmt.Errorf("verify layers at idle I/O priority: %w", errno)
	}
	return nil
}

// verifyLayer puts the layer's archive together again, as it was pulled, from its files and from what the store kept
// of the archive besides, and compares digests. The store's own check does the same, but keeps everybody from the
// list of layers meanwhile. A layer that did not come as an archive cannot be verified, which is fine.
func (s *Images) verifyLayer(ctx context.Context, l *cstorage.Layer) error {
	if l.ReadOnly || l.UncompressedDigest.Validate() != nil {
		return nil
	}
	if why, err := inspectLayer(s.layerDir(l.ID)); err != nil || why != "" {
		return nil // its images are told of already
	}
	recipe, err := os.Open(s.recipePath(l.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("verify layer %s: %w", l.ID, err)
	}
	defer recipe.Close()
	root, err := os.Open(s.layerDir(l.ID))
	if err != nil {
		return fmt.Errorf("verify layer %s: %w", l.ID, err)
	}
	defer root.Close()
	err = reassemble(ctx, root, recipe, l, io.Discard)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if here, statErr := os.Stat(s.layerDir(l.ID)); statErr != nil || !sameFile(root, here) {
		return nil // it was removed meanwhile, and perhaps stored again
	}
	if isShortage(err) {
		return fmt.Errorf("verify layer %s: %w", l.ID, err)
	}
	return fmt.Errorf("layer %s differs from what was pulled: %w: %w", l.ID, err, errDamaged)
}

func sameFile(f *os.File, info fs.FileInfo) bool {
	own, err := f.Stat()
	return err == nil && os.SameFile(own, info)
}

// isShortage tells of what says nothing about the layer.
func isShortage(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR}, func(e error) bool { return errors.Is(err, e) })
}

// rebuild writes the archive that a layer came as.
func rebuild(ctx context.Context, root *os.File, recipe io.Reader, to io.Writer) error {
	plain, err := gzip.NewReader(recipe)
	if err != nil {
		return fmt.Errorf("read what the store kept of its archive: %w", err)
	}
	defer plain.Close()
	tree := &layerTree{ctx: ctx, root: root, entries: tarsplit.NewJSONUnpacker(plain)}
	return asm.WriteOutputTarStream(tree, tree, to)
}

// archiveOf is the archive that a layer came as. Nothing keeps the layer meanwhile: what is read need not be whole.
func (s *Images) archiveOf(ctx context.Context, l *cstorage.Layer) io.ReadCloser {
	r, w := io.Pipe()
	go func() { // ends with the archive, or when r is closed
		recipe, err := os.Open(s.recipePath(l.ID))
		if err != nil {
			w.CloseWithError(err)
			return
		}
		defer recipe.Close()
		root, err := os.Open(s.layerDir(l.ID))
		if err != nil {
			w.CloseWithError(err)
			return
		}
		defer root.Close()
		w.CloseWithError(rebuild(ctx, root, recipe, w))
	}()
	return r
}

// layerTree reads a layer's files, in the order of its archive.
type layerTree struct {
	ctx     context.Context // of one comparison: asm has none to pass on
	root    *os.File
	entries tarsplit.Unpacker
}

// Next looks for the entries without content, which are otherwise not looked at: a directory, a link, an empty file.
func (t *layerTree) Next() (*tarsplit.Entry, error) {
	if err := t.ctx.Err(); err != nil {
		return nil, err
	}
	e, err := t.entries.Next()
	if err != nil || e.Type != tarsplit.FileType || e.Size > 0 || !leavesTrace(e.GetName()) {
		return e, err
	}
	path := filepath.Clean("/" + e.GetName())
	dir, err := pathrs.OpenatInRoot(t.root, filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), filepath.Base(path), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return e, nil
}

// leavesTrace tells whether an entry of the archive becomes a file of that name: whiteouts and the headers that are
// for all of an archive do not.
func leavesTrace(name string) bool {
	base := filepath.Base("/" + name)
	return base != "/" && base != "pax_global_header" && !strings.HasPrefix(base, ".wh.")
}

// Get opens a file for reading.
func (t *layerTree) Get(name string) (io.ReadCloser, error) {
	at, err := pathrs.OpenatInRoot(t.root, "/"+name)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	file, err := pathrs.Reopen(at, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{within(t.ctx, file), file}, nil
}
