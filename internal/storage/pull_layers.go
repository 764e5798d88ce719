package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"
	drivers "go.podman.io/storage/drivers"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// parallelLayers is how many layers are fetched and unpacked at a time where nobody says.
const parallelLayers = 6

// layerPlan is one layer of an image that is pulled.
type layerPlan struct {
	id     string     // in the store, as all tools that use the store call it
	below  *layerPlan // nil for the lowest
	twin   *layerPlan // a layer with the same content further below, if any
	blob   types.BlobInfo
	diffID digest.Digest
	meter  *meter
	stored chan struct{} // closed when it is
}

func (p *layerPlan) parent() string {
	if p.below == nil {
		return ""
	}
	return p.below.id
}

// settle says that the layer is in the store.
func (p *layerPlan) settle(how LayerState) {
	p.meter.set(how)
	close(p.stored)
}

// await waits until the layer is stored; there may be none to wait for.
func (p *layerPlan) await(ctx context.Context) error {
	if p == nil {
		return nil
	}
	select {
	case <-p.stored:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// planLayers is what an image consists of, the lowest layer first. It is nil for an image that only the library can bring
// into the store: one with encrypted layers, one that does not tell what is in its layers, and one for another system.
func planLayers(ctx context.Context, img types.Image, meters []*meter) ([]*layerPlan, error) {
	config, err := img.OCIConfig(ctx)
	if err != nil {
		return nil, nil // which the library tells of
	}
	infos := img.LayerInfos()
	if len(infos) != len(config.RootFS.DiffIDs) || len(infos) != len(meters) || config.OS != "linux" || isEncrypted(img) {
		return nil, nil
	}
	if len(infos) > maxLayers {
		return nil, fmt.Errorf("more than %d layers: %w", maxLayers, errBounds)
	}
	var plan []*layerPlan
	var below *layerPlan
	first := map[digest.Digest]*layerPlan{}
	for i, diffID := range config.RootFS.DiffIDs {
		if diffID.Algorithm() != digest.SHA256 || errors.Join(diffID.Validate(), infos[i].Digest.Validate()) != nil || infos[i].Size < 0 {
			return nil, nil
		}
		p := &layerPlan{below: below, twin: first[diffID], blob: infos[i], diffID: diffID, meter: meters[i], stored: make(chan struct{})}
		p.id = layerID(p.parent(), diffID)
		if p.twin == nil {
			first[diffID] = p
		}
		plan, below = append(plan, p), p
	}
	return plan, nil
}

// layerID is the store's name of a layer with this content on that parent: all users of the library agree on it.
func layerID(parent string, diffID digest.Digest) string {
	if parent == "" {
		return diffID.Encoded()
	}
	return digest.SHA256.FromString(parent + "+" + diffID.Encoded()).Encoded()
}

// claims are the layers that pulls are bringing into the store: each is brought by one of them, and others that need it wait.
type claims struct {
	mu   sync.Mutex // guards busy; nothing is waited for under it
	busy map[string]chan struct{}
}

// try takes the layer, or returns what to wait for.
func (c *claims) try(id string) (busy <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.busy[id]; other != nil {
		return other
	}
	if c.busy == nil {
		c.busy = map[string]chan struct{}{}
	}
	c.busy[id] = make(chan struct{})
	return nil
}

// take waits for the layer and takes it.
func (c *claims) take(ctx context.Context, id string) error {
	for {
		busy := c.try(id)
		if busy == nil {
			return nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *claims) release(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.busy[id])
	delete(c.busy, id)
}

func (c *claims) isBusy(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy[id] != nil
}

// bringLayers brings those layers into the store that are not there: all at the same time, each put into its place when
// those below it are in theirs.
func (s *Images) bringLayers(ctx context.Context, src types.ImageSource, plan []*layerPlan) error {
	work, ctx := errgroup.WithContext(ctx)
	for _, p := range plan {
		there, err := s.hasLayer(p.id)
		if there {
			p.settle(LayerReused)
			continue
		}
		// Layers begin in their order where they need not wait for another pull: what one that fails has brought serves the
		// next one, from below.
		waits := p.twin != nil || s.pulls.claims.isBusy(p.id)
		if err == nil && !waits {
			err = s.beginLayer(ctx, p)
		}
		work.Go(func() error {
			if err == nil && waits {
				err = s.beginLayer(ctx, p)
			}
			if err != nil {
				return err
			}
			defer s.pulls.claims.release(p.id)
			return s.bringLayer(ctx, src, p)
		})
	}
	return work.Wait()
}

// beginLayer waits until p may be fetched, by this pull alone and as one of a few layers. Places are not waited for by who
// has one, and a claim is had by who waits for layers below only: no two wait for each other.
func (s *Images) beginLayer(ctx context.Context, p *layerPlan) error {
	if err := p.twin.await(ctx); err != nil {
		return err
	}
	if err := s.pulls.claims.take(ctx, p.id); err != nil {
		return err
	}
	if s.pulls.places.Acquire(ctx, 1) != nil {
		s.pulls.claims.release(p.id)
		return context.Cause(ctx)
	}
	return nil
}

// bringLayer brings one layer, which has begun.
func (s *Images) bringLayer(ctx context.Context, src types.ImageSource, p *layerPlan) error {
	staged, err := s.stageUnlessThere(ctx, src, p)
	s.pulls.places.Release(1)
	if err != nil {
		return err
	}
	if staged == nil {
		p.settle(LayerReused)
		return nil
	}
	p.meter.set(LayerPulled)
	if err = p.below.await(ctx); err == nil {
		_, err = s.applyStaged(p.id, p.parent(), staged)
	}
	if err != nil {
		err = errors.Join(err, s.dropStaged(staged))
	}
	if err != nil && !errors.Is(err, cstorage.ErrDuplicateID) { // another tool was quicker
		return err
	}
	p.settle(LayerStored)
	return nil
}

func (s *Images) stageUnlessThere(ctx context.Context, src types.ImageSource, p *layerPlan) (*drivers.DriverWithDifferOutput, error) {
	if there, err := s.hasLayer(p.id); there || err != nil {
		return nil, err
	}
	return s.stageLayer(ctx, src, p)
}

func (s *Images) hasLayer(id string) (bool, error) {
	_, err := s.store.Layer(id)
	if errors.Is(err, cstorage.ErrLayerUnknown) {
		return false, nil
	}
	return err == nil, err
}

// stageLayer unpacks a layer beside the others: from the registry, unless the store has the very blob on another parent.
func (s *Images) stageLayer(ctx context.Context, src types.ImageSource, p *layerPlan) (*drivers.DriverWithDifferOutput, error) {
	if twin := s.storedBlob(p); twin != nil {
		staged, err := s.stage(ctx, layerBlob{
			info: types.BlobInfo{Digest: p.diffID}, diffID: p.diffID,
			open: func(ctx context.Context) (io.ReadCloser, error) { return s.archiveOf(ctx, twin), nil },
		})
		if err == nil {
			staged.CompressedDigest = p.blob.Digest
			return staged, nil
		}
		slog.Warn("a stored layer cannot be used again; it is fetched", "layer", twin.ID, "err", err)
	}
	return s.stage(ctx, layerFrom(src, p.blob, p.diffID))
}

func layerFrom(src types.ImageSource, blob types.BlobInfo, diffID digest.Digest) layerBlob {
	return layerBlob{info: blob, diffID: diffID, open: func(ctx context.Context) (io.ReadCloser, error) {
		r, _, err := src.GetBlob(ctx, blob, none.NoCache)
		return r, err
	}}
}

// storedBlob finds a layer that was made of the same blob.
func (s *Images) storedBlob(p *layerPlan) *cstorage.Layer {
	layers, err := s.store.LayersByCompressedDigest(p.blob.Digest)
	if err != nil {
		return nil // none, or it is fetched
	}
	for _, l := range layers {
		if !l.ReadOnly && l.UncompressedDigest == p.diffID {
			return &l
		}
	}
	return nil
}

// stage unpacks a layer beside the others.
func (s *Images) stage(ctx context.Context, layer layerBlob) (*drivers.DriverWithDifferOutput, error) {
	staged, err := s.store.PrepareStagedLayer(nil, differ{ctx, layer, s.scratchDir(), &s.pulls.pieces})
	if err != nil {
		if staged != nil {
			err = errors.Join(err, s.dropStaged(staged))
		}
		return nil, err
	}
	failpoint.Hit("storage/pull/staged")
	return staged, nil
}

// dropStaged removes what was unpacked.
func (s *Images) dropStaged(staged *drivers.DriverWithDifferOutput) error {
	if staged.Target == "" {
		return nil
	}
	err := s.store.CleanupStagedLayer(staged)
	failpoint.Hit("storage/pull/staged-dropped")
	return err
}

// inheritRoot gives the root directory of a layer that says nothing about it the owner that its parent's has. The mode is
// given by the store.
func (s *Images) inheritRoot(parent string, staged *drivers.DriverWithDifferOutput) error {
	if parent == "" || staged.RootDirMode != nil {
		return nil
	}
	var st unix.Stat_t
	err := unix.Lstat(s.layerDir(parent), &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is another store's, or will be missed by the store
	}
	if err == nil {
		err = os.Lchown(staged.Target, int(st.Uid), int(st.Gid))
	}
	if err != nil {
		return fmt.Errorf("give the layer its parent's owner: %w", err)
	}
	return nil
}

// applyStaged puts what was unpacked into the store as the layer id, which the store chooses when it is empty.
func (s *Images) applyStaged(id, parent string, staged *drivers.DriverWithDifferOutput) (*cstorage.Layer, error) {
	if err := s.inheritRoot(parent, staged); err != nil {
		return nil, err
	}
	failpoint.Hit("storage/pull/root-owned")
	layer, err := s.store.ApplyStagedLayer(cstorage.ApplyStagedLayerOptions{
		ID: id, ParentLayer: parent, DiffOutput: staged, DiffOptions: &drivers.ApplyDiffWithDifferOpts{},
	})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("storage/pull/layer-put")
	err = os.Remove(filepath.Dir(staged.Target)) // the store leaves the place where it was
	failpoint.Hit("storage/pull/staging-removed")
	return layer, err
}
