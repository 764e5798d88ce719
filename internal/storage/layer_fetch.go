package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	"golang.org/x/time/rate"

	"github.com/crid/crid/internal/errdef"
)

const (
	blobTries   = 5                // in a row that bring less than blobStep
	blobStep    = 1 << 20          // bytes that make another try worth while
	blobPause   = time.Second      // before the first further try; each next one waits twice as long
	blobMaxWait = 30 * time.Second // before a further try
)

// wire is what all pulls fetch by.
type wire struct {
	patience time.Duration // without a byte, after which a pull fails; 0 = none
	rate     *rate.Limiter // of bytes; nil = none
}

// silence is why a pull was ended that made no progress.
type silence struct {
	host  string
	after time.Duration
}

func (s silence) Error() string {
	return fmt.Sprintf("nothing came from %s for %s (the limit is pull_progress_timeout)", s.host, s.after)
}

// patiently calls do with a context that ends when do takes too long.
func (w *wire) patiently(ctx context.Context, host string, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return w.listen(ctx, cancel, host, func() error { return do(ctx) })
}

// listen calls do, which waits for the host under ctx, and ends ctx when that takes too long.
func (w *wire) listen(ctx context.Context, end context.CancelCauseFunc, host string, do func() error) error {
	if w.patience == 0 {
		return do()
	}
	timer := time.AfterFunc(w.patience, func() { end(silence{host, w.patience}) })
	err := do()
	timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// wired is a remote image as its blobs are fetched. The configuration is had already.
type wired struct {
	types.ImageSource
	image *remoteImage
}

// Close does nothing: the image's owner closes it.
func (w wired) Close() error { return nil }

func (w wired) GetBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if had := w.image; had.configuration != nil && info.Digest == had.config {
		return io.NopCloser(bytes.NewReader(had.configuration)), int64(len(had.configuration)), nil
	}
	return &blobReader{ctx: ctx, src: w.image, info: info}, info.Size, nil
}

// blobReader reads one blob. A connection that breaks is taken up again: by the library where the registry gives parts of
// a blob, else from the beginning, of which what was had before is dropped.
type blobReader struct {
	ctx  context.Context // of one blob: a reader has none to pass on
	src  *remoteImage
	info types.BlobInfo // a size of -1 is unknown

	body    io.ReadCloser
	end     context.CancelCauseFunc // of the request that body comes by
	within  context.Context         // of that request
	has     int64                   // bytes that were handed on
	drop    int64                   // bytes of body that were handed on before
	failed  int                     // tries in a row
	began   int64                   // has, when the first of them began
	renewed bool                    // there was a new token
	err     error                   // what Read returned last
}

func (b *blobReader) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	defer func() { b.err = err }()
	for {
		if b.body == nil {
			if err := b.open(); err != nil {
				return 0, err
			}
		}
		n, err := b.read(p)
		switch {
		case n > 0:
			return n, nil // the error comes again
		case errors.Is(err, io.EOF) && (b.has == b.info.Size || b.info.Size < 0), errors.Is(err, errdef.Invalid):
			return 0, err
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("the connection ended after %d of %d bytes: %w", b.has, b.info.Size, io.ErrUnexpectedEOF)
		case err == nil:
			continue // all of it was had before
		}
		b.shut()
		if err := b.again(err, true); err != nil {
			return 0, err
		}
	}
}

// read reads on, and drops what was had before.
func (b *blobReader) read(p []byte) (n int, err error) {
	if b.has == b.info.Size {
		p = make([]byte, 1) // there should be no more
	}
	err = b.listen(func() (err error) {
		n, err = b.body.Read(p)
		return err
	})
	if failed := b.src.d.wire.pace(b.ctx, n); failed != nil {
		return 0, failed
	}
	again := int(min(b.drop, int64(n)))
	b.drop -= int64(again)
	n = copy(p, p[again:n])
	if b.info.Size >= 0 && b.has+int64(n) > b.info.Size {
		return 0, fmt.Errorf("layer %s has more than the %d bytes that the manifest says: %w", b.info.Digest, b.info.Size, errdef.Invalid)
	}
	b.has += int64(n)
	return n, err
}

func (b *blobReader) listen(do func() error) error {
	return b.src.d.wire.listen(b.within, b.end, b.src.host(), do)
}

// pace waits as long as n bytes may take.
func (w *wire) pace(ctx context.Context, n int) error {
	if w.rate == nil {
		return nil
	}
	for n > 0 {
		part := min(n, w.rate.Burst())
		if err := w.rate.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// open asks for the blob, a few times.
func (b *blobReader) open() error {
	for {
		b.within, b.end = context.WithCancelCause(b.ctx)
		err := b.listen(func() (err error) {
			b.body, _, err = b.src.source().GetBlob(b.within, b.info, none.NoCache)
			return err
		})
		if err == nil {
			b.drop = b.has
			return nil
		}
		b.body = nil
		b.end(nil)
		if err := b.again(err, false); err != nil {
			return err
		}
	}
}

// again waits before a further try, or returns failed if there shall be none. reading: a connection was there.
func (b *blobReader) again(failed error, reading bool) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	_, silent := errors.AsType[silence](failed)
	denied := statusOf(failed) == http.StatusUnauthorized
	if silent || denied && b.renewed || !reading && !denied && !mayPass(failed) {
		return failed
	}
	if b.failed > 0 && b.has-b.began >= blobStep {
		b.failed = 0
	}
	if b.failed == 0 {
		b.began = b.has
	}
	b.failed++
	if b.failed == blobTries {
		return fmt.Errorf("after %d tries: %w", blobTries, failed)
	}
	pause := min(blobPause<<(b.failed-1), blobMaxWait)
	pause += rand.N(pause / 4) // nodes that lost one registry together shall not come back together
	slog.Warn("fetching a layer is tried again", "layer", b.info.Digest, "registry", b.src.host(), "have", b.has, "of", b.info.Size, "in", pause, "err", failed)
	select {
	case <-time.After(pause):
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
	if !denied {
		return nil
	}
	b.renewed = true
	return b.src.renew(b.ctx) // with a new token
}

// mayPass tells whether what failed may go well when it is tried again.
func mayPass(failed error) bool {
	switch status := statusOf(failed); status {
	case 0:
		_, lost := errors.AsType[*net.OpError](failed)
		network, any := errors.AsType[net.Error](failed)
		return lost || any && network.Timeout() || errors.Is(failed, io.EOF) || errors.Is(failed, io.ErrUnexpectedEOF)
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	default:
		return status >= 500
	}
}

func (b *blobReader) shut() {
	if b.body == nil {
		return
	}
	_ = b.body.Close() // of what was only read, and is given up
	b.end(nil)
	b.body = nil
}

func (b *blobReader) Close() error {
	b.shut()
	return nil
}
