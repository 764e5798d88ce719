package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crid/crid/internal/admin"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/storage"
)

// fakeLibrary keeps what it is given.
type fakeLibrary struct {
	loaded  bytes.Buffer
	name    string
	slow    chan struct{} // Load reads nothing, and ends with its archive, when it is set: it is closed once that is so
	archive []byte        // what Save writes
	err     error         // how Load, Save, Tag, Drop, Prune, Verify and the check end
	dropped []string
	repairs int
}

func (f *fakeLibrary) Load(ctx context.Context, r storage.LoadRequest) error {
	if f.slow != nil {
		close(f.slow)
		<-ctx.Done()
		_, err := r.Archive.Read(make([]byte, 1))
		return err
	}
	f.name = r.Name
	if _, err := io.Copy(&f.loaded, r.Archive); err != nil {
		return err
	}
	if r.Progress != nil {
		r.Progress("a:1", []storage.LayerProgress{{Digest: "sha256:1", Done: 3, Total: 4, State: storage.LayerPulling}})
	}
	return errors.Join(f.err, r.Loaded(storage.Image{ID: "1d", RepoTags: []string{"a:1"}}, true))
}

func (f *fakeLibrary) Save(_ context.Context, r storage.SaveRequest, out io.Writer) error {
	_, err := out.Write(f.archive)
	if r.Progress != nil {
		r.Progress([]storage.LayerProgress{{Digest: "sha256:1", Done: 4, Total: 4, State: storage.LayerSaved}})
	}
	return errors.Join(f.err, err)
}

func (f *fakeLibrary) Share(string) (storage.Share, bool) {
	return storage.Share{Exclusive: 7, Shared: 8}, true
}

func (f *fakeLibrary) Inspect(_ context.Context, ref string) (storage.Details, error) {
	if ref != "a:1" {
		return storage.Details{}, fmt.Errorf("image %s: %w", ref, errdef.NotFound)
	}
	return storage.Details{Image: storage.Image{ID: "1d"}, Config: []byte("{}"), Layers: []storage.LayerDetails{{DiffID: "sha256:1", Size: 2}}}, nil
}

func (f *fakeLibrary) Tag(context.Context, string, []string) (storage.Image, error) {
	return storage.Image{ID: "1d"}, f.err
}

func (f *fakeLibrary) Drop(_ context.Context, ref string, force bool) (storage.Removal, error) {
	f.dropped = append(f.dropped, fmt.Sprint(ref, force))
	return storage.Removal{Image: storage.Image{ID: "1d", Size: 7}, Untagged: []string{"a:1"}, Gone: true}, f.err
}

func (f *fakeLibrary) Prune(_ context.Context, all, dryRun bool, tell func(storage.Removal) error) error {
	f.dropped = append(f.dropped, fmt.Sprint(all, dryRun))
	return errors.Join(tell(storage.Removal{Image: storage.Image{ID: "1d"}, Gone: true}), f.err)
}

func (f *fakeLibrary) Verify(_ context.Context, _ []string, tell func(storage.Verification) error) error {
	return errors.Join(tell(storage.Verification{Image: storage.Image{ID: "1d"}, Layers: 2, Faults: []string{"f"}, Unknown: []string{"u"}}), f.err)
}

func (f *fakeLibrary) Users(string) []string { return []string{"c1"} }

func (f *fakeLibrary) fsck(_ context.Context, repair, _ bool) (any, error) {
	if repair {
		f.repairs++
	}
	return map[string]string{"by": "me"}, f.err
}

func withAdmin(t *testing.T) (*house, admin.AdminClient) {
	t.Helper()
	h := withImages(t)
	return h, admin.NewAdminClient(h.conn)
}

// all receives a stream to its end.
func all[M any](t *testing.T, stream grpc.ServerStreamingClient[M], err error) (got []*M, failed error) {
	t.Helper()
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err == nil {
			got = append(got, m)
		}
	}
	if err == io.EOF {
		err = nil
	}
	return got, err
}

