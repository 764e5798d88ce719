package step

import (
	"context"
	"errors"
	"slices"
	"testing"
)

type key struct{}

// noted notes what it is told, and hands on a context that tells its name.
func noted(name string, notes *[]string) Watch {
	return func(ctx context.Context, s Step) (context.Context, func(error)) {
		outer, _ := ctx.Value(key{}).(string)
		*notes = append(*notes, name+" begins "+s.Verb)
		return context.WithValue(ctx, key{}, outer+name), func(err error) {
			*notes = append(*notes, name+" ends: "+err.Error())
		}
	}
}

func TestBothAreTold(t *testing.T) {
	var notes []string
	w := Both(noted("a", &notes), noted("b", &notes))
	failed := errors.New("no")
	err := w.Do(t.Context(), Step{Verb: "run"}, func(ctx context.Context) error {
		if within := ctx.Value(key{}); within != "ab" {
			t.Errorf("the step goes on within %v", within)
		}
		return failed
	})
	if err != failed {
		t.Errorf("Do: %v", err)
	}
	if want := []string{"a begins run", "b begins run", "b ends: no", "a ends: no"}; !slices.Equal(notes, want) {
		t.Errorf("told %q, want %q", notes, want)
	}
	notes = nil
	for _, w := range []Watch{Both(noted("a", &notes), nil), Both(nil, noted("a", &notes))} {
		_, end := w.Begin(t.Context(), Step{Verb: "stop"})
		end(failed)
	}
	if len(notes) != 4 {
		t.Errorf("told %q", notes)
	}
	if Both(nil, nil) != nil {
		t.Error("nobody and nobody are somebody")
	}
}

// BenchmarkNobody is what a step costs when nobody watches, as is the default.
func BenchmarkNobody(b *testing.B) {
	var w Watch
	b.ReportAllocs()
	for b.Loop() {
		_, end := w.Begin(b.Context(), Step{Kind: PodStage, Verb: "run", Part: "namespaces"})
		end(nil)
	}
}