func TestAnArchiveComesAndGoesInPieces(t *testing.T) {
	h, c := withAdmin(t)
	h.store.archive = bytes.Repeat([]byte("archive "), 400<<10)
	stream, err := c.LoadImages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *admin.LoadImagesRequest) {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	send(&admin.LoadImagesRequest{Part: &admin.LoadImagesRequest_Header{Header: &admin.LoadHeader{Name: "n:1"}}})
	for at := 0; at < len(h.store.archive); at += 1 << 20 {
		send(&admin.LoadImagesRequest{Part: &admin.LoadImagesRequest_Data{Data: h.store.archive[at:min(at+1<<20, len(h.store.archive))]}})
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	images, err := all(t, stream, nil)
	if err != nil || len(images) != 1 || !images[0].GetExisted() || images[0].GetImage().GetId() != "1d" || images[0].GetImage().GetUsers()[0] != "c1" {
		t.Errorf("loaded %v, %v", images, err)
	}
	if !bytes.Equal(h.store.loaded.Bytes(), h.store.archive) || h.store.name != "n:1" {
		t.Errorf("%d bytes came as %q", h.store.loaded.Len(), h.store.name)
	}
	pieces, err := all(t, must(t, c.SaveImages, &admin.SaveImagesRequest{Refs: []string{"a:1"}}), nil)
	var got []byte
	for _, p := range pieces {
		if len(p.GetData()) > pieceSize {
			t.Errorf("a piece of %d bytes", len(p.GetData()))
		}
		got = append(got, p.GetData()...)
	}
	if err != nil || !bytes.Equal(got, h.store.archive) {
		t.Errorf("%d bytes were saved, %v", len(got), err)
	}
	h.store.err = fmt.Errorf("a: %w", errdef.Unsupported)
	if _, err := all(t, must(t, c.SaveImages, &admin.SaveImagesRequest{Refs: []string{"a:1"}}), nil); status.Code(err) != codes.Unimplemented {
		t.Errorf("a save that fails: %v", err)
	}
}

// TestProgressOfArchives comes to who asks for it, between what it is about.
func TestProgressOfArchives(t *testing.T) {
	h, c := withAdmin(t)
	h.store.archive = []byte("archive")
	stream, err := c.LoadImages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&admin.LoadImagesRequest{Part: &admin.LoadImagesRequest_Header{Header: &admin.LoadHeader{Progress: true}}})
	if err = errors.Join(err, stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	images, err := all(t, stream, nil)
	if err != nil || len(images) != 2 || images[1].GetProgress() != nil || images[1].GetImage().GetId() != "1d" {
		t.Fatalf("loaded %v, %v", images, err)
	}
	if p := images[0].GetProgress(); images[0].GetImage() != nil || p.GetImage() != "a:1" || p.GetLayers()[0].GetDone() != 3 || p.GetLayers()[0].GetState() != "pulling" {
		t.Errorf("progress of a load: %v", p)
	}
	pieces, err := all(t, must(t, c.SaveImages, &admin.SaveImagesRequest{Refs: []string{"a:1"}, Progress: true}), nil)
	var data []byte
	var told []*admin.Progress
	for _, p := range pieces {
		if data = append(data, p.GetData()...); p.GetProgress() != nil {
			told = append(told, p.GetProgress())
		}
	}
	if err != nil || string(data) != "archive" || len(told) != 1 || told[0].GetLayers()[0].GetState() != "saved" {
		t.Errorf("saved %q, told %v, %v", data, told, err)
	}
}

func must[R, M any](t *testing.T, call func(context.Context, *R, ...grpc.CallOption) (grpc.ServerStreamingClient[M], error), r *R) grpc.ServerStreamingClient[M] {
	t.Helper()
	stream, err := call(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestALoadEndsWithItsClientAndWithCrid(t *testing.T) {
	for name, end := range map[string]func(h *house, cancel func()){
		"client": func(_ *house, cancel func()) { cancel() },
		"crid":   func(h *house, _ func()) { h.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			h, c := withAdmin(t)
			h.store.slow = make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := c.LoadImages(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&admin.LoadImagesRequest{Part: &admin.LoadImagesRequest_Header{Header: &admin.LoadHeader{}}}); err != nil {
				t.Fatal(err)
			}
			<-h.store.slow
			end(h, cancel)
			if _, err := all(t, stream, nil); err == nil {
				t.Error("it ended well")
			}
			for limit := time.After(5 * time.Second); h.server.Active() > 0; {
				select {
				case <-limit:
					t.Fatal("the call goes on")
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
}

func TestALoadBeginsWithItsHeader(t *testing.T) {
	h, c := withAdmin(t)
	for _, first := range []*admin.LoadImagesRequest{
		{}, {Part: &admin.LoadImagesRequest_Data{Data: []byte("x")}},
		{Part: &admin.LoadImagesRequest_Header{Header: &admin.LoadHeader{Name: strings.Repeat("x", maxName+1)}}},
	} {
		stream, err := c.LoadImages(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(first); err != nil {
			t.Fatal(err)
		}
		if _, err := all(t, stream, nil); status.Code(err) != codes.InvalidArgument || h.store.loaded.Len() > 0 {
			t.Errorf("%v: %v", first, err)
		}
	}
}

func TestImagesByHand(t *testing.T) {
	h, c := withAdmin(t)
	ctx := t.Context()
	listed, err := all(t, must(t, c.ListImages, &admin.ListImagesRequest{}), nil)
	if err != nil || len(listed) != 2 || listed[0].GetId() != "1d" || !listed[0].GetPinned() || listed[0].GetDigests()[0] != "a@sha256:11" ||
		listed[0].GetExclusive() != 7 || listed[0].GetShared() != 8 {
		t.Errorf("list: %v, %v", listed, err)
	}
	if one, err := all(t, must(t, c.ListImages, &admin.ListImagesRequest{Ref: "b:1"}), nil); err != nil || len(one) != 1 || one[0].GetId() != "2d" {
		t.Errorf("list of one: %v, %v", one, err)
	}
	if none, err := all(t, must(t, c.ListImages, &admin.ListImagesRequest{Ref: "absent"}), nil); err != nil || len(none) != 0 {
		t.Errorf("list of none: %v, %v", none, err)
	}
	d, err := c.InspectImage(ctx, &admin.InspectImageRequest{Ref: "a:1"})
	if err != nil || string(d.GetConfig()) != "{}" || d.GetLayers()[0].GetSize() != 2 {
		t.Errorf("inspect: %v, %v", d, err)
	}
	if _, err := c.InspectImage(ctx, &admin.InspectImageRequest{Ref: "b"}); status.Code(err) != codes.NotFound {
		t.Errorf("inspect of none: %v", err)
	}
	if img, err := c.TagImage(ctx, &admin.TagImageRequest{Ref: "a:1", Names: []string{"b"}}); err != nil || img.GetId() != "1d" {
		t.Errorf("tag: %v, %v", img, err)
	}
	if r, err := c.RemoveImage(ctx, &admin.RemoveImageRequest{Ref: "a:1", Force: true}); err != nil || !r.GetRemoved() || r.GetSize() != 7 || h.store.dropped[0] != "a:1true" {
		t.Errorf("remove: %v, %v, %v", r, err, h.store.dropped)
	}
	if r, err := all(t, must(t, c.PruneImages, &admin.PruneImagesRequest{All: true, DryRun: true}), nil); err != nil || len(r) != 1 || h.store.dropped[1] != "true true" {
		t.Errorf("prune: %v, %v, %v", r, err, h.store.dropped)
	}
	if v, err := all(t, must(t, c.VerifyImages, &admin.VerifyImagesRequest{}), nil); err != nil || len(v) != 1 || v[0].GetLayers() != 2 || v[0].GetFaults()[0] != "f" || v[0].GetUnknown()[0] != "u" {
		t.Errorf("verify: %v, %v", v, err)
	}
	h.store.err = fmt.Errorf("it is used: %w", errdef.WrongState)
	if _, err := c.RemoveImage(ctx, &admin.RemoveImageRequest{Ref: "a:1"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("remove of what is used: %v", err)
	}
	for _, bad := range []string{"", "a\x00b", strings.Repeat("x", maxName+1)} {
		_, err := c.RemoveImage(ctx, &admin.RemoveImageRequest{Ref: bad})
		_, again := all(t, must(t, c.SaveImages, &admin.SaveImagesRequest{Refs: []string{bad}}), nil)
		if status.Code(err) != codes.InvalidArgument || status.Code(again) != codes.InvalidArgument {
			t.Errorf("%.10q: %v, %v", bad, err, again)
		}
	}
}

func TestAPullByHandTellsNobodyItsSecrets(t *testing.T) {
	h, c := withAdmin(t)
	answers, err := all(t, must(t, c.PullImage, &admin.PullImageRequest{Ref: "a:1", Auth: &admin.Auth{Username: "u", Password: "hunter2"}}), nil)
	if len(answers) != 2 || answers[0].GetProgress().GetLayers()[0].GetDone() != 3 {
		t.Fatalf("pull: %v, %v", answers, err)
	}
	if err != nil || answers[len(answers)-1].GetImage().GetId() != "1d" || h.images.pulled.Auth != (storage.Auth{Username: "u", Password: "hunter2"}) {
		t.Errorf("pull: %v, %v, with %v", answers, err, h.images.pulled.Auth)
	}
	if log := h.log.String(); !strings.Contains(log, "PullImage") || strings.Contains(log, "hunter2") {
		t.Errorf("the log says\n%s", log)
	}
}

func TestChecksGoOneAfterTheOther(t *testing.T) {
	h, c := withAdmin(t)
	r, err := c.Fsck(t.Context(), &admin.FsckRequest{})
	if err != nil || string(r.GetReport()) != `{"by":"me"}` || h.store.repairs != 0 {
		t.Errorf("a check: %v, %v, %d repairs", r, err, h.store.repairs)
	}
	if _, err := c.Fsck(t.Context(), &admin.FsckRequest{Repair: true}); err != nil || h.store.repairs != 1 {
		t.Errorf("a repair: %v, %d repairs", err, h.store.repairs)
	}
	h.store.err = errors.New("the disk is on fire")
	if _, err := c.Fsck(t.Context(), &admin.FsckRequest{}); err == nil || Told(err).Error() != "the disk is on fire" {
		t.Errorf("a check that fails: %v", err)
	}
}

func TestToldIsOfTheKindThatItWas(t *testing.T) {
	for _, kind := range []error{errdef.NotFound, errdef.WrongState, errdef.Invalid, errdef.Exhausted, errdef.Unavailable, errdef.Unsupported} {
		err := fmt.Errorf("image x: %w", kind)
		if got := Told(toStatus(err)); !errors.Is(got, kind) || got.Error() != err.Error() {
			t.Errorf("%v is told as %v", err, got)
		}
	}
	if Told(nil) != nil {
		t.Error("nothing is told of")
	}
}
